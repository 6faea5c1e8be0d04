"""systemd-nspawn without machined: three trees over one Debian, on the host's network."""

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

__all__ = ["Nspawn"]


class Nspawn:
    """nspawn refuses one tree for two containers: each gets an overlay."""

    name = "nspawn"

    def __init__(self) -> None:
        self._stage: Stage | None = None
        self._instances: Instances | None = None

    def up(self, work: Path) -> Instances:
        """Start the three."""
        need("systemd-nspawn", package="systemd-container")
        tree = workload.rootfs(cache_dir())
        stage = self._stage = Stage(work)
        stage.keep_folders("/run/systemd/nspawn")
        stage.keep_cgroups("payload", "supervisor")
        port = workload.free_port()
        parts = {
            "db": (workload.DB, workload.database(port)),
            "app": (workload.APP, workload.application(port=port)),
            "bystander": (workload.BYSTANDER, workload.bystander()),
        }
        pids = []
        for name, (wanted, argv) in parts.items():
            root = self._overlay(stage, tree, name)
            line: tuple[str | Path, ...] = (
                "systemd-nspawn",
                "-q",
                "--register=no",
                "--keep-unit",
                "-D",
                root,
            )
            line += (f"--machine={name}", "--resolv-conf=off", "--timezone=off", *argv)
            pids.append(below(stage.spawn(*line, log=f"nspawn-{name}").pid, wanted))
        workload.writes(port=port)
        self._instances = Instances.of(pids, {"shim": [parent(p) for p in pids]})
        return self._instances

    def _overlay(self, stage: Stage, tree: Path, name: str) -> Path:
        base = stage.folder(f"nspawn-{name}")
        stage.on_close("mounts", lambda: unmount_below(base))
        for part in ("upper", "work", "root"):
            (base / part).mkdir(exist_ok=True)
        layers = f"lowerdir={tree},upperdir={base}/upper,workdir={base}/work"
        command("mount", "-t", "overlay", "overlay", "-o", layers, base / "root")
        return base / "root"

    def pids(self) -> Instances:
        """Return the three, and their nspawns."""
        if self._instances is None or not comm(self._instances.db):
            raise RuntimeError("nspawn is not up")
        return self._instances

    def down(self) -> None:
        """Stop them, unmount the overlays."""
        if self._stage:
            self._stage.close()
