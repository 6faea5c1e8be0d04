"""The whole table of the evaluation, from the saved snapshots: who, by what, how far apart."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
from benchmarks.evaluation.mechanisms import MECHANISMS
from benchmarks.evaluation.saved import snapshots

import osmosis

SNAPSHOTS = snapshots()
COMPARED = osmosis.compare({n: s.model() for n, s in SNAPSHOTS.items()}, subject="role:db")


@dataclass(frozen=True)
class Expected:
    """Certain members: of the TCB and the IB by role, and by part; layers; fault radius."""

    tcb: dict[str, int]
    tcb_parts: dict[str, int]
    ib: dict[str, int]
    ib_parts: dict[str, int]
    score: str
    full_score: str
    fr: tuple[float, float]  # to app, to bystander


ROOT = {"kernel": 1, "host-root": 1}
DOCKER = Expected(
    {**ROOT, "daemon": 2, "shim": 3, "app": 1},
    {"other": 1, "control": 6, "service": 1},
    {"app": 1, "shim": 1},
    {"other": 2, "service": 1},
    "4/7 (+1 unknown)",
    "7/13 (+1 unknown)",
    (1, 1),
)
PODMAN = replace(
    DOCKER,
    tcb={**ROOT, "shim": 3, "app": 1},
    tcb_parts={"other": 1, "control": 4, "service": 1},
    fr=(1, math.inf),
)
PROCESSES = Expected(
    {**ROOT, "app": 1, "bystander": 1},
    {"other": 1, "control": 3},
    {"app": 1, "bystander": 1},
    {"other": 1, "control": 2, "service": 1},
    "0/7",
    "0/13",
    (math.inf, math.inf),
)
NO_NAMESPACE = replace(DOCKER, score="3/7 (+1 unknown)", full_score="6/13 (+1 unknown)")
TABLE = {
    "processes": PROCESSES,
    "processes-users": replace(
        PROCESSES,
        tcb={**ROOT, "app": 1},
        tcb_parts={"other": 1, "control": 1},
        ib={"app": 1},
        ib_parts={"other": 1, "service": 1},
        full_score="1/13",
    ),
    "docker": DOCKER,
    "docker-pid-host": replace(DOCKER, tcb_parts={"other": 1, "control": 7, "service": 1}),
    "docker-network-host": NO_NAMESPACE,
    "docker-ipc-container": NO_NAMESPACE,
    "docker-volume": DOCKER,
    "docker-socket": replace(DOCKER, tcb_parts={"other": 1, "control": 7, "service": 1}),
    "docker-cap-drop-all": DOCKER,
    "docker-two-networks": DOCKER,
    "docker-userns": replace(DOCKER, full_score="8/13 (+1 unknown)"),
    "docker-privileged": replace(DOCKER, score="5/7", full_score="8/13"),
    "docker-rootless": replace(
        NO_NAMESPACE,
        tcb={"kernel": 1, "host-root": 2, "daemon": 4, "network": 1, "shim": 3, "app": 1},
        tcb_parts={"other": 1, "control": 10, "service": 1},
    ),
    "podman": PODMAN,
    "podman-rootless": replace(
        PODMAN,
        tcb={**ROOT, "network": 5, "helper": 1, "shim": 3},
        tcb_parts={"other": 1, "control": 10, "service": 2},
        ib={"network": 1, "shim": 1},
        score="3/7 (+1 unknown)",
        full_score="6/13 (+1 unknown)",
    ),
    "apptainer": Expected(
        {**ROOT, "shim": 7, "app": 1},
        {"files": 1, "other": 1, "control": 8},
        {"app": 1, "shim": 2},
        {"files": 1, "other": 1, "control": 2, "service": 1},
        "1/7",
        "3/13",
        (math.inf, math.inf),
    ),
    "bubblewrap": Expected(
        {**ROOT, "shim": 3, "sibling": 1, "app": 1},
        {"files": 2, "other": 1, "control": 5},
        {"app": 1, "shim": 1, "sibling": 1},
        {"files": 2, "other": 1, "control": 2, "service": 1},
        "3/7",
        "6/13",
        (math.inf, math.inf),
    ),
    "nspawn": replace(
        PODMAN, ib_parts={"other": 2, "service": 1}, score="2/7 (+1 unknown)",
        tcb_parts={"other": 2, "control": 4, "service": 1}, full_score="5/13 (+1 unknown)",
    ),
}  # fmt: skip


def certain(counts):
    return {key: count.certain for key, count in counts.items() if count.certain}


def test_every_mechanism_is_in_the_table():
    assert {*TABLE, "gvisor"} == set(MECHANISMS)


@pytest.mark.parametrize("name", TABLE)
def test_who_is_in_the_tcb_and_the_impact_boundary_by_what(name):
    case, expected = COMPARED[name], TABLE[name]

    assert certain(case.tcb.roles) == expected.tcb
    assert certain(case.tcb.parts) == expected.tcb_parts
    assert certain(case.impact_boundary.roles) == expected.ib
    assert certain(case.impact_boundary.parts) == expected.ib_parts


@pytest.mark.parametrize("name", TABLE)
def test_how_far_apart_application_and_database_are(name):
    case, expected = COMPARED[name], TABLE[name]

    assert str(case.isolation["app"].score) == expected.score
    assert str(case.isolation["app"].full_score) == expected.full_score
    assert (case.fr["app"], case.fr["bystander"]) == expected.fr


@pytest.mark.parametrize("name", TABLE)
def test_how_much_memory_application_and_database_share(name):
    rsi = COMPARED[name].rsi["app"]

    if name == "apptainer":  # each instance mounts the image for itself: no page is shared
        assert rsi.get("MO", 0) == rsi.get("FILE", 0) == 0
    else:  # libraries of one tree
        assert 0.3 < rsi["MO"] < 0.5
        assert 0.7 < rsi["FILE"] < 1


def test_gvisor_has_a_sentry_its_stubs_and_a_gofer_for_each_container():
    case = COMPARED["gvisor"]
    tcb = certain(case.tcb.roles)

    assert {role: tcb[role] for role in ("kernel", "daemon", "shim")} == {
        "kernel": 1, "daemon": 2, "shim": 3,
    }  # fmt: skip
    assert {"app", "bystander"} <= tcb.keys()  # the sentries, as processes of the host
    assert str(case.isolation["app"].score) == "3/7 (+1 unknown)"
    assert case.isolation["app"]["vm"].state == "separated"
