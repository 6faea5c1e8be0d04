"""Facts of layers against a plain loop over threads, and the decisions case by case."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_snapshots import Plain

from osmosis.query.isolation import isolation
from osmosis.relations.build import build
from osmosis.schema import NO_ID, Status

HOST = {"user_ns": 0xEFFF_FFFD}


def state(snap, layer, x, y):
    return isolation(build(snap), np.array([x + 1]), np.array([y + 1]))[layer].state


def expected(mine, theirs):
    """Shared if one thread of each is in the same; else unknown if one is not known."""
    if (set(mine) & set(theirs)) - {-1}:
        return "shared"
    return "unknown" if -1 in {*mine, *theirs} else "separated"


THREADS = st.lists(st.lists(st.integers(-1, 3), min_size=1, max_size=3), min_size=2, max_size=5)


def with_threads(plain, column, processes):
    rows = [
        {"process": p, "tid": 100 * p + t, column: value}
        for p, values in enumerate(processes)
        for t, value in enumerate(values[1:])
    ]
    return plain.rows("thread", *rows)


@settings(max_examples=60)
@given(THREADS)
def test_namespaces_of_processes_with_threads_elsewhere(processes):
    plain = Plain(len(processes), **HOST).namespaces("net", [v[0] for v in processes])
    # Rows of namespaces that no leader is in.
    top = max([0, *(v for values in processes for v in values)])
    plain.rows("namespace", *[{"kind": 3, "inode": 100 + i} for i in range(top + 1)])
    plain.set("process_ns_net", [v[0] for v in processes])
    snap = with_threads(plain, "ns_net", processes).snapshot()
    graph = build(snap)
    for x, y in combinations(range(len(processes)), 2):
        for a, b in ((x, y), (y, x)):
            answer = isolation(graph, np.array([a + 1]), np.array([b + 1]))["net"]
            assert answer.state == expected(processes[a], processes[b])


@settings(max_examples=60)
@given(st.lists(st.tuples(*[st.sampled_from([0, 1000, 1001, NO_ID])] * 4), min_size=2, max_size=5))
def test_uids(ids):
    plain = Plain(len(ids), **HOST)
    for k, name in enumerate(("ruid", "euid", "suid", "fsuid")):
        plain.set(f"process_{name}", [row[k] for row in ids])
    graph = build(plain.snapshot())
    known = [[-1 if v == NO_ID else v for v in row] for row in ids]
    for x, y in combinations(range(len(ids)), 2):
        answer = isolation(graph, np.array([x + 1]), np.array([y + 1]))["uid"]
        assert answer.state == expected(known[x], known[y])


def test_unmapped_ids_are_all_alike_inside_a_user_namespace():
    def snap(**host):
        plain = Plain(2, overflow_uid=65534, **host)
        for name in ("ruid", "euid", "suid", "fsuid"):
            plain.set(f"process_{name}", [65534, 65534])
        return plain.snapshot()

    assert state(snap(user_ns=1), "uid", 0, 1) == "unknown"
    assert state(snap(**HOST), "uid", 0, 1) == "shared"


@pytest.mark.parametrize(
    ("a", "b", "want"),
    [
        (0, 0, "shared"),
        (0, 2, "separated"),
        (2, 0, "separated"),
        (0, 1, "separated"),
        (1, 1, "shared"),
        (1, 2, "unknown"),
        (2, 2, "unknown"),
        (-1, 0, "unknown"),
        (-1, -1, "unknown"),
    ],
)
def test_seccomp(a, b, want):
    snap = Plain(2, **HOST).set("process_seccomp", [a, b]).snapshot()
    assert state(snap, "seccomp", 0, 1) == want


@pytest.mark.parametrize(
    ("a", "b", "want"),
    [
        (None, None, "shared"),  # no LSM gives labels: nothing separates
        ("unconfined", "docker-default (enforce)", "separated"),
        ("docker-default (enforce)", "docker-default (enforce)", "shared"),
        ("a (complain)", "unconfined", "shared"),  # complain only logs
        ("a (complain)", "b (complain)", "shared"),
        ("a (enforce)", "a (complain)", "separated"),
        ("u:r:t:s0:c1", "u:r:t:s0:c2", "separated"),
    ],
)
def test_mac(a, b, want):
    assert state(Plain(2, **HOST).set("process_label", [a, b]).snapshot(), "mac", 0, 1) == want


def test_a_label_that_was_refused_is_unknown():
    plain = Plain(2, **HOST).set("process_label", ["a (enforce)", None])
    plain.rows(
        "ledger",
        {"process": 1, "pid": 11, "source": "label", "status": Status.DENIED, "reason": "no"},
    )
    assert state(plain.snapshot(), "mac", 0, 1) == "unknown"


def test_root_directories():
    plain = Plain(4, **HOST)
    plain.set("process_root_dev", [1, 1, 2, 0]).set("process_root_inode", [2, 2, 2, 0])
    snap = plain.snapshot()
    assert state(snap, "rootfs", 0, 1) == "shared"
    assert state(snap, "rootfs", 0, 2) == "separated"
    assert state(snap, "rootfs", 2, 3) == "unknown"


def test_hypervisors():
    exes = [
        "/usr/bin/sleep",
        "/usr/bin/qemu-system-x86_64",
        "/usr/bin/qemu-system-x86_64",
        "/home/ann/firecracker",
        None,
        "/usr/bin/bash",
    ]
    plain = Plain(len(exes), **HOST).set("process_exe", exes)
    plain.set("process_root_dev", [1] * 6).set("process_root_inode", [2] * 6)
    snap = plain.snapshot()
    assert state(snap, "vm", 0, 1) == state(snap, "vm", 1, 2) == "separated"
    assert state(snap, "vm", 0, 3) == state(snap, "vm", 0, 4) == "unknown"
    assert state(snap, "vm", 0, 5) == "shared"


def test_a_hypervisors_name_in_a_root_of_its_own_decides_nothing():
    plain = Plain(3, **HOST).set("process_exe", ["/usr/bin/a", "/usr/bin/b", "/usr/bin/crosvm"])
    plain.set("process_root_dev", [1, 1, 7]).set("process_root_inode", [2, 2, 2])
    assert state(plain.snapshot(), "vm", 0, 2) == "unknown"


def test_nothing_known_is_nothing_separated():
    plain = Plain(2)
    for name in ("ruid", "euid", "suid", "fsuid"):
        plain.set(f"process_{name}", [NO_ID] * 2)
    plain.set("process_seccomp", [-1, -1])
    found = isolation(build(plain.snapshot()), np.array([1]), np.array([2]))
    assert {k for k, v in found.items() if v.state == "separated"} == set()
    assert {k for k, v in found.items() if v.state == "shared"} == {"mac"}


def test_a_sandbox_by_its_own_word_decides_nothing():
    plain = Plain(2, **HOST).set("process_exe", ["/usr/bin/a", "/home/ann/runsc"])
    plain.set("process_root_dev", [1, 1]).set("process_root_inode", [2, 2])
    assert state(plain.snapshot(), "vm", 0, 1) == "unknown"
