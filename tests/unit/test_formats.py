"""Views and what is written of them: nothing lost by grouping, no name that breaks a format."""

import json
import re
import shutil
import subprocess
from collections import Counter
from xml.etree import ElementTree as ET

import igraph
import pytest
from builders import graph
from hypothesis import given, settings
from hypothesis import strategies as st

from osmosis.errors import QueryError
from osmosis.formats.csv import read_csv, write_csv
from osmosis.formats.dot import quoted, to_dot
from osmosis.formats.graphml import to_graphml
from osmosis.formats.json import to_json
from osmosis.formats.layout import lay_out
from osmosis.formats.part import part
from osmosis.formats.svg import WIDEST, cut, to_svg, width_of
from osmosis.formats.view import MOST_NEIGHBOURS, Link, Node, View, view
from osmosis.model import Model
from strategies import graph_of, systems

HOSTILE = "\x1b[31mred\n[b]x[/b]\u202egpj\udcff\"\\N<script>&amp;']]>\x00\ufffe" + "x" * 5000
SVG = "{http://www.w3.org/2000/svg}"
ML = "{http://graphml.graphdrawing.org/xmlns}"


def system(n=3, pages=1.0):
    """``a`` writes what ``b0`` .. read; each has memory of its own, and a kernel serves ``a``."""
    edges = ["a HOLD v0:VMR RW", "v0 MAP m0:MO RW", "v0 MAP own:MO RW", "v0 SUBSET as:SPACE"]
    edges += ["a HOLD as", "m0 SUBSET ram:MNT", "a REQUEST k"]
    for i in range(n):
        edges += [f"b{i} HOLD w{i}:VMR R", f"w{i} MAP m0 R", f"b{i} HOLD f:FILE R"]
    edges += ["a HOLD f RW"]
    pds = ["a", *(f"b{i}" for i in range(n))]
    return Model(graph(*edges, pds=pds, kernel="k", pages={"m0": pages, "own": 5}))


def titles(made, kind):
    return sorted(node.title for node in made.nodes if node.kind == kind)


# -- views


def test_the_subject_its_neighbours_and_what_they_share():
    model = system()
    made = view(model, model.pd("id:a"))

    assert made.nodes[made.subject].title == "a"
    assert titles(made, "PD") == ["3 processes", "a", "k"]
    by_role = {node.role: node for node in made.nodes if node.type in ("MO", "FILE")}
    assert by_role["private"].pages == 5
    assert by_role["writes"].lines[0] == "it writes, read by 3 others"
    assert not [node for node in made.nodes if node.role == "written"]


def test_who_writes_is_told_from_the_readers_side():
    model = system()
    made = view(model, model.pd("id:b0"))
    memory = next(node for node in made.nodes if node.type == "MO")
    assert memory.role == "written"
    assert memory.lines[0] == "written by 1 of 3 others"


def test_a_writer_that_is_not_certain_is_said_so():
    model = Model(graph("a HOLD m:MO R", "b HOLD m R maybe=RW", pds=["a", "b"]))
    made = view(model, model.pd("id:a"))
    memory = next(node for node in made.nodes if node.type == "MO")
    assert memory.lines[0] == "may be written by b"
    hold = next(e for e in made.links if made.nodes[e.source].title == "b")
    assert (hold.permission, hold.possible) == ("R", "W")


def test_a_private_hold_does_not_write_what_is_behind_it():
    model = Model(graph("a HOLD m:MO R", "b HOLD v:VMR RW private", "v MAP m RW", pds=["a", "b"]))
    memory = next(n for n in view(model, model.pd("id:a")).nodes if n.type == "MO")
    assert memory.role == "read"


def test_mappings_without_a_frame_stand_with_the_others():
    model = Model(graph("a HOLD v:VMR RW", "a HOLD w:VMR R", "a HOLD f:FILE R", pds=["a"]))
    made = view(model, model.pd("id:a"))
    assert {n.type: n.column for n in made.nodes} == {"PD": 0, "VMR": 1, "FILE": 2}


