"""Descriptors as columns, read from directories that the tests make; and who shares open files."""

import errno
import os
import socket
import stat

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from _fastproc import fds


def table(path, links):
    """A directory like /proc/<pid>: ``fd`` with one link for each descriptor."""
    (path / "fd").mkdir(parents=True)
    for number, target in links.items():
        os.symlink(target, path / "fd" / str(number))
    return os.open(path, os.O_PATH | os.O_DIRECTORY)


def scan(*dirs, process=None):
    process = range(len(dirs)) if process is None else process
    return fds.scan(np.array(dirs, np.int32), np.array(process, np.int32))


def names(found):
    columns, texts, _ = found
    return {
        (p, n): texts[k] if k >= 0 else None
        for p, n, k in zip(columns["process"], columns["fd"], columns["name"], strict=True)
    }


def slow_number(path, key):
    """Twin of ``info_numbers``: one descriptor, a line at a time."""
    try:
        text = path.read_bytes()
    except OSError:
        return fds.UNREADABLE
    if not text:
        return fds.UNREADABLE
    for line in text.split(b"\n"):
        if line.startswith(key):
            digits = line[len(key) :].strip()
            return int(digits) if digits.isdigit() else 0
    return fds.NO_LINE


@given(st.lists(st.binary(max_size=60).map(lambda b: b.replace(b"\0", b"x")), max_size=4))
def test_numbers_of_fdinfo_as_a_slow_reader_finds_them(tmp_path_factory, lines):
    key = b"scm_fds:"
    texts = [
        b"pos:\t0\nscm_fds: 3\n",
        b"scm_fds: 12",
        b"no_scm_fds: 4\nscm_fds:\t5\n",
        b"ino:\t7\n",
        b"",
        b"\n".join(lines),
    ]
    path = tmp_path_factory.mktemp("info")
    (path / "fdinfo").mkdir()
    for i, text in enumerate(texts):
        (path / "fdinfo" / str(i)).write_bytes(text)
    at = os.open(path, os.O_PATH | os.O_DIRECTORY)
    n = len(texts) + 1  # the last one is not there
    found = fds.info_numbers(np.full(n, at, np.int32), np.arange(n, dtype=np.int32), key)
    os.close(at)
    assert found.tolist() == [slow_number(path / "fdinfo" / str(i), key) for i in range(n)]


def test_numbers_of_nobody():
    empty = np.empty(0, np.int32)
    assert len(fds.info_numbers(empty, empty, b"pos:")) == 0
    one = np.array([-1], np.int32)
    assert fds.info_numbers(one, one, b"pos:").tolist() == [fds.UNREADABLE]
    with pytest.raises(ValueError, match="1 directories but 0 descriptors"):
        fds.info_numbers(one, empty, b"pos:")


@pytest.fixture
def place(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "dir").mkdir()
    os.mkfifo(tmp_path / "fifo")
    os.link(tmp_path / "file", tmp_path / "same")
    return tmp_path


def test_what_stat_says_of_each_target(place):
    links = {0: place / "file", 7: place / "dir", 12: place / "fifo", 300: "/dev/null"}
    at = table(place / "1", links)
    columns, _, errors = scan(at, process=[42])
    assert errors.tolist() == [0]
    assert set(columns["fd"].tolist()) == set(links)
    for i, number in enumerate(columns["fd"].tolist()):
        facts = os.stat(links[number])
        assert columns["process"][i] == 42
        assert columns["mode"][i] == facts.st_mode
        assert columns["inode"][i] == facts.st_ino
        for name, value in (("dev", facts.st_dev), ("rdev", facts.st_rdev)):
            assert columns[name][i] == os.major(value) << 32 | os.minor(value)
    os.close(at)


def test_access_is_in_the_modes_of_the_links(place):
    # Links of ordinary filesystems all have mode 0777: what is read is the link's, not the file's.
    (place / "file").chmod(0o400)
    at = table(place / "1", {0: place / "file"})
    assert scan(at)[0]["access"].tolist() == [fds.READ | fds.WRITE] == [6]
    os.close(at)


def test_one_name_for_each_file_and_none_for_its_repetitions(place):
    a = table(place / "1", {0: place / "file", 1: place / "dir"})
    b = table(place / "2", {0: place / "same", 1: place / "fifo"})
    found = names(scan(a, b))
    assert found[1, 0] is None
    assert found[0, 0] == os.fsencode(place / "file")
    assert found[0, 1] == os.fsencode(place / "dir")
    assert found[1, 1] == os.fsencode(place / "fifo")
    os.close(a)
    os.close(b)


