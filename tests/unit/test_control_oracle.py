"""The control relation against its slow twin, on random hosts; and with facts hidden from it."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import oracle_control as oracle
from control_worlds import hidden, snapshot, worlds
from osmosis.relations.control.table import control

EXACT = ("kill", "stop", "continue", "kill-group", "end-namespace", "limit", "sched")
# An mm's user namespace is not shown: of what is not dumpable the answer may be unknown.
TRACE = ("trace-read", "trace-attach", "mem-write", "oom", "join:pid", "join:mnt", "join:user")


def states(table, verb, n, effective):
    relation = table.relation(verb, effective=effective)
    return {(i, j): relation.state(i + 1, j + 1) for i in range(n) for j in range(n) if i != j}


def has_unseen_init(world, b):
    """Whether b is in a pid namespace whose init is none of the processes: not captured."""
    captured = {p.pid for p in world if p.init}
    return any(ns.parent is not None and ns not in captured for ns in b.pid.ancestors())


@pytest.mark.parametrize("effective", [False, True])
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(world=worlds())
def test_agrees_with_the_oracle(world, effective):
    n = len(world)
    table = control(snapshot(world))
    dumpable = all(p.dumpable == 1 for p in world)
    for verb in EXACT + TRACE:
        got = states(table, verb, n, effective)
        want = {
            (i, j): oracle.may(verb, world[i], world[j], world, effective)
            for i in range(n)
            for j in range(n)
            if i != j
        }
        unknown = {pair for pair, state in got.items() if state is None}
        assert {k: v for k, v in got.items() if k not in unknown} == {
            k: v for k, v in want.items() if k not in unknown
        }, verb
        if verb == "end-namespace":
            assert all(has_unseen_init(world, world[j]) for _, j in unknown)
        elif verb in EXACT or dumpable:
            assert not unknown, verb


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(world=worlds(), seed=st.integers(0, 2**32))
def test_what_is_hidden_becomes_unknown_and_never_wrong(world, seed):
    n = len(world)
    table = control(hidden(snapshot(world), np.random.default_rng(seed)))
    for verb in EXACT + TRACE:
        for (i, j), state in states(table, verb, n, True).items():
            if state is not None:
                assert state == oracle.may(verb, world[i], world[j], world, True), (verb, i, j)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(world=worlds())
def test_findings_say_what_the_relation_says(world):
    n = len(world)
    table = control(snapshot(world))
    for verb in table.verbs:
        relation = table.relation(verb, effective=True)
        for i in range(n + 1):
            for j in range(n + 1):
                finding = table.finding(verb, i, j, effective=True)
                assert finding.state is relation.state(i, j), (verb, i, j)
                assert finding.reason or i == j, (verb, i, j)
                assert finding.rule
                assert finding.source
