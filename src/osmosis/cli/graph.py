"""``osmosis graph SEL -o FILE``: the OSmosis graph of one and its neighbours, drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from osmosis.cli import coverage
from osmosis.cli.describe import name_of, pick
from osmosis.cli.exits import Code, UsageError, answering
from osmosis.cli.files import new_file, refuse_to_overwrite, write_text
from osmosis.cli.options import By, Selector, Snapshot
from osmosis.cli.source import open_source
from osmosis.cli.terminal import print_lines
from osmosis.formats.csv import write_csv
from osmosis.formats.dot import to_dot
from osmosis.formats.graphml import to_graphml
from osmosis.formats.json import to_json
from osmosis.formats.part import part
from osmosis.formats.svg import to_svg
from osmosis.formats.view import View, view
from osmosis.graph.pds import escape

__all__ = ["graph"]

WRITERS: dict[str, Callable[[View], str]] = {
    "svg": to_svg,
    "dot": to_dot,
    "graphml": to_graphml,
    "json": to_json,
}
CSV = "csv"  # the paper's tool's schema: always exact
ENDINGS = ", .".join([*WRITERS, CSV])


@answering
def graph(
    selector: Selector,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", help=f"Ends in .{ENDINGS}."),
    ],
    snapshot: Snapshot = None,
    by: By = None,
    full: Annotated[
        bool, typer.Option("--full", help="Every node and edge by itself, not grouped.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.")] = False,
) -> Code:
    """Draw SEL, what it holds, and who shares it: PDs, resources, spaces."""
    ending = output.suffix.removeprefix(".").lower()
    if ending not in (*WRITERS, CSV):
        raise UsageError(f"{escape(str(output))}: the name must end in .{ENDINGS}")
    refuse_to_overwrite(output, force=force)
    source = open_source(snapshot, by)
    pd = pick(source.model, selector)
    if ending == CSV:
        made = part(source.model, pd)
        with new_file(output, force=force) as temporary:
            write_csv(made, temporary)
        size = f"{len(made.data.kind)} nodes, {len(made.data.edges)} edges"
    else:
        drawn = view(source.model, pd, full=full)
        write_text(output, WRITERS[ending](drawn), force=force)
        size = f"{len(drawn.nodes)} nodes, {len(drawn.links)} edges"
    print_lines(f"{escape(str(output))}: {name_of(pd)}, {size}")
    doubt = coverage.gaps(source, [pd.row]) or source.model.shared_resources(pd).unknown.rows.size
    return Code.INCOMPLETE if doubt else Code.ANSWERED
