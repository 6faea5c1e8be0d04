"""The parsers of /proc/<pid>/stat and status, fed with text; the ledger; dumpability."""

import struct
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from _fastproc import procfs
from osmosis.capture import processes
from osmosis.capture.collector import Collector
from osmosis.capture.ledger import HOST, Ledger
from osmosis.capture.pinned import CRED, PRINT, PROC, THREAD
from osmosis.schema import NO_ID, Status
from osmosis.snapshot import StringPool

# Field numbers of proc(5), written out again.
FIELDS = {
    "ppid": 4, "pgid": 5, "sid": 6, "tty": 7, "flags": 9, "min_flt": 10, "maj_flt": 12,
    "threads": 20, "start_time": 22, "vsize": 23, "start_code": 26, "start_stack": 28,
    "arg_start": 48,
}  # fmt: skip
SIGNED = {"ppid", "pgid", "sid", "tty", "threads"}


def stat_text(pid, comm, state, values):
    """A line as do_task_stat() writes it, 52 fields; what is not given is its own number."""
    fields = [str(n).encode() for n in range(53)]
    for name, value in values.items():
        fields[FIELDS[name]] = str(value).encode()
    fields[8], fields[18] = b"-1", b"-20"  # tpgid and priority may be negative
    return b"%d (%s) %s " % (pid, comm, state) + b" ".join(fields[4:]) + b"\n"


u64, i32, u32 = st.integers(0, 2**64 - 1), st.integers(0, 2**31 - 1), st.integers(0, 2**32 - 1)
VALUES = st.fixed_dictionaries(
    {name: i32 if name in SIGNED else u32 if name == "flags" else u64 for name in FIELDS}
)
NAMES = st.binary(max_size=64)


@given(pid=st.integers(1, 2**22), comm=NAMES, state=st.sampled_from("RSDZTtXI"), values=VALUES)
def test_stat_round_trip(pid, comm, state, values):
    got = procfs.parse_stat(stat_text(pid, comm, state.encode(), values))
    got.pop("layout")
    assert got == {"pid": pid, "comm": comm, "state": state, **values}


@pytest.mark.parametrize("field", [27, 45, 46, 47, 49, 50, 51])
def test_stat_layout_tells_programs_apart_that_start_at_one_address(field):
    # end_code; start_data, end_data, start_brk; arg_end, env_start, env_end: proc_pid_stat(5)
    text = stat_text(7, b"x", b"S", {})
    other = text.replace(b" %d " % field, b" %d " % (field + 4096))
    assert procfs.parse_stat(text)["layout"] != procfs.parse_stat(other)["layout"]


def test_stat_layout_is_not_what_changes_while_a_program_runs():
    ran = {"min_flt": 99, "vsize": 2**30, "threads": 9}
    now, later = (procfs.parse_stat(stat_text(7, b"x", b"S", v)) for v in ({}, ran))
    assert now["layout"] == later["layout"]


@pytest.mark.parametrize("comm", [b"", b")", b"a) R 1 2", b"\n) Z 0 0 0\n(", b"(", b"\xff\0\xfe"])
def test_stat_name_ends_at_the_last_bracket(comm):
    got = procfs.parse_stat(stat_text(7, comm, b"S", {"ppid": 5}))
    assert (got["comm"], got["state"], got["ppid"]) == (comm, "S", 5)


def test_stat_negative_fields():
    assert procfs.parse_stat(stat_text(7, b"x", b"S", {"tty": -1}))["tty"] == -1


@pytest.mark.parametrize(
    "text",
    [
        b"", b"\n", b"7", b"7 (x", b"7 (x)", b"7 (x) ", b"7 (x) R", b"7 (x) R 1 2 3\n", b"(x) R 1",
        b"x (x) R 1 2", b")7( R 1", stat_text(7, b"x", b"S", {})[:-20],
    ],
)  # fmt: skip
def test_stat_that_is_cut_or_strange_is_an_error(text):
    with pytest.raises(ValueError, match="not the text of /proc/pid/stat"):
        procfs.parse_stat(text)


@given(st.binary(max_size=300))
def test_any_bytes_parse_or_raise(data):
    for parse in (procfs.parse_stat, procfs.parse_status):
        with suppress(ValueError):
            parse(data)


@given(st.integers(0, 400))
def test_a_cut_stat_is_never_half_a_record(cut):
    text = stat_text(123456, b"name", b"R", {"arg_start": 2**47})
    try:
        got = procfs.parse_stat(text[:cut])
    except ValueError:
        return
    assert got["start_time"] == 22


