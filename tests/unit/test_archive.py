"""Snapshot files: what was saved comes back, and a damaged or hostile one is refused."""

import io
import json
import os
import pickle
import resource
import signal
import stat
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from osmosis.archive import load, save
from osmosis.errors import SnapshotError
from osmosis.schema import COLUMNS, VERSION
from osmosis.snapshot import Snapshot, StringPool, empty_columns


def small(n=3):
    """A snapshot of n processes, each with an address space of one VMA, all sharing a class."""
    pool = StringPool()
    columns = empty_columns()
    for name, column in COLUMNS.items():
        if column.table in ("process", "mm", "vma") and not column.indptr:
            columns[name] = np.full(n, -1 if column.refers else 0, column.dtype)
        elif column.table in ("process", "mm"):
            columns[name] = np.zeros(n + 1, column.dtype)
    columns["process_pid"] = np.arange(1, n + 1, dtype="<i4")
    columns["process_comm"] = pool.add_all([b"a\nb\xff"] * n)
    columns["process_mm"] = columns["mm_process"] = np.arange(n, dtype="<i4")
    columns["mm_vma_indptr"] = np.arange(n + 1)
    columns["vma_region"] = np.arange(n, dtype="<i4")
    columns["vma_start"] = np.full(n, 4096, "<u8")
    columns["vma_end"] = np.full(n, 8192, "<u8")
    columns |= {
        "class_kind": np.zeros(1, "<u1"),
        "class_pages": np.ones(1, "<i8"),
        "class_run_indptr": np.array([0, 1]),
        "class_frame_indptr": np.array([0, 1]),
        "run_first": np.zeros(1, "<i4"),
        "run_last": np.full(1, n - 1, "<i4"),
        "frame_pfn": np.array([2**55 - 1], "<u8"),
    }
    host = {"page_size": 4096, "hostname": "h\udcff", "users": {"0": "root"}, "float": 1.5}
    return Snapshot(columns | pool.columns(), host)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "one.osmosis"
    small().save(path)
    return path