def test_names_of_pipes_and_sockets_leave_their_number_to_the_entry():
    ends = [n for _ in range(40) for n in os.pipe()]
    pairs = [s for _ in range(40) for s in socket.socketpair()]
    events = [os.eventfd(0) for _ in range(3)]
    at = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY)
    try:
        columns, texts, _ = found = scan(at)
        row = {n: i for i, n in enumerate(columns["fd"].tolist())}
        name = names(found)
        for kind, wanted in ((b"pipe:", ends), (b"socket:", [s.fileno() for s in pairs])):
            seen = {}
            for n in wanted:
                inode = int(columns["inode"][row[n]])
                seen.setdefault(inode, []).append(name[0, n])
                assert os.readlink(f"/proc/self/fd/{n}") == f"{kind.decode()}[{inode}]"
            assert {tuple(of) for of in seen.values()} <= {(kind,), (kind, None)}
            assert len(seen) == (40 if kind == b"pipe:" else 80)
            assert texts.count(kind) == 1
        assert {name[0, n] for n in events} == {b"anon_inode:[eventfd]"}
        assert texts.count(b"anon_inode:[eventfd]") == 1
    finally:
        for n in (*ends, *events, at):
            os.close(n)
        for s in pairs:
            s.close()


def test_a_name_with_another_number_is_kept_whole(place):
    # Closed and opened as a pipe between the two looks: the text is not of the inode.
    at = table(place / "1", {0: "pipe:[5]", 1: "socket:[6]", 2: "pipe:"})
    (place / "1" / "fd" / "pipe:[5]").touch()
    (place / "1" / "fd" / "socket:[6]").touch()
    (place / "1" / "fd" / "pipe:").touch()
    found = names(scan(at))
    assert found == {(0, 0): b"pipe:[5]", (0, 1): b"socket:[6]", (0, 2): b"pipe:"}
    os.close(at)


def test_births_tell_files_apart_that_had_one_number(place):
    at = table(place / "1", {0: place / "file"})
    birth = int(scan(at)[0]["birth"][0])
    facts = os.stat(place / "file")
    assert birth == 0 or abs(birth - facts.st_ctime_ns) < 10**9
    os.close(at)


def test_a_closed_descriptor_and_a_closed_process(place):
    gone = table(place / "1", {0: place / "no such file", 1: place / "file"})
    columns, _, errors = scan(gone)
    assert (columns["fd"].tolist(), errors.tolist()) == ([1], [0])
    empty = os.open(place / "dir", os.O_PATH)
    columns, _, errors = scan(empty, gone, -1, process=[5, 6, 7])
    assert errors.tolist() == [errno.ENOENT, 0, 0]
    assert columns["process"].tolist() == [6]
    os.close(gone)
    os.close(empty)


def test_names_are_bytes(place):
    path = os.fsencode(place) + b"/new\nline \xff\xfe (deleted)"
    with open(path, "w"):
        pass
    at = table(place / "1", {3: os.fsdecode(path)})
    assert names(scan(at))[0, 3] == path
    os.close(at)


def test_many_descriptors_grow_every_buffer(place):
    n = 3000
    deep = place / ("d" * 200)
    deep.mkdir()
    for i in range(n):
        (deep / str(i)).touch()
    at = table(place / "1", {i: deep / str(i) for i in range(n)})
    columns, texts, errors = scan(at)
    assert errors.tolist() == [0]
    assert sorted(columns["fd"].tolist()) == list(range(n))
    assert len(texts) == n
    for number, text in ((k[1], v) for k, v in names((columns, texts, errors)).items()):
        assert text == os.fsencode(deep / str(number))
    assert (columns["mode"] & 0o170000 == stat.S_IFREG).all()
    os.close(at)


def test_nothing_gives_empty_columns():
    columns, texts, errors = scan()
    assert not texts
    assert not len(errors)
    assert all(len(c) == 0 for c in columns.values())


def test_lengths_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="2 directories but 1 processes"):
        fds.scan(np.zeros(2, np.int32), np.zeros(1, np.int32))
    with pytest.raises(ValueError, match="2 threads but 1 descriptors"):
        fds.same_files(np.zeros(2, np.int32), np.zeros(1, np.int32))


def test_same_files_against_what_was_duplicated():
    rng = np.random.default_rng(7)
    first = [os.eventfd(0) for _ in range(20)]
    held = [(n, i) for i, n in enumerate(first)]
    for _ in range(100):
        i = int(rng.integers(20))
        held.append((os.dup(first[i]), i))
    order = rng.permutation(len(held))
    held = [held[i] for i in order]
    try:
        number, errors = fds.same_files(
            np.full(len(held), os.getpid(), np.int32), np.array([n for n, _ in held], np.int32)
        )
    finally:
        for n, _ in held:
            os.close(n)
    if (errors == errno.ENOSYS).all():
        pytest.skip("this kernel has no kcmp")
    assert not errors.any()
    of = np.array([i for _, i in held])
    assert ((number[:, None] == number) == (of[:, None] == of)).all()
    assert set(number.tolist()) == set(range(20))


def test_what_cannot_be_compared_is_said():
    a, b = os.pipe()
    os.close(b)
    number, errors = fds.same_files(
        np.array([os.getpid(), os.getpid(), 2**30], np.int32), np.array([a, b, a], np.int32)
    )
    os.close(a)
    if errors[0] == errno.ENOSYS:
        pytest.skip("this kernel has no kcmp")
    assert number.tolist() == [0, -1, -1]
    assert errors.tolist() == [0, errno.EBADF, errno.ESRCH]
    number, errors = fds.same_files(np.empty(0, np.int32), np.empty(0, np.int32))
    assert not len(number)
    assert not len(errors)