def test_what_a_mapping_permits_is_never_more_certain_than_the_edge():
    model = Model(
        graph(
            "a HOLD v:VMR - maybe=RWX", "a HOLD w:VMR R maybe=RW", "a HOLD x:VMR -", "b HOLD x R",
            pds=["a", "b"],
        )
    )  # fmt: skip
    made = view(model, model.pd("id:a"))
    said = {n.id: (n.lines[0], n.role) for n in made.nodes if n.column == 1}
    assert said == {
        "v": ("RWX?", "private"),
        "w": ("R W?", "private"),
        "x": ("no access", "read"),
    }


def test_potential_edges_are_not_drawn():
    model = Model(graph("a HOLD m:MO RW", "b HOLD m RW potential", pds=["a", "b"]))
    assert titles(view(model, model.pd("id:a")), "PD") == ["a"]


def test_every_resource_and_every_neighbour_is_in_exactly_one_group():
    model = system(n=5)
    grouped, full = view(model, model.pd("id:a")), view(model, model.pd("id:a"), full=True)

    counts = Counter(name for node in grouped.nodes for name in node.members)
    assert set(counts.values()) == {1}
    assert set(counts) == {node.id for node in full.nodes}
    assert sum(n.pages for n in grouped.nodes) == sum(n.pages for n in full.nodes)
    per_kind = Counter()
    for link in grouped.links:
        per_kind[link.kind] += link.count
    assert per_kind == Counter(link.kind for link in full.links)


def test_what_does_not_fit_is_one_node_more():
    edges = ["a HOLD v:VMR RW"]
    names = [f"b{i}" for i in range(30)]
    for i, name in enumerate(names):
        edges += [f"v MAP m{i}:MO R", f"{name} HOLD m{i} R"]
    model = Model(graph(*edges, pds=["a", *names]))
    made = view(model, model.pd("id:a"))

    assert len([n for n in made.nodes if n.kind == "PD"]) <= MOST_NEIGHBOURS + 2
    assert sum(len(n.members) for n in made.nodes if n.kind == "PD") == 31
    rest = [n for n in made.nodes if n.role == "more" and n.type == "MO"]
    assert len(rest) == 1
    assert sum(len(n.members) for n in made.nodes if n.type == "MO") == 30


def test_a_group_is_drawn_as_one():
    model = system(n=4).group_by(lambda pd: "web" if pd.id in ("a", "b0") else None)
    made = view(model, model.pd("id:group:web"))
    assert "2 processes" in made.nodes[made.subject].lines
    assert set(made.nodes[made.subject].members) == {"a", "b0"}


def test_edges_of_the_full_view_are_those_of_the_graph():
    model = system(n=2)
    made = view(model, model.pd("id:a"), full=True)
    found = {(made.nodes[e.source].id, e.kind, made.nodes[e.target].id) for e in made.links}
    assert found == {
        ("a", "HOLD", "v0"), ("v0", "MAP", "m0"), ("v0", "MAP", "own"), ("v0", "SUBSET", "as"),
        ("a", "HOLD", "as"), ("m0", "SUBSET", "ram"), ("a", "REQUEST", "k"), ("a", "HOLD", "f"),
        ("b0", "HOLD", "w0"), ("w0", "MAP", "m0"), ("b0", "HOLD", "f"),
        ("b1", "HOLD", "w1"), ("w1", "MAP", "m0"), ("b1", "HOLD", "f"),
    }  # fmt: skip


def test_what_was_not_seen_is_noted():
    model = Model(graph("a HOLD m:MO R", pds=["a", "b"], unseen={"MO": {"a": "RWX"}}))
    assert "could not be read: MO" in " ".join(view(model, model.pd("id:a")).notes)
    assert "could not be read of them" in " ".join(view(model, model.pd("id:b")).notes)


