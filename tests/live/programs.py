"""Real servers for tests: started, waited for, and stopped by pid."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def until(done: Callable[[], Any], what: str, patience: float = 30) -> Any:
    """Wait until *done* gives something true, and return that."""
    end = time.monotonic() + patience
    while not (value := done()):
        assert time.monotonic() < end, f"{what}: not after {patience:.0f} s"
        time.sleep(0.01)
    return value


@contextmanager
def running(*words: str | Path, **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Run a program while the block lasts."""
    process = subprocess.Popen([str(word) for word in words], **options)
    try:
        yield process
    finally:
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


@contextmanager
def folder(user: int | str | None = None) -> Iterator[Path]:
    """Make a folder with a short name, which every user may enter, and *user* owns."""
    path = Path(tempfile.mkdtemp(prefix="osm-", dir="/var/tmp"))
    try:
        path.chmod(0o755)
        if user is not None:
            shutil.chown(path, user)
        yield path
    finally:
        shutil.rmtree(path)


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def socket_inode(pid: int, fd: int) -> int:
    """Inode of the socket that descriptor *fd* of a process is, as /proc tells it."""
    link = os.readlink(f"/proc/{pid}/fd/{fd}")
    assert link.startswith("socket:["), link
    return int(link[8:-1])


def asks(model: Any, pid: int) -> set[int]:
    """Pids that *pid* asks for certain, the kernel left out."""
    return set(model.services(model.pd(f"pid:{pid}")).pids.tolist()) - {0}


def may_ask(model: Any, pid: int) -> set[int]:
    """Pids that *pid* may ask, where it could not be decided.

    Without those that not even we may read the descriptors of: they may hold the end of anything.
    """
    unknown = model.services(model.pd(f"pid:{pid}")).unknown.pids.tolist()
    return {one for one in unknown if _readable(one)}


def _readable(pid: int) -> bool:
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            link.readlink()
    except PermissionError:
        return False
    except OSError:
        return True
    return True


def note(model: Any, node: str) -> dict[str, Any]:
    """What is told of a node, by its name."""
    data = model.data
    return dict(data.notes.get(data.names.find(node), {}))
