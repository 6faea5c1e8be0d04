"""Podman, rootful and rootless: no daemon, one conmon per container."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.evaluation import workload
from benchmarks.evaluation.account import ordinary_user
from benchmarks.evaluation.base import (
    Instances,
    Stage,
    cache_dir,
    comm,
    command,
    need,
    owned_by,
    parent,
    unmount_below,
    wait_for,
)

__all__ = ["Podman"]

IMAGE = "localhost/osmosis-evaluation"
# Raising a limit needs CAP_SYS_RESOURCE, which even root lacks on some machines; crun refuses
# hybrid cgroups.
LIMITS = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")


class Podman:
    """Three containers in a storage of their own."""

    def __init__(self, *, rootless: bool) -> None:
        self.name = "podman-rootless" if rootless else "podman"
        self._rootless = rootless
        self._stage: Stage | None = None
        self._prefix: tuple[str, ...] = ()
        self._options: tuple[str | Path, ...] = ()
        self._env: dict[str, str] = {}
        self._uid = 0

    def up(self, work: Path) -> Instances:
        """Import the image, run the containers, wait for writes."""
        need("podman", "conmon", "runc", package="podman conmon runc")
        tar = workload.rootfs_tar(cache_dir())
        stage = self._stage = Stage(work)
        stage.keep_network("cni-podman0", "podman0")
        stage.keep_cgroups("libpod_parent", "user.slice", "machine.slice")
        if self._rootless:
            self._as_user(stage)
        data, run = stage.folder("podman"), stage.short_folder()  # runroot: 50 characters
        stage.on_close("mounts", lambda: unmount_below(data, run))
        for folder in (data, run):
            os.chown(folder, self._uid, self._uid)
        self._options = ("--root", data, "--runroot", run, "--tmpdir", run / "tmp")
        self._options += ("--runtime=runc", "--cgroup-manager=cgroupfs", "--events-backend=none")
        if not self._rootless:
            stage.keep_folders("/var/lib/cni", "/run/libpod", "/run/containers", "/run/netns")
            stage.keep_folders("/var/lib/containers", "/etc/cni/net.d/cni.lock", "/run/podman")
        else:
            self._options += ("--storage-driver=overlay",)
        stage.on_close("containers", self._remove)
        # The user need not reach the cache: the tar comes as standard input.
        self._podman("import", "-", IMAGE, timeout=300, stdin=tar)
        if self._rootless:
            port, address = workload.free_port(), "10.0.2.2"  # slirp4netns's name for the host
            self._run("db", ("--network=slirp4netns", f"--publish=127.0.0.1:{port}:6379"))
            loop = ("--network=slirp4netns:allow_host_loopback=true",)
            self._run("app", loop, workload.application(address, port))
            self._run("bystander", ("--network=slirp4netns",), workload.bystander())
            workload.writes(port=port)
        else:
            self._run("db", ())
            address = self._inspect("db", "{{.NetworkSettings.IPAddress}}")
            self._run("app", (), workload.application(address))
            self._run("bystander", (), workload.bystander())
            workload.writes(host=address)
        return self.pids()

    def pids(self) -> Instances:
        """Return each container's first process, the conmons and the network helpers."""
        names = ("db", "app", "bystander")
        pids = [int(self._inspect(c, "{{.State.Pid}}")) for c in names]
        wait_for("exec", lambda: comm(pids[1]) == workload.APP[0])
        others = {"shim": sorted({parent(p) for p in pids})}
        if self._rootless:
            helpers = ("slirp4netns", "rootlessport", "containers-root")
            table = owned_by(self._uid)
            others["network"] = [p for p in table if comm(p).startswith(helpers)]
            others["helper"] = [p for p in table if comm(p).startswith(("podman", "catatonit"))]
        return Instances.of(pids, others)

    def down(self) -> None:
        """Remove the containers and the storage; and the user."""
        if self._stage:
            self._stage.close()

    def _as_user(self, stage: Stage) -> None:
        user = ordinary_user(stage)
        self._uid, self._prefix, self._env = user.uid, user.prefix, user.env

    def _podman(self, *argv: str | Path, timeout: float = 90, stdin: Path | None = None) -> str:
        line = (*self._prefix, "podman", *self._options, *argv)
        cwd = self._stage.work if self._stage else None
        return command(*line, timeout=timeout, env=self._env, cwd=cwd, stdin=stdin).strip()

    def _run(self, name: str, options: tuple[str, ...], argv: list[str] | None = None) -> None:
        argv = argv or workload.database()
        self._podman("run", "--detach", f"--name={name}", *LIMITS, *options, IMAGE, *argv)

    def _inspect(self, name: str, form: str) -> str:
        return self._podman("inspect", "--format", form, name)

    def _remove(self) -> None:
        self._podman("rm", "--force", "--all", "--time=2")
        self._podman("image", "rm", "--force", IMAGE)
