"""``osmosis controls SEL``: whom it may kill, trace, freeze ..."""

from __future__ import annotations

from osmosis.cli.answers import print_answer
from osmosis.cli.controllers import Permitted
from osmosis.cli.describe import pick
from osmosis.cli.exits import Code, answering
from osmosis.cli.options import All, By, Json, Selector, Snapshot, Top, Verbs, listed
from osmosis.cli.source import open_source

__all__ = ["controls"]


@answering
def controls(
    selector: Selector,
    snapshot: Snapshot = None,
    json: Json = False,
    by: By = None,
    verbs: Verbs = None,
    permitted: Permitted = False,
    top: Top = 40,
    all_: All = False,
) -> Code:
    """Show whom SEL may control."""
    source = open_source(snapshot, by)
    pd = pick(source.model, selector)
    answer = source.model.controls(pd, verbs=listed(verbs), effective=not permitted)
    options = {"verbs": listed(verbs), "effective": not permitted}
    limit = None if all_ else top
    return print_answer("controls", source, pd, answer, options, json=json, top=limit)
