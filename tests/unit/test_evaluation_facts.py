"""What docs/evaluation.md says of each mechanism, held against the saved snapshots."""

from __future__ import annotations

import pytest
from benchmarks.evaluation.facts import FACTS
from benchmarks.evaluation.mechanisms import MECHANISMS
from benchmarks.evaluation.saved import snapshots

SNAPSHOTS = snapshots()
CASES = [(name, fact) for name, facts in FACTS.items() for fact in facts]


def test_every_mechanism_has_facts():
    assert set(FACTS) == set(MECHANISMS)


@pytest.mark.parametrize(("name", "fact"), CASES, ids=[f"{n}-{f.check.__name__}" for n, f in CASES])
def test_it_is_so(name, fact):
    assert fact.check(SNAPSHOTS[name].model()) is True, fact.text
