"""Snapshots of a few processes about whom only some columns say anything."""

from __future__ import annotations

from typing import Any

import numpy as np

from osmosis.schema import COLUMNS, NAMESPACES
from osmosis.snapshot import Snapshot, StringPool, empty_columns


class Plain:
    """``Plain(3).set("process_euid", [0, 1, 2]).snapshot()``; texts are given as str."""

    def __init__(self, n: int, **host: Any) -> None:
        self.n, self.host, self.pool = n, host, StringPool()
        self.columns = empty_columns()
        for name, column in COLUMNS.items():
            if column.table == "process":
                self.columns[name] = np.zeros(n + (column.indptr is not None), column.dtype)
                if column.refers:
                    self.columns[name][:] = -1
        self.set("process_pid", range(10, 10 + n))
        self.rows("namespace")

    def set(self, name: str, values: Any) -> Plain:
        """Set one column."""
        dtype = COLUMNS[name].dtype
        if COLUMNS[name].refers == "string":
            values = [v if not isinstance(v, str) else self.pool.add(v.encode()) for v in values]
            values = [-1 if v is None else v for v in values]
        self.columns[name] = np.array(list(values), dtype)
        return self

    def rows(self, table: str, *rows: dict[str, Any]) -> Plain:
        """Set the rows of a table; what a row does not say is 0, or -1 if it is a reference."""
        for name, column in COLUMNS.items():
            if column.table == table and column.indptr is None:
                short = name.removeprefix(table + "_")
                default = -1 if column.refers else 0
                self.set(name, [row.get(short, default) for row in rows])
            elif column.table == table:
                self.columns[name] = np.zeros(len(rows) + 1, column.dtype)
        return self

    def namespaces(self, kind: str, of: Any) -> Plain:
        """Put the processes into namespaces 0, 1, ... of one kind; -1 for one not known."""
        first = len(self.columns["namespace_kind"])
        most = max([*of, -1]) + 1
        for name in ("kind", "inode", "id", "owner", "parent", "user"):
            full = f"namespace_{name}"
            value = {"kind": NAMESPACES.index(kind), "parent": -1, "user": -1}.get(name, 0)
            added = np.full(most, value, COLUMNS[full].dtype)
            if name == "inode":
                added += np.arange(100 + first, 100 + first + most).astype(added.dtype)
            self.columns[full] = np.concatenate([self.columns[full], added])
        return self.set(f"process_ns_{kind}", [first + v if v >= 0 else -1 for v in of])

    def snapshot(self) -> Snapshot:
        """Check it, and freeze it."""
        return Snapshot({**self.columns, **self.pool.columns()}, self.host)
