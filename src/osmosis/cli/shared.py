"""``osmosis shared SEL``: who shares what with it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from osmosis.cli.answers import pages_with, print_answer
from osmosis.cli.describe import pick
from osmosis.cli.exits import Code, UsageError, answering
from osmosis.cli.options import (
    Access,
    All,
    By,
    Json,
    OwnAccess,
    Potential,
    Selector,
    Snapshot,
    Top,
    Types,
    listed,
)
from osmosis.cli.source import open_source

__all__ = ["shared"]


@answering
def shared(
    selector: Selector,
    snapshot: Snapshot = None,
    json: Json = False,
    by: By = None,
    access: Access = "ANY",
    own_access: OwnAccess = "ANY",
    types: Types = None,
    spaces: Annotated[
        bool, typer.Option("--spaces", help="Ask about resource spaces: namespaces, memory ...")
    ] = False,
    potential: Potential = False,
    top: Top = 40,
    all_: All = False,
) -> Code:
    """Show who shares resources with SEL: memory, files, sockets ...; PAGES are of 4 KiB."""
    if spaces and (access != "ANY" or own_access != "ANY" or potential):
        raise UsageError("--spaces goes with --types only: spaces are shared, not written")
    source = open_source(snapshot, by)
    pd = pick(source.model, selector)
    options: dict[str, Any] = {"types": listed(types), "spaces": spaces}
    if spaces:
        answer = source.model.shared_spaces(pd, types=listed(types))
    else:
        ask = {"access": access, "own_access": own_access, "potential": potential}
        options |= ask
        answer = source.model.shared_resources(
            pd, types=listed(types), access=access, own_access=own_access, potential=potential
        )
    pages = None if spaces else pages_with(source, pd)
    limit = None if all_ else top
    return print_answer("shared", source, pd, answer, options, json=json, top=limit, pages=pages)
