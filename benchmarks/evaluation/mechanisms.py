"""Every mechanism by name, in the order of the paper's comparison."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.evaluation.apptainer import Apptainer
from benchmarks.evaluation.base import CannotRun, Instances, Mechanism
from benchmarks.evaluation.bubblewrap import Bubblewrap
from benchmarks.evaluation.docker import VARIANTS, Docker, Gvisor
from benchmarks.evaluation.nspawn import Nspawn
from benchmarks.evaluation.podman import Podman
from benchmarks.evaluation.processes import Processes

__all__ = ["MECHANISMS", "PACKAGES"]


class Unavailable:
    """A mechanism that nothing here can bring up, and why."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self._reason = reason

    def up(self, work: Path) -> Instances:  # noqa: ARG002
        """Raise the reason."""
        raise CannotRun(self._reason)

    def pids(self) -> Instances:
        """Raise the reason."""
        raise CannotRun(self._reason)

    def down(self) -> None:
        """Nothing was started."""


MECHANISMS: dict[str, Callable[[], Mechanism]] = {
    "processes": lambda: Processes(users=False),
    "processes-users": lambda: Processes(users=True),
    "docker": Docker,
    "podman": lambda: Podman(rootless=False),
    "podman-rootless": lambda: Podman(rootless=True),
    "apptainer": Apptainer,
    "gvisor": Gvisor,
    "bubblewrap": Bubblewrap,
    "nspawn": Nspawn,
}
MECHANISMS["docker-rootless"] = lambda: Unavailable(
    "docker-rootless", "no script for it yet: it wants rootlesskit and a user's own dockerd"
)
for _name in VARIANTS:
    if _name != "docker":
        MECHANISMS[_name] = lambda name=_name: Docker(name)  # type: ignore[misc]

# Debian 12; runsc and Apptainer come from packages of their own, see docker.py and workload.py.
PACKAGES = (
    "docker.io iptables podman conmon runc uidmap slirp4netns fuse-overlayfs bubblewrap "
    "systemd-container debootstrap"
)
