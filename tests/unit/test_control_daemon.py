"""daemon by columns alone: who listens, by what name, who may connect, what polkit is asked."""

import numpy as np
import pytest
from control_files import OWNER, ROOT, TARGET, USER, make

from osmosis.relations.control.table import control
from osmosis.schema import COLUMNS, OpenKind, Status

SOCKET = 0o140000


def listening(
    program: str, path: str, *, trusted=1, daemon=ROOT, held=(), read=True, systemd=0, **facts
):
    """The file is the socket of a daemon: the process of row *daemon*, root unless said.

    The process of row *systemd*, if there is one, is systemd and pid 1.
    """
    snap = make(**facts)
    texts = [bytes(snap.bytes(k)) for k in range(len(snap["string_indptr"]) - 1)]
    exe = [len(texts) if row + 1 == systemd else -1 for row in range(snap.n_processes)]
    texts += [b"/usr/lib/systemd/systemd", program.encode(), path.encode()]
    numbers = snap["nspid_pid"].copy()
    if systemd:
        numbers[snap["process_nspid_indptr"][systemd] - 1] = 1
    columns = {
        "process_exe": exe,
        "nspid_pid": numbers,
        "ctlfile_object": [-1],
        "ctlfile_socket": [0],
        "ctlfile_mode": [int(snap["ctlfile_mode"][0]) & 0o777 | SOCKET],
        "vma_object": [-1],
        "daemon_process": [daemon - 1],
        "daemon_file": [0],
        "daemon_name": [len(texts) - 2],
        "daemon_trusted": [trusted],
        # The listening socket, and a connection that somebody holds the other end of.
        "socket_inode": [70, 71],
        "socket_family": [1, 1],
        "socket_state": [10, 1],
        "socket_vfs_inode": [5, 5],
        "socket_peer": [0, 72],
        "socket_name": [len(texts) - 1] * 2,
        "fd_process": [*([daemon - 1] if read else []), *(row - 1 for row in held)],
        "fd_open": [*([1] if read else []), *(0 for _ in held)],
        "open_kind": [OpenKind.SOCKET] * 2,
        "open_inode": [72, 70],
        "string_indptr": np.cumsum([0, *map(len, texts)]),
        "byte_data": np.frombuffer(b"".join(texts), np.uint8),
    }
    length = {COLUMNS[k].table: len(v) for k, v in columns.items()}
    for name, column in COLUMNS.items():
        if column.table in ("daemon", "socket", "fd", "open") and name not in columns:
            columns[name] = [-1 if column.refers else 0] * length[column.table]
    return snap.replace(
        **{name: np.asarray(list(v), COLUMNS[name].dtype) for name, v in columns.items()}
    )


def states(snap) -> tuple:
    """Of the user and the socket's owner, over a process of root."""
    table = control(snap)
    relation = table.relation("daemon", effective=True)
    for i in range(1, 5):
        for j in range(1, 5):
            if i != j:
                found = table.finding("daemon", i, j, effective=True)
                assert found.state is relation.state(i, j)
    return relation.state(USER, TARGET), relation.state(OWNER, TARGET)


@pytest.mark.parametrize(
    ("program", "path", "expected"),
    [
        ("dockerd", "/run/docker.sock", (False, True)),
        ("dockerd", "/run/docker.sock\0", (False, True)),
        ("dockerd", "/srv/api", (False, None)),
        ("dockerd", "/run/docker/libnetwork/0123.sock", (False, False)),
        ("dockerd", "/run/docker/metrics.sock", (False, False)),
        ("containerd", "/run/containerd/containerd.sock", (False, True)),
        ("containerd", "/run/containerd/containerd.sock.ttrpc", (False, False)),
        ("podman", "/run/podman/podman.sock", (False, True)),
        ("crio", "/run/crio/crio.sock", (False, True)),
        ("libvirtd", "/run/libvirt/libvirt-sock", (False, None)),
        ("snapd", "/run/snapd.socket", (False, None)),
        ("systemd", "/run/systemd/private", (False, None)),
        ("systemd", "/run/systemd/notify", (False, False)),
        ("systemd", "/run/docker.sock", (False, None)),
        ("sleep", "/run/docker.sock", (False, False)),
    ],
)
def test_what_listens_where(program, path, expected):
    assert states(listening(program, path)) == expected


