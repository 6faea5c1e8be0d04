"""Processes and namespaces of the real kernel, against what the children did and psutil says."""

import ctypes
import os
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
import pytest
from children import Child, child, exec_again

from _fastproc import nsfs, procfs
from osmosis.capture import processes
from osmosis.capture.ledger import Ledger
from osmosis.capture.namespaces import read_namespaces
from osmosis.capture.processes import (
    Collector,
    list_pids,
    read_one,
    read_processes,
    reread,
    shared_mm_groups,
    unchanged,
    verify,
    verify_all,
)
from osmosis.schema import COLUMNS, NAMESPACES
from osmosis.snapshot import Snapshot, StringPool

pytestmark = pytest.mark.live

USER, PID, NET, MNT = (NAMESPACES.index(k) for k in ("user", "pid", "net", "mnt"))


class View:
    """What one reading of some pids gave, as a Snapshot and the parts of it."""

    def __init__(self, pids, proc="/proc", threads=1):
        self.pool = StringPool()
        self.ledger = Ledger(self.pool)
        self.record = read_processes(
            proc, list_pids(proc, pids), pool=self.pool, ledger=self.ledger, threads=threads
        )
        try:
            self.read_namespaces()
        except BaseException:
            self.record.close()
            raise

    def read_namespaces(self):
        record, ledger = self.record, self.ledger
        ledger.forget(0, "namespaces")
        self.ns = read_namespaces(record.proc, record, record.held, ledger=ledger)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.record.close()

    @property
    def snap(self):
        rows = {int(pid): i for i, pid in enumerate(self.record.pids)}
        columns = {**self.record.columns, **self.ns}
        columns["process_mm"] = np.full(len(rows), -1, np.int32)
        columns |= self.ledger.columns(rows)
        columns |= self.pool.columns()
        return Snapshot(columns, {})

    def row(self, pid):
        return self.record.pids.tolist().index(pid)

    def one(self, pid, *names):
        snap, i = self.snap, self.row(pid)
        values = [snap[f"process_{name}"][i].item() for name in names]
        return values[0] if len(values) == 1 else tuple(values)

    def text(self, pid, name):
        snap = self.snap
        return snap.bytes(snap[f"process_{name}"][self.row(pid)])

    def why(self, pid):
        return self.ledger.rows(pid)


IDS = ("ruid", "euid", "suid", "fsuid")
GIDS = ("rgid", "egid", "sgid", "fsgid")


ANYONE = pytest.mark.live(root=False)


