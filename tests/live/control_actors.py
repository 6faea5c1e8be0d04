"""Real processes for the control tests: started, told what to try, asked what the kernel said."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osmosis.capture.control import opens_by_handle, read_control
from osmosis.capture.files import FileReader
from osmosis.capture.ledger import Ledger
from osmosis.capture.mounts import MountReader
from osmosis.capture.namespaces import read_namespaces
from osmosis.capture.processes import read_processes, shared_mm_groups
from osmosis.snapshot import Snapshot, StringPool

NS_GET_PARENT = 0xB702  # include/uapi/linux/nsfs.h
SOURCE = Path(__file__).with_name("probe_control.c")
# include/uapi/linux/nsfs.h: _IOR(0xb7, 8, int), since v6.12
NS_GET_PID_IN_PIDNS = (2 << 30) | (4 << 16) | (0xB7 << 8) | 8


def build(directory: Path, *options: str) -> Path:
    out = directory / "probe"
    command = ["gcc", "-O1", "-pthread", *options, "-o", str(out), str(SOURCE)]
    subprocess.run(command, check=True)
    out.chmod(0o755)
    return out


def write_map(pid: int, file: str, data: str) -> None:
    """Write a uid or gid map from the namespace above, the only one that may."""
    with open(f"/proc/{pid}/ns/user", "rb") as ns:
        above = fcntl.ioctl(ns, NS_GET_PARENT)
    try:
        if os.fstat(above).st_ino == os.stat("/proc/self/ns/user").st_ino:
            Path(f"/proc/{pid}/{file}").write_text(data)
            return
        command = ["nsenter", f"--user=/proc/self/fd/{above}", "tee", f"/proc/{pid}/{file}"]
        subprocess.run(
            command, input=data, text=True, pass_fds=(above,), check=True, capture_output=True
        )
    finally:
        os.close(above)


def build_for(factory: Any, *options: str) -> Path:
    """Build the probe where every user may run it; skip where that cannot be."""
    if not shutil.which("gcc"):
        pytest.skip("the probe is C: needs gcc")
    directory: Path = factory.mktemp("probe")
    for path in (directory, *directory.parents):
        if path != Path("/"):
            path.chmod(path.stat().st_mode | 0o011)
    return build(directory, *options)


class Actor:
    """One started probe: ``ask`` makes it try something, and gives the kernel's errno."""

    def __init__(
        self, name: str, probe: Path, ops: str, maps: tuple[str, ...] = (), **options: Any
    ) -> None:
        self.name = name
        self.ops = ops.split()
        self.process = subprocess.Popen(
            [str(probe), *self.ops],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
            **options,
        )
        try:
            self._start(list(maps))
        except BaseException:
            self.stop()
            raise

    def _start(self, todo: list[str]) -> None:
        while not (line := self._line()).startswith("ready"):
            assert line.startswith("map"), (self.name, line)
            pid = self._innermost()
            text = todo.pop(0)
            uids, gids = [*text.split(","), text][:2]
            for file, data in (("uid_map", uids), ("gid_map", gids)):
                write_map(pid, file, data.replace("/", " "))
            self._say("go")
        self.pid = self._innermost()

    def _innermost(self) -> int:
        """Pid of the last of the chain of children: the one that speaks."""
        pid = self.process.pid
        if self.ops and self.ops[-1].startswith("twin"):
            return pid
        while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            pid = int(children[0])
        return pid

    def _line(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, f"{self.name}: the probe ended"
        return line.strip()

    def _say(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def ask(self, verb: str, number: int = 0, text: str = "") -> int:
        self._say(f"{verb} {number} {text}")
        return int(self._line())

    @property
    def tids(self) -> list[int]:
        return sorted(int(t) for t in os.listdir(f"/proc/{self.pid}/task"))

    def number(self, tid: int, *, in_proc: bool = False) -> int | None:
        """What the kernel calls *tid* in this actor's pid namespace, or in that of its /proc."""
        if in_proc and "proc" not in [op.split(":")[0] for op in self.ops]:
            return tid
        with open(f"/proc/{self.pid}/ns/pid", "rb") as ns:
            try:
                return fcntl.ioctl(ns, NS_GET_PID_IN_PIDNS, tid)
            except OSError as exc:
                if exc.errno != errno.ESRCH:
                    raise
                return None

    def permitted(self, verb: str, other: Actor, text: str = "") -> bool:
        """Ask the kernel, for each thread of *other*: permitted on any is permitted."""
        in_proc = verb in ("mem-write", "trace-read", "oom")
        seen = (self.number(tid, in_proc=in_proc) for tid in other.tids)
        numbers = [n for n in seen if n is not None]
        answers = {self.ask(verb, n, text) for n in numbers}
        expected = {0, errno.EPERM, errno.EACCES, errno.ESRCH, errno.EINVAL, errno.ENOENT}
        assert answers <= expected | {errno.EROFS, errno.EUSERS}, (verb, self, other, answers)
        return 0 in answers

    def joins(self, other: Actor, kind: str, flag: int) -> bool:
        """Ask setns, by the link in this actor's /proc and by pidfd."""
        shown = self.number(other.pid, in_proc=True) or 0
        answer = self.ask("join", self.number(other.pid) or 0, f"{kind}={flag}={shown}")
        assert answer in {0, errno.EPERM, errno.EACCES, errno.ESRCH, errno.EINVAL, errno.ENOENT}, (
            answer
        )
        return answer == 0

    def __repr__(self) -> str:
        return f"<{self.name} {self.pid}>"

    def stop(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


@contextmanager
def running(probe: Path, cases: dict[str, tuple[str, ...]]) -> Iterator[list[Actor]]:
    actors: list[Actor] = []
    try:
        for name, (ops, *maps) in cases.items():
            actors.append(Actor(name, probe, ops, tuple(maps)))
        yield actors
    finally:
        for actor in actors:  # a tracer comes before its tracee
            actor.stop()


def snapshot_of(pids: list[int], proc: str = "/proc") -> Snapshot:
    """Only what control needs: no memory, no files."""
    pool = StringPool()
    ledger = Ledger(pool)
    with read_processes(proc, sorted(pids), pool=pool, ledger=ledger) as record:
        namespaces = read_namespaces(proc, record, record.held, ledger=ledger)
        files = FileReader(record, MountReader(record, ledger=ledger), ledger=Ledger(pool))
        files.read()
        facts = read_control(record, namespaces, files, ledger=ledger)
        columns = {**record.columns, **namespaces, **facts}
        mm = shared_mm_groups(record)
        columns["process_mm"] = mm
        columns["mm_process"] = np.unique(mm, return_index=True)[1].astype(np.int32)
        columns["mm_status"] = np.zeros(mm.max() + 1, np.uint8)
        columns["mm_vma_indptr"] = np.zeros(mm.max() + 2, np.int64)
        rows = {pid: i for i, pid in enumerate(record.pids.tolist())}
        columns |= ledger.columns(rows)
        columns |= pool.columns()
    return Snapshot(columns, {"nsfs_handles": opens_by_handle()})
