"""Compare the snapshots of an evaluation: ``python -m benchmarks.evaluation.report DIR``.

Needs neither root nor a container runtime. Prints the comparison, and why a mechanism is not in
it; writes the measured part of docs/evaluation.md. Without DIR, of the snapshots that are
saved in the repository. A finding that does not hold, or a cell that differs from the paper's
tool's without a witness, makes it fail.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import osmosis
from benchmarks.evaluation import paper
from benchmarks.evaluation.facts import FACTS
from benchmarks.evaluation.mechanisms import MECHANISMS
from benchmarks.evaluation.saved import SAVED, reasons, snapshots
from osmosis.formats.comparison import to_markdown
from osmosis.formats.mechanism import mechanism
from osmosis.formats.svg import to_svg
from osmosis.formats.view import View
from osmosis.snapshot import Snapshot

__all__ = [
    "BEGIN",
    "END",
    "FIGURES",
    "PAGE",
    "claims",
    "drawings",
    "findings",
    "layers",
    "main",
    "report",
    "wrong",
]

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "evaluation.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
# The paper's three, and how bare processes compare.
STEPS = ("processes", "docker", "podman", "apptainer")
# Who starts and keeps a container, where it is not a daemon.
KEEPER = {"docker": "daemon", "podman": "shim", "apptainer": "shim"}
FIGURES = "evaluation"  # the folder beside the page

Snapshots = Mapping[str, Snapshot]


def report(folder: Path, page: Path | None = PAGE) -> int:
    """Print what the snapshots in *folder* say, and write it down; 1 if something is wrong."""
    found = snapshots(folder)
    why = reasons(folder)
    for name in MECHANISMS:
        if name not in found:
            print(f"{name:22} not compared: {why.get(name, 'there is no snapshot')}")
    if not found:
        print(f"no snapshot in {folder}; make evaluation-from-snapshots compares the saved ones")
        return 1
    said = _measured(found, why, folder)
    print(said)
    if page is not None:
        before, _, rest = page.read_text().partition(BEGIN)
        page.write_text(f"{before}{BEGIN}\n\n{said}\n{END}{rest.partition(END)[2]}")
        (page.parent / FIGURES).mkdir(exist_ok=True)
        for file, view in drawings(found):
            (page.parent / FIGURES / file).write_text(to_svg(view))
        print(f"written: {page}")
    failed = wrong(found)
    for line in failed:
        print(f"NOT SO: {line}")
    return int(bool(failed))


def wrong(found: Snapshots) -> list[str]:
    """Return the findings that do not hold, and the differences that nobody can explain."""
    failed = [
        f"{name}: {fact.text}"
        for name in found
        for fact in FACTS[name]
        if fact.check(found[name].model()) is not True
    ]
    for row in paper.ROWS:
        if row.mechanism in found:
            failed += [
                f"{row.mechanism}, db and {row.other}, {difference.layer}: measured "
                f"{difference.measured}, and no witness says why the paper's tool found another"
                for difference in paper.differences(row, found[row.mechanism])
                if difference.why is None
            ]
    return failed + [
        f"{claim.mechanism}: {claim.measured}"
        for claim in paper.CLAIMS
        if claim.mechanism in found and not claim.check(found[claim.mechanism].model())
    ]


def _measured(found: Snapshots, why: Mapping[str, str], folder: Path) -> str:
    """Return the measured part of the page: tables, differences and findings, in Markdown."""
    models = {name: snapshot.model() for name, snapshot in found.items()}
    steps = {name: models[name] for name in STEPS if name in models}
    place = folder.resolve()
    place = place.relative_to(ROOT) if place.is_relative_to(ROOT) else Path(place.name)
    lines = [f"Made from `{place}`, Linux {_kernels(found)}.", ""]
    lines += [f"- not measured: {name}: {why[name]}" for name in MECHANISMS if name in why]
    lines += [f"- {name}: {s.host['note']}" for name, s in found.items() if s.host.get("note")]
    if steps:
        lines += ["", "### The database: from bare processes to Docker, Podman, Apptainer", ""]
        compared = osmosis.compare(steps, subject="role:db", others=("role:app", "role:bystander"))
        lines += [to_markdown(compared, layers=True)]
    keepers = {name: models[name] for name in KEEPER if name in models}
    if keepers:
        subjects = {name: f"role:{KEEPER[name]}" for name in keepers}
        lines += ["### Who keeps the containers: daemon, conmons, Apptainer's starters", ""]
        compared = osmosis.compare(keepers, subject=subjects, others=("role:db",))
        lines += [to_markdown(compared)]
    lines += ["### Figures", "", *_figure_table(found), ""]
    lines += ["### The layers, beside what the paper's tool found", "", *layers(found)]
    lines += ["", "### What else the paper's tool says", "", *claims(found)]
    lines += ["", "### Every mechanism", ""]
    lines += [to_markdown(osmosis.compare(models, subject="role:db")).partition("\n\n")[0]]
    lines += ["", "### Findings", "", *findings(found)]
    return "\n".join(lines).rstrip() + "\n"


def _figures(found: Snapshots) -> Iterator[tuple[str, str, str, str]]:
    """Yield the paper's figures: mechanism, role, answer, title."""
    for name, keeper in KEEPER.items():
        if name in found:
            yield name, "db", "tcb", f"{name}: TCB of the database"
            yield name, "db", "impact_boundary", f"{name}: Impact Boundary of the database"
            title = f"{name}: Impact Boundary of {'daemon' if keeper == 'daemon' else 'keepers'}"
            yield name, keeper, "impact_boundary", title


