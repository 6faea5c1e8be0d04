"""``osmosis controllers SEL``: who may kill, trace, freeze ... it."""

from __future__ import annotations

from typing import Annotated

import typer

from osmosis.cli.answers import print_answer
from osmosis.cli.describe import pick
from osmosis.cli.exits import Code, answering
from osmosis.cli.options import All, By, Json, Selector, Snapshot, Top, Verbs, listed
from osmosis.cli.source import open_source

__all__ = ["Permitted", "controllers"]

Permitted = Annotated[
    bool,
    typer.Option("--permitted", help="Count what is permitted and would have no effect, too."),
]


@answering
def controllers(
    selector: Selector,
    snapshot: Snapshot = None,
    json: Json = False,
    by: By = None,
    verbs: Verbs = None,
    permitted: Permitted = False,
    top: Top = 40,
    all_: All = False,
) -> Code:
    """Show who may control SEL: with --verbs kill, who can kill it."""
    source = open_source(snapshot, by)
    pd = pick(source.model, selector)
    answer = source.model.controllers(pd, verbs=listed(verbs), effective=not permitted)
    options = {"verbs": listed(verbs), "effective": not permitted}
    limit = None if all_ else top
    return print_answer("controllers", source, pd, answer, options, json=json, top=limit)
