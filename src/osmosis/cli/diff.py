"""``osmosis diff A B``: what changed from one snapshot to the next."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from osmosis.cli import coverage
from osmosis.cli.exits import Code, UsageError, answering
from osmosis.cli.options import Json
from osmosis.cli.source import open_source
from osmosis.cli.terminal import print_json, print_lines
from osmosis.graph.pds import escape
from osmosis.query.diff import diff as difference

__all__ = ["diff"]

BY = ("process", "role")


@answering
def diff(
    before: Annotated[Path, typer.Argument(metavar="FILE", help="A snapshot, the earlier one.")],
    after: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="The later one; else the live host.")
    ] = None,
    by: Annotated[
        str, typer.Option(metavar="process|role", help="What is the same in both.")
    ] = "process",
    json: Json = False,
) -> Code:
    """Show what changed: processes, their ids, who is in whose TCB, memory shared."""
    if by not in BY:
        raise UsageError(f"--by must be {' or '.join(BY)}, not {escape(by)!r}")
    sources = [open_source(before), open_source(after)]
    found = difference(sources[0].model, sources[1].model, by=by)
    gaps = [coverage.gaps(source) for source in sources]
    if json:
        told = [coverage.to_json(s, g) for s, g in zip(sources, gaps, strict=True)]
        print_json({"question": "diff", **found.to_dict(), "coverage": told})
    else:
        print_lines(*str(found).split("\n"))
        if len(found.undecided):
            print_lines(f"{len(found.undecided)} pairs are known of one side only")
    return Code.INCOMPLETE if len(found.undecided) or any(gaps) else Code.ANSWERED
