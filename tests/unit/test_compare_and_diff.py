"""Models side by side, and one system at two moments."""

import json

import pytest

from osmosis.errors import QueryError, SelectorError
from osmosis.formats.csv import read_csv
from osmosis.query.compare import compare
from osmosis.query.diff import diff

HEADER = "NODE_TYPE,NODE_ID,DATA,EDGE_TYPE,EDGE_FROM,EDGE_TO,EXTRA\n"


def pd(number, name, role=None, uid=None):
    extra = {} if role is None else {"role": role}
    if uid is not None:
        extra["uid_host"] = uid
    text = json.dumps(extra).replace('"', '""')
    return f'PD,PD_{number},{name},,,,"{text}"\n' if extra else f"PD,PD_{number},{name},,,,\n"


def memory(pages=3):
    return f"RESOURCE,MO_1,MO,,,,0x1000_{pages}_12\n"


SHARED = ",,R,HOLD,PD_10,MO_1,\n,,RW,HOLD,PD_20,MO_1,\n"
HELD = ",,RWX,HOLD,PD_30,PD_10,\n"


@pytest.fixture
def read(tmp_path):
    def read(*rows, **options):
        path = tmp_path / "in.csv"
        path.write_text(HEADER + "".join(rows))
        return read_csv(path, **options)

    return read


@pytest.fixture
def two(read):
    """A host whose daemon holds the db, and one without daemon whose app shares memory."""
    pds = pd(1, "Kernel"), pd(10, "redis", "db"), pd(20, "client", "app")
    docker = read(*pds, pd(30, "dockerd", "daemon"), memory(), HELD)
    podman = read(*pds, memory(), SHARED)
    return {"docker": docker, "podman": podman}


def test_compare_says_who_by_role_and_through_what(two):
    found = compare(two, subject="role:db")
    docker, podman = found["docker"], found["podman"]

    assert dict(docker.tcb.roles) == {"kernel": 1, "daemon": 1}
    assert docker.tcb.verbs == {"hold": 2}  # the kernel holds all
    assert docker.tcb.parts["control"] >= 1
    assert docker.tcb.parts["shared"] == 0
    assert dict(podman.tcb.roles) == {"kernel": 1, "app": 1}
    assert podman.tcb.types == {"MO": 2}
    assert podman.rsi["app"]["MO"] == 1
    assert podman.impact_boundary.size == 0


def test_compare_tells_what_changed(two):
    change = compare(two, subject="role:db").changes[0]

    assert (change.before, change.after, change.answer) == ("docker", "podman", "tcb")
    assert set(change.entered) == {"app"}
    assert set(change.left) == {"daemon"}
    assert "hold" in change.left["daemon"]


def test_what_one_side_cannot_decide_is_no_change(read):
    pds = pd(10, "redis", "db"), pd(20, "client", "app"), memory()
    unknown = read(*pds, ",,R,HOLD,PD_10,MO_1,\n,,NONE,HOLD,PD_20,MO_1,\n")
    yes = read(*pds, SHARED)

    change = compare({"a": unknown, "b": yes}, subject="role:db").changes[0]

    assert change.undecided == ("app",)
    assert not change.entered


def test_compare_as_table_and_json(two):
    found = compare(two, subject="role:db")
    lines = str(found).splitlines()

    assert len(lines) == 3
    assert lines[1].startswith("docker")
    assert "daemon 1" in lines[1]
    assert json.loads(found.to_json())["cases"]["podman"]["tcb"]["roles"]["app"] == 1
    assert json.loads(found.to_json(allow_nan=False))


def test_hostile_names_do_not_reach_the_terminal(read):
    model = read(pd(10, "x", "db"), pd(20, "y", "\x1b[2J"), memory(), SHARED)

    assert "\x1b" not in str(compare({"\x1b[0m": model}, subject="role:db"))
    assert "\x1b" not in str(diff(model, read(pd(10, "\x1b[2J", "db"))))


def test_a_subject_that_is_not_there(two):
    with pytest.raises(SelectorError, match="podman"):
        compare(two, subject="role:daemon")
    with pytest.raises(QueryError, match="no model"):
        compare({}, subject="role:db")
    with pytest.raises(QueryError, match="groups"):
        compare({"g": two["docker"].group_by("role")}, subject="role:db")


def test_diff_by_process(read):
    base = pd(10, "redis"), pd(20, "client", uid=1000)
    before = read(*base, pd(30, "old"), memory(3), SHARED)
    after = read(pd(10, "redis"), pd(20, "client", uid=0), pd(40, "new"), memory(5), SHARED)

    found = diff(before, after)

    assert found
    assert found.appeared == ("PD_40",)
    assert found.gone == ("PD_30",)
    assert [(c.key, c.facts) for c in found.changed] == [("PD_20", {"uid": (1000, 0)})]
    assert not found.entered
    assert [(m.x, m.y, m.before, m.after) for m in found.memory] == [("PD_10", "PD_20", 3, 5)]
    assert json.loads(found.to_json())["gone"] == ["PD_30"]
    assert "- old(30)" in str(found)


def test_diff_of_who_can_affect_whom(read):
    pds = pd(10, "redis"), pd(20, "client"), pd(30, "daemon"), memory()
    found = diff(read(*pds, HELD), read(*pds, SHARED))

    assert list(found.entered) == [("PD_10", "PD_20")]
    assert list(found.left) == [("PD_10", "PD_30")]
    assert found.tcb("PD_10") == (["PD_20"], ["PD_30"])
    assert found.impact_boundary("PD_20") == (["PD_10"], [])
    assert found.impact_boundary("PD_10") == ([], [])
    assert "client(20) entered the TCB of redis(10)" in str(found)


def test_diff_does_not_take_unknown_for_no(read):
    pds = pd(10, "redis"), pd(20, "client"), memory()
    unknown = read(*pds, ",,R,HOLD,PD_10,MO_1,\n,,NONE,HOLD,PD_20,MO_1,\n")
    yes = read(*pds, SHARED)

    for a, b in ((unknown, yes), (yes, unknown)):
        found = diff(a, b)
        assert not found.entered
        assert not found.left
        assert list(found.undecided) == [("PD_10", "PD_20")]
    assert not diff(yes, yes)
    assert str(diff(yes, yes)) == "no difference"


def test_diff_by_role_outlives_a_restart(read):
    before = read(pd(10, "redis", "db"), pd(20, "client", "app"), memory(), SHARED)
    after = read(
        pd(11, "redis", "db"), pd(12, "redis", "db"), pd(20, "client", "app"), memory(),
        SHARED.replace("PD_10", "PD_12"),
    )  # fmt: skip

    assert diff(before, after).gone == ("PD_10",)
    assert not diff(before, after, by="role")


def test_diff_by_what_is_not_known(two):
    with pytest.raises(QueryError, match="moon"):
        diff(two["docker"], two["podman"], by="moon")
