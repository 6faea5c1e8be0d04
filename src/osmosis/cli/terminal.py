"""Everything that is printed goes through here: names are hostile and are never markup.

The graph's text comes from processes, which choose their own names. ``shown`` escapes what
does not print (control and ANSI sequences, newlines, bidi controls, lone surrogates), and a
cell is a rich ``Text``, in which nothing is markup.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from osmosis.graph.pds import escape

__all__ = ["Column", "complain", "print_json", "print_lines", "print_table", "shown"]

CELL = 64  # characters of a cell; JSON has the whole
LAST = 240  # of the last one in a row
_UNLIMITED = 10_000

Column = tuple[str, str]  # head, and "left" or "right"


def _unlimited() -> bool:
    """Whether nothing is cut to a width: into a file or a pipe."""
    return not sys.stdout.isatty() and "COLUMNS" not in os.environ


def _console() -> Console:
    width = _UNLIMITED if _unlimited() else None
    return Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False)


def _print(console: Console, renderable: Any, *, soft_wrap: bool = False) -> None:
    # Captured first: rich would end the program itself where the reader of a pipe has gone.
    with console.capture() as made:
        console.print(renderable, soft_wrap=soft_wrap)
    sys.stdout.write("".join(line.rstrip() + "\n" for line in made.get().splitlines()))


def shown(text: object, limit: int = CELL) -> str:
    """Return *text* fit for one cell: printable, and cut where it is longer than *limit*."""
    said = escape(str(text))
    return said if len(said) <= limit else said[: limit - 3] + "..."


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[object]]) -> None:
    """Print rows of cells under their heads; every cell is escaped here."""
    said = [[*(shown(cell) for cell in cells), shown(last, LAST)] for *cells, last in rows]
    if _unlimited():
        sys.stdout.write("".join(f"{line}\n" for line in _lines(columns, said)))
    else:
        _print(_console(), _table(columns, said))


def _lines(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """What ``_table`` is where nothing has to be cut, at a fiftieth of the time."""
    lengths = [[cell_len(cell) for cell in row] for row in rows]
    heads = [head for head, _ in columns]
    widths = [max(of) for of in zip(*lengths, map(cell_len, heads), strict=True)]

    def line(cells: Sequence[str], cell_lengths: Sequence[int]) -> str:
        padded = []
        for (_, justify), cell, length, width in zip(
            columns, cells, cell_lengths, widths, strict=True
        ):
            space = " " * (width - length)
            if justify == "right":
                end = len(cell.rstrip(" "))
                padded.append(space + cell[end:] + cell[:end])
            else:
                padded.append(cell + space)
        return "   ".join(padded).rstrip()

    yield line(heads, [cell_len(head) for head in heads])
    yield "─" * (sum(widths) + 3 * (len(widths) - 1))
    for row, of in zip(rows, lengths, strict=True):
        yield line(row, of)


def _table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for number, (head, justify) in enumerate(columns):
        end = number == len(columns) - 1
        table.add_column(
            Text(head),
            justify="right" if justify == "right" else "left",
            # Where the terminal is narrow the last column is folded, before any other is cut.
            no_wrap=not end,
            overflow="fold" if end else "ellipsis",
            min_width=len(head) if justify == "right" and not end else None,
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def print_lines(*lines: str) -> None:
    """Print lines of our own words; what they quote was escaped by the caller."""
    console = _console()
    for line in lines:
        _print(console, Text(line), soft_wrap=True)


def complain(message: str) -> None:
    """Say on stderr, in one line, what went wrong and what to do."""
    line = " ".join(escape(part) if not part.isprintable() else part for part in message.split())
    print(f"osmosis: {line}", file=sys.stderr)  # noqa: T201


def print_json(value: Any) -> None:
    """Print *value* as JSON in plain ASCII; a number that JSON does not know is null."""
    sys.stdout.write(json.dumps(_plain(value), indent=2, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if hasattr(value, "item"):  # a NumPy number
        return _plain(value.item())
    return value