def drawings(found: Snapshots) -> Iterator[tuple[str, View]]:
    """Yield the paper's figures: the name of each file, and what is drawn in it."""
    for name, role, answer, _ in _figures(found):
        model = found[name].model()
        case = osmosis.compare({name: model}, subject=f"role:{role}")[name]
        yield _file(name, role, answer), mechanism(model, case, answer=answer)


def _file(name: str, role: str, answer: str) -> str:
    return f"{name}-{role}-{'tcb' if answer == 'tcb' else 'ib'}.svg"


def _figure_table(found: Snapshots) -> Iterator[str]:
    yield "| | TCB of the database | its Impact Boundary | that of daemon, conmons, starters |"
    yield "|---|---|---|---|"
    cells: dict[str, list[str]] = {}
    for name, role, answer, title in _figures(found):
        image = f"[![{title}]({FIGURES}/{_file(name, role, answer)})]"
        cells.setdefault(name, []).append(f"{image}({FIGURES}/{_file(name, role, answer)})")
    for name, images in cells.items():
        yield f"| {name} | {' | '.join(images)} |"


def _kernels(found: Snapshots) -> str:
    return ", ".join(sorted({str(s.host["kernel"]) for s in found.values()}))


def layers(found: Snapshots) -> Iterator[str]:
    """Yield a row for each mechanism, the paper's row below it, and why they differ."""
    yield f"| | {' | '.join(paper.LAYERS)} | score |"
    yield "|---" * (len(paper.LAYERS) + 2) + "|"
    theirs = {(row.mechanism, row.other): row for row in paper.ROWS}
    known = [pair for pair in theirs if pair[0] in found]
    others = [(name, "app") for name in found if (name, "app") not in theirs]
    said: dict[str, list[str]] = {}
    for name, other in (*known, *others):
        marks = paper.marks(found[name].model(), other)
        row = theirs.get((name, other))
        cells = list(marks)
        if row is not None:
            for difference in paper.differences(row, found[name]):
                cells[paper.LAYERS.index(difference.layer)] = f"**{difference.measured}**"
                reason = (
                    f"{difference.layer} {difference.measured}: {difference.why or 'not known'}"
                )
                said.setdefault(reason, []).append(f"{name} ({other})")
        doubt = f" +{marks.count('?')}?" if "?" in marks else ""
        yield f"| {name}, db and {other} | {' | '.join(cells)} | {marks.count('x')}/7{doubt} |"
        if row is not None:
            score = f"{row.paper.count('x')}/7"
            yield f"| *the paper's tool* | {' | '.join(row.paper)} | {score} |"
    yield ""
    yield "x separates, - is shared, ? is not known; **bold** is not what the paper's tool found:"
    yield ""
    for reason, where in said.items():
        yield f"- {reason} ({', '.join(where)})"


def claims(found: Snapshots) -> Iterator[str]:
    """Yield what else the paper's tool says, right or wrong, and what is measured."""
    yield "| | the paper's tool | | measured |"
    yield "|---|---|---|---|"
    for claim in paper.CLAIMS:
        if claim.mechanism in found:
            right = "right" if claim.holds else "**wrong**"
            yield f"| {claim.mechanism} | {claim.claim} | {right} | {claim.measured} |"


def findings(found: Snapshots) -> Iterator[str]:
    """Yield every fact once, with the mechanisms of which it is true."""
    said: dict[str, list[str]] = {}
    for name in found:
        for fact in FACTS[name]:
            so = fact.check(found[name].model()) is True
            said.setdefault(fact.text, []).append(name if so else f"**not {name}**")
    for text, names in said.items():
        every = len(names) == len(found) and not any("not " in name for name in names)
        yield f"- {text} *({'all' if every else ', '.join(names)})*"


def main(argv: list[str] | None = None) -> int:
    """Report on the folder that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=SAVED, metavar="DIR")
    parser.add_argument("--no-page", action="store_true", help="only print")
    asked = parser.parse_args(argv)
    return report(asked.folder, None if asked.no_page else PAGE)


if __name__ == "__main__":
    sys.exit(main())
