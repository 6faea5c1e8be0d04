"""Yama, which the machines that run the live tests may not have: its four scopes."""

import pytest

from control_worlds import snapshot
from oracle_control import Cred, Proc, Process, Space
from osmosis.relations.control.table import control

USER = (1000,) * 4
PTRACE = 1 << 19


@pytest.fixture
def family():
    """A parent, its child, a stranger of the same user, and one with CAP_SYS_PTRACE."""
    user = Space("user")
    pid, mnt = Space("pid", None, user), Space("mnt", None, user)

    def process(caps=0, **more):
        cred = Cred(user, USER, USER, frozenset(), caps, caps)
        return Process([cred], pid, mnt, [Proc(pid)], False, 1, user, **more)

    return [process(mm=1), process(mm=2), process(mm=3), process(PTRACE, mm=4)]


PARENT, CHILD, STRANGER, TRACER = 1, 2, 3, 4


@pytest.mark.parametrize("verb", ["trace-attach", "mem-write"])
@pytest.mark.parametrize(
    ("scope", "by_parent", "by_child", "by_stranger", "by_tracer"),
    [
        (None, True, True, True, True),
        (0, True, True, True, True),
        (1, True, None, None, True),
        (2, False, False, False, True),
        (3, False, False, False, False),
    ],
)
def test_scope(family, verb, scope, by_parent, by_child, by_stranger, by_tracer):
    snap = snapshot(family, yama=scope)
    snap = snap.replace(process_ppid=[0, snap["process_pid"][0], 1, 1])
    table = control(snap)
    relation = table.relation(verb, effective=True)

    assert relation.state(PARENT, CHILD) is by_parent
    assert relation.state(CHILD, PARENT) is by_child
    assert relation.state(STRANGER, CHILD) is by_stranger
    assert relation.state(TRACER, CHILD) is by_tracer
    for i in range(1, 5):
        for j in range(1, 5):
            assert table.finding(verb, i, j, effective=True).state is relation.state(i, j)


def test_reading_is_not_asked(family):
    table = control(snapshot(family, yama=3))

    assert table.relation("trace-read", effective=True)[STRANGER, CHILD]
