"""Every mechanism by name, in the order of the paper's comparison."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.evaluation.apptainer import Apptainer
from benchmarks.evaluation.base import Mechanism
from benchmarks.evaluation.bubblewrap import Bubblewrap
from benchmarks.evaluation.docker import VARIANTS, Docker, Gvisor
from benchmarks.evaluation.docker_rootless import DockerRootless
from benchmarks.evaluation.nspawn import Nspawn
from benchmarks.evaluation.podman import Podman
from benchmarks.evaluation.processes import Processes

__all__ = ["MECHANISMS"]

MECHANISMS: dict[str, Callable[[], Mechanism]] = {
    "processes": lambda: Processes(users=False),
    "processes-users": lambda: Processes(users=True),
    "docker": Docker,
    "docker-rootless": DockerRootless,
    "podman": lambda: Podman(rootless=False),
    "podman-rootless": lambda: Podman(rootless=True),
    "apptainer": Apptainer,
    "gvisor": Gvisor,
    "bubblewrap": Bubblewrap,
    "nspawn": Nspawn,
}
for _name in VARIANTS:
    if _name != "docker":
        MECHANISMS[_name] = lambda name=_name: Docker(name)  # type: ignore[misc]
