"""A Redis of our own, on a unix socket in a directory of its own, and its own benchmark client."""

from __future__ import annotations

import csv
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

KEYS = 50_000
VALUE = 1000  # bytes
CLIENTS = 16


def missing() -> str:
    """Name of the program that is not installed, or ""."""
    return next((p for p in ("redis-server", "redis-benchmark") if not shutil.which(p)), "")


class Redis:
    """A context manager; ``pid`` is the server's, which writes nothing to disk."""

    def __init__(self) -> None:
        self.pid = 0
        self._server: subprocess.Popen[bytes] | None = None
        self._directory = ""

    def __enter__(self) -> Self:
        self._directory = tempfile.mkdtemp(prefix="osmosis-redis-")
        command = ["redis-server", "--port", "0", "--unixsocket", self._path, "--save", "",
                   "--appendonly", "no", "--dir", self._directory]  # fmt: skip
        self._server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self.pid = self._server.pid
        try:
            deadline = time.monotonic() + 20
            while not self._answers():
                if self._server.poll() is not None or time.monotonic() > deadline:
                    msg = "redis-server does not answer"
                    raise RuntimeError(msg)
                time.sleep(0.05)
            self._load(100_000, pipelined=16)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def _path(self) -> str:
        return str(Path(self._directory, "socket"))

    def _answers(self) -> bool:
        try:
            return self.ask("PING") == "+PONG"
        except OSError:
            return False

    def ask(self, command: str) -> str:
        """One command; the first line of its answer."""
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(5)
            s.connect(self._path)
            s.sendall(command.encode() + b"\r\n")
            return s.makefile().readline().strip()

    def _load(self, requests: int, *, pipelined: int = 1) -> dict[str, float]:
        command = ["redis-benchmark", "-s", self._path, "-t", "set", "-r", str(KEYS), "-d",
                   str(VALUE), "-c", str(CLIENTS), "-n", str(requests), "-P", str(pipelined),
                   "--csv"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        (row,) = csv.DictReader(done.stdout.splitlines())
        return {name: float(value) for name, value in row.items() if name != "test"}

    def load(self, requests: int) -> dict[str, float]:
        """Write that many values to keys at random, from 16 connections that wait for answers.

        What the client reports: ``rps``, and ``p50_latency_ms``, ``p99_latency_ms``,
        ``max_latency_ms`` ... of its requests.
        """
        return self._load(requests)


def processors() -> int:
    """How many processors the server, its client and who disturbs them share."""
    return len(os.sched_getaffinity(0))
