"""``osmosis compare A B ...``: one subject in several snapshots, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from osmosis.cli import coverage
from osmosis.cli.exits import Code, UsageError, answering
from osmosis.cli.files import new_file, refuse_to_overwrite, write_text
from osmosis.cli.options import Access, Json, OwnAccess, Services, Verbs, listed
from osmosis.cli.source import Source, open_source
from osmosis.cli.terminal import print_json, print_lines, print_table
from osmosis.formats.comparison import (
    LEGEND,
    MOST_COLUMNS,
    as_columns,
    as_rows,
    change_lines,
    to_markdown,
    who_rows,
)
from osmosis.formats.mechanism import mechanism
from osmosis.formats.png import to_png
from osmosis.formats.svg import sheet, to_svg
from osmosis.graph.pds import escape
from osmosis.query.compare import compare as side_by_side
from osmosis.query.comparison import Comparison

__all__ = ["compare"]

FORMATS = ("table", "json", "markdown")


@answering
def compare(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Snapshots or CSVs of the paper's tool.")
    ],
    subject: Annotated[
        list[str],
        typer.Option(
            metavar="SEL", help="Whose TCB and Impact Boundary: role:db. Of one: NAME=SEL."
        ),
    ],
    other: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SEL", help="From whom it is separated, layer by layer; else every role."
        ),
    ] = None,
    by: Annotated[
        str, typer.Option(metavar="KEY", help="What names members: role, comm, container ...")
    ] = "role",
    access: Access = "W",
    own_access: OwnAccess = "ANY",
    verbs: Verbs = None,
    services: Services = False,
    format: Annotated[  # noqa: A002  # the option's name
        str, typer.Option("--format", "-f", metavar="|".join(FORMATS), help="What is printed.")
    ] = "table",
    json: Json = False,
    figure: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|FILE",
            help="Draw each, too: FILE.svg or FILE.png of all, or DIR/NAME.svg of each.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite drawings.")] = False,
) -> Code:
    """Compare the TCB, the Impact Boundary and the isolation of one subject in several files."""
    if format not in FORMATS:
        raise UsageError(f"--format must be {', '.join(FORMATS)}, not {escape(format)!r}")
    names = _names(files)
    drawings = {} if figure is None else _drawings(figure, names, force=force)
    selectors = _selectors(subject, names)
    sources = {name: open_source(file) for name, file in zip(names, files, strict=True)}
    found = side_by_side(
        {name: source.model for name, source in sources.items()},
        subject=selectors,
        others=other,
        by=by,
        access=access,
        own_access=own_access,
        verbs=listed(verbs),
        services=services,
    )
    drawn = _draw(found, sources, drawings, by=by, force=force)
    gaps = {
        name: coverage.gaps(source, [pd.row for pd in source.model.find(found[name].selector)])
        for name, source in sources.items()
    }
    if json or format == "json":
        _print_json(found, sources, gaps)
    elif format == "markdown":
        print_lines(*to_markdown(found, layers=bool(other)).splitlines())
    else:
        _print_table(found, other)
        print_lines(*drawn)
    unsure = any(gaps.values()) or any(case.incomplete for case in found)
    return Code.INCOMPLETE if unsure else Code.ANSWERED


def _names(files: list[Path]) -> list[str]:
    """Return a name for each file: its stem, or where two have one stem the path."""
    names = [file.stem for file in files]
    if len(set(names)) < len(names):
        names = [str(file) for file in files]
    if len(set(names)) < len(names):
        raise UsageError("compare was given one file twice")
    return names


def _selectors(given: list[str], names: list[str]) -> str | dict[str, str]:
    """Return the one selector of all, or one by name: ``NAME=SEL`` goes before ``SEL``."""
    own: dict[str, str] = {}
    for_all = []
    for text in given:
        name, equals, selector = text.partition("=")
        if equals and name in names:
            own[name] = selector
        else:
            for_all.append(text)
    if len(for_all) > 1:
        raise UsageError(
            f"--subject was given {len(for_all)} times for all files; NAME=SEL is for one of"
            f" {', '.join(map(escape, names))}"
        )
    if not own:
        return for_all[0]
    missing = [name for name in names if name not in own]
    if missing and not for_all:
        raise UsageError(f"--subject is missing for {', '.join(map(escape, missing))}")
    return {name: own.get(name) or for_all[0] for name in names}


def _drawings(figure: Path, names: list[str], *, force: bool) -> dict[Path, list[str]]:
    """Return the files to write, and which cases each has; they can be written.

    Raises
    ------
    UsageError
        It is neither a directory nor a name that ends in .svg or .png.
    OutputError
        A file is there, and *force* is not given.
    """
    ending = figure.suffix.lower()
    if figure.is_dir() or not ending:
        figure.mkdir(exist_ok=True)
        found = {figure / f"{name.replace('/', '_')}.svg": [name] for name in names}
    elif ending in (".svg", ".png"):
        found = {figure: names}
    else:
        raise UsageError(
            f"--figure {escape(str(figure))}: name a directory, or a file that ends in .svg or .png"
        )
    for path in found:
        refuse_to_overwrite(path, force=force)
    return found


def _draw(
    found: Comparison,
    sources: dict[str, Source],
    drawings: dict[Path, list[str]],
    *,
    by: str,
    force: bool,
) -> list[str]:
    """Write the drawings of the cases that have a subject; returns what to say of each."""
    said = []
    for path, names in drawings.items():
        there = [name for name in names if not found[name].absent]
        if not there:
            continue
        each = [to_svg(mechanism(sources[name].model, found[name], by=by)) for name in there]
        svg = each[0] if len(each) == 1 else sheet(each)
        if path.suffix.lower() == ".png":
            made = to_png(svg)
            with new_file(path, force=force) as temporary:
                temporary.write_bytes(made)
        else:
            write_text(path, svg, force=force)
        said.append(f"{escape(str(path))}: {', '.join(map(escape, there))}")
    return said


def _print_json(
    found: Comparison, sources: dict[str, Source], gaps: dict[str, coverage.Gaps]
) -> None:
    said = found.to_dict()
    for name, source in sources.items():
        said["cases"][name]["coverage"] = coverage.to_json(source, gaps[name])
    print_json({"question": "compare", **said})


def _print_table(found: Comparison, others: list[str] | None) -> None:
    if len(found) > MOST_COLUMNS:
        numbers = as_rows(found, [other.removeprefix("role:") for other in others or ()])
        tables = [numbers, who_rows(found, "tcb"), who_rows(found, "impact_boundary")]
    else:
        tables = [as_columns(found, layers=bool(others))]
    for heads, rows in tables:
        print_table([(head, "left") for head in heads], rows)
        print_lines("")
    print_lines(LEGEND, "", *change_lines(found))
