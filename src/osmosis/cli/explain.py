"""``osmosis explain A B``: why B is in the TCB of A, step by step."""

from __future__ import annotations

from dataclasses import asdict

from osmosis.cli import coverage
from osmosis.cli.describe import name_of, pd_json, pick
from osmosis.cli.exits import Code, answering
from osmosis.cli.options import By, Json, Other, Selector, Snapshot
from osmosis.cli.source import open_source
from osmosis.cli.terminal import print_json, print_lines

__all__ = ["explain"]

WORDS = {True: "is", False: "is not", None: "may be"}
STATES = {True: "yes", False: "no", None: "unknown"}


@answering
def explain(
    selector: Selector,
    other: Other,
    snapshot: Snapshot = None,
    json: Json = False,
    by: By = None,
) -> Code:
    """Show why the second SEL is in the TCB of the first: paths, rules, and what says so."""
    source = open_source(snapshot, by)
    x, y = pick(source.model, selector), pick(source.model, other)
    witness = source.model.explain(x, y)
    found = coverage.gaps(source, [x.row, y.row])
    if json:
        print_json(
            {
                "question": "explain",
                "of": pd_json(x),
                "by": pd_json(y),
                "state": STATES[witness.state],
                "reason": witness.reason,
                "caveats": witness.caveats,
                "paths": {
                    part: [asdict(step) for step in path] for part, path in witness.paths.items()
                },
                "coverage": coverage.to_json(source, found),
            }
        )
    else:
        first, *rest = str(witness).split("\n")
        print_lines(
            f"{name_of(y)} {WORDS[witness.state]} in the TCB of {name_of(x)}",
            first,
            *rest,
        )
    return Code.INCOMPLETE if found or witness.state is None else Code.ANSWERED
