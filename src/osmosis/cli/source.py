"""Where a command's model comes from: the live host, a snapshot, or a CSV of the paper's tool."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from osmosis.archive import load
from osmosis.capture.host import capture
from osmosis.formats.csv import read_csv
from osmosis.model import Model
from osmosis.snapshot import Snapshot

__all__ = ["Source", "capture_host", "open_source"]

ZIP = b"PK"  # the first bytes of every zip file, which a snapshot is


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A model and where it was seen."""

    model: Model
    host: Mapping[str, Any] | None  # facts of the host; None for a CSV
    live: bool
    name: str  # of the file; "" for the live host


class _Advance(Protocol):
    def __call__(self, done: int, total: int, /) -> None: ...


def open_source(path: Path | None, by: str | None = None) -> Source:
    """Capture this host, or read *path*; what it is, its first bytes tell.

    Raises
    ------
    OsmosisError
        The file is neither, or damaged; or *by* is no key of groups.
    OSError
        It cannot be read.
    """
    host: Mapping[str, Any] | None = None
    if path is not None and not _is_zip(path):
        model = read_csv(path)
    else:
        snapshot = capture_host() if path is None else load(path)
        model, host = snapshot.model(), snapshot.host
    if by is not None:
        model = model.group_by(by)
    return Source(
        model,
        host,
        path is None,
        "" if path is None else str(path),
    )


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(ZIP)) == ZIP


def capture_host(*, frames: str = "classes") -> Snapshot:
    """Capture this host, with a bar on stderr where that is a terminal."""
    with _progress() as advance:
        return capture(frames=frames, progress=advance)


@contextmanager
def _progress() -> Iterator[_Advance | None]:
    if not sys.stderr.isatty():
        yield None
        return
    bar = Progress(
        TextColumn("capture"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task("capture", total=None)

        def advance(done: int, total: int, /) -> None:
            bar.update(task, completed=done, total=total)

        yield advance
