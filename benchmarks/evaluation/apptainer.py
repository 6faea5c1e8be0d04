"""Apptainer: three instances, started by root without privileges, from a Debian sid tree.

Debian 12 has no Apptainer: the program stands in a tree of its own, entered through a mount
namespace. The instances go on without whoever entered.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from benchmarks.evaluation import workload
from benchmarks.evaluation.base import (
    Instances,
    Stage,
    below,
    cache_dir,
    comm,
    command,
    need,
    parent,
    parents,
    wait_for,
)

__all__ = ["Apptainer"]

# pivot_root wants a mount point for its root; a plain chroot has its own mount point above.
_ENTER = r"""
set -e
mount --make-rprivate /
mount --bind "$TREE" "$TREE"
cd "$TREE"
for d in proc sys dev run; do mount --rbind "/$d" "$d"; done
mount -t tmpfs tmpfs tmp
mkdir -p "$TREE/mnt/cache" && mount --bind "$CACHE" mnt/cache
mkdir -p mnt/old && pivot_root . mnt/old
umount -l /mnt/old
cd /
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
exec "$@"
"""


class Apptainer:
    """Network, ipc and home are the host's: what Apptainer does unless told otherwise."""

    name = "apptainer"

    def __init__(self) -> None:
        self._stage: Stage | None = None
        self._instances: Instances | None = None

    def up(self, work: Path) -> Instances:
        """Build the image if it is not in the cache, start the instances, exec into them."""
        need("unshare", "pivot_root", package="util-linux")
        cache = cache_dir()
        sid = workload.sid_rootfs(cache)
        for name in ("etc/hosts", "etc/localtime"):
            (sid / name).touch()
        workload.rootfs(cache)
        stage = self._stage = Stage(work)
        home = stage.folder("apptainer-home")  # instance records, out of root's own home
        stage.keep_cgroups("apptainer")
        script = stage.folder("apptainer-enter") / "enter.sh"
        script.write_text(_ENTER)
        env = {"TREE": str(sid), "CACHE": str(cache), "APPTAINER_CONFIGDIR": f"/proc/1/root{home}"}
        enter = ("unshare", "-m", "sh", script)
        if not (cache / "redis.sif").exists():
            build = ("apptainer", "build", "--force", "/mnt/cache/redis.part.sif")
            command(*enter, *build, f"/mnt/cache/{cache_name(cache)}", env=env, timeout=600)
            (cache / "redis.part.sif").rename(cache / "redis.sif")
        # One entry for all: the records of the instances are in its mount namespace.
        shell = stage.spawn(*enter, "sleep", "1000000", env=env, log="apptainer", cwd="/")
        wait_for("the tree", lambda: comm(shell.pid) == "sleep")
        before = set(parents())
        stage.on_close("instances", lambda: self._stop(before))
        self._enter = ("nsenter", f"--target={shell.pid}", "--mount", "--root", "--wd")
        port = workload.free_port()
        parts = (
            ("db", workload.DB, workload.database(port)),
            ("app", workload.APP, workload.application(port=port)),
            ("bystander", workload.BYSTANDER, workload.bystander()),
        )
        pids, starters = [], []
        for name, wanted, argv in parts:
            self._apptainer("instance", "start", "--no-privs", "/mnt/cache/redis.sif", name)
            line = ("apptainer", "exec", "--no-privs", f"instance://{name}", *argv)
            started = stage.spawn(*self._enter, *line, env=_PATHS, log=f"apptainer-{name}")
            pids.append(below(started.pid, wanted))
            starters.append(parent(pids[-1]))
        workload.writes(port=port)
        inits = [_first_in_namespace(pid) for pid in pids]
        shims = sorted({*starters, *inits, *map(parent, inits)})
        self._instances = Instances.of(pids, {"shim": shims})
        return self._instances

    def _apptainer(self, *argv: str) -> str:
        return command(*self._enter, "apptainer", *argv, env=_PATHS, timeout=60)

    def _stop(self, before: set[int]) -> None:
        stage = self._stage
        if stage is None:
            return
        self._apptainer("instance", "stop", "--all", "--timeout", "3")
        wait_for("no instance", lambda: not self._left(before), 10)

    def _left(self, before: set[int]) -> list[int]:
        return [p for p in set(parents()) - before if comm(p) in ("appinit", "starter")]

    def pids(self) -> Instances:
        """Return the three, and what they were started by."""
        if self._instances is None or not comm(self._instances.db):
            raise RuntimeError("apptainer is not up")
        return self._instances

    def down(self) -> None:
        """Stop the instances."""
        if self._stage:
            self._stage.close()


_PATHS = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}


def _first_in_namespace(pid: int) -> int:
    """Return the first process of *pid*'s pid namespace: appinit, where *pid* was executed in."""
    space = os.readlink(f"/proc/{pid}/ns/pid")
    for other in sorted(parents()):
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{other}/status").read_text(errors="replace")
            inner = status.partition("NSpid:")[2].split("\n")[0].split()
            if inner[-1:] == ["1"] and os.readlink(f"/proc/{other}/ns/pid") == space:
                return other
    raise RuntimeError(f"no init in the pid namespace of {pid}")


def cache_name(cache: Path) -> str:
    """Return the name of the workload's tree below the cache."""
    return workload.rootfs(cache).relative_to(cache).as_posix()
