"""Docker without root: an ordinary user's dockerd in rootlesskit's namespaces."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.evaluation.account import ordinary_user
from benchmarks.evaluation.base import (
    Instances,
    Stage,
    comm,
    descendants,
    need,
    unmount_below,
    wait_for,
)
from benchmarks.evaluation.docker import Docker, Variant

__all__ = ["DockerRootless"]

SCRIPTS = "/usr/share/docker.io/contrib"  # Debian keeps dockerd-rootless.sh out of PATH


class DockerRootless(Docker):
    """rootlesskit, one slirp4netns for all containers, dockerd and containerd: all one user's."""

    def __init__(self) -> None:
        super().__init__("docker-rootless", Variant())

    def _daemon(self, stage: Stage) -> None:
        need("rootlesskit", package="rootlesskit")
        need("dockerd-rootless.sh", package="docker.io", path=SCRIPTS)
        user = ordinary_user(stage)
        data = stage.folder("docker")
        stage.on_close("mounts", lambda: unmount_below(data, user.run))
        os.chown(data, user.uid, user.uid)
        self._host = ("--host", f"unix://{user.run}/docker.sock")
        # The data stay below a folder of ours; without delegated cgroups of version 2 this
        # dockerd uses none, and says so in its log.
        argv = ("dockerd-rootless.sh", "--data-root", data, "--storage-driver=overlay2")
        env = {**user.env, "PATH": f"{SCRIPTS}:/usr/sbin:/usr/bin:/sbin:/bin"}
        self._await(stage, stage.spawn(*user.prefix, *argv, env=env, log="dockerd", cwd="/"))
        if "without cgroups" in self._docker("info"):
            self.note = "dockerd found no delegated cgroup v2: the containers share its cgroups"

    def _writes(self, address: str, port: int) -> None:
        """Ask inside: the host has no link to the network that rootlesskit made."""
        del address

        def count() -> int:
            said = self._docker("exec", "db", "redis-cli", "-p", str(port), "GET", "writes")
            return int(said or 0)

        first = wait_for("a write", count)
        wait_for("more writes", lambda: count() > first)

    def pids(self) -> Instances:
        """Add rootlesskit and the network helper."""
        found = super().pids()
        table = descendants(self._pid)
        found.others["network"] = [p for p in table if comm(p) == "slirp4netns"]
        found.others["daemon"] += [p for p in table if os.path.basename(exe(p)) == "rootlesskit"]
        return found


def exe(pid: int) -> str:
    """Return the path of a process's program; "" if it is gone."""
    try:
        return str(Path(f"/proc/{pid}/exe").readlink())
    except OSError:
        return ""
