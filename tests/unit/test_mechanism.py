"""The drawing of one case of a comparison: who is where, in which colour, by which edges."""

import importlib
import json
import os
import struct
from xml.etree import ElementTree as ET

import pytest

import osmosis.formats.png as png
from osmosis.errors import QueryError
from osmosis.formats.csv import read_csv
from osmosis.formats.dot import to_dot
from osmosis.formats.mechanism import MOST_MEETINGS, MOST_ROLES, mechanism
from osmosis.formats.svg import sheet, to_svg
from osmosis.query.compare import compare

SVG = "{http://www.w3.org/2000/svg}"
HEADER = "NODE_TYPE,NODE_ID,DATA,EDGE_TYPE,EDGE_FROM,EDGE_TO,EXTRA\n"
HOSTILE = "\x1b[31m<b>&amp;]]>\u202e"


def pd(number, name, role=None):
    extra = json.dumps({"role": role}).replace('"', '""') if role else ""
    return f'PD,PD_{number},{name},,,,"{extra}"\n'


def system(*rows):
    """A database, one that writes to it, one that it writes to, a daemon, and one apart."""
    return (
        *(pd(1, "Host Linux"), pd(10, "redis", "db"), pd(20, "client", "app")),
        *(pd(30, "dockerd", "daemon"), pd(31, "containerd", "daemon"), pd(40, "sleep", "log")),
        pd(50, "idle", "bystander"),
        "RESOURCE_SPACE,NET_1,NET,,,,\nRESOURCE_SPACE,PID_1,PID,,,,\n",
        "RESOURCE,MO_1,MO,,,,0x1000_3_12\nRESOURCE,MO_2,MO,,,,0x9000_5_12\n",
        "RESOURCE,FILE_1,FILE,,,,/srv/log\nRESOURCE,FILE_2,FILE,,,,/lib/c\n",
        "RESOURCE,VMR_1,VMR,,,,\n",
        ",,RW,HOLD,PD_10,VMR_1,\n,,RW,MAP,VMR_1,MO_1,\n,,RW,HOLD,PD_20,MO_1,\n",
        ",,RW,HOLD,PD_10,MO_2,\n",
        ",,W,HOLD,PD_10,FILE_1,\n,,R,HOLD,PD_40,FILE_1,\n",
        ",,R,HOLD,PD_10,FILE_2,\n,,R,HOLD,PD_50,FILE_2,\n,,R,HOLD,PD_40,FILE_2,\n",
        ",,RWX,HOLD,PD_30,PD_10,\n,,SOCKET,REQUEST,PD_20,PD_10,\n",
        ",,R,HOLD,PD_10,NET_1,\n,,R,HOLD,PD_20,NET_1,\n,,R,HOLD,PD_10,PID_1,\n",
        *rows,
    )


@pytest.fixture
def drawn(tmp_path):
    def drawn(*rows, subject="role:db", answer=None, **options):
        path = tmp_path / "in.csv"
        path.write_text(HEADER + "".join(rows))
        model = read_csv(path)
        case = compare({"one": model}, subject=subject, **options)["one"]
        return mechanism(model, case, answer=answer, by=options.get("by", "role"))

    return drawn


def boxes(made):
    return {node.title: node for node in made.nodes}


def edges(made):
    ends = [node.title for node in made.nodes]
    return {
        (ends[k.source], k.kind, k.label or k.permission, ends[k.target], k.certain)
        for k in made.links
    }


def test_who_is_in_what(drawn):
    found = boxes(drawn(*system()))

    assert {title: node.role for title, node in found.items() if node.kind == "PD"} == {
        "db": "subject",
        "kernel": "kernel",
        "app": "both",
        "daemon x2": "tcb",
        "log": "ib",
        "bystander": "outside",
    }
    assert found["db"].lines == ("redis", "TCB 3", "IB 2")
    assert found["daemon x2"].lines == ("dockerd, containerd", "TCB 1 of 2")
    assert found["bystander"].lines[-1] == "in neither"


