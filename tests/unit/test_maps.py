"""maps text to columns, against a plain-Python twin."""

import os

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import oracle_memory as oracle
from _fastproc.maps import Lines, VmaTable
from osmosis.schema import FileKind, VmaKind
from osmosis.snapshot import StringPool

SHM_DEV = 1  # 00:01
HUGE_DEV = 17  # 00:11

# One line of every form that the kernel prints, and some that try to look like another.
FORMS = {
    b"7f0000000000-7f0000001000 rw-p 00000000 00:00 0 ": VmaKind.ANON,
    b"7f0000000000-7f0000001000 rw-p 00000000 00:00 0": VmaKind.ANON,
    b"7f0000000000-7f0000001000 rw-p 00000000 00:00 0          [anon:glibc: malloc]": VmaKind.ANON,
    b"555500000000-555500021000 rw-p 00000000 00:00 0          [heap]": VmaKind.HEAP,
    b"7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0          [stack]": VmaKind.STACK,
    b"7ffc00000000-7ffc00002000 r-xp 00000000 00:00 0          [vdso]": VmaKind.VDSO,
    b"7ffc00000000-7ffc00004000 r--p 00000000 00:00 0          [vvar]": VmaKind.VVAR,
    b"7ffc00000000-7ffc00002000 r--p 00000000 00:00 0          [vvar_vclock]": VmaKind.VVAR,
    b"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0  [vsyscall]": VmaKind.VSYSCALL,
    b"7ffc00000000-7ffc00001000 --xp 00000000 00:00 0          [uprobes]": VmaKind.OTHER,
    b"7f0000000000-7f0000001000 r-xp 00001000 fd:01 123        /usr/bin/x y": VmaKind.FILE,
    b"7f0000000000-7f0000001000 r-xp 00001000 fd:01 123        /a\\012b": VmaKind.FILE,
    b"7f0000000000-7f0000001000 r-xp 00001000 fd:01 123        /\xff\xfe\x80": VmaKind.FILE,
    b"7f0000000000-7f0000001000 r-xp 00001000 fd:01 123        /x (deleted)": VmaKind.FILE,
    b"7f0000000000-7f0000001000 rw-s 00000000 00:01 2050       /memfd:m (deleted)": VmaKind.FILE,
    b"7f0000000000-7f0000001000 rw-s 00000000 00:01 0     /SYSV00000000 (deleted)": VmaKind.SHM,
    b"7f0000000000-7f0000001000 rw-s 00000000 00:01 32769 /SYSV0000162e (deleted)": VmaKind.SHM,
    b"7f0000000000-7f0000001000 rw-s 00000000 00:11 0     /SYSV00000000 (deleted)": VmaKind.SHM,
    b"7f0000000000-7f0000001000 rw-s 00000000 00:11 77    /anon_hugepage (deleted)": VmaKind.FILE,
    b"7f0000000000-7f0000001000 rw-s 00000000 00:01 1029  /dev/zero (deleted)": VmaKind.SHM,
    b"7f0000000000-7f0000001000 rw-s 00000000 00:01 1029  [anon_shmem:mine]": VmaKind.SHM,
    b"7f0000000000-7f0000001000 rw-s 00000000 00:05 4     /dev/zero": VmaKind.FILE,
    b"7f0000000000-7f0000001000 rw-s 00000000 00:1a 9     /SYSV00000000": VmaKind.FILE,
    b"7f0000000000-7f0000001000 rw-s 00000000 00:1a 9     /dev/zero (deleted)": VmaKind.FILE,
    b"7f0000000000-7f0000001000 rw-p 00000000 00:1a 9     [vdso]": VmaKind.FILE,
    b"7f0000000000-7f0000001000 rw-p 00000000 00:1a 9     [heap]": VmaKind.FILE,
    b"7f0000000000-7f0000001000 rw-p 00000000 00:0f 9     anon_inode:[perf_event]": VmaKind.FILE,
    b"7f0000000000-7f0000001000 rw-p 00000000 00:00 5": VmaKind.FILE,
}

