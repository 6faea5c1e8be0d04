"""The findings of the paper's tool beside ours: every difference is known, with its witness."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest
from benchmarks.evaluation import paper, report
from benchmarks.evaluation.facts import all_of
from benchmarks.evaluation.saved import SAVED, snapshots

from osmosis.formats.svg import to_svg
from osmosis.graph.sets import PDSet

SNAPSHOTS = snapshots()
FIGURES = report.PAGE.parent / report.FIGURES
DRAWN = dict(report.drawings(SNAPSHOTS))
# What differs on the machine where the snapshots were made; a cell that changes must be looked at.
KNOWN = {
    ("processes", "app"): {},
    ("docker", "app"): {"seccomp": "?"},
    ("docker", "daemon"): {"mac": "-"},
    ("docker-rootless", "app"): {"cgroup": "-", "seccomp": "?"},
    ("podman-rootless", "app"): {"cgroup": "-", "seccomp": "?"},
    ("apptainer", "app"): {"cgroup": "-"},
    ("gvisor", "app"): {"net": "-", "cgroup": "-", "seccomp": "?"},
}


def said(svg):
    return [node.text for node in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_every_row_is_held():
    assert [(row.mechanism, row.other) for row in paper.ROWS] == list(KNOWN)


@pytest.mark.parametrize("row", paper.ROWS, ids=lambda row: f"{row.mechanism}-{row.other}")
def test_each_cell_that_differs_has_its_witness(row):
    found = paper.differences(row, SNAPSHOTS[row.mechanism])

    assert {d.layer: d.measured for d in found} == KNOWN[row.mechanism, row.other]
    assert [d.layer for d in found if d.why is None] == []


@pytest.mark.parametrize("row", paper.ROWS, ids=lambda row: f"{row.mechanism}-{row.other}")
def test_the_score_is_the_number_of_separated_cells(row):
    model = SNAPSHOTS[row.mechanism].model()

    marks = paper.marks(model, row.other)
    score = model.isolation("role:db", all_of(model, row.other)).score

    assert (score.separated, score.unknown) == (marks.count("x"), marks.count("?"))


@pytest.mark.parametrize("claim", paper.CLAIMS, ids=lambda c: f"{c.mechanism}-{c.claim[:30]}")
def test_what_is_measured_beside_the_layers(claim):
    assert claim.check(SNAPSHOTS[claim.mechanism].model()) is True


def test_a_difference_without_its_witness_is_not_explained():
    """The same cell on a host that says it has AppArmor: nobody knows why, and it says so."""
    snapshot = SNAPSHOTS["docker"]
    host = {**snapshot.host, "lsm": "lockdown,capability,apparmor"}
    row = next(row for row in paper.ROWS if row.other == "daemon")

    found = paper.differences(row, type(snapshot)(snapshot.columns, host))

    assert [(d.layer, d.why) for d in found] == [("mac", None)]


def test_the_page_says_what_the_snapshots_say():
    """After make evaluation the page is of another folder: that is not to be committed."""
    page = report.PAGE.read_text()
    _, _, rest = page.partition(report.BEGIN)
    measured = rest.partition(report.END)[0].splitlines()

    again = "make evaluation-from-snapshots writes it from the saved ones"
    assert "Made from `tests/data/evaluation`" in page, again
    for part in (report.layers, report.claims, report.findings):
        assert [line for line in part(SNAPSHOTS) if line not in measured] == [], again


def test_the_page_is_what_the_command_writes(tmp_path):
    copy = tmp_path / report.PAGE.name
    copy.write_text(report.PAGE.read_text())

    assert report.report(SAVED, copy) == 0
    assert copy.read_text() == report.PAGE.read_text()


def test_every_figure_of_the_page_is_there():
    named = re.findall(r"\]\((evaluation/[^)]*\.svg)\)", report.PAGE.read_text())

    assert len(set(named)) == 9  # three questions of Docker, Podman and Apptainer
    assert {report.PAGE.parent / name for name in named} == set(FIGURES.iterdir())
    assert {FIGURES / file for file in DRAWN} == set(FIGURES.iterdir())


@pytest.mark.parametrize("file", DRAWN)
def test_a_figure_says_what_the_snapshot_says(file):
    again = "make evaluation-from-snapshots draws it from the saved ones"
    assert said((FIGURES / file).read_text()) == said(to_svg(DRAWN[file])), again


@pytest.mark.parametrize(
    ("file", "subject"),
    [(file, file.removesuffix(".svg").split("-")[1]) for file in DRAWN],
)
def test_a_figure_marks_the_members_of_the_answer_and_nobody_else(file, subject):
    model = SNAPSHOTS[file.partition("-")[0]].model()
    who = PDSet(model.pds, [pd.row for pd in model.find(f"role:{subject}")])
    tcb = file.endswith("-tcb.svg")
    members = (model.tcb if tcb else model.impact_boundary)(who)
    kernel = [model.kernel] if tcb else []

    marked = {node.members for node in DRAWN[file].nodes if node.role in ("tcb", "ib")}
    by_role: dict[str, list[str]] = {}
    for pd in model.pds:
        if pd not in who and pd != model.kernel:
            by_role.setdefault(model.pds.role[pd.row], []).append(pd.id)
    inside = {model.pds.role[pd.row] for pd in members if pd not in kernel}
    assert marked == {tuple(by_role[role]) for role in inside}
    drawn = {node.members for node in DRAWN[file].nodes if node.kind == "PD" and node.members}
    assert drawn == set(map(tuple, by_role.values()))
    doubt = f" +{len(members.unknown)}?" if members.unknown else ""
    assert DRAWN[file].nodes[0].lines[-1] == f"{'TCB' if tcb else 'IB'} {len(members)}{doubt}"
    assert [node.role for node in DRAWN[file].nodes].count("kernel") == len(kernel)


def test_nothing_is_wrong():
    assert report.wrong(SNAPSHOTS) == []


def test_a_finding_that_does_not_hold_is_reported():
    """Docker's snapshot in the place of bare processes."""
    found = report.wrong({"processes": SNAPSHOTS["docker"]})

    assert any(line.startswith("processes: Each can kill and trace") for line in found)
    assert any("db and app, mnt: measured x" in line for line in found)
