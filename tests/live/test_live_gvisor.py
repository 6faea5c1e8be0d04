"""A sandbox of runsc: its processes ask the sentry as their kernel, and the gofer for files.

The second source is runsc itself (its state), and the sandbox: while the gofer is stopped, no
file that was not open can be opened in it.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.evaluation import workload
from benchmarks.evaluation.base import CannotRun, Stage, cache_dir, descendants
from benchmarks.evaluation.docker import _runsc
from children import child
from programs import asks, may_ask, until

import osmosis

pytestmark = pytest.mark.live

SOURCES = {"files", "mounts", "namespaces", "sockets"}


class Sandbox:
    def __init__(self, stage, program, name):
        self.name = name
        bundle, state = stage.folder(f"bundle-{name}"), stage.folder(f"state-{name}")
        kinds = ("pid", "network", "ipc", "uts", "mount")
        spec = {
            "ociVersion": "1.0.0",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": ["sh", "-c", "sleep 1000000 & exec sleep 1000000"],
                "env": ["PATH=/usr/bin:/bin"],
                "cwd": "/",
            },
            "root": {"path": str(workload.rootfs(cache_dir())), "readonly": True},
            "linux": {"namespaces": [{"type": kind} for kind in kinds]},
        }
        (bundle / "config.json").write_text(json.dumps(spec))
        self._line = [str(program), "--root", str(state), "--network=none", "--ignore-cgroups"]
        self._line += ["--platform=ptrace"]
        stage.on_close(f"sandbox {name}", self._delete)
        self._run("run", "-detach", "--bundle", str(bundle), name)
        told = until(self._state, "the sandbox")
        self.sentry = told["pid"]
        marks = f"gofer\0--bundle\0{bundle}\0".encode()
        self.gofer = next(p for p in every_pid() if marks in words(p))
        self.stubs = descendants(self.sentry)[1:]

    def _run(self, *words, timeout=60):
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        line = [*self._line, *words]
        return subprocess.run(line, **quiet, stderr=subprocess.DEVNULL, timeout=timeout).returncode

    def _state(self):
        line = [*self._line, "state", self.name]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60)
        told = json.loads(done.stdout) if done.returncode == 0 else {}
        return told if told.get("status") == "running" else None

    def _delete(self):
        self._run("delete", "-force", self.name)

    def reads(self, path):
        """Whether a new process inside reads a file within three seconds."""
        try:
            return self._run("exec", self.name, "cat", path, timeout=3) == 0
        except subprocess.TimeoutExpired:
            return False


def every_pid():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def words(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture(scope="module")
def sandboxes(need):
    """Two of them: neither has to do with the other."""
    stage = Stage(Path("/var/tmp") / f"osmosis-gvisor-{os.getpid()}")
    try:
        try:
            program = _runsc(cache_dir())
        except (CannotRun, RuntimeError) as exc:
            need(False, f"needs runsc: {exc}")
        yield [Sandbox(stage, program, f"osm{os.getpid()}{c}") for c in "ab"]
    finally:
        stage.close()
        shutil.rmtree(stage.work, ignore_errors=True)


def captured(first, second, outside):
    """Process 1 too: it stands for the host."""
    boxes = [(box.sentry, box.gofer, *box.stubs) for box in (first, second)]
    return osmosis.capture([1, outside.pid, *boxes[0], *boxes[1]], sources=SOURCES).model()


def test_the_sandbox_asks_its_gofer_and_its_sentry_and_no_other(sandboxes):
    with child() as outside:
        model = captured(*sandboxes, outside)
        for box, other in (sandboxes, sandboxes[::-1]):
            assert box.stubs
            assert asks(model, box.sentry) == {box.gofer}
            for stub in box.stubs:
                assert asks(model, stub) == {box.sentry, box.gofer}
            for pid in (box.sentry, box.gofer, *box.stubs):
                strangers = {other.sentry, other.gofer, *other.stubs, outside.pid}
                assert not strangers & (asks(model, pid) | may_ask(model, pid))
            assert not asks(model, box.gofer) & {box.sentry, *box.stubs}
        assert not asks(model, outside.pid)


def test_they_are_one_container_behind_a_kernel_of_its_own(sandboxes):
    with child() as outside:
        model = captured(*sandboxes, outside)
        for box in sandboxes:
            pds = [model.pd(f"pid:{p}") for p in (box.sentry, box.gofer, *box.stubs)]
            assert {pd.container for pd in pds} == {box.name}
            assert [pd.role for pd in pds[:2]] == ["sentry", "gofer"]
            layers = [model.isolation(pds[0], pd)["vm"].state for pd in pds[1:]]
            assert set(layers) == {"shared"}
        a, b = (model.pd(f"pid:{box.sentry}") for box in sandboxes)
        for x, y in ((a, b), (a, model.pd(f"pid:{outside.pid}"))):
            assert model.isolation(x, y)["vm"].state == "separated"


def test_without_the_gofer_no_file_can_be_opened_inside(sandboxes):
    first, second = sandboxes
    assert first.reads("/etc/hostname") or first.reads("/etc/passwd")
    os.kill(first.gofer, signal.SIGSTOP)
    try:
        assert not first.reads("/etc/group")
        assert second.reads("/etc/group")
    finally:
        os.kill(first.gofer, signal.SIGCONT)
    assert first.reads("/etc/group")
