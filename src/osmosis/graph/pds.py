"""The PD table: one row per protection domain, in columns, and the selectors that find rows."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osmosis.errors import SelectorError

__all__ = ["PD", "SELECTORS", "PDTable", "escape", "is_pid"]

# What stands before the colon of a selector; each but pid is the name of a column.
SELECTORS = (
    "pid",
    "comm",
    "exe",
    "container",
    "unit",
    "user",
    "role",
    "id",
    "key",
    "cgroup",
)

_TEXT = ("comm", "exe", "kind", "id", "key", "container", "unit", "user", "role", "cgroup")
_SHOWN = 8  # candidates that an error lists

Column = Sequence[Any] | NDArray[Any] | Callable[[], Sequence[Any]]


def escape(text: str) -> str:
    r"""Return *text* fit for a terminal: what does not print is written as ``\n``, ``\x1b`` ..."""
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(
        c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


def _frozen(column: NDArray[Any]) -> NDArray[Any]:
    """Read-only view: the caller's array stays as it is."""
    view = column.view()
    view.flags.writeable = False
    return view


def is_pid(value: object) -> bool:
    """Tell whether *value* is an integer, NumPy's included; a bool is none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True, eq=False)
class PD:
    """One protection domain: a row of a table. Two are equal if they have the same key."""

    row: int
    pid: int
    start_time: int
    comm: str
    exe: str | None
    uid: int
    kind: str
    id: str
    key: str
    container: str | None
    unit: str | None
    user: str | None
    role: str | None
    cgroup: str | None
    table: PDTable = field(repr=False)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PD):
            return NotImplemented
        return self.key == other.key and self.id == other.id

    def __hash__(self) -> int:
        return hash((self.key, self.id))

    def __str__(self) -> str:
        if not self.comm or self.comm == self.id:
            return self.id
        return f"{self.comm}({self.pid})" if self.pid >= 0 else f"{self.comm} [{self.id}]"

    def __repr__(self) -> str:
        return f"<PD {escape(self.id)} {escape(self.comm)!r} pid={self.pid} row={self.row}>"


class PDTable:
    """P protection domains as columns of equal length.

    Parameters
    ----------
    pid
        (P,) pids; -1 where a PD has none.
    start_time, uid
        (P,) integers; -1 if not given. ``start_time`` in the clock ticks of the kernel, or any
        other unit that tells two uses of a pid apart.
    comm, exe, kind, id, key, container, unit, user, role, cgroup
        (P,) text, None for a missing value; or a function that returns it, called when the
        column is first asked for.
    alias
        Further pids (threads', kernel threads') and the row that they stand for.
    container_names
        Returns, for each PD, every name that selects its container: its id beside its name.
    members
        Of a table of groups: the table below, and (P below,) the row here of each row there.
        Selectors that match nothing here are tried there.
    """

    def __init__(
        self,
        pid: Sequence[int] | NDArray[Any],
        *,
        start_time: Sequence[int] | NDArray[Any] | None = None,
        uid: Sequence[int] | NDArray[Any] | None = None,
        comm: Column | None = None,
        exe: Column | None = None,
        kind: Column | None = None,
        id: Column | None = None,  # noqa: A002  # the public name of the column
        key: Column | None = None,
        container: Column | None = None,
        unit: Column | None = None,
        user: Column | None = None,
        role: Column | None = None,
        cgroup: Column | None = None,
        alias: Mapping[int, int] | None = None,
        container_names: Callable[[], Sequence[Sequence[str]]] | None = None,
        members: tuple[PDTable, NDArray[np.int32]] | None = None,
    ) -> None:
        self.pid: NDArray[np.int32] = _frozen(np.ascontiguousarray(pid, np.int32))
        n = len(self.pid)
        missing = np.full(n, -1, np.int64)
        self.start_time: NDArray[np.int64] = _frozen(
            missing if start_time is None else np.ascontiguousarray(start_time, np.int64)
        )
        self.uid: NDArray[np.int64] = _frozen(
            missing if uid is None else np.ascontiguousarray(uid, np.int64)
        )
        self.alias: Mapping[int, int] = {} if alias is None else alias
        self.members = members
        self._container_names = container_names
        self._given: dict[str, Column | None] = {
            "comm": comm,
            "exe": exe,
            "kind": kind,
            "id": id,
            "key": key,
            "container": container,
            "unit": unit,
            "user": user,
            "role": role,
            "cgroup": cgroup,
        }
        self._made: dict[str, NDArray[np.object_]] = {}
        self._indices: dict[str, dict[Any, list[int]]] = {}
        for name, column in [("start_time", self.start_time), ("uid", self.uid)]:
            if len(column) != n:
                raise ValueError(f"{name}: {len(column)} values for {n} PDs")

    # -- columns

    def _column(self, name: str) -> NDArray[np.object_]:
        made = self._made.get(name)
        if made is None:
            given = self._given[name]
            if callable(given):
                given = given()
            if given is None:
                given = self._default(name)
            made = np.empty(len(self.pid), object)
            if len(given) != len(made):
                raise ValueError(f"{name}: {len(given)} values for {len(made)} PDs")
            made[:] = given
            made.flags.writeable = False
            self._made[name] = made
        return made

    def _default(self, name: str) -> Sequence[Any]:
        if name == "kind":
            return ["process"] * len(self)
        if name == "id":
            return [f"PD_{p}" if p >= 0 else f"PD_row_{i}" for i, p in enumerate(self.pid.tolist())]
        if name == "key":
            return list(self.id)
        return ["" if name == "comm" else None] * len(self)

    @property
    def comm(self) -> NDArray[np.object_]:
        """(P,) str."""
        return self._column("comm")

    @property
    def exe(self) -> NDArray[np.object_]:
        """(P,) str or None."""
        return self._column("exe")

    @property
    def kind(self) -> NDArray[np.object_]:
        """(P,) str: "process", "kernel", or the key of a group."""
        return self._column("kind")

    @property
    def id(self) -> NDArray[np.object_]:
        """(P,) str: the name of the node, "PD_812"."""
        return self._column("id")

    @property
    def key(self) -> NDArray[np.object_]:
        """(P,) str: what stays the same in every model of the same boot."""
        return self._column("key")

    @property
    def container(self) -> NDArray[np.object_]:
        """(P,) str or None."""
        return self._column("container")

    @property
    def unit(self) -> NDArray[np.object_]:
        """(P,) str or None."""
        return self._column("unit")

    @property
    def user(self) -> NDArray[np.object_]:
        """(P,) str or None."""
        return self._column("user")

    @property
    def role(self) -> NDArray[np.object_]:
        """(P,) str or None."""
        return self._column("role")

    @property
    def cgroup(self) -> NDArray[np.object_]:
        """(P,) str or None."""
        return self._column("cgroup")

    # -- rows

    def __len__(self) -> int:
        return len(self.pid)

    def __getitem__(self, row: int | np.integer[Any]) -> PD:
        at = int(row)
        if not 0 <= at < len(self):
            raise IndexError(f"row {at} of {len(self)}")
        text = {name: self._column(name)[at] for name in _TEXT}
        return PD(
            row=at,
            pid=int(self.pid[at]),
            start_time=int(self.start_time[at]),
            uid=int(self.uid[at]),
            table=self,
            **text,
        )

    def __iter__(self) -> Iterator[PD]:
        return (self[row] for row in range(len(self)))

    def __repr__(self) -> str:
        return f"<PDTable of {len(self)} PDs>"

    # -- selectors

    def _index(self, name: str) -> dict[Any, list[int]]:
        index = self._indices.get(name)
        if index is None:
            index = {}
            values = self.pid.tolist() if name == "pid" else self._column(name).tolist()
            for row, value in enumerate(values):
                if value is not None and (name != "pid" or value >= 0):
                    index.setdefault(value, []).append(row)
            if name == "user":  # "user:1000" names a uid as well
                for row, uid in enumerate(self.uid.tolist()):
                    if uid < 0:
                        continue
                    rows = index.setdefault(str(uid), [])
                    if row not in rows[-1:]:
                        rows.append(row)
            if name == "container" and self._container_names is not None:
                named: dict[str, set[int]] = {}
                for row, names in enumerate(self._container_names()):
                    for other in names:
                        named.setdefault(other, set()).add(row)
                for other, found in named.items():
                    index[other] = sorted(found.union(index.get(other, ())))
            self._indices[name] = index
        return index

    def rows_of(self, selector: Any) -> list[int]:
        """Rows that *selector* matches, ascending; [] if none does.

        Raises
        ------
        SelectorError
            It is no selector at all.
        """
        if isinstance(selector, PD):
            if selector.table is self:
                return [selector.row]
            found = self._index("key").get(selector.key, [])
            return found or self._below(selector)
        if is_pid(selector):
            pid = int(selector)
            found = self._index("pid").get(pid, [])
            if not found and pid in self.alias:
                found = [int(self.alias[pid])]
            return found or self._below(selector)
        if isinstance(selector, str):
            prefix, colon, value = selector.partition(":")
            if colon and prefix == "pid" and value.isascii() and value.isdigit():
                return self.rows_of(int(value))
            if colon and prefix in SELECTORS and prefix != "pid":
                found = self._index(prefix).get(value, [])
                return found or self._below(selector)
        known = ", ".join(f"{p}:" for p in SELECTORS)
        raise SelectorError(str(selector), f"no selector; use a PD, a pid, or one of {known}")

    def _below(self, selector: Any) -> list[int]:
        if self.members is None:
            return []
        table, of = self.members
        return sorted({int(of[row]) for row in table.rows_of(selector)})

    def row(self, selector: Any) -> int:
        """Row of the one PD that *selector* matches.

        Raises
        ------
        SelectorError
            None matches, or several; it lists candidates.
        """
        rows = self.rows_of(selector)
        if len(rows) == 1:
            return rows[0]
        shown = escape(str(selector))
        if rows:
            listed = tuple(self._label(row) for row in rows[:_SHOWN])
            more = (f"... {len(rows) - _SHOWN} more",) if len(rows) > _SHOWN else ()
            raise SelectorError(shown, f"matches {len(rows)} PDs, one is wanted", listed + more)
        raise SelectorError(shown, "no such PD", self._near(selector))

    def _label(self, row: int) -> str:
        pid = int(self.pid[row])
        name = f"pid:{pid}" if pid >= 0 else f"id:{escape(self.id[row])}"
        comm = self.comm[row]
        return f"{name} ({escape(comm)})" if comm else name

    def _near(self, selector: Any) -> tuple[str, ...]:
        if isinstance(selector, PD):
            return self._near(f"comm:{selector.comm}") if selector.comm else ()
        if is_pid(selector):
            known = self.pid[self.pid >= 0]
            order = np.argsort(np.abs(known.astype(np.int64) - int(selector)), kind="stable")
            return tuple(f"pid:{pid}" for pid in known[order[:3]].tolist())
        prefix, _, value = selector.partition(":")
        if prefix == "pid":
            return self._near(int(value))
        values = [v for v in self._index(prefix) if v]
        close = difflib.get_close_matches(value, values, n=_SHOWN, cutoff=0.5)
        close += [v for v in values if value and value in v and v not in close]
        close = close or values  # nothing is like it: some that there are
        return tuple(f"{prefix}:{escape(v)}" for v in close[:_SHOWN])
