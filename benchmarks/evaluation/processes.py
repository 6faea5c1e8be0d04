"""No mechanism: three processes of one user, or of three users."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.evaluation import workload
from benchmarks.evaluation.base import CannotRun, Handle, Instances, Stage, below, cache_dir, comm

PROGRAMS = (workload.DB, workload.APP, workload.BYSTANDER)


class Processes:
    """Redis, its client and a bystander in one chroot, side by side on the host.

    The chroot is there since Redis need not be installed on the host; it is no isolation.
    """

    def __init__(self, *, users: bool) -> None:
        self.name = "processes-users" if users else "processes"
        self._users = users
        self._stage: Stage | None = None
        self._instances: Instances | None = None

    def up(self, work: Path) -> Instances:
        """Start the three."""
        if os.geteuid() != 0:
            raise CannotRun("chroot needs root")
        stage = self._stage = Stage(work)
        tree = workload.rootfs(cache_dir())
        ids = [64001, 64002, 64003] if self._users else [64001] * 3
        port = workload.free_port()
        argvs = (
            workload.database(port),
            workload.application(port=port),
            workload.bystander(),
        )
        started: list[Handle] = [
            stage.spawn(
                "chroot", f"--userspec={uid}:{uid}", tree, *argv, log=f"{self.name}-{part}", cwd="/"
            )
            for part, uid, argv in zip(("db", "app", "bystander"), ids, argvs, strict=True)
        ]
        pids = [below(h.pid, c) for h, c in zip(started, PROGRAMS, strict=True)]
        workload.writes(port=port)
        self._instances = Instances.of(pids)
        return self._instances

    def pids(self) -> Instances:
        """Return the three processes."""
        if self._instances is None or not comm(self._instances.db):
            raise RuntimeError(f"{self.name} is not up")
        return self._instances

    def down(self) -> None:
        """Stop them."""
        if self._stage:
            self._stage.close()
