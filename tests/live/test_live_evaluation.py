"""The evaluation on running systems: its findings hold, and nothing of it stays behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from benchmarks.evaluation import paper
from benchmarks.evaluation.base import CannotRun, Instances
from benchmarks.evaluation.facts import FACTS
from benchmarks.evaluation.leftovers import appeared, inventory
from benchmarks.evaluation.mechanisms import MECHANISMS
from benchmarks.evaluation.publish import publish

import osmosis
from conftest import skip
from osmosis.snapshot import Snapshot

pytestmark = pytest.mark.live

ROOT = Path(__file__).parents[2]
HOST_USER = 64010
ESRCH = "No such process"


@dataclass
class Case:
    """One mechanism that is up, and its snapshot."""

    name: str
    instances: Instances
    snapshot: Snapshot
    work: Path


@pytest.fixture(scope="module", params=["docker", "podman", "podman-rootless", "apptainer"])
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    work = Path("/var/tmp") / f"osmosis-facts-{os.getpid()}" / request.param
    mechanism = MECHANISMS[request.param]()
    before = inventory()
    beside = [
        subprocess.Popen(["sleep", "1000000"], user=uid, group=uid, extra_groups=[], cwd="/")
        for uid in (0, HOST_USER)
    ]
    try:
        try:
            instances = mechanism.up(work)
        except CannotRun as exc:
            skip(str(exc))
        from benchmarks.evaluation.measure import pids_of

        found = osmosis.capture(pids_of(instances, [process.pid for process in beside]))
        host = {**found.host, "roles": instances.roles(), "containers": instances.containers}
        yield Case(request.param, instances, Snapshot(found.columns, host), work.parent)
    finally:
        for process in beside:
            process.kill()
            process.wait()
        mechanism.down()
        shutil.rmtree(work.parent, ignore_errors=True)
    assert appeared(before) == []


def test_the_findings_hold_on_a_running_system(case):
    model = case.snapshot.model()

    assert [f.text for f in FACTS[case.name] if f.check(model) is not True] == []


def test_each_difference_from_the_papers_tool_has_its_witness(case):
    rows = [row for row in paper.ROWS if row.mechanism == case.name]
    found = [d for row in rows for d in paper.differences(row, case.snapshot)]

    assert [d for d in found if d.why is None] == []
    model = case.snapshot.model()
    claims = [claim for claim in paper.CLAIMS if claim.mechanism == case.name]
    assert [claim.claim for claim in claims if not claim.check(model)] == []


@pytest.mark.parametrize("case", ["apptainer"], indirect=True)
def test_home_and_tmp_of_apptainer_are_in_common(case):
    """What one instance writes there another reads; nobody has it open, so nothing is observed."""
    db, app = case.instances.db, case.instances.app
    model = case.snapshot.model()
    for place in ("/tmp", "/root"):
        one, other = (Path(f"/proc/{pid}/root{place}") for pid in (db, app))
        mark = f"osmosis-{os.getpid()}"
        (one / mark).write_text("word")
        try:
            assert (other / mark).read_text() == "word", place
        finally:
            (one / mark).unlink()
        facts = one.stat()
        device = os.major(facts.st_dev) << 32 | os.minor(facts.st_dev)
        assert device in case.snapshot["mount_dev"].tolist(), place
    options = {"types": {"MOUNT"}, "access": "W"}
    found = model.shared_resources(f"pid:{db}", potential=True, **options)
    assert app in found.pids
    assert app not in model.shared_resources(f"pid:{db}", **options).pids


def test_a_published_snapshot_says_the_same(case):
    """Names are taken out of what is saved; who is in the TCB, and through what, stays."""
    raw, public = case.snapshot.model(), publish(case.snapshot, case.work).model()
    for subject in ("role:db", "role:app", "role:bystander"):
        for answer in ("tcb", "impact_boundary"):
            one, other = getattr(raw, answer)(subject), getattr(public, answer)(subject)
            assert one.rows.tolist() == other.rows.tolist()
            assert one.unknown.rows.tolist() == other.unknown.rows.tolist()
            for pd, twin in zip(one, other, strict=True):
                assert one.why(pd) == other.why(twin)
        states = [
            {layer: found.state for layer, found in model.isolation(subject, "role:app").items()}
            for model in (raw, public)
        ]
        assert states[0] == states[1]


def test_even_root_cannot_kill_from_where_the_bystander_is(case):
    """In its namespaces, with all capabilities: there is no such process."""
    enter = ["nsenter", f"--target={case.instances.bystander}", "--pid", "--"]
    done = subprocess.run(
        [*enter, "sh", "-c", f"kill -9 {case.instances.db}"], capture_output=True, text=True
    )

    assert ESRCH in done.stderr
    assert Path(f"/proc/{case.instances.db}").exists()


def evaluate(work: Path, *argv: str, before: str = "") -> subprocess.Popen[str]:
    code = f"import sys\nfrom benchmarks.evaluation import mechanisms, run\n{before}\n"
    code += "sys.exit(run.main(sys.argv[1:]))"
    line = [sys.executable, "-c", code, f"--work={work}/work", f"--out={work}/out", *argv]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    return subprocess.Popen(
        line, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture
def work() -> Iterator[Path]:
    folder = Path("/var/tmp") / f"osmosis-command-{os.getpid()}"
    folder.mkdir()
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def running(mark: str) -> list[int]:
    """Processes with this word among their arguments."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


BROKEN = """
class Broken:
    name = "broken"
    def up(self, work):
        import pathlib, time
        from benchmarks.evaluation.base import Stage
        self.stage = Stage(work)
        self.stage.spawn("sh", "-c", "setsid sleep 7654321 & setsid sleep 7654322 &", log="broken")
        def gone(number):  # into a session of its own, where the end of the stage ends it not
            said = b"sleep\\0" + number + b"\\0"
            return any(p.read_bytes() == said for p in pathlib.Path("/proc").glob("[0-9]*/cmdline"))
        until = time.monotonic() + 20
        while not (gone(b"7654321") and gone(b"7654322")) and time.monotonic() < until:
            time.sleep(0.02)
        raise RuntimeError("as it was told to")
    def pids(self): raise AssertionError
    def down(self): self.stage.close()
mechanisms.MECHANISMS = {"broken": Broken, **mechanisms.MECHANISMS}
run.MECHANISMS = mechanisms.MECHANISMS
"""


def test_a_mechanism_that_fails_stops_no_other_and_its_orphans_are_found(work):
    before = inventory()
    with evaluate(work, "--only=broken,processes", before=BROKEN) as command:
        said = command.communicate(timeout=120)[0]

    assert command.returncode == 1
    assert "broken                 FAILED: RuntimeError: as it was told to" in said
    assert "LEFT BEHIND: process" in said  # daemons of its own, that nobody stopped
    assert running("7654321") == running("7654322") == []
    assert "processes                 5 processes" in said
    assert json.loads((work / "out" / "processes.json").read_text())["left"] == []
    assert osmosis.load(work / "out" / "processes.osm").n_processes == 5
    assert appeared(before) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_interrupted_leaves_nothing(work, number):
    before = inventory()
    with evaluate(work, "--only=nspawn") as command:
        until = time.monotonic() + 60
        while not (found := running("--machine=bystander")) and time.monotonic() < until:
            time.sleep(0.05)
        assert found
        for pid in [command.pid, *children(command.pid)]:  # as a terminal does
            if number == signal.SIGTERM and pid != command.pid:
                continue
            os.kill(pid, number)
        said = command.communicate(timeout=60)[0]

    assert command.returncode != 0, said
    assert running("--machine=bystander") == []
    assert appeared(before) == []


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
