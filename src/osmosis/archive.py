"""Snapshots as files: a zip of .npy members and a JSON manifest, and nothing executable.

A file from elsewhere is hostile until checked: sizes are bounded before anything is
allocated, no pickle is ever read, and ``osmosis.snapshot.check`` sees every column before a
query does.
"""

import contextlib
import json
import os
import re
import tempfile
import zipfile
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.errors import SnapshotError
from osmosis.schema import COLUMNS, VERSION
from osmosis.snapshot import Snapshot, empty_columns

__all__ = ["load", "save"]

_MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 64 << 20
# Columns of a real snapshot are 3 to 40 times their size in the file; one that claims more than
# that is only believed while it is small.
_MAX_RATIO = 200
_ALWAYS_BYTES = 256 << 20
# What ``write_array`` writes before the values: magic, version 1.0, length, and this dictionary.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(..)\{'descr': '([<|][iu][1248])', 'fortran_order': False, "
    rb"'shape': \((\d{1,15}),\), \} *\n",
    re.DOTALL,
)


def save(snapshot: Snapshot, path: str | PathLike[str]) -> None:
    """Write *snapshot* to *path*: mode 0600, and either whole or not at all.

    Raises
    ------
    OSError
        The directory cannot be written.
    """
    path = Path(path)
    manifest = {
        "format": "osmosis snapshot",
        "version": VERSION,
        "host": dict(snapshot.host),
        "columns": {
            name: {"dtype": COLUMNS[name].dtype, "length": len(array)}
            for name, array in snapshot.columns.items()
        },
    }
    # mkstemp gives mode 0600; os.replace is atomic within the directory.
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with (
            os.fdopen(fd, "wb") as file,
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        ):
            archive.writestr(_MANIFEST, json.dumps(manifest, sort_keys=True))
            for name, array in snapshot.columns.items():
                if not len(array):
                    continue
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
            archive.close()
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise


def load(path: str | PathLike[str]) -> Snapshot:
    """Read a snapshot that ``Snapshot.save`` wrote, on any host, by any user.

    Raises
    ------
    SnapshotError
        The file is damaged, hostile, or of a newer schema; ``where`` says in which member.
    OSError
        It cannot be opened.
    """
    where = os.fspath(path)
    with Path(path).open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return _read(archive, where, os.fstat(file.fileno()).st_size)
        except SnapshotError:
            raise
        except zipfile.BadZipFile as exc:
            raise SnapshotError(where, f"is not a whole zip file: {exc}") from exc
        except Exception as exc:  # zipfile, zlib and json each raise many kinds on hostile bytes
            raise SnapshotError(where, f"is damaged: {type(exc).__name__}: {exc}") from exc


def _read(archive: zipfile.ZipFile, where: str, size: int) -> Snapshot:
    members = {info.filename: info for info in archive.infolist()}
    if len(members) != len(archive.infolist()):
        raise SnapshotError(where, "has two members of one name")
    claimed = sum(info.file_size for info in members.values())
    if claimed > max(_ALWAYS_BYTES, size * _MAX_RATIO):
        raise SnapshotError(where, f"claims to hold {claimed} bytes in a file of {size}")
    manifest = _manifest(archive, members, where)
    columns = empty_columns()
    described = manifest["columns"]
    for name in described:
        if name not in COLUMNS:
            raise SnapshotError(f"{where}: {name}", "is not a column of this schema version")
    for filename, info in members.items():
        name = filename.removesuffix(".npy")
        if filename == _MANIFEST:
            continue
        if name not in described or name + ".npy" != filename:
            raise SnapshotError(f"{where}: {filename}", "is not in the manifest")
        columns[name] = _column(archive, info, where, name)
    for name, facts in described.items():
        if facts["length"] != len(columns[name]):
            why = f"has {len(columns[name])} values, the manifest says {facts['length']}"
            raise SnapshotError(f"{where}: {name}", why)
    try:
        return Snapshot(columns, manifest["host"])
    except SnapshotError as exc:
        raise SnapshotError(f"{where}: {exc.where}", exc.why) from exc


def _manifest(
    archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], where: str
) -> dict[str, Any]:
    info = members.get(_MANIFEST)
    if info is None or info.file_size > _MAX_MANIFEST_BYTES:
        raise SnapshotError(where, "has no manifest: it is not an osmosis snapshot")
    manifest = json.loads(_bytes(archive, info, f"{where}: {_MANIFEST}"))
    if not isinstance(manifest, dict) or manifest.get("format") != "osmosis snapshot":
        raise SnapshotError(f"{where}: {_MANIFEST}", "is not of an osmosis snapshot")
    version = manifest.get("version")
    if version != VERSION:
        why = (
            f"has schema version {version!r}, this osmosis reads {VERSION}: capture again, or read"
            " it with the osmosis that wrote it"
        )
        raise SnapshotError(f"{where}: {_MANIFEST}", why)
    if not isinstance(manifest.get("host"), dict) or not isinstance(manifest.get("columns"), dict):
        raise SnapshotError(f"{where}: {_MANIFEST}", "has no host facts or no columns")
    return manifest


def _column(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str, name: str) -> NDArray[Any]:
    at = f"{where}: {info.filename}"
    data = _bytes(archive, info, at)
    header = _HEADER.match(data)
    if header is None:
        raise SnapshotError(at, "is not a .npy file of one column of integers")
    dtype = np.dtype(header[2].decode())
    if dtype != np.dtype(COLUMNS[name].dtype):
        raise SnapshotError(at, f"holds {dtype}, not {COLUMNS[name].dtype}")
    if 10 + int.from_bytes(header[1], "little") != header.end():
        raise SnapshotError(at, "has a header of another length than it says")
    n, rest = int(header[3]), len(data) - header.end()
    if n * dtype.itemsize != rest:
        raise SnapshotError(at, f"holds {rest} bytes, not {n} values of {dtype.itemsize}")
    return np.frombuffer(data, dtype, n, header.end()).copy()


def _bytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo, at: str) -> bytes:
    """Return the bytes of a member: as many as it claims, whatever it would inflate to."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise SnapshotError(at, f"is compressed by method {info.compress_type}")
    try:
        with archive.open(info) as member:
            # A read without a size would inflate gigabytes before it counts them.
            data = member.read(info.file_size)
    except Exception as exc:
        raise SnapshotError(at, f"is damaged: {exc or type(exc).__name__}") from exc
    if len(data) != info.file_size:
        raise SnapshotError(at, f"has {len(data)} bytes, the archive says {info.file_size}")
    return data
