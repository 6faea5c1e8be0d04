"""Three-valued conditions over pairs of slots, which can say why they hold.

A condition has two bool arrays, ``yes <= maybe``, of a shape that broadcasts to (S, T): actors
by targets. ``&`` and ``|`` are Kleene's. A rule is written once, as an expression; the relation
is its arrays, and the reason of one pair is found by walking the same expression, so that
reason and answer cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Condition", "Say", "constant", "every", "some"]

Bools = NDArray[np.bool_]
Say = Callable[[int, int, bool | None], str]


class Condition:
    """A leaf: its truth by pair, and a sentence about one pair."""

    __slots__ = ("maybe", "say", "yes")

    def __init__(self, yes: Any, maybe: Any = None, say: Say | str = "") -> None:
        self.yes: Bools = np.atleast_2d(np.asarray(yes, bool))
        self.maybe: Bools = self.yes if maybe is None else np.atleast_2d(np.asarray(maybe, bool))
        self.say = say

    def __and__(self, other: Condition) -> Condition:
        return every(self, other)

    def __or__(self, other: Condition) -> Condition:
        return some(self, other)

    def state(self, s: int, t: int) -> bool | None:
        """Yes, no or None of one pair."""
        if _at(self.yes, s, t):
            return True
        return None if _at(self.maybe, s, t) else False

    def why(self, s: int, t: int) -> list[str]:
        """Sentences that decide the pair."""
        if callable(self.say):
            return [self.say(s, t, self.state(s, t))]
        return [self.say] if self.say else []


def _at(array: Bools, s: int, t: int) -> bool:
    rows, columns = array.shape
    return bool(array[s if rows > 1 else 0, t if columns > 1 else 0])


class _Every(Condition):
    __slots__ = ("parts",)

    def __init__(self, parts: tuple[Condition, ...]) -> None:
        super().__init__(_fold(np.logical_and, [p.yes for p in parts]))
        if any(p.maybe is not p.yes for p in parts):
            self.maybe = _fold(np.logical_and, [p.maybe for p in parts])
        self.parts = parts

    def why(self, s: int, t: int) -> list[str]:
        state = self.state(s, t)
        if state is False:  # the first that fails is enough
            return next(p.why(s, t) for p in self.parts if p.state(s, t) is False)
        return [line for p in self.parts if p.state(s, t) is state for line in p.why(s, t)]


class _Some(Condition):
    __slots__ = ("parts",)

    def __init__(self, parts: tuple[Condition, ...]) -> None:
        super().__init__(_fold(np.logical_or, [p.yes for p in parts]))
        if any(p.maybe is not p.yes for p in parts):
            self.maybe = _fold(np.logical_or, [p.maybe for p in parts])
        self.parts = parts

    def why(self, s: int, t: int) -> list[str]:
        state = self.state(s, t)
        if state is True:  # the first that holds is enough
            return next(p.why(s, t) for p in self.parts if p.state(s, t) is True)
        return [line for p in self.parts if p.state(s, t) is state for line in p.why(s, t)]


def _fold(operation: Any, arrays: list[Bools]) -> Bools:
    result: Bools = arrays[0]
    for array in arrays[1:]:
        result = operation(result, array)
    return result


def every(*parts: Condition) -> Condition:
    """Kleene and: no if one is no, else unknown if one is unknown."""
    return _Every(parts)


def some(*parts: Condition) -> Condition:
    """Kleene or: yes if one is yes, else unknown if one is unknown."""
    return _Some(parts)


def constant(state: bool | None, say: str) -> Condition:
    """Return the same answer for every pair."""
    return Condition([[state is True]], [[state is not False]], say)
