"""What the commands share that answer with a set of PDs: a table, or JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from osmosis.cli import coverage
from osmosis.cli.describe import name_of, pd_json
from osmosis.cli.exits import Code
from osmosis.cli.source import Source
from osmosis.cli.terminal import print_json, print_lines, print_table
from osmosis.graph.pds import PD
from osmosis.graph.sets import PDSet

__all__ = ["print_answer"]

Pages = Mapping[int, int]


def print_answer(
    question: str,
    source: Source,
    pd: PD,
    answer: PDSet,
    options: Mapping[str, Any],
    *,
    json: bool,
    top: int | None,
    pages: Pages | None = None,
) -> Code:
    """Print an answer about *pd*: members first, then what could not be decided."""
    found = coverage.gaps(source, [pd.row])
    if json:
        print_json(_json(question, source, pd, answer, options, found, pages))
    else:
        _print(question, source, pd, answer, found, top, pages)
    return Code.INCOMPLETE if found or len(answer.unknown) else Code.ANSWERED


WORDS = {
    "tcb": ("can affect", "Trusted Computing Base of {}"),
    "ib": ("can be affected by it", "Impact Boundary of {}"),
    "shared": ("share with it", "shared with {}"),
    "controllers": ("may control it", "controllers of {}"),
    "controls": ("may be controlled by it", "controlled by {}"),
}


def _print(
    question: str,
    source: Source,
    pd: PD,
    answer: PDSet,
    found: coverage.Gaps,
    top: int | None,
    pages: Pages | None,
) -> None:
    title = WORDS[question][1].format(name_of(pd))
    unknown = answer.unknown
    line = f"{title}: {len(answer)}"
    if len(unknown):
        line += f", and {len(unknown)} unknown"
    parts = [
        f"{name} {len(part)}" + (f" +{len(part.unknown)}?" if len(part.unknown) else "")
        for name, part in answer.parts.items()
    ]
    if len(parts) > 1:
        line += f" ({', '.join(parts)})"
    print_lines(line)
    for gap in _briefly(found):
        print_lines(gap)
    rows = _ranked(answer, source)
    shown = rows[:top]
    if not shown:
        return
    pds = source.model.pds
    live = source.host is not None and pds.members is None
    users = any(pds.user[row] is not None for row, _ in shown)
    containers = any(pds.container[row] is not None for row, _ in shown)
    grouped = pds.members is not None
    columns = [("PID", "right") if live else ("ID", "left"), ("NAME", "left")][grouped:]
    columns += [("USER", "left")] * users + [("CONTAINER", "left")] * containers
    columns += [("PAGES", "right")] * (pages is not None) + [("BY", "left")]
    cells = []
    for row, sure in shown:
        one = pds[row]
        named: list[object] = [one.pid if live else one.id, one.comm or "-"]
        line_ = named[grouped:]
        line_ += [one.user or "-"] * users + [one.container or "-"] * containers
        if pages is not None:
            line_.append(pages.get(row, 0))
        line_.append(
            ("" if sure else "unknown: ") + str(answer.why(one) if sure else unknown.why(one))
        )
        cells.append(line_)
    print_lines("")
    print_table(columns, cells)
    if len(rows) > len(shown):
        print_lines(f"{len(rows) - len(shown)} more: --all, or --top N")


def _briefly(found: coverage.Gaps) -> list[str]:
    """Return one line of what was not read of the one asked, and of the host."""
    said = dict.fromkeys(
        f"{gap.source} {gap.status}" + (f" ({gap.reason})" if gap.reason else "")
        if hasattr(gap, "source")
        else f"line {gap.line} ({gap.reason})"
        for gap in found.rows
    )
    listed_ = list(said)
    more = f"; {len(listed_) - 4} more" if len(listed_) > 4 else ""
    return [f"not read: {'; '.join(listed_[:4])}{more}"] if listed_ else []


def _ranked(answer: PDSet, source: Source) -> list[tuple[int, bool]]:
    """Rows, and whether certain: the kernel, then what shares, then the rest; unknown last.

    Those that share come before those that merely may: they are fewer and say more.
    """
    kernel = None if source.model.kernel is None else source.model.kernel.row
    shared = answer.parts.get("shared")
    sharing = set() if shared is None else set(shared.rows.tolist())
    sure = sorted(answer.rows.tolist(), key=lambda r: (r != kernel, r not in sharing, r))
    return [(r, True) for r in sure] + [(r, False) for r in answer.unknown.rows.tolist()]


def _json(
    question: str,
    source: Source,
    pd: PD,
    answer: PDSet,
    options: Mapping[str, Any],
    found: coverage.Gaps,
    pages: Pages | None,
) -> dict[str, Any]:
    def one(row: int, of: PDSet) -> dict[str, Any]:
        member = source.model.pds[row]
        why = of.why(member)
        said = {**pd_json(member), "parts": why.parts, "verbs": why.verbs, "types": why.types}
        return said if pages is None else {**said, "pages": pages.get(row, 0)}

    unknown = answer.unknown
    return {
        "question": question,
        "of": pd_json(pd),
        "options": dict(options),
        "count": len(answer),
        "unknown_count": len(unknown),
        "parts": {
            name: {"count": len(part), "unknown_count": len(part.unknown)}
            for name, part in answer.parts.items()
        },
        "members": [one(row, answer) for row in answer.rows.tolist()],
        "unknown": [one(row, unknown) for row in unknown.rows.tolist()],
        "coverage": coverage.to_json(source, found),
    }


def pages_with(source: Source, pd: PD) -> Pages:
    """Return base pages that each other PD has in common with *pd*, by row; 0 left out."""
    row = source.model.shared_pages(rows=[pd])
    return dict(zip(row.indices.tolist(), np.asarray(row.data).tolist(), strict=True))
