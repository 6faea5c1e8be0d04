"""The ledger while a capture runs: what was read, what was not, and why."""

from collections.abc import Iterable, Iterator, Mapping
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.schema import COLUMNS, Status
from osmosis.snapshot import StringPool

__all__ = ["HOST", "Ledger"]

HOST = 0  # the pid of rows about the whole host

Row = tuple[int, int, int, int]  # source (string row), status, count, reason (string row)


class Ledger:
    """Rows of (process, source, status, reason); any thread may add.

    One row READ for each source of a process that was fully read; one row with the reason for
    each that was not. Rows are told by pid, since a process has no row number until capture
    knows which processes stay.
    """

    def __init__(self, pool: StringPool) -> None:
        self._pool = pool
        self._rows: dict[int, list[Row]] = {}
        self._said: dict[bytes, int] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return sum(map(len, self._rows.values()))

    def add(self, pid: int, source: str, status: int, reason: str = "", count: int = 0) -> None:
        """Add one row; *pid* is ``HOST`` for the host, *count* 0 if the row is of one thing."""
        self.add_many((pid,), source, status, reason, count)

    def add_many(
        self, pids: Iterable[int], source: str, status: int, reason: str = "", count: int = 0
    ) -> None:
        """Add the same row for many processes. O(number of pids)."""
        with self._lock:
            row = (self._text(source), int(status), int(count), self._text(reason))
            for pid in pids:
                self._rows.setdefault(int(pid), []).append(row)

    def forget(self, pid: int, source: str | None = None) -> None:
        """Take back the rows of one process, or those of one source of it: it is read again."""
        with self._lock:
            if source is None:
                self._rows.pop(pid, None)
            elif pid in self._rows:
                at = self._text(source)
                self._rows[pid] = [row for row in self._rows[pid] if row[0] != at]

    def columns(self, row_of_pid: Mapping[int, int]) -> dict[str, NDArray[Any]]:
        """Every column of table ``ledger``, by rising pid.

        Parameters
        ----------
        row_of_pid
            Row of each process that is in the snapshot; other pids, and the host, give -1.

        """
        with self._lock:
            flat = [(row_of_pid.get(pid, -1), pid, *row) for pid, row in self._in_order()]
        table = np.array(flat, np.int64).reshape(-1, 6).T
        names = ("process", "pid", "source", "status", "count", "reason")
        return {
            f"ledger_{name}": column.astype(COLUMNS[f"ledger_{name}"].dtype)
            for name, column in zip(names, table, strict=True)
        }

    def rows(self, pid: int) -> list[tuple[str, str, str, int]]:
        """(source, status, reason, count) of one process, in the order of adding."""
        names = {i: text.decode() for text, i in self._said.items()}
        return [
            (names[source], Status.NAMES[status], names[reason], count)
            for source, status, count, reason in self._rows.get(pid, ())
        ]

    def _in_order(self) -> Iterator[tuple[int, Row]]:
        for pid in sorted(self._rows):
            for row in self._rows[pid]:
                yield pid, row

    def _text(self, text: str) -> int:
        # The pool gives one row a text; what this ledger said is kept to read it back.
        data = text.encode()
        row = self._pool.add(data)
        self._said[data] = row
        return row
