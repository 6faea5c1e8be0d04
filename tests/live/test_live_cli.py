"""The command line on this host, as a program: what it says is what the kernel shows."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from children import child

pytest.importorskip("typer")
pytest.importorskip("rich")
pytestmark = pytest.mark.live(root=False)

SRC = Path(__file__).parents[2] / "src"
PAGE = os.sysconf("SC_PAGESIZE")
# The first run imports everything, so that no path has to be readable when privilege is gone.
AS_NOBODY = """
import ctypes, os, sys
from typer.testing import CliRunner
from osmosis.cli.commands import app
CliRunner().invoke(app, sys.argv[1:])
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
assert ctypes.CDLL(None).prctl(4, 1, 0, 0, 0) == 0  # PR_SET_DUMPABLE, as an ordinary program
app()
"""


def run(*args, code=None):
    start = ["-m", "osmosis"] if code is None else ["-c", code]
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    return subprocess.run(
        [sys.executable, *start, *map(str, args)],
        env=env, text=True, capture_output=True, check=False, timeout=120,
    )  # fmt: skip


def answer(*args, code=None):
    done = run(*args, "--json", code=code)
    assert done.returncode in (0, 3), done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout), done.returncode


def test_the_table_has_this_process_and_the_kernel():
    done = run("--all")
    assert done.returncode in (0, 3), done.stderr
    assert done.stderr == ""  # no bar where no terminal is
    lines = done.stdout.splitlines()
    assert "processes of" in lines[0]
    pids = {line.split()[0] for line in lines if line.split()[:1] and line.split()[0].isdigit()}
    assert {"0", str(os.getpid())} <= pids


def test_every_process_is_in_the_json_with_its_own_figures():
    with child() as c:
        found, _ = answer()
        rows = {row["pid"]: row for row in found["rows"]}
        mine = rows[c.pid]
        status = Path(f"/proc/{c.pid}/status").read_text()
    assert mine["comm"] == status.split("\n")[0].split("\t")[1]
    assert mine["uid"] == int(status.split("Uid:\t")[1].split("\t")[1])
    assert rows[0]["tcb"] == 0
    assert rows[0]["ib"] == len(rows) - 1
    assert mine["controllers"]["kernel"] == 1


@pytest.mark.live
def test_shared_pages_are_those_that_were_shared():
    with child("import mmap") as c:
        c.do(f"m = mmap.mmap(-1, 300 * {PAGE})")
        c.do(f"m[:] = b'x' * len(m)")  # noqa: F541
        c.do(f"fork(lambda: sum(m[i] for i in range(0, len(m), {PAGE})))")
        other = c.ask("kids[0]")
        found, _ = answer("shared", c.pid, "--types", "MO,SHM", "--access", "W")
    members = {m["pid"]: m for m in found["members"]}
    assert other in members
    assert members[other]["pages"] >= 300
    assert "SHM" in members[other]["types"]


def test_a_hostile_name_is_escaped_on_the_way(tmp_path):
    with child() as c:
        c.do(r"libc.prctl(15, b'\x1b[31m\n\xff\xe2\x80\xae', 0, 0, 0)")  # PR_SET_NAME
        text = run("--all").stdout
        found, _ = answer()
        out = tmp_path / "g.svg"
        drawn = run("graph", c.pid, "-o", out)
        pid = c.pid
    assert all(line.isprintable() for line in text.split("\n"))
    assert r"\x1b[31m\n\udcff\u202e" in text
    comm = next(row["comm"] for row in found["rows"] if row["pid"] == pid)
    assert os.fsencode(comm) == b"\x1b[31m\n\xff\xe2\x80\xae"
    assert drawn.returncode in (0, 3), drawn.stderr
    ET.parse(out)


def test_a_snapshot_answers_as_its_moment_did(tmp_path):
    path = tmp_path / "s.osm"
    with child() as c:
        done = run("capture", "-o", path)
        pid = c.pid
    assert done.returncode in (0, 3), done.stderr
    assert path.stat().st_mode & 0o777 == 0o600
    found, _ = answer("controllers", pid, "--verbs", "kill", "--snapshot", path)
    assert os.getpid() in [m["pid"] for m in found["members"]]  # root, and its parent
    again = run("capture", "-o", path)
    assert again.returncode == 1
    assert "--force" in again.stderr


@pytest.mark.live
def test_an_ordinary_user_gets_an_answer_and_a_line_of_what_root_adds():
    done = run(code=AS_NOBODY)
    assert done.returncode == 3, done.stderr
    assert "not root: run it as root to see" in done.stdout
    found, code = answer("controllers", os.getpid(), code=AS_NOBODY)
    assert code == 3
    assert found["coverage"]["lacking"] == "not root"
    assert any(
        g["pid"] == os.getpid() and g["status"] == "denied" for g in found["coverage"]["gaps"]
    )


def test_the_bar_is_on_stderr_where_that_is_a_terminal(tmp_path):
    ours, theirs = pty.openpty()
    env = {**os.environ, "PYTHONPATH": str(SRC), "TERM": "xterm", "COLUMNS": "80"}
    out = tmp_path / "out"  # a file, so that only the terminal has to be drained
    with (
        out.open("wb") as file,
        subprocess.Popen(
            [sys.executable, "-m", "osmosis", "--json"], env=env, stdout=file, stderr=theirs
        ) as p,
    ):
        os.close(theirs)
        shown = b""
        while True:
            try:
                got = os.read(ours, 4096)
            except OSError:  # EIO: the other end is closed
                break
            if not got:
                break
            shown += got
    os.close(ours)
    assert p.returncode in (0, 3)
    assert b"capture" in shown
    json.loads(out.read_bytes())  # and nothing of the bar on stdout
