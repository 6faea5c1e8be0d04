"""bubblewrap: three sandboxes of one user, each with namespaces of its own and no cgroup."""

from __future__ import annotations

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
    unmount_below,
)

__all__ = ["Bubblewrap"]

UID = 64001


class Bubblewrap:
    """The network namespaces have no link between them: the socket is in a shared folder."""

    name = "bubblewrap"

    def __init__(self) -> None:
        self._stage: Stage | None = None
        self._instances: Instances | None = None

    def up(self, work: Path) -> Instances:
        """Start the three sandboxes."""
        need("bwrap", package="bubblewrap")
        stage = self._stage = Stage(work)
        tree = stage.folder("bubblewrap-root")  # the user cannot reach the cache
        stage.on_close("mounts", lambda: unmount_below(tree))
        command("mount", "--bind", workload.rootfs(cache_dir()), tree)
        shared = stage.folder("bubblewrap-shared")
        shared.chmod(0o777)
        inside = "/mnt/kvs.sock"
        argvs = (
            (workload.DB, workload.database(socket=inside), ("--bind", shared, "/mnt")),
            (workload.APP, workload.application(socket=inside), ("--bind", shared, "/mnt")),
            (workload.BYSTANDER, workload.bystander(), ()),
        )
        user = ("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "--")
        box: tuple[str | Path, ...] = (
            "--unshare-all",
            "--ro-bind",
            tree,
            "/",
            "--proc",
            "/proc",
            "--dev",
            "/dev",
        )
        box += ("--tmpfs", "/tmp", "--die-with-parent")
        pids = []
        for wanted, argv, options in argvs:
            line = (*user, "bwrap", *box, *options, *argv)
            log = f"{self.name}-{wanted[0]}"  # of its own: a common file would be shared
            pids.append(below(stage.spawn(*line, log=log, cwd="/").pid, wanted))
        workload.writes(socket=str(shared / "kvs.sock"))
        shims = [parent(parent(p)) for p in pids]
        self._instances = Instances.of(pids, {"shim": shims})
        return self._instances

    def pids(self) -> Instances:
        """Return the three, and the bwrap that waits outside for each."""
        if self._instances is None or not comm(self._instances.db):
            raise RuntimeError("bubblewrap is not up")
        return self._instances

    def down(self) -> None:
        """Stop the outer bwraps: each takes its sandbox along."""
        if self._stage:
            self._stage.close()
