"""The findings of the paper's tool beside ours: every difference is known, with its witness."""

from __future__ import annotations

import re

import pytest
from benchmarks.evaluation import paper, report
from benchmarks.evaluation.facts import all_of
from benchmarks.evaluation.saved import snapshots

SNAPSHOTS = snapshots()
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


def test_every_figure_of_the_page_is_there():
    named = re.findall(r"\]\((evaluation/[^)]*\.svg)\)", report.PAGE.read_text())

    assert len(set(named)) == 9  # three questions of Docker, Podman and Apptainer
    for name in named:
        assert (report.PAGE.parent / name).read_text().startswith("<svg")


def test_nothing_is_wrong():
    assert report.wrong(SNAPSHOTS) == []


def test_a_finding_that_does_not_hold_is_reported():
    """Docker's snapshot in the place of bare processes."""
    found = report.wrong({"processes": SNAPSHOTS["docker"]})

    assert any(line.startswith("processes: Each can kill and trace") for line in found)
    assert any("db and app, mnt: measured x" in line for line in found)
