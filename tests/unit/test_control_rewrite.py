"""rewrite by columns alone: mounts, modes, text of running programs, and what is not known."""

import numpy as np
import pytest
from control_files import DEV, OWNER, ROOT, TARGET, USER, make

from osmosis.relations.control.table import control
from osmosis.schema import Status


def states(snap) -> tuple:
    table = control(snap)
    relation = table.relation("rewrite", effective=True)
    for i in range(1, 5):
        for j in range(1, 5):
            if i != j:
                found = table.finding("rewrite", i, j, effective=True)
                assert found.state is relation.state(i, j)
    return tuple(relation.state(i, TARGET) for i in (ROOT, USER, OWNER))


OTHER = (9 << 32) | 1


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, (True, False, True)),
        ({"mode": 0o666}, (True, True, True)),
        ({"mode": 0o466}, (True, True, False)),
        ({"flags": 1}, (False, False, False)),  # the text of a running program
        ({"flags": 1, "kernel": "6.12.3"}, (None, False, None)),
        ({"flags": 2}, (False, False, False)),  # immutable
        ({"flags": 4, "mode": 0o664}, (True, None, True)),  # an ACL
        ({"clear": None}, (True, False, None)),  # a directory that is not everybody's
        ({"clear": "/lib"}, (True, False, None)),
        ({"status": Status.SKIPPED}, (False, False, False)),
        ({"status": Status.GONE}, (None, None, None)),
        ({"mounts": [(1, 0, DEV, "/", "/", 1)]}, (False, False, False)),
        ({"mounts": [(1, 0, DEV, "/", "/", 2)]}, (False, False, False)),
        ({"mounts": [(1, 0, OTHER, "/", "/", 0)]}, (False, False, False)),
        ({"mounts": [(1, 0, DEV, "/home", "/", 0)]}, (False, False, False)),
        ({"mounts": [(1, 0, DEV, "/home", "/", 0)], "links": 2}, (None, False, None)),
        # Covered, and covered but seen elsewhere.
        ({"mounts": [(1, 0, DEV, "/", "/", 0), (2, 1, OTHER, "/", "/lib", 0)]}, (False,) * 3),
        (
            {
                "mounts": [
                    (1, 0, DEV, "/", "/", 0),
                    (2, 1, OTHER, "/", "/lib", 0),
                    (3, 1, DEV, "/lib", "/mnt", 0),
                ]
            },
            (True, False, True),
        ),
        # What else it maps was not asked for; what is known to be mapped still counts.
        ({"sources": ["control", "namespaces"]}, (True, None, True)),
    ],
)
def test_who_may_rewrite(facts, expected):
    assert states(make(**facts)) == expected


def test_a_process_whose_maps_were_not_read_is_unknown():
    snap = make()
    status = np.full(len(snap["mm_status"]), Status.DENIED, np.uint8)

    snap = snap.replace(mm_status=status)
    assert states(snap) == (True, None, True)  # by the file that is known

    assert states(snap.replace(vma_object=np.full(1, -1, np.int32))) == (None, None, None)


def test_an_actor_whose_mounts_were_not_read_is_unknown_where_the_mode_allows():
    snap = make()
    tree = np.full(4, -1, np.int32)

    assert states(snap.replace(treemember_tree=tree)) == (None, False, None)
