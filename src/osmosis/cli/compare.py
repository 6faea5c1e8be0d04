"""``osmosis compare A B ...``: one subject in several snapshots, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from osmosis.cli import coverage
from osmosis.cli.exits import Code, UsageError, answering
from osmosis.cli.options import Json
from osmosis.cli.source import open_source
from osmosis.cli.terminal import print_json, print_lines, print_table
from osmosis.query.compare import compare as side_by_side

__all__ = ["compare"]


@answering
def compare(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Snapshots or CSVs, two or more.")
    ],
    subject: Annotated[
        str, typer.Option(metavar="SEL", help="Whose TCB and Impact Boundary: role:db ...")
    ],
    json: Json = False,
) -> Code:
    """Compare the TCB, the Impact Boundary and the isolation of one subject in several files."""
    if len(files) < 2:
        raise UsageError("compare wants two files or more")
    names = [file.stem for file in files]
    if len(set(names)) < len(names):
        names = [str(file) for file in files]
    if len(set(names)) < len(names):
        raise UsageError("compare was given one file twice")
    sources = {name: open_source(file) for name, file in zip(names, files, strict=True)}
    found = side_by_side({name: s.model for name, s in sources.items()}, subject=subject)
    gaps = {
        name: coverage.gaps(s, [pd.row for pd in s.model.find(subject)])
        for name, s in sources.items()
    }
    if json:
        said = found.to_dict()
        for name, source in sources.items():
            said["cases"][name]["coverage"] = coverage.to_json(source, gaps[name])
        print_json({"question": "compare", **said})
    else:
        rows = found.rows()
        print_lines(f"{subject!r} in {len(files)} files", "")
        print_table([(head, "left") for head in rows[0]], [list(row.values()) for row in rows])
    unknown = any(case.tcb.unknown or case.impact_boundary.unknown for case in found.cases.values())
    return Code.INCOMPLETE if unknown or any(gaps.values()) else Code.ANSWERED
