"""Files that commands write: never over another without ``--force``, never half."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from osmosis.errors import OsmosisError
from osmosis.graph.pds import escape

__all__ = ["OutputError", "new_file", "refuse_to_overwrite", "write_text"]


class OutputError(OsmosisError):
    """A file is not written, and why."""


def refuse_to_overwrite(path: Path, *, force: bool) -> None:
    """Raise OutputError if *path* is there, dangling links included, and *force* is not given."""
    if path.is_dir():
        raise OutputError(f"{escape(str(path))} is a directory; name a file")
    if not force and os.path.lexists(path):
        raise OutputError(f"{escape(str(path))} exists; --force overwrites it")
    if not path.parent.is_dir():
        raise OutputError(f"{escape(str(path.parent))} is no directory")


def write_text(path: Path, text: str, *, force: bool) -> None:
    """Write *text* as UTF-8, mode 0600: whole, or not at all.

    Raises
    ------
    OutputError
        *path* is there, and *force* is not given.
    OSError
        The directory cannot be written.
    """
    with new_file(path, force=force) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def new_file(path: Path, *, force: bool) -> Iterator[Path]:
    """Give a file beside *path*, mode 0600, that takes its place when all went well.

    Raises
    ------
    OutputError
        *path* is there, and *force* is not given.
    OSError
        The directory cannot be written.
    """
    refuse_to_overwrite(path, force=force)
    fd, name = tempfile.mkstemp(prefix=".osmosis.", dir=path.parent)
    os.close(fd)
    temporary = Path(name)
    try:
        yield temporary
        if force:
            temporary.replace(path)
        else:
            os.link(temporary, path)  # fails where replace would overwrite
    except FileExistsError as exc:
        raise OutputError(f"{escape(str(path))} exists; --force overwrites it") from exc
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