def test_where_they_meet_and_by_which_edges(drawn):
    made = drawn(*system())
    resources = {node.title: node.role for node in made.nodes if node.kind == "RESOURCE"}

    assert resources == {"MO: 3 pages": "written", "MO: 5 pages": "private", "FILE: 1": "read"}
    assert [node.role for node in made.nodes if node.title == "FILE: 1"] == ["writes", "read"]
    assert edges(made) == {
        ("kernel", "HOLD", "everything", "db", True),
        ("daemon x2", "HOLD", "hold", "db", True),
        ("app", "REQUEST", "SOCKET", "db", True),
        ("db", "MAP", "RW", "MO: 3 pages", True),
        ("app", "HOLD", "RW", "MO: 3 pages", True),
        ("db", "HOLD", "", "MO: 5 pages", True),
        ("db", "HOLD", "W", "FILE: 1", True),
        ("log", "HOLD", "R", "FILE: 1", True),
        ("db", "HOLD", "R", "FILE: 1", True),
        ("bystander", "HOLD", "R", "FILE: 1", True),
        ("db", "HOLD", "", "its own", True),
        ("db", "HOLD", "", "shared with", True),
    }
    assert boxes(made)["its own"].lines == ("PID",)
    assert boxes(made)["shared with"].lines == ("app", "NET")


def test_one_boundary_alone(drawn):
    tcb = drawn(*system(), answer="tcb")
    roles = {title: node.role for title, node in boxes(tcb).items() if node.kind == "PD"}
    assert roles["app"] == roles["daemon x2"] == "tcb"
    assert roles["log"] == roles["bystander"] == "outside"
    assert boxes(tcb)["db"].lines == ("redis", "TCB 3")
    assert boxes(tcb)["log"].lines[-1] == "not in the TCB"  # it is in the IB, which is not asked
    assert [node.title for node in tcb.nodes if node.kind == "RESOURCE"] == ["MO: 3 pages"]
    assert "REQUEST" not in {link.kind for link in tcb.links}

    ib = drawn(*system(), answer="impact_boundary")
    roles = {title: node.role for title, node in boxes(ib).items() if node.kind == "PD"}
    assert roles == {
        "db": "subject",
        "app": "ib",
        "log": "ib",
        "daemon x2": "outside",
        "bystander": "outside",
    }
    assert boxes(ib)["daemon x2"].lines[-1] == "not in the IB"
    resources = [node.title for node in ib.nodes if node.kind == "RESOURCE"]
    assert resources == ["MO: 3 pages", "FILE: 1"]
    assert "HOLD" not in {k.kind for k in ib.links if ib.nodes[k.target].title == "db"}
    with pytest.raises(QueryError, match="tcb or impact_boundary"):
        drawn(*system(), answer="both")


def test_what_is_not_known_is_drawn_so(drawn):
    doubt = "RESOURCE,MO_7,MO,,,,0x5000_1_12\n,,R,HOLD,PD_10,MO_7,\n,,NONE,HOLD,PD_50,MO_7,\n"
    made = drawn(*system(doubt))

    assert boxes(made)["bystander"].role == "doubt"
    assert boxes(made)["bystander"].lines[-1] == "TCB +1?"
    maybe = [k for k in made.links if k.possible]
    assert [(k.permission, k.possible, k.certain) for k in maybe] == [("", "RWX", False)]
    assert "not known" in to_svg(made)


def test_readers_of_one_type_are_together_and_writers_are_not(drawn):
    rows = []
    for i in range(100, 120):
        rows.append(f"RESOURCE,FILE_{i},FILE,,,,\n,,R,HOLD,PD_10,FILE_{i},\n")
        rows.append(f",,R,HOLD,PD_{20 if i % 2 else 50},FILE_{i},\n")
    many = drawn(*system(*rows))
    assert boxes(many)["FILE: 21"].role == "read"

    rows = [pd(1000 + i, f"w{i}", f"w{i}") for i in range(20)]
    for i in range(20):
        rows.append(f"RESOURCE,PIPE_{i},PIPE,,,,\n,,R,HOLD,PD_10,PIPE_{i},\n")
        rows.append(f",,W,HOLD,PD_{1000 + i},PIPE_{i},\n")
    many = drawn(*system(*rows))
    others = [n for n in many.nodes if n.kind == "PD" and n.column == 0]
    assert len(others) == MOST_ROLES + 2
    rest = next(n for n in others if n.role == "more")
    assert rest.lines[0].endswith("of them in the TCB")
    meetings = [n for n in many.nodes if n.kind == "RESOURCE" and n.role != "private"]
    assert len(meetings) <= MOST_MEETINGS + 3


