"""The face: what may be asked, what is refused, and the rules about the kernel."""

import pytest
from builders import comms, model

from osmosis.errors import QueryError, SelectorError

EDGES = (
    "a HOLD v1:VMR RW",
    "v1 MAP mo:MO RW",
    "b HOLD v2:VMR R private",
    "v2 MAP mo R",
    "c HOLD v3:VMR RW private",
    "v3 MAP mo",
    "a REQUEST b",
    "b REQUEST c",
    "c HOLD a verb=kill",
    "a HOLD net:NET",
    "b HOLD net",
    "c REQUEST k",
    "k REQUEST a",
)


@pytest.fixture
def m():
    return model(*EDGES, pds=["a", "b", "c"], kernel="k", pages={"mo": 7})


def test_the_kernel_is_in_every_tcb_and_nothing_is_in_its(m):
    k = m.kernel
    for pd in list(m.pds)[1:]:
        assert k in m.tcb(pd, verbs=(), types="FILE")
        assert k not in m.impact_boundary(pd)
        assert k not in m.controls(pd)
        assert k in m.controllers(pd, verbs={"stop"})
        assert k not in m.controllers(pd, verbs=())
    assert not m.tcb(k)
    assert not m.shared_resources(k)
    assert not m.shared_spaces(k)
    assert not m.controllers(k)
    assert len(m.impact_boundary(k)) == len(m.controls(k)) == 3


def test_the_kernel_shares_what_one_reaches_of_the_type(m):
    assert m.kernel in m.shared_resources("id:a", types="MO")
    assert m.kernel not in m.shared_resources("id:a", types="FILE")
    assert m.kernel in m.shared_spaces("id:a")
    assert m.kernel not in m.shared_spaces("id:c")


def test_a_private_mapping_passes_no_write(m):
    assert comms(m.tcb("id:b", verbs=())) == {"a", "k"}
    assert comms(m.shared_resources("id:a", access="W")) == {"k"}
    assert comms(m.shared_resources("id:a", access="R")) == {"b", "c", "k"}


def test_request_paths_end_at_the_kernel(m):
    assert comms(m.services("id:a", depth=None)) == {"b", "c", "k"}
    assert comms(m.services("id:c", depth=None)) == {"k"}
    assert comms(m.common_ancestors("id:a", "id:b")) == {"c", "k"}


def test_services_are_told_apart_and_members_on_request(m):
    assert comms(m.tcb("id:a").parts["service"]) == {"b"}
    assert "id:b" not in m.tcb("id:a")
    assert "id:b" in m.tcb("id:a", services=True)


def test_pages_and_indices(m):
    assert m.shared_pages(rows=["id:a"], cols=["id:b", "id:k"]).toarray().tolist() == [[7, 0]]
    assert m.rsi("id:a", "id:b", "MO") == 1.0
    assert m.rsi("id:a", "id:b", "FILE") != m.rsi("id:a", "id:b", "FILE")  # NaN
    assert m.fr("id:a", "id:b") == 1


def test_sets_are_asked_as_one(m):
    both = m.tcb(["id:a", "id:b"])
    assert comms(both) == {"c", "k"}
    assert m.tcb(both | m.controllers("id:a")).rows.tolist() == m.tcb(both).rows.tolist()
    assert not m.tcb([])


@pytest.mark.parametrize(
    "options",
    [
        {"access": "Z"},
        {"access": ""},
        {"own_access": 4},
        {"types": "NOSUCH"},
        {"verbs": ["fly"]},
        {"depth": -1},
        {"depth": True},
        {"through": "hearsay"},
    ],
)
def test_unknown_options_are_refused(m, options):
    for ask in (m.tcb, m.impact_boundary):
        with pytest.raises(QueryError):
            ask("id:a", **options)
    with pytest.raises(QueryError):
        m.tcb_matrix(**options)


def test_a_known_type_without_nodes_is_no_error(m):
    assert not m.bfs("id:a", types={"SHM"})
    assert comms(m.shared_resources("id:a", types={"SOCKET", "MO"})) == {"b", "c", "k"}


def test_a_group_answers_no_and_unknown_as_such(m):
    groups = m.group_by(lambda pd: "ab" if pd.comm in "ab" else None)
    assert groups.may("id:group:ab", "kill", "id:c").state is False
    assert groups.may("id:c", "kill", "id:group:ab").state is True
    assert groups.pd(1).id == "group:ab"
    assert len(groups.find("comm:a")) == 1
    with pytest.raises(QueryError):
        groups.group_by("user")
    with pytest.raises(QueryError):
        m.group_by("shoe size")


def test_an_undecided_verb_is_unknown():
    m = model("a HOLD b maybe! verb=kill", pds=["a", "b"])
    assert m.may("id:a", "kill", "id:b").state is None
    assert not m.controllers("id:b")
    assert comms(m.controllers("id:b").unknown) == {"a"}
    assert m.explain("id:b", "id:a").state is None


def test_nodes_are_starts_too(m):
    assert set(m.bfs("id:mo", direction="backward")) == {"v1", "v2", "v3", "a", "b", "c", "k"}
    with pytest.raises(SelectorError):
        m.bfs("id:nothing")


def test_hostile_names_are_escaped():
    m = model("a HOLD v:VMR", "b HOLD v", pds=["a", "b"], columns={"comm": ["x\x1b[2J\n", "b"]})
    text = f"{m.explain(1, 2)} {m.tcb(2)!r} {m.pds[0]!r}"
    assert "\x1b" not in text
    assert "\n[2J" not in text


def test_the_witness_of_transitive_power_is_the_chain():
    # c may take over b, and b may kill a: c's power over a is in two steps.
    found = model(
        "b HOLD a verb=kill", "c HOLD b verb=trace-attach", "d HOLD b verb=kill",
        pds=["a", "b", "c", "d"],
    )  # fmt: skip
    a, c, d = (found.pd(f"id:{name}") for name in "acd")

    witness = found.explain(a, c, depth=None, through="power")

    assert witness.state is True
    assert [(s.source, s.target) for steps in witness.paths.values() for s in steps] == [
        ("b", "a"), ("c", "b"),
    ]  # fmt: skip
    assert found.explain(a, c).state is False
    assert found.explain(a, d, depth=None, through="power").state is False