BROKEN = [
    b"",
    b"x",
    b"1000-2000",
    b"1000-2000 rw-p",
    b"1000-2000 rw-p 0 00:00",
    b"1000-2000 rw-p 0 00:00 x",
    b"1000-2000 rw-p 0 0000 0",
    b"1000 2000 rw-p 0 00:00 0",
    b"2000-1000 rw-p 0 00:00 0",
    b"1000-1000 rw-p 0 00:00 0",
    b"1000-2000 rw-z 0 00:00 0",
    b"1000-2000 zw-p 0 00:00 0",
    b"1000-2000 rw-pp 0 00:00 0",
    b"1000-2000 rw-p 0 00:00 5abc /x",
    b"1000-2000 RW-P 0 00:00 0",
    b"1000-2000 rw-p 0 00:00 18446744073709551616",
    b"10000000000000000-10000000000000001 rw-p 0 00:00 0",
    b"1000-2000 rw-p 0 100000000:00 0",
    b" 1000-2000 rw-p 0 00:00 0",
]


def table():
    pool = StringPool()
    return VmaTable(pool.add, SHM_DEV, (HUGE_DEV,)), pool


def compare(texts):
    """Add (text, mm, ipc) to a table; every column is what the twin says."""
    made, pool = table()
    want = []
    for text, mm, ipc in texts:
        vmas = oracle.parse_maps(text, SHM_DEV, (HUGE_DEV,))
        assert made.add(text, mm, ipc) == (len(want), len(vmas))
        want += [(vma, mm, ipc) for vma in vmas]
    got = made.columns()
    assert len(made) == len(want)
    for name in ("start", "end", "offset", "prot", "vma_kind"):
        assert got[name].tolist() == [vma[name] for vma, *_ in want], name
    assert got["mm"].tolist() == [mm for _, mm, _ in want]
    paths = [pool.text(i) if i >= 0 else b"" for i in got["path"].tolist()]
    assert paths == [vma["path"] for vma, *_ in want]
    objects = made.object_table()
    for i, (vma, _, ipc) in zip(got["object"].tolist(), want, strict=True):
        what = oracle.object_of(vma, ipc)
        assert (None if i < 0 else tuple(objects[i][:4])) == what
    assert len({row[:4] for row in objects}) == len(objects)
    # The same kind for the same, numbered from 0.
    number = {}
    for kind, (vma, _, ipc) in zip(got["kind"].tolist(), want, strict=True):
        assert number.setdefault(oracle.kind_of(vma, ipc), kind) == kind
    assert sorted(number.values()) == list(range(len(number)))


def test_every_form_of_line():
    for line, kind in FORMS.items():
        made, _ = table()
        made.add(line + b"\n", 0)
        assert made.columns()["vma_kind"].tolist() == [kind], line
        compare([(line + b"\n", 0, 3)])


def test_kinds_are_those_of_the_schema():
    assert (VmaKind.ANON, VmaKind.VDSO, VmaKind.VVAR, VmaKind.VSYSCALL, VmaKind.OTHER) == (
        oracle.V_ANON,
        oracle.V_VDSO,
        oracle.V_VVAR,
        oracle.V_VSYSCALL,
        oracle.V_OTHER,
    )
    assert (FileKind.FILE, FileKind.SYSV, FileKind.SHARED_ANON) == (0, 1, 2)


def test_the_first_segment_of_two_ipc_namespaces_is_two_objects():
    line = b"7f0000000000-7f0000001000 rw-s 00000000 00:01 0     /SYSV00000000 (deleted)\n"
    made, _ = table()
    made.add(line, 0, 10)
    made.add(line, 1, 11)
    made.add(line, 2, 10)
    assert made.columns()["object"].tolist() == [0, 1, 0]
    assert made.columns()["kind"].tolist() == [0, 1, 0]


def test_a_named_mapping_of_shared_memory_is_the_same_object():
    line = b"7f0000000000-7f0000001000 rw-s 00000000 00:01 77 %s\n"
    made, _ = table()
    made.add(line % b"/dev/zero (deleted)", 0)
    made.add(line % b"[anon_shmem:a]", 1)
    assert made.columns()["object"].tolist() == [0, 0]


