"""The record: frozen columns, the ledger, strings, and changed copies."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_archive import small

from osmosis.errors import SnapshotError
from osmosis.schema import COLUMNS, Status
from osmosis.snapshot import Snapshot, StringPool, check, empty_columns


def test_columns_cannot_be_written():
    snap = small()
    with pytest.raises(ValueError, match="read-only"):
        snap["process_pid"][0] = 9
    with pytest.raises(TypeError):
        snap.columns["process_pid"] = np.zeros(3, "<i4")
    with pytest.raises(TypeError):
        snap.host["page_size"] = 1
    with pytest.raises(AttributeError):
        snap.n_processes = 4


def test_empty_columns_are_a_snapshot():
    snap = Snapshot({}, {})
    assert snap.n_processes == 0
    assert set(snap.columns) == set(COLUMNS)
    check(empty_columns())


def test_replace_makes_another_and_leaves_the_first():
    snap = small()
    other = snap.replace(process_euid=[7, 8, 9])
    assert other["process_euid"].tolist() == [7, 8, 9]
    assert snap["process_euid"].tolist() == [0, 0, 0]
    assert other["process_pid"] is snap["process_pid"]
    mine = np.array([1, 2, 3], "<u4")
    third = snap.replace(process_euid=mine)
    mine[0] = 5
    assert third["process_euid"].tolist() == [1, 2, 3]
    for wrong in ({"no_such": [1]}, {"process_euid": [1]}, {"process_mm": [0, 1, 9]}):
        with pytest.raises(SnapshotError):
            snap.replace(**wrong)


@pytest.mark.parametrize("name", sorted(COLUMNS))
def test_every_column_is_checked(name):
    """Of another type, another shape, one longer: refused, and by its name or its table's."""
    columns = dict(small().columns)
    good = columns[name]
    for wrong in (
        good.astype("<f8"),
        good.astype(">i8") if good.dtype != np.dtype(">i8") else good.astype("<f4"),
        good.reshape(1, -1),
        np.append(good, good[-1:] if len(good) else [0]).astype(good.dtype)
        if [c.table for c in COLUMNS.values()].count(COLUMNS[name].table) > 1
        else good.reshape(1, -1),
    ):
        with pytest.raises(SnapshotError) as caught:
            check({**columns, name: wrong})
        assert caught.value.where.split("_")[0] == name.split("_")[0]
    if COLUMNS[name].indptr:
        for wrong in (good[:0], good + 1, np.append(good[:-1], good[-1] + 1)):
            with pytest.raises(SnapshotError, match=name):
                check({**columns, name: wrong.astype(good.dtype)})
    elif COLUMNS[name].refers and len(good):
        for value in (-3, 10**6):
            with pytest.raises(SnapshotError, match=name):
                check({**columns, name: np.full(len(good), value, good.dtype)})
    with pytest.raises(SnapshotError, match="no_such"):
        check({**columns, "no_such": good})


@pytest.mark.parametrize("page", [0, -1, 1.5, "4096", None, True, 1 << 40])
def test_a_page_size_is_a_size(page):
    with pytest.raises(SnapshotError, match="page_size"):
        Snapshot({}, {"page_size": page})


# -- strings

texts = st.one_of(st.binary(max_size=8), st.sampled_from([b"", b"a", b"\xff\n", b"a" * 1000]))


@given(st.lists(st.one_of(st.none(), texts), max_size=20))
def test_strings_come_back_as_bytes(many):
    pool = StringPool()
    rows = pool.add_all(many)
    assert rows.dtype == np.int32
    snap = Snapshot(pool.columns(), {})
    assert [None if r < 0 else snap.bytes(r) for r in rows.tolist()] == many
    assert [pool.text(r) for r in rows.tolist() if r >= 0] == [t for t in many if t is not None]
    assert len(snap["string_indptr"]) - 1 == len({t for t in many if t is not None})
    for row in rows.tolist():
        assert snap.text(row).encode("utf-8", "surrogateescape") == snap.bytes(row)


def test_a_pool_may_be_filled_by_threads():
    pool = StringPool()
    answers = [[] for _ in range(4)]

    def fill(out):
        for i in range(3000):
            out.append(pool.add(b"%d" % (i % 1000)))

    threads = [threading.Thread(target=fill, args=(out,)) for out in answers]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(out == answers[0] for out in answers)
    assert [pool.text(r) for r in answers[0][:1000]] == [b"%d" % i for i in range(1000)]


# -- the ledger


def with_ledger(rows):
    pool = StringPool()
    columns = {
        "ledger_process": np.full(len(rows), -1, "<i4"),
        "ledger_pid": np.array([r[0] for r in rows], "<i4"),
        "ledger_source": pool.add_all([r[1] for r in rows]),
        "ledger_status": np.array([r[2] for r in rows], "<u1"),
        "ledger_count": np.array([r[3] for r in rows], "<i8"),
        "ledger_reason": pool.add_all([r[4] for r in rows]),
    }
    return Snapshot(columns | pool.columns(), {})


def test_the_ledger_tells_what_was_not_read():
    snap = with_ledger(
        [
            (7, b"memory", Status.READ, 0, b""),
            (8, b"memory", Status.DENIED, 0, b"no \xff right"),
            (0, b"memory", Status.PARTIAL, 12, b"frames"),
        ]
    )
    assert len(snap.coverage) == 3
    assert not snap.coverage.complete
    assert [(r.pid, r.status, r.count) for r in snap.coverage.gaps] == [
        (8, "denied", 0),
        (0, "partial", 12),
    ]
    assert snap.coverage[1].reason == "no \udcff right"
    assert [r.pid for r in snap.coverage[1:]] == [8, 0]
    assert snap.coverage[-1].pid == 0
    with pytest.raises(IndexError):
        snap.coverage[3]
    assert snap.coverage.counts() == {
        ("memory", "read"): 1,
        ("memory", "denied"): 1,
        ("memory", "partial"): 1,
    }
    assert with_ledger([(7, b"memory", Status.READ, 0, b"")]).coverage.complete
    assert Snapshot({}, {}).coverage.gaps == []
