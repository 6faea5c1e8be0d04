"""Models side by side, and one system at two moments."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osmosis.errors import QueryError, SelectorError
from osmosis.formats.comparison import change_lines, to_markdown
from osmosis.formats.csv import read_csv
from osmosis.graph.graph import POTENTIAL, Edge, Edges, Graph, no_runs
from osmosis.graph.names import Block, Names
from osmosis.graph.pds import PDTable
from osmosis.graph.relation import EdgeControl
from osmosis.model import Model
from osmosis.query.compare import compare
from osmosis.query.comparison import PARTS, Count, Shift, Way
from osmosis.query.diff import diff
from strategies import graph_of, systems

DATA = Path(__file__).parents[1] / "data"
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

    assert docker.tcb.roles == {"kernel": Count(1), "daemon": Count(1)}
    assert docker.tcb.size == Count(2)
    assert docker.tcb.parts == {**dict.fromkeys(PARTS, Count()), "control": Count(1)}
    assert docker.tcb.verbs == {"hold": Count(1)}  # the kernel has every verb, and is in none
    assert docker.tcb.through("daemon") == (Way("control", "hold"),)
    assert podman.tcb.roles == {"kernel": Count(1), "app": Count(1)}
    assert podman.tcb.types == {"MO": Count(1)}
    assert podman.tcb.parts["memory"] == Count(1)
    assert podman.impact_boundary.size == Count()
    assert podman.rsi["app"]["MO"] == 1
    assert podman.fr["app"] == math.inf
    assert docker.roles == {"app": 1, "daemon": 1, "db": 1, "kernel": 1}


def test_parts_and_ways_are_those_of_the_queries(two, read):
    files = "RESOURCE,FILE_1,FILE,,,,\n,,R,HOLD,PD_10,FILE_1,\n,,W,HOLD,PD_30,FILE_1,\n"
    asked = ",,EP,REQUEST,PD_10,PD_30,\n"
    pds = (
        pd(10, "redis", "db"),
        pd(20, "client", "app"),
        pd(30, "store", "store"),
        pd(40, "w", "db"),
    )
    model = read(*pds, memory(), files, SHARED, ",,RWX,HOLD,PD_40,PD_30,\n", asked)

    case = compare({"one": model}, subject="role:db")["one"]
    who = model.find("role:db")

    assert case.subject == ("PD_10", "PD_40")
    for side, answer in (
        (case.tcb, model.tcb(who)),
        (case.impact_boundary, model.impact_boundary(who)),
    ):
        assert side.size == Count(len(answer), len(answer.unknown))
        assert side.parts["control"].certain == len(answer.parts["control"])
        assert side.parts["service"].certain == len(answer.parts["service"])
    assert case.tcb.through("app") == (Way("memory", "MO"),)
    assert case.tcb.through("store") == (Way("files", "FILE"), Way("service"))
    assert case.impact_boundary.through("store") == (Way("control", "hold"),)
    assert compare({"one": model}, subject="role:db", access="X")["one"].tcb.size == Count()
    with_services = compare({"one": model}, subject="role:db", access="X", services=True)["one"]
    assert with_services.tcb.roles == {"store": Count(1)}


def test_what_could_be_used_is_apart_from_what_was_observed():
    model = mounts()
    case = compare({"one": model}, subject="comm:db")["one"]

    assert case.tcb.size == Count(0, 0, 1)
    assert case.tcb.ways == {Way("files", "MOUNT"): {"other": Count(0, 0, 1)}}
    assert len(model.tcb(model.pd("comm:db"))) == 0
    assert len(model.tcb(model.pd("comm:db"), potential=True)) == 1


@settings(deadline=None, max_examples=80)
@given(system=systems(), runs=st.booleans(), data=st.data())
def test_a_case_is_what_the_queries_say(system, runs, data):
    model = Model(graph_of(system, runs=runs))
    pd = model.pds[data.draw(st.integers(0, len(model.pds) - 1))]
    access = data.draw(st.sampled_from(["ANY", "R", "W", "RW"]))
    case = compare({"one": model}, subject=f"id:{pd.id}", access=access, by="comm")["one"]
    kernel = {model.data.kernel}

    def counted(observed, potential, drop=frozenset()):
        certain, unknown = ({*s.rows.tolist()} - drop for s in (observed, observed.unknown))
        more = {*potential.rows.tolist()} - certain - drop
        return Count(len(certain), len(unknown), len(more))

    for side, ask in ((case.tcb, model.tcb), (case.impact_boundary, model.impact_boundary)):
        observed, potential = ask(pd, access=access), ask(pd, access=access, potential=True)
        assert side.size == counted(observed, potential)
        if pd == model.kernel:  # which has every way to all, and no verb or type of its own
            continue
        for part in ("control", "service"):
            found = observed.parts[part]
            assert side.parts[part] == counted(found, found, kernel)
        own, other = ("ANY", access) if side is case.tcb else (access, "ANY")
        for name in sorted({model.data.types[t] for t in model.data.type.tolist() if t >= 0}):
            each = [
                model.shared_resources(pd, types=name, access=other, own_access=own, potential=p)
                for p in (False, True)
            ]
            assert side.types.get(name, Count()) == counted(*each, kernel)
    for other, between in case.isolation.items():
        rows = [p for p in model.find(f"comm:{other}") if p != pd]
        assert dict(between) == dict(model.isolation(pd, rows))
        assert case.fr[other] == model.fr(pd, rows)
        for name, value in case.rsi[other].items():
            assert value == pytest.approx(model.rsi(pd, rows, name), nan_ok=True)


def mounts():
    """Two PDs that could both write a mount, and were not seen to."""
    graph = Graph(
        pds=PDTable([1, 2], comm=["db", "other"]),
        kind=np.array([0, 0, 1], np.uint8),
        type=np.array([-1, -1, 0], np.int16),
        types=("MOUNT",),
        names=Names([Block("{}", (np.array(["PD_1", "PD_2", "MOUNT_1"], object),))]),
        pages=np.ones(3),
        edges=Edges.of([0, 1], [2, 2], Edge.HOLD, flags=POTENTIAL),
        runs=no_runs(),
        labels=(),
        rules=(),
        control=EdgeControl(2, [], [], [], []),
    )
    return Model(graph)


def test_compare_tells_what_changed(two):
    change = compare(two, subject="role:db").changes[0]

    assert change
    assert (change.before, change.after, change.answer) == ("docker", "podman", "tcb")
    assert change.entered == {"app": (Way("memory", "MO"),)}
    assert change.left == {"daemon": (Way("control", "hold"),)}
    assert change.gone == ("daemon",)
    assert not change.stayed
    assert not change.undecided


def test_a_role_that_stays_by_other_ways(read):
    pds = pd(10, "redis", "db"), pd(30, "client", "app"), memory()
    holds, shares = read(*pds, HELD), read(*pds, SHARED.replace("PD_20", "PD_30"))

    change = compare({"a": holds, "b": shares}, subject="role:db").changes[0]

    assert change.stayed == {"app": Shift((Way("memory", "MO"),), (Way("control", "hold"),))}
    assert not change.entered
    assert not change.left


def test_what_one_side_cannot_decide_is_no_change(read):
    pds = pd(10, "redis", "db"), pd(20, "client", "app"), memory()
    unknown = read(*pds, ",,R,HOLD,PD_10,MO_1,\n,,NONE,HOLD,PD_20,MO_1,\n")
    yes = read(*pds, SHARED)

    found = compare({"a": unknown, "b": yes}, subject="role:db")
    change = found.changes[0]

    assert found["a"].tcb.roles == {"app": Count(0, 1)}
    assert found["a"].tcb.possibly("app") == (Way("memory", "MO"),)
    assert found["a"].incomplete
    assert change.undecided == ("app",)
    assert not change


def test_the_subjects_own_container_is_not_just_any(tmp_path):
    text = "".join(
        f'PD,PD_{n},{n},,,,"{{""role"": ""{role}"", ""container"": ""{box}""}}"\n'
        for n, role, box in [(1, "db", "a"), (2, "container", "a"), (3, "container", "b")]
    )
    (tmp_path / "in.csv").write_text(HEADER + text)
    model = read_csv(tmp_path / "in.csv")

    case = compare({"one": model}, subject="role:db")["one"]

    assert case.roles == {"container": 1, "db": 1, "sibling": 1}
    assert set(case.isolation) == {"container", "sibling"}
    assert set(compare({"one": model}, subject="role:db", by="comm")["one"].roles) == set("123")


def test_chosen_others(two):
    found = compare(two, subject="role:db", others=["role:daemon", "comm:client"])

    assert found.others == ("daemon", "comm:client")
    assert set(found["podman"].isolation) == {"comm:client"}
    with pytest.raises(SelectorError, match="any of the 2 models"):
        compare(two, subject="role:db", others=["role:deamon"])


def test_one_subject_for_each_model(two):
    found = compare(two, subject={"docker": "role:daemon", "podman": "comm:client"})

    assert [case.subject for case in found] == [("PD_30",), ("PD_20",)]
    assert found["docker"].impact_boundary.roles == {"db": Count(1)}
    for wrong in (
        {"docker": "role:db"},
        {"docker": "role:db", "podman": "role:db", "x": "role:db"},
    ):
        with pytest.raises(QueryError, match="there is not a"):
            compare(two, subject=wrong)


def test_compare_as_rows_and_json(two):
    found = compare(two, subject="role:db")
    docker, podman = found.rows()

    assert len(found) == 2
    assert docker.keys() == podman.keys()
    assert (docker["case"], docker["tcb"], docker["tcb_control"]) == ("docker", 2, 1)
    assert (podman["tcb_memory"], podman["fr:app"]) == (1, math.inf)
    assert (docker["layers:daemon"], podman["layers:daemon"]) == (0, None)
    assert docker["layers_unknown:daemon"] == 13
    said = json.loads(found.to_json(allow_nan=False))
    assert said["cases"]["podman"]["tcb"]["roles"]["app"]["certain"] == 1
    assert said["changes"][0]["left"] == {"daemon": ["control:hold"]}
    assert str(found).splitlines()[0].startswith("docker: TCB 2 (daemon 1, kernel 1); IB 0;")


def test_hostile_names_do_not_reach_the_terminal(read):
    model = read(pd(10, "x", "db"), pd(20, "y", "\x1b[2J|<b>"), memory(), SHARED)
    found = compare({"\x1b[0m": model, "b": model}, subject="role:db")

    assert "\x1b" not in str(found)
    assert "\x1b" not in str(diff(model, read(pd(10, "\x1b[2J", "db"))))
    text = to_markdown(found)
    assert "\x1b" not in text
    assert "<b>" not in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {4}


def test_markdown_has_columns_or_for_many_rows(two):
    few = to_markdown(compare(two, subject="role:db"))
    many = to_markdown(compare({f"m{i}": two["docker"] for i in range(5)}, subject="role:db"))

    assert few.splitlines()[0] == "|  | docker | podman |"
    assert "| &nbsp;&nbsp;daemon | 1 | - |" in few
    assert "daemon left (there is none); it was in by control (hold)" in few
    assert [line.split(" |")[0] for line in many.splitlines()[2:7]] == [f"| m{i}" for i in range(5)]


def test_a_subject_that_is_not_there(two):
    found = compare(two, subject="role:daemon")
    assert found["podman"].absent == "no PD matches role:daemon"
    assert found["podman"].tcb is None
    assert found["podman"].incomplete
    assert found["docker"].impact_boundary.size == Count(1)
    assert found.changes == []
    assert found.rows()[1]["tcb"] is None
    assert json.loads(found.to_json())["cases"]["podman"]["tcb"] is None
    assert "podman: no PD matches role:daemon" in change_lines(found)

    with pytest.raises(SelectorError, match=r"any of the 2 models.*role:daemon"):
        compare(two, subject="role:deamon")
    with pytest.raises(QueryError, match="no model"):
        compare({}, subject="role:db")
    with pytest.raises(QueryError, match="groups"):
        compare({"g": two["docker"].group_by("role")}, subject="role:db")
    with pytest.raises(QueryError, match="zodiac"):
        compare(two, subject="role:db", by="zodiac")


def test_two_systems_of_the_papers_tool_that_have_no_roles():
    """A Linux host and a kernel with capabilities: each has its own subject, and other types."""
    models = {
        "linux": read_csv(DATA / "db_and_app.csv"),
        "sel4": read_csv(DATA / "console.csv"),
    }
    subject = {"linux": "comm:db", "sel4": "comm:client"}

    found = compare(models, subject=subject, by="comm")
    linux, sel4 = found

    assert linux.tcb.roles == {"app": Count(1), "backup": Count(1), "kernel": Count(1)}
    assert linux.tcb.through("app") == (Way("memory", "MO"),)
    assert linux.tcb.through("backup") == (Way("control", "hold"),)
    assert linux.tcb.possibly("backup") == (Way("files", "FILE"), Way("control", "hold"))
    # Its holds say nothing of permissions: that they meet is certain, who writes is not.
    assert sel4.tcb.roles == {"server": Count(0, 1)}
    assert sel4.tcb.parts["service"] == Count(1)
    assert sel4.tcb.ways[Way("service")] == {"server": Count(1)}
    assert sel4.rsi["server"]["MO"] == pytest.approx(557 / 558)
    assert sel4.isolation["server"].full_score == (0, 13, 13)
    assert "kernel" not in sel4.roles
    assert found.changes[0].gone == ("app", "backup", "kernel")
    same = compare({"a": models["sel4"], "b": models["sel4"]}, subject="comm:client", by="comm")
    assert not any(same.changes)


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
