"""The record of one host at one moment: frozen columns, host facts, and the ledger.

The columns are those of ``osmosis.schema``, and nothing else passes between capture and
analysis. A snapshot can be analysed anywhere, by any user: queries never touch /proc.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from osmosis.errors import SnapshotError
from osmosis.schema import COLUMNS, NAMESPACES, FrameKind, Status, VmaKind

if TYPE_CHECKING:
    from osmosis.model import Model

__all__ = ["Coverage", "CoverageRow", "Snapshot", "StringPool", "check", "empty_columns"]

Columns = Mapping[str, NDArray[Any]]


class StringPool:
    """Byte strings, each kept once; a column holds their row numbers."""

    def __init__(self) -> None:
        self._row: dict[bytes, int] = {}
        self._texts: list[bytes] = []
        self._lock = Lock()

    def add(self, text: bytes | None) -> int:
        """Row of *text*, added if it is new; -1 for None (not known). Thread-safe."""
        if text is None:
            return -1
        row = self._row.get(text)
        if row is None:
            with self._lock:
                row = self._row.setdefault(text, len(self._row))
        return row

    def add_all(self, texts: Sequence[bytes | None]) -> NDArray[np.int32]:
        """Rows of many texts, (len(texts),) int32."""
        return np.fromiter(map(self.add, texts), np.int32, len(texts))

    def text(self, row: int) -> bytes:
        """Return string number *row*. O(1) after the first call since the last ``add``."""
        if len(self._texts) < len(self._row):
            self._texts = list(self._row)
        return self._texts[row]

    def texts(self, rows: NDArray[Any]) -> set[bytes]:
        """Return the distinct texts of some rows; O(size of the pool)."""
        wanted = set(rows.tolist())
        return {text for text, row in self._row.items() if row in wanted}

    def columns(self) -> dict[str, NDArray[Any]]:
        """``string_indptr`` and ``byte_data`` of what was added so far."""
        lengths = np.fromiter(map(len, self._row), np.int64, len(self._row))
        return {
            "string_indptr": np.concatenate([[0], np.cumsum(lengths)]).astype("<i8"),
            "byte_data": np.frombuffer(b"".join(self._row), np.uint8),
        }


@dataclass(frozen=True, slots=True)
class CoverageRow:
    """What became of one source of truth for one process, or for the host (pid 0)."""

    pid: int
    source: str
    status: str  # read, gone, denied, torn, hidden, partial, skipped
    count: int  # frames, fds ... that the row speaks of; 0 if it is one thing
    reason: str


class Coverage(Sequence[CoverageRow]):
    """The ledger: one row per (process, source), so that nothing is lost silently."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def __len__(self) -> int:
        return len(self._snapshot["ledger_status"])

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        s = self._snapshot
        return CoverageRow(
            int(s["ledger_pid"][i]),
            s.text(s["ledger_source"][i]),
            Status.NAMES[s["ledger_status"][i]],
            int(s["ledger_count"][i]),
            s.text(s["ledger_reason"][i]),
        )

    def __iter__(self) -> Iterator[CoverageRow]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        gaps = int(np.count_nonzero(self._snapshot["ledger_status"] != Status.READ))
        return f"<Coverage of {len(self)} rows, {gaps} not fully read>"

    @property
    def gaps(self) -> list[CoverageRow]:
        """The rows of what was not fully read."""
        rows = np.flatnonzero(self._snapshot["ledger_status"] != Status.READ)
        return [self[int(i)] for i in rows]

    @property
    def complete(self) -> bool:
        """Whether everything that was asked for was read."""
        return bool((self._snapshot["ledger_status"] == Status.READ).all())

    def counts(self) -> dict[tuple[str, str], int]:
        """How many rows there are of each (source, status)."""
        s = self._snapshot
        pairs = zip(s["ledger_source"].tolist(), s["ledger_status"].tolist(), strict=True)
        return {
            (s.text(source), Status.NAMES[status]): n
            for (source, status), n in Counter(pairs).items()
        }