@pytest.mark.parametrize("line", BROKEN)
def test_a_broken_line_adds_nothing(line):
    good = b"1000-2000 rw-p 00000000 00:00 0 \n"
    made, _ = table()
    made.add(good, 0)
    before = {name: column.tolist() for name, column in made.columns().items()}
    with pytest.raises(ValueError) as caught:  # noqa: PT011 # the line is the message
        made.add(b"3000-4000 r--p 00000000 fd:01 8 /x\n" + line + b"\n" + good, 1)
    assert caught.value.args == (line,)
    assert {name: column.tolist() for name, column in made.columns().items()} == before
    made.add(good, 1)  # and the table goes on as before
    assert made.columns()["kind"].tolist() == [0, 0]


def test_every_cut_of_a_line_is_an_error_or_whole():
    text = b"".join(line + b"\n" for line in FORMS)
    for size in range(len(text)):
        cut = text[:size]
        if cut and cut[-1:] != b"\n":
            made, _ = table()
            with pytest.raises(ValueError) as caught:  # noqa: PT011
                made.add(cut, 0)
            assert caught.value.args == (cut.split(b"\n")[-1][:200],)
            assert len(made) == 0


paths = st.one_of(
    st.sampled_from(
        [b"", b"[heap]", b"[stack]", b"[vdso]", b"[vvar]", b"[vsyscall]", b"[anon:x y]", b"/SYSV0"]
    ),
    st.sampled_from([b"/dev/zero (deleted)", b"/memfd:", b"[anon_shmem:]", b"/usr/lib/libc.so"]),
    st.binary(max_size=12).map(lambda b: b"/" + b.replace(b"\n", b"\\012")),
)
lines = st.tuples(
    st.integers(0, 2**64 - 2),
    st.integers(1, 2**40),
    st.sampled_from(["rwxp", "r--s", "rw-p", "---p", "-w-s", "r-xp"]),
    st.one_of(st.sampled_from([0, 4096]), st.integers(0, 2**64 - 1)),
    st.sampled_from([(0, 0), (0, 1), (0, 17), (0xFD, 1), (0xFFFFFFFF, 0xFFFFFFFF)]),
    st.one_of(st.sampled_from([0, 7]), st.integers(0, 2**64 - 1)),
    paths,
).map(
    lambda t: (
        b"%x-%x %s %08x %02x:%02x %d %s%s\n"
        % (
            t[0],
            min(t[0] + t[1], 2**64 - 1),
            t[2].encode(),
            t[3],
            *t[4],
            t[5],
            b"   " if t[6] else b"",
            t[6],
        )
    )
)
texts = st.lists(lines, max_size=6).map(b"".join)


@given(st.lists(st.tuples(texts, st.integers(0, 9), st.integers(-1, 2)), max_size=6))
def test_agrees_with_the_twin(many):
    compare(many)


@given(texts, st.integers(0), st.binary(max_size=3))
@example(b"1000-2000 rw-p 0 00:00 0\n", 20, b" ")
def test_damaged_text_parses_as_the_twin_says_or_is_refused_alike(text, at, patch):
    at %= len(text) + 1
    text = text[:at] + patch + text[at + len(patch) :]
    made, _ = table()
    try:
        want = oracle.parse_maps(text, SHM_DEV, (HUGE_DEV,))
    except ValueError as exc:
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            made.add(text, 0)
        assert caught.value.args == (exc.args[0][:200],)  # noqa: PT017
        assert len(made) == 0
    else:
        assert made.add(text, 0) == (0, len(want))
        assert made.columns()["start"].tolist() == [vma["start"] for vma in want]


@settings(max_examples=5)
@given(st.integers(4000, 20000))
def test_many_rows_and_kinds(n):
    text = b"".join(b"%x-%x rw-p 0 00:00 0 \n" % (i << 12, (i + 1) << 12) for i in range(n))
    made, _ = table()
    made.add(text, 0)
    made.add(text, 1)
    assert made.columns()["kind"].tolist() == [*range(n), *range(n)]