def refused(path, match=None):
    """Loading gives SnapshotError that names the file and more; little memory, little time."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SnapshotError, match=match) as caught:
        load(path)
    assert str(path) in caught.value.where
    assert caught.value.why
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB
    return caught.value


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def write(path, parts, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return path


def change(path, **parts):
    """Rewrite the file with other bytes for some members; None leaves one out."""
    old = members(path)
    for name, data in parts.items():
        full = f"{name}.json" if name == "manifest" else f"{name}.npy"
        if data is None:
            del old[full]
        else:
            old[full] = data
    return write(path, old)


def npy(array, **kwargs):
    out = io.BytesIO()
    np.lib.format.write_array(out, array, **kwargs)
    return out.getvalue()


def manifest_of(path, **changes):
    manifest = json.loads(members(path)["manifest.json"])
    manifest.update(changes)
    return json.dumps(manifest).encode()


# -- what is well


def test_what_was_saved_comes_back(tmp_path):
    for n in (0, 1, 3):
        snap = small(n) if n else Snapshot({}, {})
        snap.save(tmp_path / "x")
        back = load(tmp_path / "x")
        assert back.host == snap.host
        assert set(back.columns) == set(COLUMNS)
        for name, column in snap.columns.items():
            assert back[name].dtype == column.dtype == np.dtype(COLUMNS[name].dtype)
            np.testing.assert_array_equal(back[name], column)
            assert not back[name].flags.writeable


def test_only_its_owner_may_read_it(tmp_path):
    old = os.umask(0)
    try:
        small().save(tmp_path / "x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x"
    small(1).save(path)
    old = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(OSError, match="No space"):
        small(2).save(path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


KILLED = """
import os, signal, sys
import numpy as np
sys.path[:0] = sys.argv[2:]
import test_archive
whole = np.lib.format.write_array
def write_array(file, array, **kwargs):
    whole(file, array, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
np.lib.format.write_array = write_array
test_archive.small(3).save(sys.argv[1])
"""


def test_a_save_that_is_killed_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    small(1).save(path)
    old = path.read_bytes()
    here = Path(__file__).parent
    paths = [str(here), *(p for p in sys.path if p)]
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), *paths], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == old
    for leftover in tmp_path.iterdir():
        assert stat.S_IMODE(leftover.stat().st_mode) == 0o600


def test_a_file_that_is_not_there_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        load(tmp_path)
    with pytest.raises(FileNotFoundError):
        save(small(), tmp_path / "none" / "x")


# -- what is damaged


def test_every_truncation(saved):
    data = saved.read_bytes()
    for size in [*range(0, len(data), 100), *range(len(data) - 30, len(data))]:
        saved.write_bytes(data[:size])
        refused(saved)


def test_every_byte_flipped(saved):
    """A byte that carries nothing may change; any other change is seen."""
    data = saved.read_bytes()
    want = load(saved)
    for at in range(0, len(data), 37):
        damaged = bytearray(data)
        damaged[at] ^= 1 << (at % 8)
        saved.write_bytes(damaged)
        try:
            got = load(saved)
        except SnapshotError as exc:
            assert str(saved) in exc.where  # noqa: PT017
        else:
            assert dict(got.host) == dict(want.host)
            for name in COLUMNS:
                np.testing.assert_array_equal(got[name], want[name])


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=8)), min_size=1, max_size=6))
def test_any_damage_is_a_snapshot_error_or_nothing(tmp_path, patches):
    path = tmp_path / "x"
    small().save(path)
    data = bytearray(path.read_bytes())
    for where, patch in patches:
        at = int(where * len(data))
        data[at : at + len(patch)] = patch
    path.write_bytes(data)
    try:
        load(path)
    except SnapshotError as exc:
        assert str(path) in exc.where  # noqa: PT017


def test_not_a_zip_at_all(tmp_path):
    for data in (b"", b"x", b"\0" * 1000, b"PK\x05\x06" + b"\xff" * 18, os.urandom(5000)):
        (tmp_path / "x").write_bytes(data)
        refused(tmp_path / "x")


def test_an_empty_zip_has_no_manifest(tmp_path):
    refused(write(tmp_path / "x", {}), "no manifest")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b"nonsense",
        b"\xff\xfe",
        b"[" * 500_000,
        b'{"a":' * 200_000,
        b"9" * 100_000,
        b'{"format": "osmosis snapshot", "version": VERSION}',
        b'{"format": "osmosis snapshot", "version": VERSION, "host": [], "columns": {}}',
        b'{"format": "osmosis snapshot", "version": VERSION, "host": {}, "columns": []}',
        b'{"format": "osmosis snapshot", "version": true, "host": 1, "columns": {}}',
        b'{"format": "osmosis snapshot", "version": VERSION, "host": {}, "columns": {"x": {}}}',
        b'{"format": "osmosis snapshot", "version":VERSION,"host":{},"columns": {"run_first": 1}}',
        b'{"format": "osmosis snapshot", "version":VERSION,"host":{},"columns": {"run_first": {}}}',
        b'{"format":"osmosis snapshot","version":VERSION,"host":{"page_size":0},"columns":{}}',
        b'{"format":"osmosis snapshot","version":VERSION,"host":{"page_size":"x"},"columns":{}}',
        b'{"format":"osmosis snapshot","version":VERSION,"host":{},'
        b'"columns":{"run_first":{"length":1e400}}}',
    ],
)
def test_a_manifest_that_is_none(tmp_path, text):
    now = text.replace(b"VERSION", b"%d" % VERSION)
    refused(write(tmp_path / "x", {"manifest.json": now}))


def test_a_newer_schema_is_refused_by_name(saved):
    change(saved, manifest=manifest_of(saved, version=VERSION + 1))
    assert "manifest" in refused(saved, f"version {VERSION + 1}").where


def test_an_older_schema_is_refused_with_what_to_do(saved):
    change(saved, manifest=manifest_of(saved, version=VERSION - 1))
    assert "capture again" in refused(saved, f"version {VERSION - 1}").why


class Bomb:
    def __reduce__(self):
        return (os._exit, (3,))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("process_pid", npy(np.array([Bomb()], object), allow_pickle=True)),
        ("process_pid", pickle.dumps([1, 2, 3])),
        ("process_pid", npy(np.array([1, 2, 3], "<i8"))),
        ("process_pid", npy(np.array([1, 2, 3], ">i4"))),
        ("process_pid", npy(np.array([1, 2, 3], "<u4"))),
        ("process_pid", npy(np.array([1, 2, 3], "<f4"))),
        ("process_pid", npy(np.array([(1,)] * 3, [("a", "<i4")]))),
        ("process_pid", npy(np.array([[1, 2, 3]], "<i4"))),
        ("process_pid", npy(np.asfortranarray(np.ones((3, 3), "<i4")))),
        ("process_pid", npy(np.array(1, "<i4"))),
        ("process_pid", npy(np.array([1, 2], "<i4"))),
        ("process_pid", npy(np.array([1, 2, 3, 4], "<i4"))),
        ("process_pid", npy(np.array([1, 2, 3], "<i4"), version=(2, 0))),
        ("process_pid", npy(np.array([1, 2, 3], "<i4"))[:-1]),
        ("process_pid", npy(np.array([1, 2, 3], "<i4")) + b"\0"),
        ("process_pid", npy(np.array([1, 2, 3], "<i4")).replace(b"(3,)", b"(99999999999,)")),
        ("process_pid", npy(np.array([1, 2, 3], "<i4")).replace(b"(3,)", b"(-3,)")),
        ("process_pid", npy(np.array([1, 2, 3], "<i4")).replace(b"'<i4'", b"'|O4'")),
        ("process_pid", npy(np.array([1, 2, 3], "<i4")).replace(b"{", b"(" * 2000)),
        ("process_pid", npy(np.array([1, 2, 3], "<i4")).replace(b"(3,)", b"'''")),
        ("process_pid", b"\x93NUMPY\x01\x00\xff\xff" + b"'" * 65535),
        ("process_pid", b""),
        ("process_pid", None),
        ("process_pid", npy(np.array([1, 1, 2], "<i4"))),
        ("process_pid", npy(np.array([3, 2, 1], "<i4"))),
        ("process_pid", npy(np.array([0, 1, 2], "<i4"))),
        ("process_pid", npy(np.array([2**31 - 1, -(2**31), 5], "<i4"))),
        ("process_mm", npy(np.array([0, 1, 3], "<i4"))),
        ("process_mm", npy(np.array([0, 1, -3], "<i4"))),
        ("process_comm", npy(np.array([0, 0, 1], "<i4"))),
        ("vma_region", npy(np.array([0, 0, 1], "<i4"))),
        ("vma_region", npy(np.array([0, 1, 3], "<i4"))),
        ("vma_region", npy(np.array([0, 1, -1], "<i4"))),
        ("vma_kind", npy(np.array([9, 0, 0], "<u1"))),
        ("class_kind", npy(np.array([6], "<u1"))),
        ("class_pages", npy(np.array([0], "<i8"))),
        ("mm_status", npy(np.array([0, 0, 7], "<u1"))),
        ("run_first", npy(np.array([-1], "<i4"))),
        ("run_first", npy(np.array([3], "<i4"))),
        ("run_last", npy(np.array([3], "<i4"))),
        ("mm_vma_indptr", npy(np.array([0, 2, 1, 3]))),
        ("mm_vma_indptr", npy(np.array([1, 1, 2, 3]))),
        ("mm_vma_indptr", npy(np.array([0, 1, 2, 2]))),
        ("string_indptr", npy(np.array([0, 2**62]))),
        ("string_indptr", npy(np.array([0, -1]))),
        ("extra", npy(np.zeros(1))),
    ],
)
def test_a_column_that_is_not_right(saved, name, data):
    want = refused(change(saved, **{name: data}))
    if data is not None and data and name != "extra":
        assert name.split("_")[0] in str(want).split(str(saved))[1]


def test_offsets_whose_differences_wrap_around(saved):
    """0, max, min, -1, n: every step is positive in 64 bits, and they point far outside."""
    n = 5
    snap = small(4)
    bad = np.array([0, 2**63 - 1, -(2**63), -1, 4])
    assert (np.diff(bad) > 0).all()
    with pytest.raises(SnapshotError, match="mm_vma_indptr"):
        snap.replace(mm_vma_indptr=bad)
    assert len(bad) == n


# -- what is hostile


def test_no_member_that_the_manifest_does_not_name(saved):
    parts = members(saved)
    for name in ("../../../etc/passwd", "/abs.npy", "run_first.npy.npy", "x/", "run_first"):
        refused(write(saved, {**parts, name: b"x"}))


def test_two_members_of_one_name(saved):
    parts = members(saved)
    with zipfile.ZipFile(saved, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("process_pid.npy", parts["process_pid.npy"])
    refused(saved, "two members")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_only_methods_that_can_be_read_piece_by_piece(saved, method):
    refused(write(saved, members(saved), method), "compressed by")


def test_a_member_that_says_it_is_larger_than_the_file_could_be(saved):
    big = npy(np.zeros(400 << 20 >> 2, "<i4"))  # 400 MiB of zeros are 400 KiB of DEFLATE
    change(saved, run_first=big)
    del big
    refused(saved, "claims to hold")


def lie(path, name, size):
    """Write another uncompressed size of a member into both of its headers."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(name)
    struct.pack_into("<I", data, info.header_offset + 22, size)
    at = data.rindex(name.encode()) - 46
    assert data[at : at + 4] == b"PK\x01\x02"
    struct.pack_into("<I", data, at + 24, size)
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["process_pid.npy", "manifest.json"])
def test_a_member_that_says_it_is_small_and_is_not(saved, name):
    """A gigabyte of zeros behind a size of 300 bytes is not inflated to see."""
    parts = members(saved)
    parts[name] = b"\0" * (1 << 28)
    write(saved, parts)
    del parts
    lie(saved, name, 300)
    child = subprocess.run(
        [sys.executable, "-c", LIMITED, str(saved), *(p for p in sys.path if p)],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert child.stdout.strip() == "refused", child.stderr


LIMITED = """
import sys
sys.path[:0] = sys.argv[2:]
import resource
from osmosis.archive import load
from osmosis.errors import SnapshotError
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    load(sys.argv[1])
except SnapshotError:
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print("refused" if grown < 50 << 10 else f"grew by {grown} KiB")
"""


def test_a_member_that_claims_more_than_it_has(saved):
    for size in (10_000_000, 2**32 - 2):
        small().save(saved)
        plain = members(saved)
        write(saved, plain, zipfile.ZIP_STORED)
        lie(saved, "process_pid.npy", size)
        refused(saved)


def test_damaged_checksum(saved):
    parts = members(saved)
    write(saved, parts, zipfile.ZIP_STORED)
    data = saved.read_bytes()
    at = data.index(parts["process_pid.npy"]) + len(parts["process_pid.npy"]) - 4
    saved.write_bytes(data[:at] + b"\x09" + data[at + 1 :])
    assert "process_pid" in refused(saved).where


def test_an_encrypted_member(saved):
    data = bytearray(saved.read_bytes())
    for sign, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        where = data.index(sign)
        data[where + at] |= 1
    saved.write_bytes(data)
    refused(saved)


def test_deflate_of_zlib_is_what_the_ratio_is_about():
    """The bound that lets a real snapshot in keeps a bomb out."""
    assert 100_000_000 / len(zlib.compress(b"\0" * 100_000_000)) > 1000
