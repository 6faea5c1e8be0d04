"""Every command over small systems: what it prints, its JSON, and its exit code."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import graph_of, systems

pytest.importorskip("typer")
pytest.importorskip("rich")

from typer.testing import CliRunner

from osmosis.cli.commands import app
from osmosis.cli.overview import measure
from osmosis.formats.csv import read_csv
from osmosis.graph.graph import Kind
from osmosis.model import Model
from osmosis.snapshot import Snapshot, StringPool

DATA = Path(__file__).parents[1] / "data"
SYSTEM = str(DATA / "db_and_app.csv")
SRC = Path(__file__).parents[2] / "src"
HOSTILE = "\x1b[31mred\x1b[0m\n[bold]x[/bold]\u202egpj.exe\udcff\"\\N<&>']]>"


def run(*args):
    return CliRunner().invoke(app, [str(a) for a in args])


def answer(*args, code=0):
    result = run(*args, "--json")
    assert result.exit_code == code, result.output
    assert result.stdout.isascii()
    return json.loads(result.stdout)


def certain(tmp_path):
    """A system of which everything is known: two that share, and a kernel."""
    path = tmp_path / "certain.csv"
    path.write_text(
        "NODE_TYPE,NODE_ID,DATA,EDGE_TYPE,EDGE_FROM,EDGE_TO,EXTRA\n"
        "PD,PD_1,Host Linux,,,,\n"
        "PD,PD_10,db,,,,\n"
        "PD,PD_20,app,,,,\n"
        "PD,PD_30,alone,,,,\n"
        "RESOURCE,MO_1_1,MO,,,,\n"
        "RESOURCE,MO_1_2,MO,,,,\n"
        ",,RW,HOLD,PD_10,MO_1_1,\n"
        ",,R,HOLD,PD_20,MO_1_1,\n"
        ",,RW,HOLD,PD_20,MO_1_2,\n"
        ",,RWX,HOLD,PD_30,PD_10,\n"
        ",,MO,REQUEST,PD_20,PD_30,\n"
    )
    return path


def snapshot(*comms, **columns):
    """A snapshot of processes with these names, of which little more is known."""
    n = len(comms)
    pool = StringPool()
    names = pool.add_all([os.fsencode(comm) for comm in comms])
    ledger = columns.pop("ledger", [])
    host = {"hostname": "h", "kernel": "6", "captured_at": "t", "seconds": 0.5, "euid": 0}
    host |= {"cap_eff": "000001ffffffffff", "page_size": 4096, "boot_id": "b"}
    host |= columns.pop("host", {})
    rows = np.array(ledger, object).reshape(-1, 4)
    made = {
        "process_pid": np.arange(100, 100 + n, dtype=np.int32),
        "process_start_time": np.ones(n, np.uint64),
        "process_comm": names,
        "ledger_pid": rows[:, 0].astype(np.int32),
        "ledger_process": np.full(len(rows), -1, np.int32),
        "ledger_source": pool.add_all([s.encode() for s in rows[:, 1]]),
        "ledger_status": rows[:, 2].astype(np.uint8),
        "ledger_count": np.zeros(len(rows), np.int64),
        "ledger_reason": pool.add_all([s.encode() for s in rows[:, 3]]),
    }
    return Snapshot(_all(made, n) | pool.columns(), host)


def _all(made, n):
    """Fill the columns of table process that are not given: -1 where that says unknown."""
    from osmosis.schema import COLUMNS

    out = dict(made)
    for name, column in COLUMNS.items():
        if column.table not in ("process", "control") or name in out:
            continue
        if column.indptr:
            out[name] = np.zeros(n + 1, column.dtype)
        else:
            signed = np.dtype(column.dtype).kind == "i"
            out[name] = np.full(n, -1 if signed else 0, column.dtype)
    return out


# -- the overview


def test_the_overview_counts_tcb_ib_pages_and_controllers(tmp_path):
    rows = {row["id"]: row for row in answer("-s", certain(tmp_path))["rows"]}

    assert {i: (r["tcb"], r["ib"], r["pages_shared"]) for i, r in rows.items()} == {
        "PD_1": (0, 3, 0),
        "PD_10": (2, 1, 1),
        "PD_20": (2, 0, 1),
        "PD_30": (1, 1, 0),
    }
    assert rows["PD_10"]["controllers"] == {"kernel": 1, "other": 1}


def test_the_overview_as_a_table_names_all(tmp_path):
    result = run("-s", certain(tmp_path))

    assert result.exit_code == 0
    table = [line.split() for line in result.stdout.splitlines() if line.startswith("PD_")]
    assert table[0][:4] == ["PD_1", "Host", "Linux", "0"]  # most impact first
    assert sorted(row[0] for row in table) == ["PD_1", "PD_10", "PD_20", "PD_30"]
    assert "4 protection domains" not in result.stdout  # the kernel is not counted with them
    assert "3 protection domains" in result.stdout


def test_top_limits_and_says_what_is_left_out(tmp_path):
    result = run("-s", certain(tmp_path), "--top", "1")

    assert "3 more: --all" in result.stdout
    assert run("-s", certain(tmp_path), "--top", "1", "--all").stdout.count("PD_") == 4


@pytest.mark.parametrize(
    ("key", "first"), [("tcb", "PD_10"), ("ib", "PD_1"), ("pid", "PD_1"), ("name", "PD_1")]
)
def test_sort(tmp_path, key, first):
    rows = answer("-s", certain(tmp_path), "--sort", key)["rows"]
    assert rows[0]["id"] == first


def test_unknown_members_are_told_apart_and_make_the_answer_incomplete():
    rows = answer("-s", SYSTEM, code=0)["rows"]
    assert {r["tcb_unknown"] for r in rows} == {0}
    doubtful = snapshot("a", "b")  # whose memory nobody read
    assert measure(doubtful.model()).tcb_unknown.any()


def test_figures_of_a_csv_equal_the_queries():
    check_figures(read_csv(SYSTEM))


@settings(deadline=None, max_examples=80)
@given(system=systems(), runs=st.booleans(), grouped=st.booleans())
def test_figures_equal_the_queries_one_by_one(system, runs, grouped):
    model = Model(graph_of(system, runs=runs))
    check_figures(model.group_by("role") if grouped else model)


def check_figures(model):
    figures = measure(model)
    for pd in model.pds:
        tcb, ib = model.tcb(pd), model.impact_boundary(pd)
        assert figures.tcb[pd.row] == len(tcb)
        assert figures.tcb_unknown[pd.row] == len(tcb.unknown)
        assert figures.ib[pd.row] == len(ib)
        assert figures.ib_unknown[pd.row] == len(ib.unknown)
        control = model.controllers(pd)
        assert figures.controllers[pd.row].sum() == len(control)
        assert figures.controllers_unknown[pd.row] == len(control.unknown)
    assert model.pages_shared().tolist() == brute_pages(model)


def brute_pages(model):
    reached = [set(model.bfs(pd, kinds="RESOURCE", types="MO").nodes.tolist()) for pd in model.pds]
    kernel = None if model.kernel is None else model.kernel.row
    out = []
    for i, mine in enumerate(reached):
        others = set().union(*(s for j, s in enumerate(reached) if j not in (i, kernel)))
        out.append(0 if i == kernel else round(sum(model.data.pages[n] for n in mine & others)))
    return out


def test_groups(tmp_path):
    rows = answer("-s", certain(tmp_path), "--by", "user")["rows"]
    assert len(rows) == 4  # no users here: each stays alone


# -- one answer


def test_tcb_says_who_by_what(tmp_path):
    found = answer("tcb", "id:PD_10", "-s", certain(tmp_path))

    assert found["count"] == 2
    assert found["unknown"] == []
    members = {m["id"]: m for m in found["members"]}
    assert members["PD_30"]["parts"] == ["control"]
    assert members["PD_30"]["verbs"] == ["hold"]
    assert found["parts"]["control"] == {"count": 2, "unknown_count": 0}


def test_a_bare_number_is_a_pid(tmp_path):
    assert answer("tcb", "10", "-s", certain(tmp_path))["of"]["id"] == "PD_10"


def test_ib_is_the_inverse_of_tcb(tmp_path):
    ids = ["PD_1", "PD_10", "PD_20", "PD_30"]

    def pairs(command):
        return {
            (one, m["id"])
            for one in ids
            for m in answer(command, f"id:{one}", "-s", certain(tmp_path))["members"]
        }

    assert {(b, a) for a, b in pairs("ib")} == pairs("tcb")


def test_options_reach_the_query(tmp_path):
    system = certain(tmp_path)

    def members(*options):
        return [m["id"] for m in answer("tcb", "id:PD_20", "-s", system, *options)["members"]]

    assert members() == ["PD_1", "PD_10"]
    assert members("--access", "X") == ["PD_1"]
    assert members("--services") == ["PD_1", "PD_10", "PD_30"]
    assert members("--depth", "all") == ["PD_1", "PD_10", "PD_30"]
    assert members("--depth", "0") == []
    assert members("--types", "FILE", "--verbs", "kill") == ["PD_1"]


def test_shared_counts_pages(tmp_path):
    found = answer("shared", "id:PD_10", "-s", certain(tmp_path))
    assert [(m["id"], m["pages"]) for m in found["members"]] == [("PD_1", 0), ("PD_20", 1)]


def test_shared_spaces():
    found = answer("shared", "id:PD_10", "--spaces", "-s", SYSTEM)
    assert [m["id"] for m in found["members"]] == ["PD_1", "PD_20"]
    assert run("shared", "id:PD_10", "--spaces", "--access", "W", "-s", SYSTEM).exit_code == 2


def test_controllers_and_controls(tmp_path):
    system = certain(tmp_path)
    assert [m["id"] for m in answer("controllers", "10", "-s", system)["members"]] == [
        "PD_1",
        "PD_30",
    ]
    assert [m["id"] for m in answer("controls", "30", "-s", system)["members"]] == ["PD_10"]
    assert [
        m["id"] for m in answer("controllers", "10", "--verbs", "kill", "-s", system)["members"]
    ] == ["PD_1"]


def test_an_undecided_member_makes_exit_code_3():
    found = answer("shared", "id:PD_20", "--access", "W", "-s", DATA / "db_and_app.csv", code=0)
    assert found["unknown_count"] == 0
    found = answer("shared", "id:PD_10", "--access", "W", "-s", SYSTEM, code=3)
    assert [m["id"] for m in found["unknown"]] == ["PD_30"]
    assert "PD_30" not in [m["id"] for m in found["members"]]
    text = run("shared", "id:PD_10", "--access", "W", "-s", SYSTEM)
    assert text.exit_code == 3
    assert "and 1 unknown" in text.stdout
    assert "unknown: shared" in text.stdout


def test_explain_shows_the_path(tmp_path):
    found = answer("explain", "10", "30", "-s", certain(tmp_path))
    assert found["state"] == "yes"
    assert found["paths"]["control"][0]["source"] == "PD_30"
    text = run("explain", "10", "30", "-s", certain(tmp_path))
    assert "PD_30 --hold" in text.stdout
    assert answer("explain", "20", "30", "-s", certain(tmp_path))["state"] == "no"


def test_isolation_counts_layers(tmp_path):
    result = run("isolation", "10", "20", "-s", certain(tmp_path))
    assert result.exit_code == 3  # this CSV says nothing of them
    assert "unknown" in result.stdout
    found = answer("isolation", "10", "20", "-s", certain(tmp_path), code=3)
    assert found["layers"]["mnt"]["state"] == "unknown"


def test_compare(tmp_path):
    result = run("compare", certain(tmp_path), SYSTEM, "--subject", "comm:db")
    assert result.exit_code == 0
    assert "certain" in result.stdout
    assert "certain -> db_and_app, IB: other left; it was in by memory (MO)" in result.stdout
    found = answer("compare", certain(tmp_path), SYSTEM, "--subject", "comm:db")
    assert found["cases"]["certain"]["tcb"]["certain"] == 2
    assert found["cases"]["certain"]["coverage"]["complete"]
    assert run("compare", SYSTEM, "--subject", "comm:db").exit_code == 0


def test_compare_says_who_by_layer_for_those_asked_for(tmp_path):
    ask = ("compare", certain(tmp_path), "--subject", "comm:db", "--other", "comm:app")
    result = run(*ask)
    assert result.exit_code == 3  # this CSV says nothing of layers
    assert "layers to comm:app" in result.stdout
    assert re.search(r"^  mnt +\?$", result.stdout, re.M)
    assert answer(*ask, code=3)["cases"]["certain"]["isolation"]["comm:app"]["layers"]["mnt"]


def test_compare_of_a_file_that_lacks_the_subject(tmp_path):
    ask = ("compare", certain(tmp_path), SYSTEM, "--subject", "comm:backup")
    assert run(*ask).exit_code == 3
    assert "certain: no PD matches comm:backup" in run(*ask).stdout
    assert answer(*ask, code=3)["cases"]["certain"]["tcb"] is None
    nowhere = run("compare", certain(tmp_path), SYSTEM, "--subject", "comm:bakcup")
    assert nowhere.exit_code == 1
    assert "comm:backup" in nowhere.stderr


def test_compare_with_a_subject_for_one_file(tmp_path):
    files = certain(tmp_path), SYSTEM
    found = answer("compare", *files, "--subject", "comm:db", "--subject", "certain=comm:app")
    assert [case["subject"] for case in found["cases"].values()] == [["PD_20"], ["PD_10"]]
    assert run("compare", *files, "--subject", "certain=comm:app").exit_code == 2
    assert run("compare", *files, "--subject", "comm:db", "--subject", "x=comm:app").exit_code == 2


def test_compare_of_many_has_a_row_for_each(tmp_path):
    files = [tmp_path / f"m{i}.csv" for i in range(6)]
    for file in files:
        file.write_bytes(certain(tmp_path).read_bytes())
    lines = run("compare", *files, "--subject", "comm:db").stdout.splitlines()
    assert [line.split()[:2] for line in lines[2:8]] == [[f"m{i}", "2"] for i in range(6)]
    table = run("compare", *files, "--subject", "comm:db", "--format", "markdown").stdout
    assert "| m5 | 2 |" in table
    assert run("compare", *files, "--subject", "comm:db", "--format", "yaml").exit_code == 2
    assert run("compare", files[0], files[0], "--subject", "comm:db").exit_code == 2


def test_compare_draws_each_into_a_directory_or_all_into_a_file(tmp_path):
    ask = ("compare", certain(tmp_path), SYSTEM, "--subject", "comm:backup", "--by", "comm")
    folder = tmp_path / "figures"
    result = run(*ask, "--figure", folder)
    assert result.exit_code == 3
    assert f"{folder / 'db_and_app.svg'}: db_and_app" in result.stdout
    assert [file.name for file in folder.iterdir()] == ["db_and_app.svg"]  # the one that has it
    assert "backup" in (folder / "db_and_app.svg").read_text()
    assert run(*ask, "--figure", folder).exit_code == 1
    assert run(*ask, "--figure", folder, "--force").exit_code == 3

    both = ("compare", certain(tmp_path), SYSTEM, "--subject", "comm:db")
    assert run(*both, "--figure", tmp_path / "all.svg").exit_code == 0
    text = (tmp_path / "all.svg").read_text()
    assert "certain: comm:db" in text
    assert "db_and_app: comm:db" in text
    wrong = run(*both, "--figure", tmp_path / "all.pdf")
    assert wrong.exit_code == 2
    assert ".png" in wrong.stderr


def test_compare_draws_png_or_says_what_is_missing(tmp_path):
    file = tmp_path / "all.png"
    ask = ("compare", certain(tmp_path), "--subject", "comm:db", "--figure", file)
    result = run(*ask)
    if result.exit_code == 1:  # cairosvg, or the library below it, is not installed
        assert "osmosis-isolation[figures]" in result.stderr
        assert not file.exists()
        return
    assert result.exit_code == 0
    assert file.read_bytes()[:4] == b"\x89PNG"
    assert answer(*ask, "--force")["cases"]["certain"]["subject"] == ["PD_10"]


def test_diff(tmp_path):
    a, b = tmp_path / "a.osm", tmp_path / "b.osm"
    snapshot("one", "two").save(a)
    snapshot("one").save(b)
    result = run("diff", a, b)
    assert "- two(101)" in result.stdout


# -- exit codes and errors


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["tcb", "999", "-s", SYSTEM], 1, "no such PD"),
        (["tcb", "nonsense", "-s", SYSTEM], 1, "no selector"),
        (["tcb", "10", "-s", "/nowhere.osm"], 1, "No such file"),
        (["tcb", "10", "-s", "/"], 1, "directory"),
        (["tcb", "10", "-s", SYSTEM, "--access", "Q"], 1, "access must be"),
        (["tcb", "10", "-s", SYSTEM, "--types", "NOPE"], 1, "no type"),
        (["tcb", "10", "-s", SYSTEM, "--verbs", "hug"], 1, "no verb"),
        (["tcb", "10", "-s", SYSTEM, "--depth", "deep"], 2, "--depth"),
        (["tcb", "10", "-s", SYSTEM, "--by", "zodiac"], 1, "no key"),
        (["-s", SYSTEM, "--sort", "colour"], 2, "--sort"),
        (["tcb", "10", "-s", SYSTEM, "--nonsense"], 2, "No such option"),
        (["tcb", "-s", SYSTEM], 2, "Missing argument"),
        (["-s", SYSTEM, "tcb", "10"], 2, "after the command"),
        (["graph", "10", "-s", SYSTEM, "-o", "x.png"], 2, "must end in"),
    ],
)
def test_errors_are_one_line_with_their_code(args, code, said):
    result = run(*args)

    assert result.exit_code == code
    assert said in result.stderr
    assert "Traceback" not in result.output
    if code == 1:
        assert result.stderr.startswith("osmosis: ")
        assert result.stderr.count("\n") == 1


def test_damaged_files_are_errors(tmp_path):
    whole = tmp_path / "whole.osm"
    snapshot("a").save(whole)
    cut = tmp_path / "cut.osm"
    cut.write_bytes(whole.read_bytes()[:200])
    text = tmp_path / "text.csv"
    text.write_text("hello\n")
    for path in (cut, text):
        result = run("-s", path)
        assert result.exit_code == 1
        assert path.name in result.stderr
        assert result.stderr.count("\n") == 1


def test_an_ambiguous_selector_lists_candidates_and_says_what_to_do(tmp_path):
    path = tmp_path / "s.osm"
    snapshot("twin", "twin").save(path)
    result = run("tcb", "comm:twin", "-s", path)
    assert result.exit_code == 1
    assert "pid:100" in result.stderr
    assert "--by" in result.stderr


def test_a_bug_is_one_line_too(monkeypatch):
    monkeypatch.delenv("OSMOSIS_DEBUG", raising=False)

    def broken(*args, **kwargs):
        raise ZeroDivisionError("x\ny")

    monkeypatch.setattr("osmosis.cli.overview.open_source", broken)
    result = run("-s", SYSTEM)
    assert result.exit_code == 1
    assert "ZeroDivisionError" in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_interrupt_is_quiet(monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("osmosis.cli.overview.open_source", interrupted)
    result = run("-s", SYSTEM)
    assert result.exit_code == 130
    assert result.output == ""


# -- coverage

READ, GONE, DENIED, _, HIDDEN, PARTIAL, SKIPPED = range(7)


def saved(tmp_path, *comms, **kwargs):
    path = tmp_path / "s.osm"
    snapshot(*comms, **kwargs).save(path)
    return path


def test_a_gap_of_the_one_asked_makes_code_3_and_of_another_does_not(tmp_path):
    path = saved(tmp_path, "a", "b", ledger=[(101, "memory", DENIED, "why"), (100, "x", READ, "")])
    plain = answer("controllers", "100", "--verbs", "", "-s", path, code=0)
    assert plain["coverage"]["gaps"] == []
    found = answer("controllers", "101", "--verbs", "", "-s", path, code=3)
    assert found["coverage"]["gaps"][0]["reason"] == "why"


def test_a_gap_of_the_host_touches_all_and_one_that_ended_touches_none(tmp_path):
    path = saved(tmp_path, "a", ledger=[(0, "pagemap", HIDDEN, "why")])
    assert answer("controllers", "100", "--verbs", "", "-s", path, code=3)
    path = saved(tmp_path, "a", ledger=[(777, "processes", GONE, "exited")])
    found = answer("controllers", "100", "--verbs", "", "-s", path, code=0)
    assert found["coverage"]["ended"] == 1


def test_the_coverage_line(tmp_path):
    ledger = [(101, "memory", DENIED, "why"), (777, "processes", GONE, "exited")]
    path = saved(tmp_path, "a", "b", ledger=ledger)
    text = run("-s", path).stdout
    assert "2 processes of h (Linux 6)" in text
    assert "1 read whole, 1 not: memory denied 1" in text
    assert "1 ended meanwhile" in text
    assert "root" not in text.splitlines()[1]


def test_who_is_not_root_is_told_what_root_would_add(tmp_path):
    path = saved(tmp_path, "a", host={"euid": 1000, "cap_eff": "0000000000000000"})
    text = run("-s", path).stdout
    assert "not root: capture as root to see the physical frames" in text
    path = saved(tmp_path, "a", host={"euid": 0, "cap_eff": "0000000000000000"})
    assert "without CAP_SYS_ADMIN and CAP_SYS_PTRACE" in run("-s", path).stdout


# -- hostile names


def hostile(tmp_path):
    path = tmp_path / "hostile.osm"
    snapshot(HOSTILE, "\n", "[/red]", "").save(path)
    return path


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["tcb", "100"],
        ["ib", "100"],
        ["shared", "100"],
        ["controllers", "100"],
        ["controls", "100"],
        ["explain", "100", "101"],
        ["isolation", "100", "101"],
        ["tcb", "comm:" + HOSTILE.replace("\udcff", "")],
        ["tcb", HOSTILE],
        ["diff", "SELF", "SELF"],
    ],
    ids=lambda args: " ".join(args)[:12] or "overview",
)
def test_hostile_names_reach_no_terminal(tmp_path, args):
    path = hostile(tmp_path)
    if "SELF" in args:
        result = run(*(path if a == "SELF" else a for a in args))
    else:
        result = run(*args, "-s", path)

    assert result.exit_code in (0, 1, 3), result.output
    assert "Traceback" not in result.output
    assert not result.exception or isinstance(result.exception, SystemExit)
    for text in (result.stdout, result.stderr):
        assert all(line.isprintable() for line in text.split("\n"))
    assert "[bold]x[/bold]" in run("-s", path).stdout  # shown, and not read as markup


@pytest.mark.parametrize("args", [[], ["tcb", "100"], ["shared", "100"], ["explain", "100", "101"]])
def test_hostile_names_come_whole_through_json(tmp_path, args):
    result = run(*args, "-s", hostile(tmp_path), "--json")
    assert result.stdout.isascii()
    found = json.loads(result.stdout)
    pds = [*found.get("rows", []), found.get("of", {})]
    assert any(pd.get("comm") == HOSTILE for pd in pds)


def test_hostile_names_in_a_csv(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(
        b"NODE_TYPE,NODE_ID,DATA,EDGE_TYPE,EDGE_FROM,EDGE_TO,EXTRA\n"
        b'PD,PD_\x1b[31m,"\x1b]0;own\x07\xe2\x80\xae",,,,\n'
    )
    text = run("-s", path)
    assert text.exit_code == 0
    assert all(line.isprintable() for line in text.stdout.split("\n"))


# -- files


@pytest.mark.parametrize("ending", ["svg", "dot", "graphml", "json", "csv"])
def test_graph_writes_and_never_overwrites(tmp_path, ending):
    out = tmp_path / f"g.{ending}"
    assert run("graph", "10", "-s", SYSTEM, "-o", out).exit_code == 0
    before = out.read_bytes()
    again = run("graph", "20", "-s", SYSTEM, "-o", out)
    assert again.exit_code == 1
    assert "--force" in again.stderr
    assert out.read_bytes() == before
    assert out.stat().st_mode & 0o777 == 0o600
    assert run("graph", "20", "-s", SYSTEM, "-o", out, "--force").exit_code == 0
    assert out.read_bytes() != before
    assert [p.name for p in tmp_path.iterdir()] == [out.name]  # nothing half-written stays


def test_a_dangling_link_is_not_followed(tmp_path):
    out = tmp_path / "g.svg"
    out.symlink_to(tmp_path / "elsewhere")
    assert run("graph", "10", "-s", SYSTEM, "-o", out).exit_code == 1
    assert not (tmp_path / "elsewhere").exists()


def test_capture_refuses_before_it_captures(tmp_path, monkeypatch):
    def forbidden(**kwargs):
        raise AssertionError("captured")

    monkeypatch.setattr("osmosis.cli.capture.capture_host", forbidden)
    out = tmp_path / "s.osm"
    out.write_text("mine")
    result = run("capture", "-o", out)
    assert result.exit_code == 1
    assert "--force" in result.stderr
    assert out.read_text() == "mine"
    assert run("capture", "-o", tmp_path / "no" / "s.osm").exit_code == 1


# -- as a program


def program(*args, **kwargs):
    env = {**os.environ, "PYTHONPATH": str(SRC), **kwargs.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, "-m", "osmosis", *map(str, args)], text=True, env=env, **kwargs
    )


def test_a_reader_that_goes_away_is_no_error():
    read, write = os.pipe()
    os.close(read)
    with program("-s", SYSTEM, stdout=write, stderr=subprocess.PIPE) as p:
        os.close(write)
        said = p.stderr.read()
    assert p.returncode == 141
    assert said == ""


def test_an_encoding_that_cannot_say_it_is_no_error(tmp_path):
    env = {"PYTHONIOENCODING": "ascii"}
    with program("-s", hostile(tmp_path), stdout=subprocess.PIPE, env=env) as p:
        said = p.stdout.read()
    assert p.returncode == 3
    assert said.isascii()


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_one_line_says_what_to_install(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; from osmosis.cli import main; main()"
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, text=True, capture_output=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "pip install osmosis-isolation[cli]" in done.stderr


def test_help_names_every_command():
    text = run("--help").stdout
    for command in ("capture", "tcb", "ib", "shared", "controllers", "explain", "graph"):
        assert command in text
        assert run(command, "--help").exit_code == 0


def test_the_kernel_is_never_a_neighbour(tmp_path):
    model = read_csv(SYSTEM)
    assert model.pages_shared()[model.data.kernel] == 0
    assert (model.data.kind[: model.data.n_pds] == Kind.PD).all()