class Snapshot:
    """One host at one moment.

    ``snap["process_pid"]`` is a column (see ``osmosis.schema.COLUMNS`` for all of them, with
    their meaning); the arrays are read-only. ``snap.host`` are facts of the host: boot id,
    kernel, page size, capabilities of the collector, user names ... ``snap.coverage`` is the
    ledger. Snapshots compare by identity.

    Raises
    ------
    SnapshotError
        A column is missing, of another type or length, or points outside its table.

    """

    __slots__ = ("_columns", "_host", "_model")

    def __init__(self, columns: Columns, host: Mapping[str, Any]) -> None:
        columns = {**empty_columns(), **columns}
        check(columns)
        page = host.get("page_size", 4096)
        if type(page) is not int or not 0 < page <= 1 << 30:
            raise SnapshotError("page_size", f"of the host facts is {page!r}, not a size")
        for column in columns.values():
            column.setflags(write=False)
        self._columns = MappingProxyType(columns)
        self._host = MappingProxyType(dict(host))
        self._model: dict[str, Model] = {}

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._columns[name]

    def __repr__(self) -> str:
        return f"<Snapshot of {self.n_processes} processes, {len(self['vma_start'])} VMAs>"

    @property
    def columns(self) -> Columns:
        """Every column by its full name; read-only."""
        return self._columns

    @property
    def host(self) -> Mapping[str, Any]:
        """Facts of the host: JSON values only."""
        return self._host

    @property
    def n_processes(self) -> int:
        """Number of userland processes."""
        return len(self["process_pid"])

    @property
    def coverage(self) -> Coverage:
        """The ledger of what was read, and what was not and why."""
        return Coverage(self)

    def bytes(self, row: int) -> bytes:
        """Byte string number *row* of the pool; b"" for -1, which stands for "not known"."""
        if row < 0:
            return b""
        indptr = self["string_indptr"]
        return self["byte_data"][indptr[row] : indptr[row + 1]].tobytes()

    def text(self, row: int) -> str:
        """Return string number *row* as str: bytes that are not UTF-8 become lone surrogates."""
        return self.bytes(row).decode("utf-8", "surrogateescape")

    def texts(self, name: str) -> list[str]:
        """Return a whole string column as list of str, decoding each distinct string once."""
        rows, inverse = np.unique(self[name], return_inverse=True)
        distinct = [self.text(int(row)) for row in rows]
        return [distinct[i] for i in inverse.tolist()]

    def replace(self, **columns: NDArray[Any]) -> Snapshot:
        """Return a snapshot with some columns changed, for what-if questions.

        Raises
        ------
        SnapshotError
            A name is not a column, or the changed columns do not fit the others.

        """
        for name in columns:
            if name not in COLUMNS:
                raise SnapshotError(name, "is not a column; osmosis.schema.COLUMNS lists them")
        changed = {name: _cast(name, given) for name, given in columns.items()}
        return Snapshot({**self._columns, **changed}, self._host)

    def save(self, path: str | PathLike[str]) -> None:
        """Write to one file, mode 0600, atomically. See ``osmosis.archive``."""
        from osmosis.archive import save

        save(self, path)

    def model(self, *, memory: str = "classes") -> Model:
        """Build the OSmosis model of this snapshot; built once per granularity and kept.

        Parameters
        ----------
        memory
            What one memory object is. ``"classes"``: all frames of exactly the same mappings;
            ``"runs"``: co-contiguous physical runs, ``"pages"``: each frame by itself, as the
            paper's tool can; both need a capture with ``frames="all"``.

        """
        if memory not in self._model:
            from osmosis.model import Model
            from osmosis.relations.build import build

            self._model[memory] = Model(build(self, memory=memory))
        return self._model[memory]