def test_anybody_may_have_given_a_program_that_name():
    assert states(listening("dockerd", "/run/docker.sock", trusted=0)) == (False, None)


def test_a_read_only_mount_does_not_stop_a_connection():
    mounts = [(1, 0, 8 << 32 | 1, "/", "/", 1)]

    assert states(listening("dockerd", "/run/docker.sock", mounts=mounts)) == (False, True)


def test_a_connection_held_is_as_good():
    assert states(listening("dockerd", "/run/docker.sock", held=[USER])) == (True, True)


def test_the_power_of_a_rootless_daemon_is_its_users():
    snap = listening("podman", "/run/user/1001/podman.sock", daemon=OWNER)
    relation = control(snap).relation("daemon", effective=True)

    assert relation.state(ROOT, OWNER) is True
    assert relation.state(ROOT, TARGET) is not True


def test_polkit_is_not_asked_about_root():
    snap = listening("snapd", "/run/snapd.socket", daemon=TARGET)
    relation = control(snap).relation("daemon", effective=True)

    assert relation.state(ROOT, TARGET) is True
    assert relation.state(OWNER, TARGET) is None


BUS = "/run/dbus/system_bus_socket"


@pytest.mark.parametrize("program", ["dbus-daemon", "dbus-broker", "dbus-broker-launch"])
def test_the_system_bus_leads_to_the_systemd_that_is_on_it(program):
    """Its power is asked for: root gets it, of others polkit decides, if they reach the bus."""
    snap = listening(program, BUS, daemon=TARGET, systemd=ROOT, held=[ROOT], mode=0o666)
    snap = snap.replace(**fds_of_all(snap))
    relation = control(snap).relation("daemon", effective=True)
    assert relation.state(ROOT, TARGET) is True
    assert relation.state(USER, TARGET) is relation.state(OWNER, TARGET) is None
    found = control(snap).finding("daemon", USER, TARGET, effective=True)
    assert "polkit" in found.reason
    # Who cannot reach the socket of the bus is not in doubt.
    shut = listening(program, BUS, daemon=TARGET, systemd=ROOT, held=[ROOT], mode=0o600)
    assert states(shut.replace(**fds_of_all(shut))) == (False, None)


def test_a_bus_that_systemd_is_not_on_leads_to_nobody():
    for systemd in (0, ROOT):
        snap = listening("dbus-daemon", BUS, daemon=TARGET, systemd=systemd, mode=0o666)
        assert states(snap.replace(**fds_of_all(snap))) == (False, False)
    # Where its descriptors were not read, it may be.
    assert states(snap) == (None, None)


def fds_of_all(snap):
    """Say that the descriptors of all processes were read."""
    n = snap.n_processes
    columns = {name: np.zeros(n) for name, c in COLUMNS.items() if c.table == "fdtable"}
    columns["fdtable_process"] = np.arange(n)
    columns["fdtable_status"] = np.full(n, Status.READ)
    return {name: v.astype(COLUMNS[name].dtype) for name, v in columns.items()}


def test_a_daemon_whose_descriptors_were_not_read_may_be_anybody():
    snap = listening("dockerd", "/run/docker.sock", read=False)
    nobody = {name: snap[name][:0] for name, column in COLUMNS.items() if column.table == "daemon"}

    assert states(snap.replace(**nobody)) == (None, None)


def test_without_its_sources_it_is_unknown():
    snap = listening("sleep", "/x", sources=["control", "namespaces", "memory", "mounts"])

    assert states(snap) == (None, None)
