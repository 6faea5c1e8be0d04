"""Relations between all PDs and all PDs, certain and possible, in a form that stays small.

A relation is stored in one of two ways. By *classes*: ``R[i, j] = yes[of[i], of[j]]``, where
PDs of equal facts are one class; 5000 PDs of 30 classes cost what 30 do. By *bits*: one row of
uint64 words per PD, bit ``j & 63`` of word ``j >> 6`` being column j; 5000 x 5000 are 3 MB.
The diagonal is empty in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import index
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from osmosis.errors import QueryError
from osmosis.graph.bits import Bits, Bools, clear_diagonal, pack, transposed, unpack, words
from osmosis.graph.pds import PD, PDTable
from osmosis.graph.sets import PDSet

__all__ = ["Control", "EdgeControl", "Finding", "NoControl", "Relation"]

_BLOCK = 4096  # columns or rows unpacked at once


class Relation:
    """A P x P relation in Kleene's logic: yes, or unknown, or no; ``R[i, j]`` reads "i ... j".

    Make one with `from_classes`, `from_bits`, `from_pairs` or `from_dense`. ``|``, ``&`` and
    ``-`` stay in class form while the classes of both sides together are few. All are frozen.
    """

    __slots__ = ("_certain", "_maybe", "_n", "_of", "_possible", "_t", "_yes", "pds")

    def __init__(
        self,
        n: int,
        *,
        of: NDArray[np.int32] | None = None,
        yes: Bools | None = None,
        maybe: Bools | None = None,
        certain: Bits | None = None,
        possible: Bits | None = None,
        pds: PDTable | None = None,
    ) -> None:
        self._n = n
        self._of, self._yes, self._maybe = of, yes, maybe
        self._certain, self._possible = certain, possible
        self._t: Relation | None = None
        self.pds = pds

    # -- making

    @classmethod
    def from_classes(
        cls, of: Any, yes: Any, maybe: Any = None, *, pds: PDTable | None = None
    ) -> Relation:
        """Relation of class form.

        Parameters
        ----------
        of
            (P,) int32, the class of each PD, 0 .. K-1.
        yes
            (K, K) bool, what holds for certain between two different PDs of the classes.
        maybe
            (K, K) bool, what is possible; ``yes`` is always added to it. None: the same.
        pds
            Table of the rows, if `row` is to give a PDSet.

        Raises
        ------
        ValueError
            The shapes do not fit, or a class is out of range.
        """
        of = np.ascontiguousarray(of, np.int32)
        yes = np.ascontiguousarray(yes, bool)
        if yes.ndim != 2 or yes.shape[0] != yes.shape[1]:
            raise ValueError(f"class matrix must be square, is {yes.shape}")
        if len(of) and not 0 <= of.min() <= of.max() < len(yes):
            raise ValueError(f"classes {of.min()} .. {of.max()} do not fit {len(yes)} classes")
        possible = yes if maybe is None else np.asarray(maybe, bool) | yes
        if possible.shape != yes.shape:
            raise ValueError(f"maybe is {possible.shape}, yes is {yes.shape}")
        return cls(len(of), of=of, yes=yes, maybe=possible, pds=pds)

    @classmethod
    def from_bits(
        cls, n: int, certain: Any, possible: Any = None, *, pds: PDTable | None = None
    ) -> Relation:
        """Relation of (n, words(n)) uint64 bits; the diagonal is cleared, unused bits must be 0.

        Raises
        ------
        ValueError
            The shape does not fit n.
        """

        def clean(bits: Any) -> Bits:
            bits = np.array(bits, np.uint64)
            if bits.shape != (n, words(n)):
                raise ValueError(f"bits of {n} PDs must be {(n, words(n))}, are {bits.shape}")
            return clear_diagonal(bits)

        yes = clean(certain)
        may = yes if possible is None or possible is certain else clean(possible) | yes
        return cls(n, certain=yes, possible=may, pds=pds)

    @classmethod
    def from_dense(
        cls, certain: Any, possible: Any = None, *, pds: PDTable | None = None
    ) -> Relation:
        """Relation of (P, P) bool arrays."""
        yes = np.asarray(certain, bool)
        may = None if possible is None else pack(np.asarray(possible, bool))
        return cls.from_bits(len(yes), pack(yes.reshape(len(yes), len(yes))), may, pds=pds)

    @classmethod
    def from_pairs(
        cls,
        n: int,
        i: Any,
        j: Any,
        maybe_i: Any = None,
        maybe_j: Any = None,
        *,
        pds: PDTable | None = None,
    ) -> Relation:
        """Relation of n PDs that holds for certain pairs ``(i[k], j[k])`` and may for others."""

        def scattered(rows: Any, columns: Any) -> Bits:
            rows, columns = np.asarray(rows, np.int64), np.asarray(columns, np.int64)
            bits = np.zeros((n, words(n)), np.uint64)
            np.bitwise_or.at(
                bits, (rows, columns >> 6), np.uint64(1) << (columns & 63).astype(np.uint64)
            )
            return bits

        may = None if maybe_i is None else scattered(maybe_i, maybe_j)
        return cls.from_bits(n, scattered(i, j), may, pds=pds)

    @classmethod
    def empty(cls, n: int, *, pds: PDTable | None = None) -> Relation:
        """Relation of n PDs that holds for no pair."""
        of = np.zeros(n, np.int32)
        return cls.from_classes(of, np.zeros((1, 1), bool), pds=pds)

    def named(self, pds: PDTable) -> Relation:
        """Return the same relation, knowing the table of its rows."""
        if self.pds is pds:
            return self
        return Relation(
            self._n,
            of=self._of,
            yes=self._yes,
            maybe=self._maybe,
            certain=self._certain,
            possible=self._possible,
            pds=pds,
        )

    # -- both forms

    def __len__(self) -> int:
        return self._n

    @property
    def shape(self) -> tuple[int, int]:
        """(P, P)."""
        return self._n, self._n

    @property
    def classes(self) -> tuple[NDArray[np.int32], Bools, Bools] | None:
        """(of, yes, maybe) of the class form; None in bits."""
        if self._of is None or self._yes is None or self._maybe is None:
            return None
        return self._of, self._yes, self._maybe

    @property
    def decided(self) -> bool:
        """Whether nothing is unknown."""
        form = self.classes
        if form is not None:
            return form[1] is form[2] or bool(np.array_equal(form[1], form[2]))
        return self._possible is self._certain or bool(np.array_equal(self.certain, self.possible))

    def _expanded(self, matrix: Bools | None) -> Bits:
        if self._of is None or matrix is None:
            raise ValueError("a relation needs classes or bits")
        of = self._of
        return clear_diagonal(pack(matrix[:, of])[of])

    @property
    def certain(self) -> Bits:
        """(P, words(P)) uint64, what holds for certain; the class form is expanded once."""
        if self._certain is None:
            self._certain = self._expanded(self._yes)
        return self._certain

    @property
    def possible(self) -> Bits:
        """(P, words(P)) uint64, what holds or may hold."""
        if self._possible is None:
            same = self._maybe is None or self.decided
            self._possible = self.certain if same else self._expanded(self._maybe)
        return self._possible

    def state(self, i: int, j: int) -> bool | None:
        """Return True, False, or None for unknown."""
        i, j = self._index(i), self._index(j)
        if i == j:
            return False
        form = self.classes
        if form is not None:
            of, yes, maybe = form
            if yes[of[i], of[j]]:
                return True
            return None if maybe[of[i], of[j]] else False
        shift = j & 63
        if int(self.certain[i, j >> 6]) >> shift & 1:
            return True
        return None if int(self.possible[i, j >> 6]) >> shift & 1 else False

    def _index(self, i: Any) -> int:
        if isinstance(i, PD):
            i = i.row if self.pds is None else self.pds.row(i)
        at = index(i)  # never int(): 1.5 is no row
        if not 0 <= at < self._n:
            raise IndexError(f"row {at} of {self._n}")
        return at

    def __getitem__(self, at: tuple[int, int]) -> bool:
        i, j = at
        return self.state(i, j) is True

    def row_masks(self, i: int) -> tuple[Bools, Bools]:
        """Row i as two (P,) bool: certain, and certain or possible."""
        i = self._index(i)
        form = self.classes
        if form is not None:
            of, yes, maybe = form
            sure, may = yes[of[i]][of], maybe[of[i]][of]
            sure[i] = may[i] = False
            return sure, may
        sure = unpack(self.certain[i : i + 1], self._n)[0]
        if self._possible is self._certain:
            return sure, sure
        return sure, unpack(self.possible[i : i + 1], self._n)[0]

    def column_masks(self, i: int) -> tuple[Bools, Bools]:
        """Column i, as `row_masks`: a row of the inverse, which is not made for it."""
        if self._t is not None:
            return self._t.row_masks(i)
        i = self._index(i)
        form = self.classes
        if form is not None:
            of, yes, maybe = form
            sure, may = yes[:, of[i]][of], maybe[:, of[i]][of]
            sure[i] = may[i] = False
            return sure, may
        word, shift = i >> 6, np.uint64(i & 63)
        sure = ((self.certain[:, word] >> shift) & np.uint64(1)).astype(bool)
        if self._possible is self._certain:
            return sure, sure
        return sure, ((self.possible[:, word] >> shift) & np.uint64(1)).astype(bool)

    def row(self, i: int) -> PDSet:
        """Return the PDs that i, a row or a PD, stands in this relation to; see `pds`."""
        if self.pds is None:
            raise QueryError("this relation knows no PD table: use .row_masks")
        sure, may = self.row_masks(i)
        return PDSet(self.pds, sure) if sure is may else PDSet(self.pds, sure, may & ~sure)

    @property
    def T(self) -> Relation:  # noqa: N802  # NumPy's name
        """The inverse: ``R.T[i, j] == R[j, i]``."""
        if self._t is None:
            form = self.classes
            if form is not None:
                of, yes, maybe = form
                turned = yes.T.copy()
                possible = turned if yes is maybe else maybe.T.copy()
                self._t = Relation(self._n, of=of, yes=turned, maybe=possible, pds=self.pds)
            else:
                sure = transposed(self.certain, self._n)
                same = self._possible is self._certain
                may = sure if same else transposed(self.possible, self._n)
                self._t = Relation(self._n, certain=sure, possible=may, pds=self.pds)
            self._t._t = self
        return self._t

    def counts(self, axis: int = 1) -> NDArray[np.int64]:
        """Certain members of each row (``axis=1``, as NumPy sums) or of each column (``0``).

        O(K**2) in class form, never O(P**2).
        """
        if axis not in (0, 1):
            raise QueryError(f"axis must be 0 or 1, not {axis!r}")
        form = self.classes
        if form is not None:
            of, yes, _ = form
            size = np.bincount(of, minlength=len(yes)).astype(np.int64)
            total = (yes @ size if axis == 1 else size @ yes) - np.diagonal(yes)
            return np.asarray(total, np.int64)[of]
        if axis == 1:
            by_row: NDArray[np.int64] = np.bitwise_count(self.certain).sum(axis=1, dtype=np.int64)
            return by_row
        total = np.zeros(self._n, np.int64)
        for first in range(0, self._n, _BLOCK):
            width = min(_BLOCK, self._n - first)
            part = unpack(self.certain, width, first)
            total[first : first + width] = np.count_nonzero(part, axis=0)
        return total

    @property
    def nnz(self) -> int:
        """Number of certain pairs."""
        return int(self.counts(1).sum())

    @property
    def unknown(self) -> Relation:
        """The relation of the pairs that could not be decided."""
        form = self.classes
        if form is not None:
            of, yes, maybe = form
            may = maybe & ~yes
            return Relation(self._n, of=of, yes=may, maybe=may, pds=self.pds)
        may_bits = self.possible & ~self.certain
        return Relation(self._n, certain=may_bits, possible=may_bits, pds=self.pds)

    # -- algebra

    def _both(self, other: object) -> Relation:
        if not isinstance(other, Relation):
            raise QueryError(f"relations combine with relations, not {type(other).__name__}")
        if len(other) != self._n or (
            self.pds is not None and other.pds is not None and self.pds is not other.pds
        ):
            raise QueryError("the two relations are of different models")
        return other

    def _apply(self, other: Relation, op: str) -> Relation:
        def combined(a: Any, b: Any, a_may: Any, b_may: Any) -> tuple[Any, Any]:
            if op == "|":
                return a | b, a_may | b_may
            if op == "&":
                return a & b, a_may & b_may
            return a & ~b_may, a_may & ~b

        pds = self.pds if self.pds is not None else other.pds
        mine, theirs = self.classes, other.classes
        joint = None if mine is None or theirs is None else _joint(mine[0], theirs[0])
        if mine is not None and theirs is not None and joint is not None:
            of, a, b = joint
            in_mine, in_theirs = np.ix_(a, a), np.ix_(b, b)
            yes, maybe = combined(
                mine[1][in_mine], theirs[1][in_theirs], mine[2][in_mine], theirs[2][in_theirs]
            )
            return Relation(self._n, of=of, yes=yes, maybe=maybe, pds=pds)
        plain = self.decided and other.decided
        sure, may = combined(
            self.certain,
            other.certain,
            self.certain if plain else self.possible,
            other.certain if plain else other.possible,
        )
        return Relation(self._n, certain=sure, possible=sure if plain else may, pds=pds)

    def __or__(self, other: object) -> Relation:
        return self._apply(self._both(other), "|")

    def __and__(self, other: object) -> Relation:
        return self._apply(self._both(other), "&")

    def __sub__(self, other: object) -> Relation:
        return self._apply(self._both(other), "-")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Relation):
            return NotImplemented
        return (
            len(self) == len(other)
            and np.array_equal(self.certain, other.certain)
            and np.array_equal(self.possible, other.possible)
        )

    __hash__ = None  # type: ignore[assignment]

    # -- ways out

    def toarray(self) -> Bools:
        """Return (P, P) bool of what is certain: P**2 bytes."""
        return unpack(self.certain, self._n).copy()

    def tocsr(self) -> csr_array:
        """Return (P, P) csr_array of bool of what is certain: 5 bytes per pair."""
        indices, indptr = [], np.zeros(self._n + 1, np.int64)
        for first in range(0, self._n, _BLOCK):
            part = unpack(self.certain[first : first + _BLOCK], self._n)
            indptr[first + 1 : first + 1 + len(part)] = np.count_nonzero(part, axis=1)
            indices.append(np.nonzero(part)[1].astype(np.int32))
        np.cumsum(indptr, out=indptr)
        columns = np.concatenate(indices) if indices else np.empty(0, np.int32)
        return csr_array((np.ones(len(columns), bool), columns, indptr), shape=self.shape)

    def __repr__(self) -> str:
        form = self.classes
        how = f"{len(form[1])} classes" if form is not None else "bits"
        return f"<Relation {self._n} x {self._n}, {how}, {self.nnz} pairs>"

    # -- for the queries

    def with_row_and_column(self, k: int, *, row: bool, column: bool) -> Relation:
        """Return the relation with row k all *row* and column k all *column*, for certain."""
        form = self.classes
        if form is not None:
            of, yes, maybe = form
            size = len(yes)
            split = of.copy()
            split[k] = size
            wide = []
            for matrix in (yes,) if yes is maybe else (yes, maybe):
                grown = np.zeros((size + 1, size + 1), bool)
                grown[:size, :size] = matrix
                grown[size, :] = row
                grown[:, size] = column
                grown[size, size] = False
                wide.append(grown)
            return Relation(self._n, of=split, yes=wide[0], maybe=wide[-1], pds=self.pds)
        full = pack(np.ones((1, self._n), bool))[0]
        bit = np.uint64(1) << np.uint64(k & 63)
        out = []
        same = self._possible is self._certain
        for bits in (self.certain,) if same else (self.certain, self.possible):
            new = bits.copy()
            new[:, k >> 6] = new[:, k >> 6] | bit if column else new[:, k >> 6] & ~bit
            new[k] = full if row else 0
            out.append(clear_diagonal(new))
        return Relation(self._n, certain=out[0], possible=out[-1], pds=self.pds)

    def folded(self, group: NDArray[np.int32], n_groups: int, pds: PDTable) -> Relation:
        """Relation of groups: G to H holds iff it holds of some member of G to some of H.

        Yes beats unknown beats no. O(K * groups**2) in class form, O(P**2) in bits.
        """
        form = self.classes
        if form is not None:
            of, yes, maybe = form
            has = np.zeros((n_groups, len(yes)), np.float32)
            has[group, of] = 1
            sure = has @ yes.astype(np.float32) @ has.T > 0
            may = sure if yes is maybe else has @ maybe.astype(np.float32) @ has.T > 0
        else:
            sure = _fold_bits(self.certain, group, n_groups)
            same = self._possible is self._certain
            may = sure if same else _fold_bits(self.possible, group, n_groups)
        return Relation.from_dense(sure, may, pds=pds)


def _joint(
    a: NDArray[np.int32], b: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]] | None:
    """Classes of PDs that are of one class in *a* and in *b*, and the two of each.

    None if they are so many that bits are smaller.
    """
    size = np.int64(b.max(initial=0)) + 1
    kinds, of = np.unique(a * size + b, return_inverse=True)
    if len(kinds) > max(64, len(a) // 4):
        return None
    return of.reshape(-1).astype(np.int32), *np.divmod(kinds, size)


def _fold_bits(bits: Bits, group: NDArray[np.int32], n_groups: int) -> Bools:
    n = len(bits)
    if not n:
        return np.zeros((n_groups, n_groups), bool)
    order = np.argsort(group, kind="stable")
    present, starts = np.unique(group[order], return_index=True)
    rows = np.bitwise_or.reduceat(bits[order], starts, axis=0)
    columns = unpack(rows, n)[:, order]
    out = np.zeros((n_groups, n_groups), bool)
    out[np.ix_(present, present)] = np.logical_or.reduceat(columns, starts, axis=1)
    return out


class Finding(NamedTuple):
    """What a rule says of one pair: the state, and all that a person needs to check it."""

    state: bool | None
    reason: str
    caveats: tuple[str, ...] = ()
    rule: str = ""
    source: str = ""


class Control(Protocol):
    """Who may control whom, by verb; the kernel's row and column are the queries' business."""

    verbs: tuple[str, ...]

    def relation(self, verb: str, *, effective: bool) -> Relation:
        """Return the relation "i may <verb> j"."""

    def finding(self, verb: str, i: int, j: int, *, effective: bool) -> Finding:
        """Return the rule's answer for one pair, with its reason."""


