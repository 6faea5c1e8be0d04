"""Install Debian's packages of every mechanism; what cannot be had stops its mechanism alone."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from benchmarks.evaluation.base import command

__all__ = ["PACKAGES", "install"]

# Debian 12; runsc and Apptainer come from packages of their own, see docker.py and workload.py.
PACKAGES = (
    *("docker.io", "iptables", "iproute2", "rootlesskit", "podman", "conmon", "runc", "uidmap"),
    *("slirp4netns", "fuse-overlayfs", "bubblewrap", "systemd-container", "debootstrap"),
    "util-linux",
)
POLICY = Path("/usr/sbin/policy-rc.d")


def install() -> list[str]:
    """Bring what is missing; returns what could not be brought, and why."""
    missing = [name for name in PACKAGES if not _installed(name)]
    if not missing:
        return []
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return [f"{' '.join(missing)}: only root of a Debian or Ubuntu can install them"]
    with _no_services():
        _apt("update", "-q")
        if not _apt("install", "-qy", "--no-install-recommends", *missing):
            return []
        # One that is not to be had must not keep the others away.
        said = {
            name: why
            for name in missing
            if (why := _apt("install", "-qy", "--no-install-recommends", name))
        }
    return [f"{name}: {why}" for name, why in said.items()]


def _apt(*argv: str) -> str:
    """Run apt-get; returns why it failed, or ""."""
    try:
        command("apt-get", *argv, env={"DEBIAN_FRONTEND": "noninteractive"}, timeout=900)
    except (RuntimeError, subprocess.TimeoutExpired) as exc:
        return str(exc)[-300:]
    return ""


def _installed(name: str) -> bool:
    said = command("dpkg-query", "-W", "-f=${Status}", name, check=False)
    return said == "install ok installed"


@contextlib.contextmanager
def _no_services() -> Iterator[None]:
    """Keep packages from starting their daemons: we start ours, with folders of our own."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()
