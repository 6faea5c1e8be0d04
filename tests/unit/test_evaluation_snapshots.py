"""The saved snapshots of the evaluation: whole, small, and not a word of where they were made."""

from __future__ import annotations

import ipaddress
import re

import pytest
from benchmarks.evaluation.mechanisms import MECHANISMS
from benchmarks.evaluation.publish import publish
from benchmarks.evaluation.saved import SAVED, snapshots

SNAPSHOTS = snapshots()
# What Debian has, what a runtime makes below /run and /var, and the evaluation's own two folders.
PUBLIC = re.compile(
    r"/+(?:bin|dev|etc|lib|proc|sbin|sys|usr|run|var/(?:cache|lib|tmp)|docker|libpod_parent|payload"
    r"|supervisor|tmp|mnt|shared|root/(?:\.apptainer|dev|etc|lib\w*|proc|sys|tmp|usr|x\d+))(?:/|$)"
)
SHORT = re.compile(r"(?:/[\w#.-]+)?/*|(?:/x\d+)+|/\d+/\w+")
PRIVATE = re.compile(r"/(?:home|work|srv|opt|media)/|\.git\b|pytest|\.venv|TOKEN|SECRET|PASSWORD")


def texts(snapshot):
    return [snapshot.text(row) for row in range(len(snapshot["string_indptr"]) - 1)]


def test_every_mechanism_has_a_saved_snapshot_and_nothing_else_is_there():
    assert sorted(p.stem for p in SAVED.glob("*.osm")) == sorted(MECHANISMS)


@pytest.fixture(params=SNAPSHOTS)
def snapshot(request):
    return SNAPSHOTS[request.param]


def test_it_is_small():
    assert max(path.stat().st_size for path in SAVED.glob("*.osm")) < 150_000


def test_it_says_who_is_who(snapshot):
    assert sorted(snapshot.host["roles"].values()) == ["app", "bystander", "db"]
    assert snapshot.host["mechanism"] in MECHANISMS
    model = snapshot.model()
    for role in ("db", "app", "bystander"):
        assert len(model.find(f"role:{role}")) == 1


def test_structure_gives_the_roles_that_the_script_knows(snapshot):
    """The second source: who started whom, as the script of the mechanism saw it."""
    pds = snapshot.model().pds
    keys = zip(pds.pid.tolist(), pds.start_time.tolist(), strict=True)
    role = {f"{pid}:{start}": role for (pid, start), role in zip(keys, pds.role, strict=True)}
    for told, who in snapshot.host["others"].items():
        for process in who:
            if process not in snapshot.host["roles"]:  # a sentry is the container's own process
                assert role[process] == told


def test_it_holds_nothing_of_the_machine_where_it_was_made(snapshot):
    again = publish(snapshot)

    assert texts(again) == texts(snapshot)
    assert dict(again.host) == dict(snapshot.host)


def test_its_strings_are_public(snapshot):
    """A list written out a second time: of each absolute path, how it may begin."""
    for text in texts(snapshot):
        assert not PRIVATE.search(text), text
        for path in re.findall(r"(?:^|(?<=[\0\s,:=]))/[^\0\s,:=]*", text):
            known = PUBLIC.match(path) or SHORT.fullmatch(path) or path.endswith("//deleted")
            assert known, text


def test_its_addresses_are_private(snapshot):
    for prefix in ("address", "socket_local", "socket_remote"):
        columns = snapshot[f"{prefix}_hi"].tolist(), snapshot[f"{prefix}_lo"].tolist()
        for high, low in zip(*columns, strict=True):
            address = ipaddress.IPv6Address(high << 64 | low)
            assert not (address.ipv4_mapped or address).is_global


def test_its_host_is_anybody():
    for snapshot in SNAPSHOTS.values():
        assert snapshot.host["hostname"] == "host"
        assert re.fullmatch(r"[\d.]+", snapshot.host["kernel"])
        assert int(snapshot.host["boot_id"].replace("-", ""), 16).bit_count() == 2