class NoControl:
    """A system of which no control is known."""

    verbs: tuple[str, ...] = ()

    def __init__(self, n: int) -> None:
        self._n = n

    def relation(self, verb: str, *, effective: bool) -> Relation:  # noqa: ARG002
        """Return the empty relation."""
        return Relation.empty(self._n)

    def finding(self, verb: str, i: int, j: int, *, effective: bool) -> Finding:  # noqa: ARG002
        """Return no."""
        return Finding(False, f"the model has no edge that lets it {verb}")


class EdgeControl:
    """Control as explicit edges say it: HOLD PD -> PD, the verb in its label.

    Parameters
    ----------
    n
        P.
    src, dst
        (E,) rows of the holder and of the held.
    verbs
        (E,) name of the verb of each edge; "hold" where a format says no more.
    certain
        (E,) bool, False where the edge may not exist; None: all do.
    rules
        (E,) rule and source of each edge, or None.
    """

    def __init__(
        self,
        n: int,
        src: Any,
        dst: Any,
        verbs: Any,
        certain: Any = None,
        rules: Mapping[int, tuple[str, str]] | None = None,
    ) -> None:
        self._n = n
        self._src = np.asarray(src, np.int64)
        self._dst = np.asarray(dst, np.int64)
        self._verb = np.asarray(verbs, object)
        count = len(self._src)
        self._certain = np.ones(count, bool) if certain is None else np.asarray(certain, bool)
        self._rules = {} if rules is None else rules
        self.verbs: tuple[str, ...] = tuple(sorted(set(self._verb.tolist())))
        self._made: dict[str, Relation] = {}

    def relation(self, verb: str, *, effective: bool) -> Relation:  # noqa: ARG002
        """Return the pairs that have an edge of that verb."""
        made = self._made.get(verb)
        if made is None:
            at = self._verb == verb
            sure = at & self._certain
            made = Relation.from_pairs(
                self._n,
                self._src[sure],
                self._dst[sure],
                *((None, None) if self._certain[at].all() else (self._src[at], self._dst[at])),
            )
            self._made[verb] = made
        return made

    def finding(self, verb: str, i: int, j: int, *, effective: bool) -> Finding:  # noqa: ARG002
        """Return what the edges between the two say."""
        at = np.flatnonzero((self._verb == verb) & (self._src == i) & (self._dst == j))
        if not len(at) or i == j:
            return Finding(False, f"the model has no edge that lets it {verb}")
        sure = at[self._certain[at]]
        text, source = self._rules.get(int((sure if len(sure) else at)[0]), ("", ""))
        if len(sure):
            return Finding(True, f"an edge of the model: {verb}", (), text, source)
        return Finding(None, f"an edge of the model that may not exist: {verb}", (), text, source)
