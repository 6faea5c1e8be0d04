"""PDs in words and in JSON, and selectors as users type them."""

from __future__ import annotations

from typing import Any

from osmosis.cli.exits import UsageError
from osmosis.graph.pds import PD, escape
from osmosis.model import Model

__all__ = ["depth", "name_of", "pd_json", "pick", "plus"]


def pick(model: Model, selector: str) -> PD:
    """Return the one PD that *selector* matches; bare digits are a pid.

    Raises
    ------
    SelectorError
        None matches, or several; it lists candidates.
    """
    if selector.isascii() and selector.isdigit():
        selector = f"pid:{selector}"
    return model.pd(selector)


def name_of(pd: PD) -> str:
    """Return a PD as people read it, escaped: ``redis-server(812)``."""
    return escape(str(pd))


def pd_json(pd: PD) -> dict[str, Any]:
    """Return the columns of a PD that every answer gives."""
    return {
        "id": pd.id,
        "pid": pd.pid if pd.pid >= 0 else None,
        "key": pd.key,
        "kind": pd.kind,
        "comm": pd.comm,
        "exe": pd.exe,
        "uid": pd.uid if pd.uid >= 0 else None,
        "user": pd.user,
        "container": pd.container,
        "unit": pd.unit,
        "role": pd.role,
    }


def plus(certain: int, unknown: int) -> str:
    """Return ``12`` or ``12 +3?``: certain members, and those that may be."""
    return f"{certain} +{unknown}?" if unknown else str(certain)


def depth(text: str) -> int | None:
    """Return the number of steps that *text* says; "all" is None.

    Raises
    ------
    UsageError
        It says none.
    """
    if text == "all":
        return None
    if text.isascii() and text.isdigit() and len(text) < 7:
        return int(text)
    raise UsageError(f"--depth must be a number or all, not {escape(text)!r}")
