"""Rows of some tables of the schema while they are filled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.schema import COLUMNS, NAMESPACES

__all__ = ["Tables", "namespace_rows"]


class Tables:
    """Collects rows of the tables that it is made for.

    >>> made = Tables("kthread")
    >>> made.add("kthread", pid=2)
    >>> made.columns()["kthread_pid"].tolist()
    [2]
    """

    def __init__(self, *tables: str) -> None:
        self.rows: dict[str, list[Any]] = {n: [] for n, c in COLUMNS.items() if c.table in tables}

    def add(self, table: str, **values: Any) -> None:
        """Add one row of *table*; every column of it has to be given in the end."""
        for name, value in values.items():
            self.rows[f"{table}_{name}"].append(value)

    def columns(self) -> dict[str, NDArray[Any]]:
        """Columns with the types of the schema."""
        return {name: np.array(v, COLUMNS[name].dtype) for name, v in self.rows.items()}


def namespace_rows(namespaces: Mapping[str, NDArray[Any]]) -> dict[tuple[str, int], int]:
    """Row of table namespace by (name of the kind, inode number)."""
    kinds = namespaces["namespace_kind"].tolist()
    inodes = namespaces["namespace_inode"].tolist()
    return {(NAMESPACES[k], n): row for row, (k, n) in enumerate(zip(kinds, inodes, strict=True))}