def test_rows_and_counts_stay_inside():
    made, _ = table()
    made.add(b"1000-2000 rw-p 0 00:00 0 \n2000-3000 rw-s 0 00:01 5 /SYSV0\n", 0)
    start, end, vma_kind, prot, kind = made.rows(1, 1)
    assert (start.tolist(), end.tolist(), prot.tolist()) == ([0x2000], [0x3000], [14])
    assert (vma_kind.tolist(), kind.tolist()) == ([VmaKind.SHM], [1])
    made.set_counts(0, np.array([[1, 2, 3], [4, 5, 6]]))
    columns = made.columns()
    assert [columns[k].tolist() for k in ("present", "swapped", "zero")] == [[1, 4], [2, 5], [3, 6]]
    for first, n in ((-1, 1), (0, 3), (2, 1), (0, -1), (2**62, 2**62)):
        with pytest.raises((ValueError, OverflowError)):
            made.rows(first, n)
    for first, shape in ((1, (2, 3)), (-1, (1, 3)), (0, (1, 2))):
        with pytest.raises(ValueError, match="rows"):
            made.set_counts(first, np.zeros(shape, np.int64))


@pytest.fixture
def process(tmp_path):
    """A directory with the files of a process, written by the test."""

    def make(maps, pagemap=b"12345678"):
        (tmp_path / "maps").write_bytes(maps)
        if pagemap is not None:
            (tmp_path / "pagemap").write_bytes(pagemap)
        fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
        opened.append(fd)
        return fd

    opened = []
    yield make
    for fd in opened:
        os.close(fd)


def open_descriptors():
    return sorted(os.listdir("/dev/fd"))


def test_lines_of_a_process_are_those_of_its_whole_text(process):
    line = b"%x-%x rw-p 00000000 00:00 0 /a name that takes room\n"
    for n in (3000, 1, 70_000, 0):  # longer and shorter than the file before, into one buffer
        lines = Lines()
        text = b"".join(line % (4096 * k, 4096 * (k + 1)) for k in range(1, n + 1))
        fd = lines.open(process(text))
        assert os.pread(fd, 100, 0) == b"12345678"
        os.close(fd)
        made, _ = table()
        assert (len(lines), lines.overlap) == (n, False)
        assert made.add(lines, 5) == (0, n)
        assert made.columns()["start"].tolist() == [4096 * k for k in range(1, n + 1)]


def test_one_buffer_serves_many_files():
    lines = Lines()
    made, pool = table()
    for mm, name in enumerate((b"/long" * 2000, b"/b", b"/long" * 2000, b"/cc")):
        lines.parse(b"1000-2000 r--p 00000000 fd:01 %d %s\n" % (len(name), name))
        assert made.add(lines, mm) == (mm, 1)
    names = [pool.text(i)[:6] for i in made.columns()["path"]]
    assert names == [b"/long/", b"/b", b"/long/", b"/cc"]
    assert made.columns()["object"].tolist() == [0, 1, 0, 2]


def test_what_cannot_be_opened_or_parsed_leaves_nothing_open(process):
    before = open_descriptors()
    lines = Lines()
    with pytest.raises(OSError, match="Bad file"):
        lines.open(-1)
    at = process(b"1000-2000 rw-p 00000000 00:00 0 \nnonsense\n", pagemap=None)
    with pytest.raises(FileNotFoundError):
        lines.open(at)
    at = process(b"1000-2000 rw-p 00000000 00:00 0 \nnonsense\n")
    with pytest.raises(ValueError, match="nonsense"):
        lines.open(at)
    assert len(lines) == 0
    assert len(open_descriptors()) == len(before) + 2


def test_a_line_that_begins_in_the_one_above_it_is_told():
    lines = Lines()
    lines.parse(b"1000-3000 rw-p 00000000 00:00 0 \n2000-4000 rw-p 00000000 00:00 0 \n")
    assert lines.overlap
    lines.parse(b"1000-2000 rw-p 00000000 00:00 0 \n2000-4000 rw-p 00000000 00:00 0 \n")
    assert not lines.overlap


def test_many_paths_and_objects_are_each_kept_once():
    line = b"1000-2000 r--p 00000000 fd:01 %d /lib/%d\n"
    made, pool = table()
    numbers = [k % 3000 for k in range(6000)]
    for k in numbers:
        made.add(line % (k, k), 0)
    got = made.columns()
    assert got["object"].tolist() == numbers
    assert [pool.text(i) for i in got["path"].tolist()] == [b"/lib/%d" % k for k in numbers]