@settings(deadline=None, max_examples=120)
@given(system=systems(), runs=st.booleans(), data=st.data())
def test_a_view_is_what_the_queries_say(system, runs, data):
    model = Model(graph_of(system, runs=runs))
    pd = model.pds[data.draw(st.integers(0, len(model.pds) - 1))]
    if pd == model.kernel:
        return
    full = view(model, pd, full=True)
    grouped = view(model, pd)

    def possible(found):
        return {*found.ids, *found.unknown.ids}

    drawn = {node.id: node for node in full.nodes}
    reached = possible(model.bfs(pd, kinds={"RESOURCE", "SPACE"}))
    assert reached <= set(drawn)
    kernel = model.kernel
    shared = set()
    for other in model.pds:
        if other in (pd, kernel):
            continue
        theirs = possible(model.bfs(other, kinds={"RESOURCE"}))
        mine = {name for name in reached if drawn[name].kind == "RESOURCE"}
        if theirs & mine:
            shared.add(other.id)
        writes = possible(model.bfs(other, kinds={"RESOURCE"}, access="W"))
        for name in mine:
            role = drawn[name].role
            assert role != "private" or name not in theirs
            assert role == "written" or name not in writes
    assert shared <= set(drawn)
    left_out = set(drawn) - {name for node in grouped.nodes for name in node.members}
    # Who is only in the same spaces is counted there, and no node.
    assert all(drawn[name].kind == "PD" for name in left_out)
    assert not left_out & shared
    pages = sum(node.pages for node in full.nodes)
    assert sum(node.pages for node in grouped.nodes) == pytest.approx(pages)
    for made in (full, grouped):
        ET.fromstring(to_svg(made))


# -- writers


def hostile_view():
    nodes = tuple(
        Node(HOSTILE, kind, HOSTILE, HOSTILE, (HOSTILE, HOSTILE), (HOSTILE,), 1.5, role, column)
        for kind, role, column in (
            ("PD", "subject", 0),
            ("PD", "neighbour", 0),
            ("RESOURCE", "written", 2),
            ("SPACE", "space", 3),
        )
    )
    links = (
        Link(0, 2, "HOLD", "RW", "X", "", 2, False),
        Link(2, 3, "SUBSET", "", "", "", 1, True),
        Link(0, 1, "REQUEST", "", "", HOSTILE, 1, True),
        Link(0, 3, "HOLD", "RWX", "", "", 1, True),
    )
    return View(HOSTILE, 0, nodes, links, (HOSTILE,))


def test_svg_of_hostile_names_is_wellformed_and_inert():
    text = to_svg(hostile_view())
    text.encode("utf-8")
    root = ET.fromstring(text)
    tags = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert tags <= {"svg", "title", "defs", "marker", "path", "rect", "text"}
    assert "<script" not in text
    assert all(t.text.isprintable() for t in root.iter(f"{SVG}text"))


def test_graphml_of_hostile_names_reads_back(tmp_path):
    text = to_graphml(hostile_view())
    root = ET.fromstring(text)
    assert len(root.findall(f".//{ML}node")) == 4
    data = [d.text or "" for d in root.iter(f"{ML}data")]
    assert all(d.isprintable() for d in data)
    assert any("<script>" in d for d in data)  # the name, whole, as text
    path = tmp_path / "x.graphml"
    path.write_text(text)
    read = igraph.Graph.Read_GraphML(str(path))
    assert (read.vcount(), read.ecount()) == (4, 4)
    assert sorted(read.es["kind"]) == ["HOLD", "HOLD", "REQUEST", "SUBSET"]


def test_dot_of_hostile_names_keeps_its_quotes():
    text = to_dot(hostile_view())
    text.encode("utf-8")
    assert all(line.isprintable() for line in text.split("\n"))
    without = re.sub(r'"(?:[^"\\]|\\.)*"', "S", text)  # strings taken out, only grammar is left
    assert '"' not in without
    assert set(without) <= set("digraphS{}[]();=,->n0123456789 \nabcdefghijklmnopqrstuvwxyz_LR")
    assert quoted(r"\N") == r'"\\\\N"'  # escape() doubles it, and so does dot


