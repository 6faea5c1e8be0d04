"""What the paper's tool found, beside what is measured, and why a cell is another.

Its findings are from a machine with AppArmor and cgroup version 2. Every cell that differs has
an explanation, and every explanation a witness in the snapshot: without it, or if the cell turns
out different again, the difference is unexplained, and that is reported as a failure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.evaluation.facts import all_of, own_network
from osmosis.model import Model
from osmosis.snapshot import Snapshot

__all__ = ["CLAIMS", "LAYERS", "ROWS", "Claim", "Difference", "Row", "differences", "marks"]

LAYERS = ("mnt", "ipc", "net", "cgroup", "mac", "seccomp", "vm")  # "syscalls" is seccomp here
MARKS = {"separated": "x", "shared": "-", "unknown": "?"}


@dataclass(frozen=True)
class Row:
    """One row of the paper's layer table: what separates the database from another."""

    mechanism: str
    other: str  # a role
    paper: str  # a mark for each of LAYERS


@dataclass(frozen=True)
class Difference:
    """A cell that is not what the paper's tool found; *why* is None if nobody knows."""

    row: Row
    layer: str
    measured: str
    why: str | None


ROWS = (
    Row("processes", "app", "-------"),
    Row("docker", "app", "xxxx---"),
    Row("docker", "daemon", "xxxxxx-"),
    Row("docker-rootless", "app", "xxxx---"),
    Row("podman-rootless", "app", "xxxx---"),
    Row("apptainer", "app", "x--x---"),
    Row("gvisor", "app", "xxxx--x"),
)

Witness = Callable[[Model, Snapshot, str], bool]


def _at(model: Model, snapshot: Snapshot, column: str, role: str) -> int:
    """Return a process column of the first PD with a role; the kernel is row 0 of the PDs."""
    return int(snapshot[column][model.find(f"role:{role}")[0].row - 1])


def _no_labels(model: Model, snapshot: Snapshot, other: str) -> bool:
    """No security module gives labels: the kernel's list has none, and no process has one."""
    loaded = str(snapshot.host.get("lsm") or "")
    labels = {_at(model, snapshot, "process_label", role) for role in ("db", other)}
    return labels == {-1} and not {"apparmor", "selinux", "smack"} & set(loaded.split(","))


def _filters(model: Model, snapshot: Snapshot, other: str) -> bool:
    """Both run under a seccomp filter (2 in /proc/pid/status)."""
    return {_at(model, snapshot, "process_seccomp", role) for role in ("db", other)} == {2}


def _one_cgroup(model: Model, snapshot: Snapshot, other: str) -> bool:
    """/proc/pid/cgroup of both reads the same, every hierarchy."""
    texts = {snapshot.text(_at(model, snapshot, "process_cgroup", r)) for r in ("db", other)}
    return len(texts) == 1 and "\n0::" in "\n" + texts.pop()


def _one_network(model: Model, snapshot: Snapshot, other: str) -> bool:
    """Both are in the network namespace of the host."""
    roles = ("db", other, "host-root")
    return len({_at(model, snapshot, "process_ns_net", role) for role in roles}) == 1


# (layer, what is measured) -> why, and what shows it; the first that is so is the reason.
REASONS: dict[tuple[str, str], tuple[str, Witness]] = {
    ("mac", "-"): (
        "no AppArmor here: the host has no security module that gives labels, so dockerd has none "
        "either and nothing separates",
        _no_labels,
    ),
    ("seccomp", "?"): (
        "both run under a seccomp filter. Linux does not show what a filter lets through, so "
        "whether they are equal is not known; the paper's tool does not read the profile and "
        "says shared",
        _filters,
    ),
    ("cgroup", "-"): (
        "hybrid cgroups: without a delegated cgroup of version 2 (rootless), without systemd "
        "(Apptainer) or with --ignore-cgroups (runsc) the runtime makes none; on the paper's "
        "machine, with version 2 and systemd, it does",
        _one_cgroup,
    ),
    ("net", "-"): (
        "runsc runs with --network=host here: its own network stack needs more than this "
        "machine gives",
        _one_network,
    ),
}


def marks(model: Model, other: str) -> str:
    """Return a mark for each of LAYERS: x separated, - shared, ? not known."""
    found = model.isolation(all_of(model, "db"), all_of(model, other))
    return "".join(MARKS[found[layer].state] for layer in LAYERS)


