"""``osmosis tcb`` and ``osmosis ib``: one question with one set of options, asked both ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from osmosis.cli.answers import print_answer
from osmosis.cli.describe import depth as steps
from osmosis.cli.describe import pick
from osmosis.cli.exits import Code, answering
from osmosis.cli.options import (
    Access,
    All,
    By,
    Depth,
    Json,
    OwnAccess,
    Potential,
    Selector,
    Services,
    Snapshot,
    Through,
    Top,
    Types,
    Verbs,
    listed,
)
from osmosis.cli.source import open_source
from osmosis.graph.pds import PD
from osmosis.graph.sets import PDSet
from osmosis.model import Model

__all__ = ["asking"]


def asking(
    name: str, ask: Callable[[Model], Callable[..., PDSet]], doc: str
) -> Callable[..., None]:
    """Return the command *name* with *doc* as its help: it prints ``ask(model)(pd, ...)``."""

    def command(
        selector: Selector,
        snapshot: Snapshot = None,
        json: Json = False,
        by: By = None,
        access: Access = "W",
        own_access: OwnAccess = "ANY",
        types: Types = None,
        verbs: Verbs = None,
        services: Services = False,
        potential: Potential = False,
        depth: Depth = "1",
        through: Through = "any",
        top: Top = 40,
        all_: All = False,
    ) -> Code:
        options: dict[str, Any] = {
            "access": access,
            "own_access": own_access,
            "types": listed(types),
            "verbs": listed(verbs),
            "services": services,
            "potential": potential,
            "depth": steps(depth),
            "through": through,
        }
        source = open_source(snapshot, by)
        pd: PD = pick(source.model, selector)
        answer = ask(source.model)(pd, **options)
        limit = None if all_ else top
        return print_answer(name, source, pd, answer, options, json=json, top=limit)

    command.__name__, command.__doc__ = name, doc
    return answering(command)