def _cast(name: str, given: Any) -> NDArray[Any]:
    """*given* as a column of its own type; never another value: 2**32 is not uid 0."""
    dtype = COLUMNS[name].dtype
    try:
        column = np.array(given, dtype)
        same = bool(np.array_equal(column, np.asarray(given)))
    except (ValueError, TypeError, OverflowError) as exc:
        raise SnapshotError(name, f"does not take these values: {exc}") from exc
    if not same:
        raise SnapshotError(name, f"has values that {np.dtype(dtype)} cannot hold")
    return column


def empty_columns() -> dict[str, NDArray[Any]]:
    """Every column, of tables without rows."""
    return {
        name: np.zeros(1 if column.indptr else 0, column.dtype) for name, column in COLUMNS.items()
    }


def _row_counts(columns: Columns) -> dict[str, int]:
    rows: dict[str, int] = {}
    for name, column in COLUMNS.items():
        n = len(columns[name]) - (column.indptr is not None)
        if rows.setdefault(column.table, n) != n:
            why = f"has {n} rows, other columns of {column.table!r} have {rows[column.table]}"
            raise SnapshotError(name, why)
    return rows


def check(columns: Columns) -> None:
    """Raise SnapshotError unless every type, length, index and offset holds.

    O(total size). What passes here cannot make a query read outside an array.
    """
    for name, column in COLUMNS.items():
        array = columns[name]
        if array.ndim != 1 or array.dtype != np.dtype(column.dtype):
            raise SnapshotError(name, f"is {array.ndim}-d {array.dtype}, not 1-d {column.dtype}")
        if column.indptr and not len(array):
            raise SnapshotError(name, "is empty: an offset column begins with 0")
    if unknown := set(columns) - set(COLUMNS):
        raise SnapshotError(min(unknown), "is not a column")
    rows = _row_counts(columns)
    for name, column in COLUMNS.items():
        array = columns[name]
        if column.indptr:
            if array[0] != 0 or array[-1] != rows[column.indptr] or _falls(array):
                why = f"does not divide the {rows[column.indptr]} rows of {column.indptr!r}"
                raise SnapshotError(name, why)
        elif column.refers and len(array):
            limit = rows[column.refers]
            if array.min() < -2 or array.max() >= limit:
                raise SnapshotError(name, f"points outside the {limit} rows of {column.refers!r}")
    _check_order(columns)


def _falls(indptr: NDArray[Any]) -> bool:
    # Not by np.diff: the difference of two hostile offsets can wrap around.
    return bool((indptr[1:] < indptr[:-1]).any())


# Columns that name one of a few choices, and how many there are.
_CHOICES = (
    ("ledger_status", len(Status.NAMES)),
    ("mm_status", len(Status.NAMES)),
    ("class_kind", len(FrameKind.NAMES)),
    ("vma_kind", len(VmaKind.NAMES)),
    ("object_kind", 4),
    ("namespace_kind", len(NAMESPACES)),
)


def _check_order(columns: Columns) -> None:
    pids = columns["process_pid"]
    if (pids[1:] <= pids[:-1]).any() or (len(pids) and pids[0] <= 0):
        raise SnapshotError("process_pid", "is not rising from 1: each pid stands once")
    region = columns["vma_region"]
    n = len(region)
    seen = np.zeros(n, bool)
    if n and (region.min() < 0 or region.max() >= n):
        raise SnapshotError("vma_region", f"names a region outside 0 .. {n - 1}")
    seen[region] = True
    if not seen.all():
        raise SnapshotError("vma_region", "numbers two VMAs alike")
    first, last = columns["run_first"], columns["run_last"]
    if len(first) and (first.min() < 0 or (first > last).any() or last.max() >= n):
        raise SnapshotError("run_first", f"a run of regions is not within 0 .. {n - 1}")
    if len(columns["class_pages"]) and columns["class_pages"].min() < 1:
        raise SnapshotError("class_pages", "a memory object has no page")
    for name, limit in _CHOICES:
        if len(columns[name]) and columns[name].max() >= limit:
            raise SnapshotError(name, f"has a value over {limit - 1}")
