"""Quota spaces from hand-made cgroups: v1, v2, both, namespaced names, what was not readable."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_snapshots import Plain

from osmosis.capture.quotas import cpu_list, limits_of
from osmosis.query.isolation import isolation
from osmosis.relations.quotas import chain, charged, hierarchies
from osmosis.schema import QuotaKind, Status

PAGE, PID, CPU, IO = range(4)


def quota(hierarchy, path, kind, limit="", status=Status.READ):
    row = {"hierarchy": hierarchy, "path": path, "kind": kind, "status": status}
    return row | ({"limit": limit} if limit is not None else {})


def host(texts, *rows, **facts):
    plain = Plain(len(texts), **facts).set("process_cgroup", texts)
    return plain.rows("quota", *rows).snapshot()


def held(snap, x, node_type):
    """Names of the spaces that a process holds for certain, and possibly."""
    graph = snap.model().data
    edges = graph.edges
    of = (edges.src == x + 1) & (graph.kind[edges.dst] == 2)
    of &= graph.type[edges.dst] == (
        graph.types.index(node_type) if node_type in graph.types else -2
    )
    sure = of & (edges.perm != 0)
    may = of & (edges.perm == 0)
    return {graph.names[n] for n in edges.dst[sure]}, {graph.names[n] for n in edges.dst[may]}


def test_the_text_of_both_versions():
    text = "12:pids:/a\n4:cpu,cpuacct:/b\n1:name=systemd:/c\n0::/d:e\n"
    assert hierarchies(text) == {
        "pids": "/a",
        "cpu,cpuacct": "/b",
        "name=systemd": "/c",
        "": "/d:e",
    }


def test_every_limit_on_the_way_is_held_and_no_other():
    rows = [
        quota("", "/", PAGE),
        quota("", "/a", PAGE, "memory.max=5"),
        quota("", "/a/b", PAGE, "memory.high=4"),
        quota("", "/a/c", PAGE),
        quota("", "/ab", PAGE, "memory.max=9"),
        quota("", "/a", PID, "pids.max=3"),
    ]
    snap = host(["0::/a/b\n", "0::/a/c\n", "0::/ab\n", "0::/\n"], *rows)

    name = "PAGE_QUOTA_SPACE_/a"
    assert held(snap, 0, "PAGE_QUOTA") == ({name, name + "/b"}, set())
    assert held(snap, 1, "PAGE_QUOTA") == ({name}, set())
    assert held(snap, 2, "PAGE_QUOTA") == ({name + "b"}, set())
    assert held(snap, 3, "PAGE_QUOTA") == (set(), set())
    assert held(snap, 1, "PID_QUOTA") == ({"PID_QUOTA_SPACE_/a"}, set())
    model = snap.model()
    assert model.shared_spaces(10, types="PAGE_QUOTA").pids.tolist() == [0, 11]
    note = model.data.notes.get(model.data.names.find(name + "/b"), {})
    assert note["limit"] == "memory.high=4"


def test_hierarchies_are_apart():
    """The same path in two v1 hierarchies is two cgroups."""
    rows = [quota("memory", "/a", PAGE, "memory.limit_in_bytes=5"), quota("pids", "/a", PID)]
    snap = host(["3:memory:/a\n2:pids:/\n", "3:memory:/\n2:pids:/a\n"], *rows)
    assert held(snap, 0, "PAGE_QUOTA")[0] == {"PAGE_QUOTA_SPACE_/a"}
    assert held(snap, 1, "PAGE_QUOTA")[0] == set()


def test_a_limit_that_could_not_be_read_is_possible():
    rows = [
        quota("", "/a", PAGE, None, Status.DENIED),
        quota("", "/b", PAGE, None, Status.SKIPPED),
    ]
    snap = host(["0::/a\n", "0::/a\n", "0::/b\n"], *rows)
    assert held(snap, 0, "PAGE_QUOTA") == (set(), {"PAGE_QUOTA_SPACE_/a"})
    found = snap.model().shared_spaces(10, types="PAGE_QUOTA")
    assert set(found.pids) == set()
    assert 11 in found.unknown.pids
    assert 12 not in found.unknown.pids


def test_above_the_readers_namespace_anything_may_be():
    rows = [quota("", "", PAGE, None, Status.HIDDEN), quota("", "/", PAGE)]
    rows.append(quota("", "/../b", PAGE, None, Status.SKIPPED))
    snap = host(["0::/\n", "0::/../b\n"], *rows)
    assert held(snap, 0, "PAGE_QUOTA") == (set(), {"PAGE_QUOTA_SPACE_above"})
    assert 11 in snap.model().shared_spaces(10, types="PAGE_QUOTA").unknown.pids
    assert chain("/../../b/c") == ["", "/../..", "/../../b", "/../../b/c"]


def test_not_asked_for_is_unknown_and_not_none():
    snap = host(["0::/a\n"] * 2, sources=["processes"])
    assert 11 in snap.model().shared_spaces(10, types="PID_QUOTA").unknown.pids


def test_what_is_charged_where():
    # v2 without the memory controller below /a: /a/b and /a/c are charged to /a.
    rows = [quota("", "/", PAGE), quota("", "/a", PAGE), quota("", "/a/b", PID, "pids.max=5")]
    texts = ["0::/a/b\n", "0::/a/c\n", "0::/d\n", None]
    snap = host(texts, *rows)
    places, names = charged(snap)

    assert [names[v] for v in places[:3, PAGE]] == ["PAGE_QUOTA: /a"] * 2 + ["PAGE_QUOTA: /"]
    assert places[0, PID] != places[1, PID]
    assert places[1, PID] == places[2, PID]
    assert (places[3] == -1).all()


def state(snap, x, y):
    graph = snap.model().data
    return isolation(graph, np.array([x + 1]), np.array([y + 1]))["cgroup"].state


def test_the_layer():
    rows = [quota("", "/", PAGE), quota("", "/a", PAGE), quota("", "/b", PAGE)]
    rows += [quota("", "/x", kind, None, Status.SKIPPED) for kind in range(4)]
    texts = ["0::/a\n", "0::/a\n", "0::/b\n", "0::/x\n", "0::/x\n", None]
    snap = host(texts, *rows)
    assert state(snap, 0, 1) == "shared"
    assert state(snap, 0, 2) == "separated"
    assert state(snap, 0, 3) == "unknown"
    assert state(snap, 3, 4) == "shared"  # one and the same cgroup, readable or not
    assert state(snap, 0, 5) == "unknown"


PATHS = st.lists(st.sampled_from("ab"), max_size=3).map(lambda s: "/" + "/".join(s))
LIMITS = st.dictionaries(PATHS, st.sampled_from(["", "max=1", None]))


@settings(max_examples=60)
@given(st.lists(PATHS, min_size=2, max_size=4), LIMITS)
def test_holds_against_prefixes(paths, limits):
    rows = [
        quota("", path, CPU, limit, Status.READ if limit is not None else Status.DENIED)
        for path, limit in limits.items()
    ]
    snap = host([f"0::{path}\n" for path in paths], *rows)
    for x, path in enumerate(paths):
        above = [p for p in limits if p == "/" or path == p or path.startswith(p + "/")]
        sure = {f"CPU_QUOTA_SPACE_{p}" for p in above if limits[p]}
        may = {f"CPU_QUOTA_SPACE_{p}" for p in above if limits[p] is None}
        assert held(snap, x, "CPU_QUOTA") == (sure, may)


# -- files


def test_limits_of_files(tmp_path):
    def put(**files):
        for name, text in files.items():
            (tmp_path / name.replace("__", ".")).write_text(text + "\n")

    put(memory__max="max", memory__high="max", pids__max="max", cpu__max="max 100000", io__max="")
    for kind in (PAGE, PID, CPU, IO):
        assert limits_of(kind, tmp_path, unified=True) == ""
    put(memory__max="1048576", cpu__max="5000 100000", io__max="8:0 rbps=1\n8:16 wiops=2")
    assert limits_of(PAGE, tmp_path, unified=True) == "memory.max=1048576"
    assert limits_of(CPU, tmp_path, unified=True) == "cpu.max=5000 100000"
    assert limits_of(IO, tmp_path, unified=True) == "io.max=8:0 rbps=1;8:16 wiops=2"

    assert limits_of(QuotaKind.PAGE, tmp_path, unified=False) is None  # not the controller of v1
    put(memory__limit_in_bytes="9223372036854771712", cpu__cfs_quota_us="-1")
    put(cpu__cfs_period_us="100000")
    assert limits_of(PAGE, tmp_path, unified=False) == ""
    assert limits_of(CPU, tmp_path, unified=False) == ""
    put(memory__limit_in_bytes="4096", cpu__cfs_quota_us="2000")
    assert limits_of(PAGE, tmp_path, unified=False) == "memory.limit_in_bytes=4096"
    assert limits_of(CPU, tmp_path, unified=False) == "cpu.cfs_quota_us=2000/100000"
    put(pids__max="0")
    assert limits_of(PID, tmp_path, unified=False) == "pids.max=0"


def test_cpu_lists():
    assert cpu_list("0-2,8\n") == {0, 1, 2, 8}
    assert cpu_list("\n") == frozenset()


# -- processors


def test_processors_are_held_without_letters():
    plain = Plain(4)
    plain.rows("processor", {"number": 0, "node": 0}, {"number": 2, "node": 1})
    plain.rows(
        "affinity",
        {"process": 0, "processor": 1},
        {"process": 1, "processor": 1},
        {"process": 2, "processor": -1},
    )
    model = plain.snapshot().model()
    assert list(model.bfs(10, types="CPU").ids) == ["CPU_2"]
    answer = model.shared_resources(10, types="CPU")
    assert set(answer.pids) == {0, 11}
    assert set(answer.unknown.pids) == {12}
    assert model.shared_resources(10, types="CPU", access="W").pids.tolist() in ([], [0])
    above = model.bfs(10, edges={"HOLD", "SUBSET"}, kinds={"SPACE"}, types="CPU")
    assert list(above.ids) == ["CPU_SPACE_1"]