def by_hand(pid):
    """start_time, vsize and tty of a process, split in plain Python."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return int(fields[22 - 3]), int(fields[7 - 3])


def quietly(ask, *args):
    try:
        return ask(*args)
    except (psutil.AccessDenied, OSError):
        return None


@ANYONE
def test_agrees_with_psutil_on_every_process():
    with child() as c, View(None, threads=2) as view:
        snap = view.snap
        compared = set()
        for i, pid in enumerate(snap["process_pid"].tolist()):
            try:
                other = psutil.Process(pid)
                want = {
                    "uids": tuple(other.uids()),
                    "gids": tuple(other.gids()),
                    "ppid": other.ppid(),
                    "exe": quietly(os.readlink, f"/proc/{pid}/exe"),
                    "cwd": quietly(other.cwd),
                    "cmdline": Path(f"/proc/{pid}/cmdline").read_bytes()[:4096],
                    "stat": by_hand(pid),
                    "name": other.name()[:15],
                }
            except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                continue
            if not verify(view.record.held[i]):
                continue
            text = {k: snap.text(snap[f"process_{k}"][i]) for k in ("exe", "cwd", "comm")}
            assert want == {
                "uids": tuple(snap[f"process_{k}"][i].item() for k in IDS[:3]),
                "gids": tuple(snap[f"process_{k}"][i].item() for k in GIDS[:3]),
                "ppid": snap["process_ppid"][i].item(),
                "exe": text["exe"] if snap["process_exe"][i] >= 0 else None,
                "cwd": text["cwd"] if snap["process_cwd"][i] >= 0 else None,
                "cmdline": snap.bytes(snap["process_cmdline"][i]),
                "stat": (snap["process_start_time"][i].item(), snap["process_tty"][i].item()),
                "name": text["comm"],
            }
            compared.add(pid)
        assert {c.pid, os.getpid()} <= compared


def test_four_different_uids_and_gids_and_groups():
    with child("os.setgroups([7, 9, 70000])") as c:
        c.do("raw('setresgid', 11, 12, 13)")
        c.do("libc.setfsgid(14)")
        c.do("prctl(8, 1)")  # PR_SET_KEEPCAPS
        c.do("raw('setresuid', 1, 2, 3)")
        c.do("capset(0, 1 << 7, 1 << 7)")  # CAP_SETUID, for setfsuid
        c.do("libc.setfsuid(4)")
        with View([c.pid]) as view:
            assert view.one(c.pid, *IDS) == (1, 2, 3, 4)
            assert view.one(c.pid, *GIDS) == (11, 12, 13, 14)
            assert view.snap["group_gid"].tolist() == [7, 9, 70000]


def test_capability_sets_and_no_new_privs():
    with child() as c:
        c.do("prctl(24, 3)")  # PR_CAPBSET_DROP CAP_FOWNER
        c.do("capset(1 << 5, 1 << 5 | 1 << 21, 1 << 21)")  # KILL inheritable, SYS_ADMIN effective
        c.do("prctl(47, 2, 5)")  # PR_CAP_AMBIENT_RAISE CAP_KILL
        c.do("prctl(38, 1)")  # PR_SET_NO_NEW_PRIVS
        with View([c.pid]) as view:
            inh, prm, eff, bnd, amb = view.one(
                c.pid, "cap_inh", "cap_prm", "cap_eff", "cap_bnd", "cap_amb"
            )
            assert (inh, prm, eff, amb) == (1 << 5, 1 << 5 | 1 << 21, 1 << 21, 1 << 5)
            assert not bnd >> 3 & 1
            assert view.one(c.pid, "no_new_privs") == 1


def test_seccomp_modes():
    strict = Child()
    with child() as plain, child("prctl(38, 1); filter_all()") as filtered:
        strict._send(
            "do", "reply(['ok', 0]); prctl(22, 1); os.write(1, b'[\"in\", 0]\\n'); os.read(0, 1)"
        )
        try:
            strict._answer()
            strict._answer()
            pids = [plain.pid, filtered.pid, strict.pid]
            with View(pids) as view:
                modes = [view.one(pid, "seccomp") for pid in pids]
        finally:
            strict.kill()
        assert modes == [0, 2, 1]


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("uid", [0, 4321])
def test_dumpable_as_prctl_set_it(value, uid):
    with child(f"os.setresuid({uid}, {uid}, {uid})") as c:
        c.do(f"prctl(4, {value})")  # PR_SET_DUMPABLE
        with View([c.pid]) as view:
            got = view.one(c.pid, "dumpable")
            told = view.record.rows["dumpable"][0] >= 0
            # Without the pidfd's word: the owner of mem decides, except for root.
            view.record.rows["dumpable"] = -1
            owner_says = view.one(c.pid, "dumpable")
        assert got == value if told else got in (value, -1)
        assert owner_says == (value if uid else -1)


def test_process_tty_group_session_tracer_threads_and_paths(tmp_path):
    # The tracer ends first: the zombie of a traced child waits for it.
    with child(f"os.chdir({str(tmp_path)!r}); os.setsid()") as c, child() as tracer:
        tid = c.ask("in_thread(lambda: None)")
        tracer.do("PTRACE_SEIZE = 0x4206")
        tracer.do(f"ok(libc.ptrace(PTRACE_SEIZE, {c.pid}, None, None))")
        with View([c.pid]) as view:
            assert view.one(c.pid, "ppid", "pgid", "sid") == (os.getpid(), c.pid, c.pid)
            assert view.one(c.pid, "tracer", "threads", "tty") == (tracer.pid, 2, 0)
            assert view.text(c.pid, "cwd") == os.fsencode(tmp_path)
            assert view.text(c.pid, "exe") == os.readlink(f"/proc/{c.pid}/exe").encode()
            assert view.text(c.pid, "root") == b"/"
            root = Path("/").stat()
            assert view.one(c.pid, "root_dev", "root_inode") == (root.st_dev, root.st_ino)
            cgroup = Path(f"/proc/{c.pid}/cgroup").read_bytes()
            assert view.text(c.pid, "cgroup") == cgroup
            assert view.text(c.pid, "cmdline") == Path(f"/proc/{c.pid}/cmdline").read_bytes()[:4096]
            assert len(view.text(c.pid, "cmdline")) == 4096  # the program text is longer
            assert view.one(c.pid, "mem_mode", "oom_adj") == (0o600, 0)
        assert tid != c.pid


@ANYONE
def test_hostile_names():
    name = b"x) R 1\n\xff("
    with child() as c:
        c.do(f"buf = ctypes.create_string_buffer({name!r}); prctl(15, ctypes.addressof(buf))")
        with View([c.pid]) as view:
            assert view.text(c.pid, "comm") == name
            assert view.one(c.pid, "ppid") == os.getpid()


@ANYONE
def test_deleted_executable_keeps_the_kernels_suffix(tmp_path):
    copy = tmp_path / "sleep\n (copy)"
    copy.write_bytes(Path("/bin/sleep").read_bytes())
    copy.chmod(0o755)
    with subprocess.Popen([copy, "60"]) as process:
        try:
            while os.readlink(f"/proc/{process.pid}/exe") != str(copy):
                time.sleep(0.001)
            copy.unlink()
            with View([process.pid]) as view:
                assert view.text(process.pid, "exe") == os.fsencode(copy) + b" (deleted)"
        finally:
            process.kill()


def test_threads_with_rights_or_namespaces_of_their_own():
    with child() as c:
        same = c.ask("in_thread(lambda: None)")
        other = c.ask("in_thread(lambda: raw('setresuid', 5, 6, 7))")
        net = c.ask("in_thread(lambda: unshare(CLONE_NEWNET))")
        with View([c.pid]) as view:
            snap = view.snap
            assert snap["thread_tid"].tolist() == sorted([other, net])
            assert same not in snap["thread_tid"]
            i, j = snap["thread_tid"].tolist().index(other), snap["thread_tid"].tolist().index(net)
            ids = tuple(snap[f"thread_{k}"][i].item() for k in IDS)
            assert ids == (5, 6, 7, 6)
            assert snap["thread_ruid"][j] == 0
            inode = snap["namespace_inode"][snap["thread_ns_net"][j]]
            assert inode == os.stat(f"/proc/{c.pid}/task/{net}/ns/net").st_ino
            assert inode != snap["namespace_inode"][snap["process_ns_net"][0]]
            assert snap["namespace_user"][snap["thread_ns_net"][j]] == snap["process_ns_user"][0]
            assert verify(view.record.held[0])


def test_a_leader_that_has_exited_is_read_through_a_living_thread():
    with child() as c:
        c.do("os.setresuid(21, 22, 23)")
        c._send("do", "threading.Thread(target=serve).start(); raw('exit', 0)")
        try:
            wait_state(c.pid, "Z")
            with View([c.pid]) as view:
                assert view.one(c.pid, *IDS[:3]) == (21, 22, 23)
                assert view.one(c.pid, "threads", "pid") == (2, c.pid)
                assert chr(view.one(c.pid, "state")) == "Z"
                assert view.text(c.pid, "exe") == os.readlink("/proc/self/exe").encode()
                assert view.one(c.pid, "ns_net") >= 0
                assert view.one(c.pid, "dumpable") in (0, -1)  # setresuid cleared it
                held = view.record.held[0]
                fd = os.open("maps", os.O_RDONLY, dir_fd=held.dirfd)
                with open(fd, "rb") as maps:
                    assert b"[stack]" in maps.read()
                assert verify(held)
                assert unchanged([held])[0] > 0
        finally:
            c.kill()


def wait_state(pid, state):
    deadline = time.monotonic() + 10
    while procfs.parse_stat(Path(f"/proc/{pid}/stat").read_bytes())["state"] != state:
        assert time.monotonic() < deadline
        time.sleep(0.001)


@ANYONE
def test_zombies_are_left_out_and_in_the_ledger():
    with child() as c:
        zombie = c.ask("fork()")
        os.kill(zombie, signal.SIGKILL)
        wait_state(zombie, "Z")
        with View([c.pid, zombie]) as view:
            assert view.record.pids.tolist() == [c.pid]
            assert view.why(zombie) == [("processes", "gone", "zombie", 0)]
            assert view.why(c.pid)[-1][:2] == ("processes", "read")


def test_kernel_threads_threads_and_pids_that_are_not_there():
    with child() as c:
        tid = c.ask("in_thread(lambda: None)")
        unused = next(n for n in range(4_000_000, 5_000_000))
        with View([c.pid, tid, unused]) as view:
            assert view.record.pids.tolist() == [c.pid]
            assert view.why(tid) == [("processes", "skipped", f"is a thread of process {c.pid}", 0)]
            assert view.why(unused)[0][:2] == ("processes", "gone")
    with View(None) as view:
        for pid in view.record.kthreads.tolist():
            assert os.path.exists(f"/proc/{pid}/stat")
            assert Path(f"/proc/{pid}/cmdline").read_bytes() == b""
        if Path("/proc/2/comm").exists() and Path("/proc/2/comm").read_text() == "kthreadd\n":
            assert 2 in view.record.kthreads


def test_namespaces_their_owners_and_parents():
    # uid 1000 makes a user namespace, and in it a pid, a net and a mount namespace.
    make = "unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWNS); inner = fork()"
    with child("os.setresuid(1000, 1000, 1000); prctl(4, 1)") as c:
        c.do(make)
        inner = c.ask("inner")
        with View([os.getpid(), c.pid, inner]) as view:
            snap = view.snap
            me, outer, deep = view.row(os.getpid()), view.row(c.pid), view.row(inner)
            user, home = snap["process_ns_user"][outer], snap["process_ns_user"][me]
            assert snap["namespace_owner"][user] == 1000
            assert snap["namespace_parent"][user] == home
            assert snap["namespace_user"][user] == home
            pid_ns = snap["process_ns_pid"][deep]
            assert snap["process_ns_pid"][outer] == snap["process_ns_pid"][me] != pid_ns
            assert snap["namespace_parent"][pid_ns] == snap["process_ns_pid"][me]
            for kind in ("pid", "net", "mnt"):
                assert snap["namespace_user"][snap[f"process_ns_{kind}"][deep]] == user
            for i in (me, outer, deep):
                for kind in NAMESPACES:
                    ns = snap[f"process_ns_{kind}"][i]
                    seen = os.stat(f"/proc/{snap['process_pid'][i]}/ns/{kind}").st_ino
                    assert snap["namespace_inode"][ns] == seen
            ids = snap["namespace_id"]
            if ids.any():  # NS_GET_ID
                assert len(set(ids.tolist())) == len(ids)
            indptr = snap["process_nspid_indptr"]
            assert snap["nspid_pid"][indptr[deep] : indptr[deep + 1]].tolist() == [inner, 1]
            # Ids and the map are told as the reader sees them: nothing is mapped yet.
            assert view.text(c.pid, "uid_map") == b""
            assert view.text(os.getpid(), "uid_map") == Path("/proc/self/uid_map").read_bytes()
            assert not [r for r in view.why(0) if r[0] == "namespaces" and r[1] != "read"]


def test_ancestors_that_no_process_is_in_are_rows_too():
    with child() as c:
        # Three user namespaces, one in the other, all by one process: it is in the last only.
        for _ in range(3):
            c.do("new_user_namespace()")
        with View([os.getpid(), c.pid]) as view:
            snap = view.snap
            ns, depth = int(snap["process_ns_user"][view.row(c.pid)]), 0
            while snap["namespace_parent"][ns] >= 0:
                ns, depth = int(snap["namespace_parent"][ns]), depth + 1
            assert depth == 3
            assert ns == snap["process_ns_user"][view.row(os.getpid())]
            assert snap["namespace_parent"][ns] == -1
            assert snap["namespace_inode"][ns] == nsfs.INITIAL_USER


@ANYONE
def test_execve_is_torn_though_pid_start_time_and_directory_stay():
    with child() as c, View([c.pid]) as view:
        held = view.record.held[0]
        start, comm = held.start_time, view.text(c.pid, "comm")
        assert verify(held)
        exec_again(c)
        assert not verify(held)
        assert read_one(view.record, 0)
        again = view.record.held[0]
        assert (again.start_time, view.text(c.pid, "comm")) == (start, comm)
        assert verify(again)
        assert reread(again) == again.fingerprint != held.fingerprint
        assert view.why(c.pid)[-1][:2] == ("processes", "read")


@pytest.mark.parametrize(
    "change",
    ["os.setgroups([5])", "os.setresuid(0, 1, 0)", "unshare(CLONE_NEWNET)", "capset(0, 2, 2)"],
)
def test_a_change_of_rights_or_namespace_is_torn(change):
    with child() as c, View([c.pid]) as view:
        c.do("pass")
        assert verify(view.record.held[0])
        c.do(change)
        assert not verify(view.record.held[0])


@ANYONE
def test_an_exit_is_seen_and_dropped():
    with child() as stays:
        goes = child()
        with View([stays.pid, goes.pid]) as view:
            goes.stop()
            same = verify_all(view.record.held, threads=2)
            assert same.tolist() == [pid == stays.pid for pid in view.record.pids.tolist()]
            gone = int(np.flatnonzero(~same)[0])
            assert not read_one(view.record, gone)
            view.record.drop(~same)
            assert view.record.pids.tolist() == [stays.pid]
            assert view.why(goes.pid) == [
                ("processes", "gone", "exited while it was being read", 0)
            ]
            assert set(view.record.columns) <= set(COLUMNS)


@ANYONE
def test_an_address_space_of_two_processes_is_one():
    with child() as c, child() as other:
        shares = c.ask("clone_vm()")
        copies = c.ask("fork()")  # the same layout, another mm
        with View([c.pid, shares, copies, other.pid]) as view:
            groups = shared_mm_groups(view.record)
            at = {pid: int(groups[view.row(pid)]) for pid in (c.pid, shares, copies, other.pid)}
            assert at[c.pid] == at[shares]
            assert len(set(at.values())) == 3
            assert not view.why(0) or all(row[0] != "kcmp" for row in view.why(0))


def test_the_dead_do_not_share_an_address_space():
    with child() as c:
        shares, copies = c.ask("clone_vm()"), c.ask("fork()")
        with View([c.pid, shares, copies]) as view:
            # Zombies: neither has an mm, and kcmp says that they are equal.
            for pid in (shares, copies):
                os.kill(pid, signal.SIGKILL)
                wait_state(pid, "Z")
            assert len(set(shared_mm_groups(view.record).tolist())) == 3


def test_leaders_that_have_exited_do_not_share_an_address_space():
    exit_leader = "threading.Thread(target=signal.pause).start(); raw('exit', 0)"
    with child(f"leave = lambda: exec({exit_leader!r}, globals())") as c:
        pids = []
        for _ in range(2):
            c.do("pid = os.fork()\nif not pid: prctl(1, 9); leave()\nkids.append(pid)")
            pids.append(c.ask("pid"))
            wait_state(pids[-1], "Z")
        with View([c.pid, *pids]) as view:
            assert view.record.pids.tolist() == sorted([c.pid, *pids])
            assert len(set(shared_mm_groups(view.record).tolist())) == 3
            assert (view.record.rows["tid"] != view.record.rows["pid"]).sum() == 2


@ANYONE
def test_more_processes_than_descriptors(monkeypatch):
    with ExitStack() as stack:
        pids = [stack.enter_context(child()).pid for _ in range(3)]
        monkeypatch.setattr(processes, "room_for_fds", lambda: 0)
        with View(pids) as view:
            assert sorted(pids) == view.record.pids.tolist()
            before = len(os.listdir("/proc/self/fd"))
            assert verify_all(view.record.held).all()
            for held in view.record.held:
                assert os.stat("stat", dir_fd=held.dirfd)
                held.release()
            assert len(os.listdir("/proc/self/fd")) == before


def test_no_descriptor_is_left_open():
    with child() as c:
        c.ask("in_thread(lambda: raw('setresuid', 5, 6, 7))")
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            with View(None, threads=2) as view:
                shared_mm_groups(view.record)
                read_one(view.record, view.row(c.pid))
        assert len(os.listdir("/proc/self/fd")) == before


CHURN = """
stop = False
def churn():
    while not stop:
        pid = os.fork()
        if not pid:
            os.setresuid(77, 77, 77)
            os._exit(0)
        os.waitpid(pid, 0)