def differences(row: Row, snapshot: Snapshot) -> list[Difference]:
    """Return the cells of one row that differ, each with its reason if the witness is there."""
    model = snapshot.model()
    out = []
    for layer, theirs, ours in zip(LAYERS, row.paper, marks(model, row.other), strict=True):
        if theirs != ours:
            why, witness = REASONS.get((layer, ours), ("", None))
            known = witness is not None and witness(model, snapshot, row.other)
            out.append(Difference(row, layer, ours, why if known else None))
    return out


# -- what it said beside the layers


@dataclass(frozen=True)
class Claim:
    """One finding of the paper's tool beside the layers, and what is measured."""

    mechanism: str
    claim: str
    holds: bool  # whether the claim is right, by what is measured
    measured: str
    check: Callable[[Model], bool]  # that the measurement is so


def _cannot_kill(model: Model) -> bool:
    pairs = (("db", "app"), ("app", "db"), ("bystander", "db"))
    said = [model.may(f"role:{x}", "kill", f"role:{y}") for x, y in pairs]
    return all(answer.state is False and "pid namespace" in answer.reason for answer in said)


def _can_kill(model: Model) -> bool:
    return all(
        model.may(f"role:{x}", verb, f"role:{y}").state is True
        for x, y in (("db", "app"), ("app", "db"))
        for verb in ("kill", "trace-attach")
    )


def _managers_kill(model: Model) -> bool:
    managers = [*model.find("role:daemon"), *model.find("role:shim")]
    return len(managers) == 5 and all(
        model.may(pd, "kill", f"role:{y}").state is True for pd in managers for y in ("db", "app")
    )


def _read_only_image(model: Model) -> bool:
    x, y = "role:db", "role:app"
    read = model.shares(x, y, types={"MO"}, access="R")
    written = model.shares(x, y, types={"MO", "FILE", "SHM"}, access="W")
    return bool(read) and not written


def _asks_database(model: Model) -> bool:
    net = model.isolation("role:app", "role:db")["net"].state
    return model.pd("role:db") in model.services("role:app") and net == "separated"


def _no_root_daemon(model: Model) -> bool:
    return all(pd.uid != 0 for pd in model.find("role:daemon"))


def _tmp_is_shared(model: Model) -> bool:
    options = {"types": {"MOUNT"}, "access": "W", "potential": True}
    found = model.shared_resources("role:db", **options)
    return model.pd("role:bystander") in found


CLAIMS = (
    Claim(
        "processes",
        "each process can kill the other",
        True,
        "yes, and trace it",
        _can_kill,
    ),
    Claim(
        "docker",
        "each container can kill the other",
        False,
        "no: neither has a pid in the other's pid namespace (kill gives ESRCH); that tool leaves "
        "pid namespaces out",
        _cannot_kill,
    ),
    Claim(
        "docker",
        "dockerd, containerd and the shims can kill both",
        True,
        "yes, all five of them, another container's shim too",
        _managers_kill,
    ),
    Claim(
        "docker",
        "no writable file is shared; the image's pages are shared for reading",
        True,
        "yes: pages of libraries in one image layer, none of them writable",
        _read_only_image,
    ),
    Claim(
        "docker",
        "a client has a REQUEST edge to its server, across network namespaces",
        True,
        "yes, from the connection itself; strangers in one network namespace have none",
        _asks_database,
    ),
    Claim(
        "docker-rootless",
        "no process of uid 0 holds the daemon; one slirp4netns for all",
        True,
        "yes: rootlesskit, dockerd and containerd are the user's",
        lambda m: _no_root_daemon(m) and len(m.find("role:network")) == 1,
    ),
    Claim(
        "podman-rootless",
        "no REQUEST edge to slirp4netns",
        False,
        "each container asks a slirp4netns of its own: the tun device in its network namespace "
        "is the other end of that process's descriptor",
        own_network,
    ),
    Claim(
        "podman-rootless",
        "each container can kill the other",
        False,
        "no, by the pid namespace",
        _cannot_kill,
    ),
    Claim(
        "apptainer",
        "each instance can kill the other",
        False,
        "no: 1.4.5 makes a pid namespace for each instance",
        _cannot_kill,
    ),
    Claim(
        "apptainer",
        "home and /tmp are shared",
        True,
        "yes, as what each could open; nothing was open at that moment",
        _tmp_is_shared,
    ),
)