def status_text(**lines):
    return b"".join(
        b"%s:\t%s\n" % (name.encode(), value if isinstance(value, bytes) else str(value).encode())
        for name, value in lines.items()
    )


def tabbed(numbers):
    return b"\t".join(b"%d" % n for n in numbers)


FOUR = st.tuples(u32, u32, u32, u32)


@given(
    name=st.binary(max_size=30).filter(lambda b: b"\n" not in b),
    uid=FOUR,
    gid=FOUR,
    caps=st.tuples(u64, u64, u64, u64, u64),
    groups=st.lists(u32, max_size=50),
    nspid=st.lists(st.integers(1, 2**22), min_size=1, max_size=5),
    tracer=i32,
    mode=st.integers(0, 2),
    nnp=st.integers(0, 1),
)
def test_status_round_trip(name, uid, gid, caps, groups, nspid, tracer, mode, nnp):
    hexed = dict(
        zip(
            ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"),
            (b"%016x" % c for c in caps),
            strict=True,
        )
    )
    text = status_text(
        Name=name, Umask="0022", State="S (sleeping)", Tgid=nspid[0], Ngid=0, Pid=nspid[0], PPid=1,
        TracerPid=tracer, Uid=tabbed(uid), Gid=tabbed(gid), FDSize=64,
        Groups=b"".join(b"%d " % g for g in groups), NStgid=tabbed(nspid), NSpid=tabbed(nspid),
        NSpgid=tabbed(nspid), VmPeak="   123 kB", Threads=1, **hexed, NoNewPrivs=nnp, Seccomp=mode,
        Seccomp_filters=3, Cpus_allowed="ff",
    )  # fmt: skip
    assert procfs.parse_status(text) == {
        "uid": uid,
        "gid": gid,
        "cap": caps,
        "groups": groups,
        "nspid": nspid,
        "tgid": nspid[0],
        "tracer": tracer,
        "seccomp": mode,
        "no_new_privs": nnp,
    }


MINIMAL = status_text(
    Name="x", Tgid=1, Uid=tabbed([0] * 4), Gid=tabbed([0] * 4), Groups="", CapInh="0", CapPrm="0",
    CapEff="0", CapBnd="0",
)  # fmt: skip


def test_status_of_an_older_kernel_says_not_told():
    got = procfs.parse_status(MINIMAL)
    assert (got["no_new_privs"], got["seccomp"], got["tracer"], got["nspid"]) == (-1, -1, -1, [])


@pytest.mark.parametrize("line", [b"Tgid", b"Uid", b"Gid", b"Groups", b"CapEff", b"CapPrm"])
def test_status_without_a_line_that_rights_depend_on_is_an_error(line):
    kept = b"\n".join(one for one in MINIMAL.splitlines() if not one.startswith(line)) + b"\n"
    with pytest.raises(ValueError, match="not the text of /proc/pid/status"):
        procfs.parse_status(kept)


def test_status_name_cannot_play_another_line():
    # The kernel escapes the newline (proc_task_name): one that did not would add a line.
    got = procfs.parse_status(MINIMAL.replace(b"Name:\tx", b"Name:\tUid:\t5\t5\t5\t5\\nUid:\t6"))
    assert got["uid"] == (0, 0, 0, 0)


def test_the_largest_group_list():
    groups = list(range(2**32 - 65536, 2**32))
    text = MINIMAL.replace(b"Groups:\t", b"Groups:\t" + b" ".join(b"%d" % g for g in groups))
    assert procfs.parse_status(text)["groups"] == groups


def test_records_have_the_layout_of_the_extension():
    assert PROC.itemsize == procfs.PROC_BYTES == 536
    assert THREAD.itemsize == procfs.THREAD_BYTES == 168
    assert PRINT.itemsize == procfs.PRINT_BYTES == struct.calcsize("5Q8Q2Q5Q8I2b6xq")
    assert CRED.itemsize == 80


def test_scan_wants_whole_records():
    with pytest.raises(ValueError, match="bytes each"):
        procfs.scan(-1, np.zeros(procfs.PROC_BYTES + 1, np.uint8), True, 0)


def test_fingerprints_want_room():
    one = np.zeros(1, np.int32)
    with pytest.raises(ValueError, match="differ in length"):
        procfs.fingerprints(one, np.zeros(2, np.int32), np.zeros(200, np.uint8), one)
    with pytest.raises(ValueError, match="bytes for each"):
        procfs.fingerprints(one, one, np.zeros(199, np.uint8), one)


