"""The common workload: Redis, an application that writes to it all the time, a bystander.

All three are programs of one Debian root filesystem, built once and kept in the cache.
"""

from __future__ import annotations

import contextlib
import shutil
import socket as sockets
import subprocess
import tarfile
import time
from pathlib import Path

from benchmarks.evaluation.base import CannotRun, command, need, wait_for

__all__ = [
    "APP",
    "BYSTANDER",
    "DB",
    "application",
    "database",
    "free_port",
    "rootfs",
    "rootfs_tar",
    "writes",
]

# How each process is known: its comm, and arguments that the shell before it has not.
DB, APP, BYSTANDER = ("redis-server",), ("redis-cli", "INCR"), ("sleep", "1000000")

_SHARE = ("doc", "man", "locale", "info")
_TRIM = (*(f"usr/share/{s}" for s in _SHARE), "var/cache/apt", "var/lib/apt/lists", "var/log")


def free_port() -> int:
    """Return a port of the host's network that nobody listens on, for who shares that network."""
    with sockets.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def database(port: int = 6379, socket: str | None = None, keep: str = "") -> list[str]:
    """Return the command of the database: it writes no file, or with *keep* its log of changes.

    A socket takes the port's place.
    """
    where = ["--port", str(port), "--bind", "0.0.0.0", "--protected-mode", "no"]
    if socket:
        where = ["--port", "0", "--unixsocket", socket, "--unixsocketperm", "777"]
    logged = ["--appendonly", "yes", "--dir", keep] if keep else ["--appendonly", "no"]
    return [*DB, *where, "--save", "", *(logged if keep else [*logged, "--dir", "/tmp"])]


def application(host: str = "127.0.0.1", port: int = 6379, socket: str | None = None) -> list[str]:
    """Return the command of the application: one connection, 20 writes a second, for ever."""
    to = f"-s {socket}" if socket else f"-h {host} -p {port}"
    wait = f"until redis-cli {to} ping >/dev/null 2>&1; do sleep 0.2; done"
    return ["sh", "-c", f"{wait}; exec redis-cli {to} -r -1 -i 0.05 INCR writes >/dev/null"]


def bystander() -> list[str]:
    """Return the command of the bystander: it does nothing."""
    return [*BYSTANDER]


def count(*, host: str = "127.0.0.1", port: int = 6379, socket: str | None = None) -> int:
    """Ask the database how many writes it has seen; OSError if it cannot be reached."""
    family = sockets.AF_UNIX if socket else sockets.AF_INET
    with sockets.socket(family, sockets.SOCK_STREAM) as s:
        s.settimeout(5)
        s.connect(socket or (host, port))
        s.sendall(b"GET writes\r\n")
        answer = s.recv(100).split(b"\r\n")
    return int(answer[1]) if answer[0].startswith(b"$") and answer[0] != b"$-1" else 0


def writes(*, host: str = "127.0.0.1", port: int = 6379, socket: str | None = None) -> int:
    """Wait until the number of writes grows: the application is at work. Returns the number."""
    first = wait_for("a write", lambda: count(host=host, port=port, socket=socket))

    def grew() -> int:
        now = count(host=host, port=port, socket=socket)
        return now if now > first else 0

    return int(wait_for("more writes", grew))


def rootfs(cache: Path) -> Path:
    """Return a folder with Debian and Redis; built with debootstrap if it is not there."""
    return _debootstrap(cache, "redis", "bookworm", ("redis-server", "redis-tools"))


def sid_rootfs(cache: Path) -> Path:
    """Return a folder with Debian sid and Apptainer, which bookworm does not have."""
    return _debootstrap(cache, "sid", "sid", ("apptainer",))


def rootfs_tar(cache: Path) -> Path:
    """Return the root filesystem as a tar, to import as an image."""
    tar = cache / "redis.tar"
    if not tar.exists():
        tree, part = rootfs(cache), tar.with_suffix(".part")
        with tarfile.open(part, "w") as out:
            out.add(tree, ".", filter=lambda m: None if m.isdev() else m)
        part.rename(tar)
    return tar


def _debootstrap(cache: Path, name: str, suite: str, packages: tuple[str, ...]) -> Path:
    tree = cache / f"build-{name}"
    mark = cache / f"build-{name}.done"
    if mark.exists() and tree.exists():
        return tree
    need("debootstrap", package="debootstrap")
    cache.mkdir(parents=True, exist_ok=True)
    if tree.exists():
        shutil.rmtree(tree)
    argv = ["debootstrap", "--variant=minbase", f"--include={','.join(packages)}", suite]
    started = time.monotonic()
    try:
        command(*argv, tree, timeout=900)
    except (RuntimeError, subprocess.TimeoutExpired) as exc:
        raise CannotRun(f"no root filesystem: {exc}") from exc
    for folder in _TRIM:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(tree / folder)
        (tree / folder).mkdir(parents=True)
    mark.write_text(f"{suite} {' '.join(packages)}, {time.monotonic() - started:.0f} s\n")
    return tree