def test_graphviz_takes_it():
    if not shutil.which("dot"):
        pytest.skip("no graphviz here")
    done = subprocess.run(["dot", "-Tplain"], input=to_dot(hostile_view()), text=True, check=True,
                          capture_output=True)  # fmt: skip
    assert done.stdout.startswith("graph")


def test_json_keeps_names_as_they_are():
    text = to_json(hostile_view())
    assert text.isascii()
    assert json.loads(text)["nodes"][0]["title"] == HOSTILE


def test_csv_of_a_part_reads_back(tmp_path):
    model = system(n=2)
    made = part(model, model.pd("id:a"))
    path = tmp_path / "part.csv"
    write_csv(made, path)
    back = read_csv(path)
    full = view(model, model.pd("id:a"), full=True)
    assert sorted(back.data.names[:]) == sorted(node.id for node in full.nodes)
    assert back.kernel is not None
    assert back.kernel.id == "k"
    assert [pd.id for pd in back.tcb("id:b0")] == [pd.id for pd in model.tcb("id:b0")]


# -- the drawing


@st.composite
def views(draw):
    n = draw(st.integers(1, 14))
    nodes = tuple(
        Node(f"n{i}", ("PD", "RESOURCE", "RESOURCE", "SPACE")[c], "T", draw(NAMES),
             tuple(draw(st.lists(NAMES, max_size=3))), (f"n{i}",), 0.0, "read", c)
        for i, c in enumerate(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    )  # fmt: skip
    ends = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))
    links = tuple(
        Link(
            a, b, draw(st.sampled_from(["HOLD", "MAP", "SUBSET", "REQUEST"])), "RW", "", "", 1, True
        )
        for a, b in draw(st.lists(ends, max_size=25))
        if a != b
    )
    return View("t", 0, nodes, links)


NAMES = st.text(max_size=60)


def boxes_of(root):
    return [
        tuple(float(r.get(k)) for k in ("x", "y", "width", "height"))
        for r in root.iter(f"{SVG}rect")
        if r.get("x") and r.get("stroke-width") in ("1.3", "2.4")
    ]


@settings(deadline=None, max_examples=60)
@given(made=views())
def test_boxes_never_overlap_and_hold_their_text(made):
    root = ET.fromstring(to_svg(made))
    boxes = boxes_of(root)
    assert len(boxes) == len(made.nodes)
    for i, (x, y, w, h) in enumerate(boxes):
        for x2, y2, w2, h2 in boxes[:i]:
            assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y
    width, height = float(root.get("width")), float(root.get("height"))
    lines = []
    for text in root.iter(f"{SVG}text"):
        size, said = float(text.get("font-size")), text.text or ""
        x, y, wide = float(text.get("x")), float(text.get("y")), width_of(said, size)
        left = x - wide if text.get("text-anchor") == "end" else x
        assert left >= 0
        assert left + wide <= width
        assert size <= y <= height
        lines.append((left, y - size * 0.7, left + wide, y))
    for node, (_, _, w, h) in zip(made.nodes, boxes, strict=True):
        for line in (node.title, *node.lines):
            assert width_of(cut(line), 11) <= w
        assert h >= 15 * (1 + len(node.lines))
    for i, (l1, t1, r1, b1) in enumerate(lines):
        for l2, t2, r2, b2 in lines[:i]:
            assert r1 <= l2 or r2 <= l1 or b1 <= t2 or b2 <= t1, "text over text"


@given(made=views())
@settings(deadline=None, max_examples=40)
def test_no_two_edges_end_at_one_point(made):
    layout = lay_out(made, [(100, 40)] * len(made.nodes))
    ends = [point for route in layout.routes for point in (route.points[0], route.points[-1])]
    assert len(set(ends)) == len(ends)


@given(st.text())
def test_cut_is_printable_and_short(text):
    assert len(cut(text)) <= WIDEST
    assert cut(text).isprintable()


def test_too_much_is_refused_with_a_way_out():
    node = Node("n", "PD", "PD", "t", (), ("n",), 0.0, "neighbour", 0)
    with pytest.raises(QueryError, match="graphml"):
        to_svg(View("t", 0, (node,) * 3000, ()))