worker = threading.Thread(target=churn, daemon=True)
worker.start()
"""


def test_churn_never_gives_a_process_that_mixes_two():
    with ExitStack() as stack:
        churners = [stack.enter_context(child(CHURN)) for _ in range(2)]
        seen = 0
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            with View(None, threads=2) as view:
                same = verify_all(view.record.held)
                view.record.drop(~same)
                view.read_namespaces()
                snap = view.snap
                for i in range(len(snap["process_pid"])):
                    if snap["process_ppid"][i] in [c.pid for c in churners]:
                        seen += 1
                        assert len({snap[f"process_{k}"][i].item() for k in IDS}) == 1
                rows = {r.pid for r in snap.coverage if r.source == "processes"}
                assert set(snap["process_pid"].tolist()) <= rows
        for c in churners:
            c.do("stop = True; worker.join()")


@ANYONE
def test_two_programs_in_one_pid_are_never_mixed(tmp_path):
    # Two shells that execve each other for ever: name, executable and arguments belong together.
    for name, other in ("one", "two"), ("two", "one"):
        (tmp_path / name).write_bytes(Path("/bin/sh").resolve().read_bytes())
        (tmp_path / name).chmod(0o755)
        script = f"exec {tmp_path / other} {tmp_path / other}.sh"
        (tmp_path / f"{name}.sh").write_text(script)
    same, torn, seen = 0, 0, set()
    with subprocess.Popen([tmp_path / "one", tmp_path / "one.sh"]) as process:
        try:
            deadline = time.monotonic() + 1
            while time.monotonic() < deadline:
                with View([process.pid]) as view:
                    if not len(view.record) or not verify(view.record.held[0]):
                        torn += 1
                        continue
                    name = view.text(process.pid, "comm")
                    exe = view.text(process.pid, "exe")
                    arguments = view.text(process.pid, "cmdline").split(b"\0")
                    if name not in (b"one", b"two"):
                        continue  # before its first execve
                    here = os.fsencode(tmp_path / name.decode())
                    assert [exe, *arguments] == [here, here, here + b".sh", b""]
                    same += 1
                    seen.add(name)
        finally:
            process.kill()
    assert same
    assert torn
    assert seen == {b"one", b"two"}


UNPRIVILEGED = """
from osmosis.capture import processes
from osmosis.capture.ledger import Ledger
from osmosis.capture.processes import *
from osmosis.capture.namespaces import read_namespaces
from osmosis.snapshot import StringPool
def look(pids, proc="/proc"):
    pool = StringPool(); ledger = Ledger(pool)
    with read_processes(proc, list_pids(proc, pids), pool=pool, ledger=ledger) as record:
        ns = read_namespaces(proc, record, record.held, ledger=ledger)
        groups = shared_mm_groups(record)
        columns = record.columns
        return {
            "pids": record.pids.tolist(),
            "euid": columns["process_euid"].tolist(),
            "dumpable": columns["process_dumpable"].tolist(),
            "exe": columns["process_exe"].tolist(),
            "ns_net": ns["process_ns_net"].tolist(),
            "namespace_parent": ns["namespace_parent"].tolist(),
            "verified": verify_all(record.held).tolist(),
            "groups": groups.tolist(),
            "ledger": {pid: ledger.rows(pid) for pid in [0, *list_pids(proc, pids)]},
        }
