"""``osmosis capture -o FILE``: record this host, to ask it later or elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from osmosis.cli import coverage
from osmosis.cli.exits import Code, UsageError, answering
from osmosis.cli.files import refuse_to_overwrite
from osmosis.cli.options import Json
from osmosis.cli.source import Source, capture_host
from osmosis.cli.terminal import print_json, print_lines
from osmosis.graph.pds import escape

__all__ = ["capture"]


@answering
def capture(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write the snapshot.")
    ],
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.")] = False,
    frames: Annotated[
        str, typer.Option(metavar="classes|all", help="all: keep every frame number too.")
    ] = "classes",
    json: Json = False,
) -> Code:
    """Record this host in FILE, for --snapshot FILE later, anywhere, by any user."""
    if frames not in ("classes", "all"):
        raise UsageError(f"--frames must be classes or all, not {escape(frames)!r}")
    refuse_to_overwrite(output, force=force)
    snapshot = capture_host(frames=frames)
    refuse_to_overwrite(output, force=force)
    snapshot.save(output)
    source = Source(snapshot.model(), snapshot.host, live=True, name="")
    found = coverage.gaps(source)
    if json:
        print_json({"file": str(output), "coverage": coverage.to_json(source, found)})
    else:
        size = output.stat().st_size / 2**20
        print_lines(f"{escape(str(output))}: {size:.1f} MiB", *coverage.describe(source, found))
    return Code.INCOMPLETE if found else Code.ANSWERED