def test_it_says_what_could_be_used_but_not_draw_it(drawn):
    made = drawn(*system())
    assert made.heads[2] == "Subject"
    assert any("kernel holds" in note for note in made.notes)


def test_nothing_to_draw(tmp_path, drawn):
    path = tmp_path / "in.csv"
    path.write_text(HEADER + "".join(system()))
    model, other = read_csv(path), tmp_path / "b.csv"
    other.write_text(HEADER + pd(10, "x"))
    found = compare({"a": model, "b": read_csv(other)}, subject="role:db")
    with pytest.raises(QueryError, match="no PD matches role:db"):
        mechanism(read_csv(other), found["b"])


def test_svg_says_only_what_is_drawn_and_is_wellformed(drawn):
    made = drawn(*system())
    text = to_svg(made)
    root = ET.fromstring(text)
    said = {node.text for node in root.iter(f"{SVG}text")}

    assert {"in its TCB", "in its IB", "in both", "not a member", "its own"} <= said
    assert "not known" not in said
    assert "is part of (subset)" not in said
    assert {"Subject", "Its spaces", "kill"} - said == {"kill"}
    assert "digraph" in to_dot(made)


def test_several_drawings_on_one_sheet(drawn):
    one, other = to_svg(drawn(*system())), to_svg(drawn(*system(pd(60, "more", "more"))))
    root = ET.fromstring(sheet([one, other]))
    inner = [child for child in root if child.tag == f"{SVG}svg"]

    assert len(inner) == 2
    heights = [float(child.get("height")) for child in inner]
    assert [float(child.get("y")) for child in inner] == [0, heights[0]]
    assert float(root.get("height")) == sum(heights)


def test_hostile_names_are_text(drawn):
    made = drawn(pd(1, "Kernel"), pd(10, HOSTILE, "db"), pd(20, HOSTILE, HOSTILE))
    text = to_svg(made)
    ET.fromstring(text)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "<b>" not in text


def cairo_is_there():
    try:
        importlib.import_module("cairosvg")
    except (ImportError, OSError):
        return False
    return True


wants_cairo = pytest.mark.skipif(not cairo_is_there(), reason="cairosvg or libcairo2 is missing")


@wants_cairo
def test_png_is_the_drawing_at_its_scale(drawn):
    svg = to_svg(drawn(*system()))
    root = ET.fromstring(svg)

    made = png.to_png(svg, scale=1.5)

    assert made[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", made[16:24])
    assert width == pytest.approx(float(root.get("width")) * 1.5, abs=1)
    assert height == pytest.approx(float(root.get("height")) * 1.5, abs=1)


def test_png_without_its_library_says_what_would_help(monkeypatch):
    def missing(name):
        raise OSError(f"no library called {name}")

    monkeypatch.setattr(png, "import_module", missing)
    with pytest.raises(png.PngError, match=r"figures.*libcairo2.*\.svg"):
        png.to_png("<svg/>")


@wants_cairo
def test_a_png_fetches_nothing(tmp_path):
    secret = tmp_path / "secret.svg"
    secret.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    os.chmod(secret, 0o600)
    entity = f'<!DOCTYPE svg [<!ENTITY x SYSTEM "file://{secret}">]>'
    with pytest.raises(Exception, match=r"(?i)entit"):
        png.to_png(f'{entity}<svg xmlns="http://www.w3.org/2000/svg">&x;</svg>')
