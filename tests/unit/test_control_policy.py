"""A target that the kernel kept from a privileged collector: tracing it is unknown, not a yes."""

import numpy as np
import pytest

from control_worlds import snapshot
from oracle_control import Cred, Proc, Process, Space
from osmosis.relations.control.table import control
from osmosis.schema import Status
from osmosis.snapshot import Snapshot

ROOT, ALL_CAPS = (0,) * 4, (1 << 41) - 1
INITIAL_USER = 4026531837
COLLECTOR, REFUSED = 1, 2


def world(source=b"ns", status=Status.DENIED, cap_eff=ALL_CAPS):
    user = Space("user")
    pid, mnt = Space("pid", None, user), Space("mnt", None, user)
    cred = Cred(user, ROOT, ROOT, frozenset(), ALL_CAPS, ALL_CAPS)
    pair = [Process([cred], pid, mnt, [Proc(pid)], False, 1, user, mm=k) for k in (1, 2)]
    snap = snapshot(pair, user_ns=INITIAL_USER, cap_eff=f"{cap_eff:x}")
    columns = dict(snap.columns)
    text = columns["byte_data"]
    columns["byte_data"] = np.concatenate([text, np.frombuffer(source, np.uint8)])
    ends = columns["string_indptr"]
    columns["string_indptr"] = np.append(ends, ends[-1] + len(source))
    row = {"process": 1, "pid": 7, "source": len(ends) - 1, "status": status, "count": 0}
    for name, value in {**row, "reason": -1}.items():
        name = f"ledger_{name}"
        columns[name] = np.array([value], columns[name].dtype)
    return control(Snapshot(columns, snap.host))


def state(table, verb):
    return table.relation(verb, effective=True).state(COLLECTOR, REFUSED)


@pytest.mark.parametrize("source", [b"ns", b"memory"])
def test_a_policy_that_stopped_us_may_stop_others(source):
    table = world(source)

    assert state(table, "trace-attach") is None
    assert "refused b to the collector" in (
        table.finding("trace-attach", COLLECTOR, REFUSED, effective=True).reason
    )
    assert state(table, "kill") is True


@pytest.mark.parametrize(
    "otherwise", [{"source": b"files"}, {"status": Status.GONE}, {"cap_eff": 0}]
)
def test_what_has_another_reason_says_nothing_of_a_policy(otherwise):
    assert state(world(**otherwise), "trace-attach") is True