"""
DROP = (
    "os.setgroups([]); os.setresgid(4321, 4321, 4321); os.setresuid(4321, 4321, 4321); prctl(4, 1)"
)


def test_unprivileged_reader_says_what_it_may_not_see():
    with child(UNPRIVILEGED) as reader, child() as other:
        reader.do(DROP)
        seen = reader.ask(f"look([os.getpid(), {other.pid}])")
        own, foreign = seen["pids"].index(reader.pid), seen["pids"].index(other.pid)
        assert seen["euid"] == [4321 if i == own else 0 for i in range(2)]
        assert seen["exe"][foreign] == -1 != seen["exe"][own]
        assert seen["ns_net"][foreign] == -1 != seen["ns_net"][own]
        assert seen["verified"] == [True, True]
        rows = {row[0]: row[1] for row in seen["ledger"][str(other.pid)]}
        assert rows == {
            "ns": "denied", "exe": "denied", "cwd": "denied", "root": "denied",
            "processes": "partial",
        } | ({"dumpable": "partial"} if seen["dumpable"][foreign] < 0 else {})  # fmt: skip
        assert seen["ledger"][str(reader.pid)][-1][:2] == ["processes", "read"]


@pytest.mark.parametrize(("option", "status"), [("hidepid=2", "gone"), ("hidepid=1", "hidden")])
def test_hidepid_is_in_the_ledger(tmp_path, option, status):
    tmp_path.chmod(0o755)
    with child(UNPRIVILEGED) as reader, child() as other:
        reader.do("unshare(CLONE_NEWNS); mount(None, '/', None, 1 << 14 | 1 << 18)")
        reader.do(f"mount('proc', {str(tmp_path)!r}, 'proc', 0, {option!r})")
        # The mount point itself must be reachable by the user that looks.
        reader.do(f"os.chdir({str(tmp_path)!r})")
        reader.do(DROP)
        seen = reader.ask(f"look([os.getpid(), {other.pid}], '.')")
        assert seen["pids"] == [reader.pid]
        assert any("hidepid" in row[2] for row in seen["ledger"]["0"])
        assert seen["ledger"][str(other.pid)][0][1] == status


def test_proc_of_another_pid_namespace(tmp_path):
    with child("unshare(CLONE_NEWNS | CLONE_NEWPID)") as c:
        c.do("mount(None, '/', None, 1 << 14 | 1 << 18)")
        c.do(f"inner = fork(lambda: mount('proc', {str(tmp_path)!r}, 'proc'))")
        proc = f"/proc/{c.pid}/root{tmp_path}"
        assert not Collector.probe(proc).same_pid_ns
        assert Collector.probe("/proc").same_pid_ns
        with View(None, proc=proc) as view:
            assert view.record.pids.tolist() == [1]
            groups = shared_mm_groups(view.record)
            assert groups.tolist() == [0]
            assert [row[:2] for row in view.why(0) if row[0] == "pidfd"] == [("pidfd", "skipped")]
            assert (view.record.rows["dumpable"] == -1).all()
            inode = view.snap["namespace_inode"][view.one(1, "ns_pid")]
            assert inode == os.stat(f"/proc/{c.ask('inner')}/ns/pid").st_ino


def test_reading_many_is_fast_enough():
    with child("[fork() for _ in range(200)]") as c:
        kids = c.ask("kids")
        View(kids).record.close()
        began = time.thread_time()
        with View(kids) as view:
            spent = time.thread_time() - began
            assert len(view.record) == 200
            assert len(np.unique(shared_mm_groups(view.record))) == 200
        # 9 + 13 + 10 + 22 us of bare calls, and the other files: far under a millisecond each.
        assert spent / 200 < 1e-3


def test_prints_are_bytes_of_the_record():
    assert ctypes.sizeof(ctypes.c_uint64) * 26 == procfs.PRINT_BYTES