@given(st.lists(st.none() | st.binary(max_size=9), max_size=200))
def test_distinct_texts_are_those_of_a_dict(texts):
    arena = b"".join(text or b"" for text in texts)
    sizes = [-1 if text is None else len(text) for text in texts]
    starts = np.cumsum([0, *(max(size, 0) for size in sizes)])[:-1]
    spans = np.array([starts, sizes], np.int64).T.reshape(-1, 2)
    of, found = procfs.distinct(arena, np.ascontiguousarray(spans))
    assert found == list(dict.fromkeys(text for text in texts if text is not None))
    assert [None if i < 0 else found[i] for i in of] == texts


@pytest.mark.parametrize("span", [(0, 4), (3, 1), (-1, 2), (2**62, 5)])
def test_distinct_texts_are_within_the_arena(span):
    with pytest.raises(ValueError, match="span 1 is not within the 3 bytes"):
        procfs.distinct(b"abc", np.array([(0, 3), span], np.int64))


def test_unchanged_wants_a_fingerprint_for_each():
    fds, faults = np.full(2, -1, np.int32), np.zeros(2, np.int64)
    with pytest.raises(ValueError, match="differ in length"):
        procfs.unchanged(fds, fds[:1], b"", faults)
    with pytest.raises(ValueError, match="for each of 2"):
        procfs.unchanged(fds, fds, bytes(procfs.PRINT_BYTES), faults)
    procfs.unchanged(fds, fds, bytes(2 * procfs.PRINT_BYTES), faults)
    assert faults.tolist() == [-1, -1]


def collector(**changes):
    given_ = {
        "same_pid_ns": True, "pid_ns": 1, "user_ns": 9, "euid": 0, "may_trace": True, "hidepid": "",
    }  # fmt: skip
    return Collector(**{**given_, **changes})


@pytest.mark.parametrize(
    ("told", "euid", "owner", "user_ns", "want"),
    [
        (2, 0, 0, 9, 2),  # the pidfd's word stands
        (0, 1000, 1000, 9, 0),
        (-1, 1000, 1000, 9, 1),
        (-1, 1000, 0, 9, 0),
        (-1, 0, 0, 9, -1),  # root owns it either way
        (-1, 100000, 100000, 8, -1),  # may be the root of its own user namespace
        (-1, 100000, 0, 8, 0),
        (-1, 65534, 65534, 9, -1),  # ids without a mapping all read so
        (-1, 1000, NO_ID, 9, -1),
    ],
)
def test_dumpable_from_the_owner_of_mem(told, euid, owner, user_ns, want):
    rows = np.zeros(1, PROC)
    rows["dumpable"], rows["mem_uid"] = told, owner
    rows["print"]["cred"]["uid"][0, 1] = euid
    rows["print"]["ns"][0, 6] = user_ns
    assert processes._dumpable(rows, collector()).tolist() == [want]


def test_ledger_columns():
    pool = StringPool()
    ledger = Ledger(pool)
    ledger.add_many([30, 10], "processes", Status.READ)
    ledger.add(10, "exe", Status.DENIED, "Permission denied", count=3)
    ledger.add(HOST, "kcmp", Status.SKIPPED, "why")
    ledger.add(20, "processes", Status.GONE, "zombie")
    columns = ledger.columns({10: 0, 30: 1})
    assert columns["ledger_pid"].tolist() == [0, 10, 10, 20, 30]
    assert columns["ledger_process"].tolist() == [-1, 0, 0, -1, 1]
    assert columns["ledger_status"].tolist() == [
        Status.SKIPPED, Status.READ, Status.DENIED, Status.GONE, Status.READ,
    ]  # fmt: skip
    assert columns["ledger_count"].tolist() == [0, 0, 3, 0, 0]
    texts = list(pool._row)
    assert texts[columns["ledger_reason"][2]] == b"Permission denied"
    assert texts[columns["ledger_source"][2]] == b"exe"
    assert len(ledger) == 5


def test_ledger_forgets_what_is_read_again():
    ledger = Ledger(StringPool())
    ledger.add(10, "exe", Status.DENIED, "no")
    ledger.add(10, "maps", Status.READ)
    ledger.forget(10, "exe")
    assert ledger.rows(10) == [("maps", "read", "", 0)]
    ledger.forget(10)
    ledger.forget(11)
    assert ledger.columns({})["ledger_pid"].shape == (0,)
    assert {c.dtype.str for c in ledger.columns({}).values()} == {"<i4", "|u1", "<i8"}


def test_list_pids_of_a_directory(tmp_path):
    for name in ("12", "3", "self", "sys", "x7"):
        (tmp_path / name).mkdir()
    assert processes.list_pids(tmp_path) == [3, 12]
    assert processes.list_pids(tmp_path, [np.int32(9), 9, 2, -1]) == [2, 9]
