"""Names of processes from hand-built columns: what the structure of each runtime tells."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmosis.relations.cgroup_path import read_cgroup
from osmosis.relations.cmdline import monitor
from osmosis.relations.roles import Roles, name
from osmosis.schema import COLUMNS, NO_ID, OpenKind
from osmosis.snapshot import Snapshot, StringPool, empty_columns

ID = "c0de52e6356f1b91199c132de6b7bce0c4ac1040dd97fd2be12d58f7cc4522d3"
OTHER = "e127e523fe5ea4b61ed70e9565bda1688f4e42c3b61099ec33f3a30c700f166b"
POD = "pod3fa0b3b1-7f2b-4c1e-9d0e-1a2b3c4d5e6f"
HOST = (0, 1, 2)  # rows of the first mnt, pid and user namespace


@dataclass
class P:
    """One process of a hand-made host."""

    pid: int
    ppid: int = 1
    exe: str | None = "/usr/bin/sleep"
    argv: tuple[str, ...] = ()
    cgroup: str = "0::/\n"
    ns: tuple[int, int, int] = HOST  # mnt, pid, user
    uid: int = 0
    root: tuple[int, int] = (65024, 2)
    comm: str = "x"
    uids: tuple[int, int, int] | None = None
    seccomp: int = 0
    does: str | None = None  # "listen", "udp", "tun", "fuse", "idle"; None: not captured


@dataclass
class Host:
    rows: list[P]
    facts: dict[str, Any] = field(default_factory=dict)
    owners: dict[int, int] = field(default_factory=dict)  # of user namespaces: uid that made it

    @staticmethod
    def work(rows: list[P], columns: dict[str, Any]) -> None:
        """Give each process whose work is known one socket, device, or both."""
        held = [(r, p.does) for r, p in enumerate(rows) if p.does is not None]
        n = len(held)

        def table(what: str, size: int, **values: Any) -> None:
            for full, column in COLUMNS.items():
                if column.table == what and column.indptr is None:
                    missing = -1 if column.refers else 0
                    given = values.get(full.removeprefix(f"{what}_"), missing)
                    columns[full] = np.broadcast_to(np.array(given, column.dtype), (size,)).copy()

        inodes = np.arange(1, n + 1)
        states = [10 if does == "listen" else 7 for _, does in held]
        types = [2 if does == "udp" else 1 for _, does in held]
        table("socket", n, inode=inodes, family=2, state=states, type=types, local_port=53)
        table("open", n, kind=OpenKind.SOCKET, inode=inodes)
        table("fd", n, process=[r for r, _ in held], open=np.arange(n))
        for device, work in (("tap", "tun"), ("fuse", "fuse")):
            who = [r for r, does in held if does == work]
            table(device, len(who), process=who)

    def snapshot(self) -> Snapshot:
        rows = sorted(self.rows, key=lambda p: p.pid)
        n, pool, columns = len(rows), StringPool(), empty_columns()
        for full, column in COLUMNS.items():
            if column.table == "process":
                fill = -1 if column.refers and column.dtype == "<i4" else 0
                columns[full] = np.full(n + (column.indptr is not None), fill, column.dtype)
                if column.indptr:
                    columns[full][:] = 0

        def put(column: str, values: list[Any]) -> None:
            full = f"process_{column}"
            columns[full] = np.array(values, COLUMNS[full].dtype)

        put("pid", [p.pid for p in rows])
        put("ppid", [p.ppid for p in rows])
        put("start_time", [p.pid * 10 for p in rows])
        for k, uid in enumerate(("ruid", "euid", "suid")):
            put(uid, [(p.uids or (p.uid,) * 3)[k] for p in rows])
        put("comm", [pool.add(p.comm.encode()) for p in rows])
        put(
            "exe",
            [pool.add(p.exe.encode("utf-8", "surrogateescape") if p.exe else None) for p in rows],
        )
        argv = [
            b"".join(a.encode("utf-8", "surrogateescape") + b"\0" for a in p.argv) for p in rows
        ]
        put("cmdline", [pool.add(a) for a in argv])
        put("cgroup", [pool.add(p.cgroup.encode("utf-8", "surrogateescape")) for p in rows])
        put("root_dev", [p.root[0] for p in rows])
        put("root_inode", [p.root[1] for p in rows])
        top = max(HOST + tuple(k for p in rows for k in p.ns)) + 1
        for k, kind in enumerate(("mnt", "pid", "user")):
            put(f"ns_{kind}", [p.ns[k] for p in rows])
        for full, column in COLUMNS.items():
            if column.table == "namespace":
                columns[full] = np.full(top, 0, column.dtype)
        columns["namespace_parent"] = np.full(top, 1, "<i4")
        columns["namespace_parent"][:3] = -1
        columns["namespace_user"] = np.full(top, -1, "<i4")
        columns["namespace_owner"] = np.array(
            [self.owners.get(k, NO_ID) for k in range(top)], "<u4"
        )
        put("seccomp", [p.seccomp for p in rows])
        self.work(rows, columns)
        return Snapshot({**columns, **pool.columns()}, self.facts)

    def roles(self) -> Named:
        return Named([p.pid for p in sorted(self.rows, key=lambda p: p.pid)], name(self.snapshot()))


@dataclass
class Named:
    pids: list[int]
    roles: Roles

    def __call__(self, pid: int, what: str = "container") -> Any:
        return getattr(self.roles, what)[self.pids.index(pid)]


def host(*rows: P, **facts: Any) -> Named:
    init = P(1, 0, "/usr/lib/systemd/systemd", ("/sbin/init",), "0::/init.scope\n")
    return Host([init, *rows], facts).roles()


def shim(pid: int, ident: str, space: str = "moby", **more: Any) -> P:
    argv = ("/usr/bin/containerd-shim-runc-v2", "-namespace", space, "-id", ident, "-address", "s")
    return P(pid, 1, argv[0], argv, **more)


def conmon(pid: int, ident: str, label: str, ppid: int = 1, **more: Any) -> P:
    argv = (
        "/usr/bin/conmon",
        "--api-version",
        "1",
        "-c",
        ident,
        "-u",
        ident,
        "-r",
        "/usr/bin/runc",
    )
    return P(pid, ppid, argv[0], (*argv, "-n", label, "--exit-dir", "/run/libpod/exits"), **more)


FORMS = [
    # Docker
    (f"0::/system.slice/docker-{ID}.scope\n", "docker", ID),
    (f"0::/docker/{ID}\n", "docker", ID),
    (
        f"12:pids:/docker/{ID}\n1:name=systemd:/docker/{ID}\n0::/system.slice/x.service\n",
        "docker",
        ID,
    ),
    (f"4:memory:/docker/{ID}\n0::/\n", "docker", ID),
    (f"0::/../../docker-{ID}.scope\n", "docker", ID),
    (f"0::/docker/{ID}/system.slice/ssh.service\n", "docker", ID),
    (f"0::/docker/{ID}/docker/{OTHER}\n", "docker", ID),  # in a container: the outer one
    (f"0::/ecs/a1b2/{ID}\n", "oci", ID),
    # Podman
    (f"0::/machine.slice/libpod-{ID}.scope\n", "podman", ID),
    (f"0::/machine.slice/libpod-{ID}.scope/container\n", "podman", ID),
    (f"0::/libpod_parent/libpod-{ID}\n", "podman", ID),
    (
        f"0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope\n",
        "podman",
        ID,
    ),
    (f"0::/system.slice/web.service/libpod-payload-{ID}\n", "podman", ID),
    # Kubernetes
    (
        f"0::/kubepods.slice/kubepods-burstable.slice/x.slice/cri-containerd-{ID}.scope\n",
        "containerd",
        ID,
    ),
    (
        f"0::/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:{ID}\n",
        "containerd",
        ID,
    ),
    (f"0::/kubepods.slice/kubepods-pod1.slice/crio-{ID}.scope\n", "cri-o", ID),
    (f"0::/kubepods.slice/kubepods-pod1.slice/docker-{ID}.scope\n", "docker", ID),
    (f"0::/kubepods/besteffort/{POD}/{ID}\n", "kubepods", ID),
    (f"0::/kubepods/burstable/{POD}/crio-{ID}\n", "cri-o", ID),
    # LXC and nspawn
    ("0::/lxc/web\n", "lxc", "web"),
    ("0::/lxc.payload.web/init.scope\n", "lxc", "web"),
    ("0::/lxc.payload/web\n", "lxc", "web"),
    ("0::/machine.slice/systemd-nspawn@web.service/payload/init.scope\n", "systemd-nspawn", "web"),
    ("0::/machine.slice/machine-my\\x2dweb.scope\n", "systemd-nspawn", "my-web"),
    ("0::/machine.slice/machine-lxc\\x2d12\\x2dweb.scope\n", "libvirt-lxc", "web"),
    # none
    ("0::/machine.slice/machine-qemu\\x2d1\\x2dweb.scope\n", None, None),
    ("0::/user.slice/user-1000.slice/session-2.scope\n", None, None),
    (f"0::/docker-{ID[:40]}.scope\n", None, None),
    ("0::/docker\n", None, None),
    ("0::/\n", None, None),
    ("", None, None),
    ("nonsense", None, None),
]


@pytest.mark.parametrize(("text", "runtime", "ident"), FORMS)
def test_the_cgroup_path_names_the_container(text, runtime, ident):
    facts = read_cgroup(text)

    assert (facts.runtime, facts.container, facts.monitor) == (runtime, ident, False)


@pytest.mark.parametrize(
    "text",
    [
        f"0::/machine.slice/libpod-conmon-{ID}.scope\n",
        f"0::/kubepods.slice/crio-conmon-{ID}.scope\n",
        "0::/lxc.monitor.web\n",
        "0::/lxc.monitor/web\n",
        "0::/machine.slice/systemd-nspawn@web.service/supervisor\n",
    ],
)
def test_a_monitors_own_cgroup_is_not_the_container(text):
    assert read_cgroup(text).monitor

    assert host(P(50, cgroup=text))(50) is None


@pytest.mark.parametrize(
    ("text", "unit", "user_unit"),
    [
        ("0::/system.slice/ssh.service\n", "ssh.service", None),
        ("0::/system.slice/system-getty.slice/getty@tty1.service\n", "getty@tty1.service", None),
        ("0::/init.scope\n", "init.scope", None),
        ("1:name=systemd:/system.slice/a.service\n0::/\n", "a.service", None),
        ("0::/user.slice/user-1000.slice/session-2.scope\n", "session-2.scope", None),
        (
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/ssh.service\n",
            "user@1000.service",
            "ssh.service",  # the user's, never the host's
        ),
        ("0::/user.slice/user-7.slice/user@7.service/init.scope\n", "user@7.service", None),
        (f"0::/docker/{ID}/system.slice/ssh.service\n", None, None),  # a container's own systemd
        ("0::/foo/ssh.service\n", None, None),
        ("0::/\n", None, None),
    ],
)
def test_the_unit_is_what_systemd_reads(text, unit, user_unit):
    facts = read_cgroup(text)

    assert (facts.unit, facts.user_unit) == (unit, user_unit)


def test_docker():
    path = f"1:name=systemd:/docker/{ID}\n0::/docker/{ID}\n"
    h = host(
        P(40, 1, "/usr/sbin/dockerd", ("dockerd",)),
        P(41, 40, "/usr/bin/containerd", ("containerd", "--config", "x")),
        P(42, 40, "/usr/bin/docker-proxy", ("/usr/bin/docker-proxy", "-proto", "tcp")),
        shim(50, ID),
        P(51, 50, "/usr/bin/redis-server", ("redis-server",), path, (3, 4, 2), root=(39, 5)),
        P(52, 51, "/usr/bin/sh", ("sh",), path, (3, 4, 2), root=(39, 5)),
    )

    assert [h(p) for p in (40, 41, 50, 51, 52)] == [None, None, None, ID[:12], ID[:12]]
    assert h(51, "aliases") == (ID[:12], ID)
    assert h(51, "container_runtime") == "docker"
    assert h(50, "monitors") == (ID[:12],)
    want = ["daemon", "daemon", "network", "shim", "container", "container"]
    assert [h(p, "role") for p in (40, 41, 42, 50, 51, 52)] == want


def test_names_that_people_gave_come_first():
    path = f"0::/docker/{ID}\n"
    rows = (shim(50, ID), P(51, 50, cgroup=path, ns=(3, 4, 2)))

    h = host(*rows, containers={ID: "web"}, roles={"51": "db"}, users={"0": "root"})

    assert h(51, "aliases") == ("web", ID[:12], ID)
    assert (h(51, "role"), h(51, "user")) == ("db", "root")


@pytest.mark.parametrize("key", ["51", "51:510", "boot-1/51/510"])
def test_a_given_role_goes_by_pid_and_start_time(key):
    assert host(P(51), roles={key: "db"})(51, "role") == "db"


def test_a_given_role_is_not_for_a_later_process_with_that_pid():
    assert host(P(51), roles={"51:9": "db"})(51, "role") == "host-root"


def test_rootless_podman_without_cgroups():
    user, inner = (3, 1, 5), (6, 7, 5)
    h = host(
        P(40, 1, "/usr/bin/podman", ("podman",), ns=user, uid=1001),
        P(41, 1, "/usr/bin/slirp4netns", ("slirp4netns",), ns=(9, 1, 5), uid=1001, does="tun"),
        P(42, 1, "/usr/lib/podman/rootlessport", (), ns=user, uid=1001, does="listen"),
        P(43, 42, "/usr/lib/podman/rootlessport", (), ns=user, uid=1001, does="idle"),
        conmon(50, ID, "web", ns=user, uid=1001),
        P(51, 50, "/usr/bin/redis-server", ("redis",), ns=inner, uid=1001, root=(65024, 99)),
        P(52, 51, "/usr/bin/sh", ("sh",), ns=inner, uid=101000, root=(65024, 99)),
        users={"1001": "ann"},
    )

    assert [h(p) for p in (40, 41, 42, 50, 51, 52)] == [None] * 4 + ["web", "web"]
    assert h(52, "aliases") == ("web", ID[:12], ID)
    assert h(51, "container_runtime") == "podman"
    want = ["helper", "network", "network", "network", "shim", "container"]
    assert [h(p, "role") for p in (40, 41, 42, 43, 50, 51)] == want
    assert (h(51, "user"), h(52, "user")) == ("ann", "101000")


def test_podman_exec_is_in_the_same_container():
    path = f"0::/libpod_parent/libpod-{ID}\n"
    h = host(
        conmon(50, ID, "web"),
        P(51, 50, cgroup=path, ns=(6, 7, 2)),
        conmon(60, ID, "web"),  # of the exec session
        P(61, 60, cgroup=path, ns=(6, 7, 2)),
    )

    assert (h(51), h(61)) == ("web", "web")
    assert (h(50, "monitors"), h(60, "monitors")) == (("web",), ("web",))


def test_cri_o():
    argv = ("conmon", "-c", ID, "-n", "k8s_web", "--exit-dir", "/var/run/crio/exits")
    path = f"0::/kubepods.slice/kubepods-pod1.slice/crio-{ID}.scope\n"
    h = host(P(50, 1, "/usr/bin/conmon", argv), P(51, 50, cgroup=path, ns=(6, 7, 2)))

    assert (h(51), h(51, "container_runtime"), h(50, "role")) == ("k8s_web", "cri-o", "shim")


def test_containerds_pod_shim_serves_several_containers():
    pod = f"0::/kubepods/besteffort/{POD}/"
    h = host(
        shim(50, ID, "k8s.io"),
        P(51, 50, cgroup=f"{pod}{ID}\n", ns=(3, 4, 2)),
        P(52, 50, cgroup=f"{pod}{OTHER}\n", ns=(5, 6, 2)),
    )

    assert (h(51), h(52)) == (ID[:12], OTHER[:12])
    assert set(h(50, "monitors")) == {ID[:12], OTHER[:12]}
    assert h(52, "container_runtime") == "containerd"


def test_a_container_of_ctr_has_only_its_shim_to_name_it():
    h = host(shim(50, "web", "default"), P(51, 50, cgroup="0::/default/web\n", ns=(3, 4, 2)))

    assert (h(51), h(51, "container_runtime")) == ("web", "containerd")


def test_bubblewrap_has_no_cgroup():
    box, inner = ("bwrap", "--unshare-all", "--ro-bind", "/", "/"), (3, 4, 5)
    h = host(
        P(50, 1, "/usr/bin/bwrap", box, uid=7),
        P(51, 50, "/usr/bin/bwrap", box, ns=inner, uid=7),
        P(52, 51, "/usr/bin/redis-server", ("redis-server",), ns=inner, uid=7),
        P(60, 1, "/usr/bin/bwrap", box, uid=7),
        P(61, 60, "/usr/bin/bwrap", box, ns=(6, 7, 8), uid=7),
    )

    assert [h(p) for p in (50, 51, 52, 61)] == [None, *["bubblewrap-50"] * 2, "bubblewrap-60"]
    assert h(52, "container_runtime") == "bubblewrap"
    assert [h(p, "role") for p in (50, 51, 52)] == ["shim", "container", "container"]


def test_apptainers_instance_and_what_was_executed_in_it():
    starter, tree = "/usr/lib/x86_64-linux-gnu/apptainer/bin/starter", (65024, 77)
    h = host(
        P(50, 1, starter, ("Apptainer instance: root [db]",), ns=(3, 1, 2), root=tree),
        P(51, 50, starter, ("appinit",), ns=(4, 5, 2), root=(41, 2)),
        P(30, 1, "/usr/bin/sleep", ("sleep",), ns=(9, 1, 2), root=tree),
        P(60, 30, starter, ("Apptainer runtime parent: ",), ns=(6, 1, 2), root=tree),
        P(61, 60, "/usr/bin/redis-server", ("redis",), ns=(4, 5, 2), root=(41, 2)),
        P(62, 61, "/usr/bin/sh", ("sh",), ns=(4, 5, 2), root=(41, 2)),
    )

    assert [h(p) for p in (51, 61, 62)] == ["db"] * 3
    assert {h(p, "container_runtime") for p in (51, 61, 62)} == {"apptainer"}
    want = ["shim", "shim", "shim", "container"]
    assert [h(p, "role") for p in (50, 51, 60, 61)] == want
    assert h(30, "container_runtime") == "namespaces"  # a tree of its own, no runtime known


def test_nspawn_without_machined():
    argv = ("systemd-nspawn", "-q", "--register=no", "-D", "/srv/web/", "--keep-unit", "mysqld")
    argv += ("-M", "evil")  # the payload's own option
    h = host(
        P(50, 1, "/usr/bin/systemd-nspawn", argv, "0::/supervisor\n"),
        P(51, 50, "/usr/bin/mysqld", ("mysqld",), "0::/payload\n", (3, 4, 2)),
    )

    assert (h(51), h(51, "container_runtime"), h(50, "role")) == ("web", "systemd-nspawn", "shim")


@pytest.mark.parametrize(
    ("argv", "want"),
    [
        (("systemd-nspawn", "-Mweb", "-D", "/x"), "web"),
        (("systemd-nspawn", "--machine", "web", "-bD", "/x"), "web"),
        (("systemd-nspawn", "-bD", "/srv/web"), "web"),
        (("systemd-nspawn", "-u", "-M", "-D/srv/web"), "web"),  # -M is -u's value
        (("systemd-nspawn", "--directory=/srv/web", "--", "-Mx"), "web"),
        (("systemd-nspawn", "--bind", "--machine=x", "-i", "/srv/web.raw"), "web.raw"),
        (("systemd-nspawn",), None),
    ],
)
def test_nspawns_options(argv, want):
    assert monitor("systemd-nspawn", argv).name == want


def test_lxc():
    title = ("[lxc monitor] /var/lib/lxc web",)
    h = host(
        P(50, 1, "/usr/bin/lxc-start", title, "0::/lxc.monitor.web\n"),
        P(51, 50, "/sbin/init", ("init",), "0::/lxc.payload.web\n", (3, 4, 5), uid=100000),
    )

    assert (h(51), h(51, "container_runtime"), h(50, "role")) == ("web", "lxc", "shim")
    assert h(50, "monitors") == ("web",)


RUNSC = "/usr/bin/runsc"


def gvisor(gofer_ns: tuple[int, int, int], seccomp: int = 2) -> Named:
    boot = ("runsc-sandbox", "--root=/r", "boot", "--bundle=/b", ID)
    gofer = ("runsc-gofer", "--root=/r", "gofer")
    return host(
        shim(50, ID),
        P(51, 50, RUNSC, gofer, ns=gofer_ns, root=(39, 7), seccomp=seccomp),
        P(52, 50, RUNSC, boot, ns=(6, 1, 2), root=(43, 1), seccomp=seccomp),
        P(53, 52, RUNSC, (), ns=(6, 1, 2), root=(43, 1)),
    )


def test_a_users_sandbox_below_a_parent_that_is_root():
    """cron, su: a user's process has root for a parent, and names of its own."""
    some = {"uid": 1000, "seccomp": 2}
    rows = [
        P(1, 0, "/usr/lib/systemd/systemd", ("/sbin/init",)),
        P(50, 1, "/usr/sbin/cron", ("cron",)),
        P(51, 50, RUNSC, ("runsc", "gofer"), ns=(3, 4, 9), root=(39, 7), **some),
        P(52, 50, RUNSC, ("runsc", "boot", ID), ns=(6, 5, 9), root=(43, 1), **some),
    ]

    h = Host(rows, owners={9: 1000}).roles()

    assert [h(p, "role") for p in (51, 52)] == ["container", "container"]
    assert h(52, "container_runtime") == "namespaces"


def test_gvisor_under_docker():
    h = gvisor((3, 4, 2))

    assert [h(p) for p in (51, 52, 53)] == [ID[:12]] * 3
    assert [h(p, "role") for p in (51, 52, 53)] == ["gofer", "sentry", "container"]
    assert {h(p, "container_runtime") for p in (51, 52, 53)} == {"gvisor"}


@pytest.mark.parametrize(
    "lie",
    [
        {"gofer_ns": (6, 1, 2)},  # both in the container's one mount namespace
        {"gofer_ns": (3, 4, 2), "seccomp": 0},  # neither filters its system calls
    ],
)
def test_an_image_with_a_program_called_runsc_is_no_sentry(lie):
    h = gvisor(**lie)

    assert [h(p, "role") for p in (51, 52)] == ["container", "container"]
    assert h(52, "container_runtime") == "docker"


@pytest.mark.parametrize(
    ("exe", "role"),
    [
        ("/usr/bin/qemu-system-x86_64", "vmm"),
        ("/usr/local/bin/firecracker (deleted)", "vmm"),
        ("/home/ann/firecracker", "host-root"),
        ("/usr/bin/qemu-img", "host-root"),
    ],
)
def test_a_hypervisor_is_one_where_root_put_it(exe, role):
    assert host(P(50, 1, exe, ("x",)))(50, "role") == role


def gvisor_alone(uid: int, owner: int | None = None) -> Named:
    """A sentry and a gofer that init has adopted: of *uid*, in a user namespace by *owner*."""
    user = 2 if owner is None else 9
    boot = ("runsc-sandbox", "--root=/r", "boot", "--bundle=/b", "web")
    gofer = ("runsc-gofer", "gofer", "--bundle=/b/web")
    init = P(1, 0, "/usr/lib/systemd/systemd", ("/sbin/init",), "0::/init.scope\n")
    some = {"uid": uid, "seccomp": 2}
    rows = [
        init,
        P(51, 1, RUNSC, gofer, ns=(3, 4, user), root=(39, 7), **some),
        P(52, 1, RUNSC, boot, ns=(6, 5, user), root=(43, 1), **some),
    ]
    return Host(rows, owners={} if owner is None else {9: owner}).roles()


@pytest.mark.parametrize(("uid", "owner"), [(0, None), (65534, 0)])
def test_gvisor_alone(uid, owner):
    h = gvisor_alone(uid, owner)

    assert (h(51), h(52)) == ("web", "web")
    assert [h(p, "role") for p in (51, 52)] == ["gofer", "sentry"]
    assert h(52, "container_runtime") == "gvisor"


@pytest.mark.parametrize(("uid", "owner"), [(1000, None), (1000, 1000), (0, 1000), (1000, NO_ID)])
def test_a_users_own_sandbox_is_no_sentry_by_its_word(uid, owner):
    h = gvisor_alone(uid, owner)

    assert [h(p, "role") for p in (51, 52)] == ["container", "container"]
    assert {h(p, "container_runtime") for p in (51, 52)} == {"namespaces"}


def test_a_gofer_is_in_the_container_of_the_sentry_of_its_bundle():
    def pair(pid, bundle, ident):
        boot = ("runsc-sandbox", "boot", f"--bundle={bundle}", ident)
        gofer = ("runsc-gofer", "gofer", "--bundle", bundle)
        return (
            P(pid, 1, RUNSC, gofer, ns=(pid, 4, 2), root=(39, 7), seccomp=2),
            P(pid + 1, 1, RUNSC, boot, ns=(pid + 1, 5, 2), root=(43, 1), seccomp=2),
        )

    h = host(*pair(51, "/run/b", "web"), *pair(61, "/run/c", "db"))

    assert [h(p) for p in (51, 52, 61, 62)] == ["web", "web", "db", "db"]
    assert [h(p, "role") for p in (51, 52)] == ["gofer", "sentry"]


def test_the_topmost_process_of_unknown_namespaces():
    h = host(
        P(50, 1, "/usr/bin/bash", ("bash",), uid=7),
        P(51, 50, "/opt/box", ("box",), ns=(3, 4, 5), uid=7),
        P(52, 51, "/opt/box", ("box",), ns=(6, 7, 8), uid=7),
        users={"7": "ann"},
    )

    assert (h(50), h(51), h(52)) == (None, "ns-51", "ns-51")
    assert h(51, "container_runtime") == "namespaces"


@pytest.mark.parametrize(
    ("ns", "root", "inside"),
    [
        ((3, 1, 2), (65024, 2), False),  # PrivateTmp=, ProtectSystem=: systemd's own mount table
        ((3, 1, 9), (65024, 2), False),  # PrivateUsers=
        ((3, 1, 2), (65024, 77), True),  # another root
        ((3, 4, 2), (65024, 2), True),  # another pid namespace
    ],
)
def test_a_hardened_service_is_no_container(ns, root, inside):
    path = "0::/system.slice/web.service\n"

    h = host(P(50, 1, "/usr/sbin/web", ("web",), path, ns, root=root))

    assert (h(50) is not None) == inside
    assert h(50, "unit") == "web.service"


def test_what_entered_from_outside_is_in_the_container():
    h = host(
        shim(50, ID),
        P(51, 50, cgroup=f"0::/docker/{ID}\n", ns=(3, 4, 5)),
        P(60, 1, "/usr/bin/bash", ("bash",)),
        P(61, 60, "/usr/bin/sh", ("sh",), ns=(3, 4, 5), root=(39, 5)),  # nsenter --all
        P(62, 61, "/usr/bin/id", ("id",), ns=(3, 4, 5), root=(39, 5)),
        P(63, 60, "/usr/bin/sh", ("sh",), ns=(0, 1, 2)),
    )

    assert [h(p) for p in (60, 61, 62, 63)] == [None, ID[:12], ID[:12], None]
    assert h(60, "role") == "host-root"  # bash started it, and is no shim


# -- hostile names --------------------------------------------------------------------------


def test_an_ordinary_users_shim_is_no_shim():
    h = host(
        shim(50, ID),
        P(51, 50, cgroup=f"0::/docker/{ID}\n", ns=(3, 4, 2)),
        shim(60, ID, uid=1000, comm="containerd-shim"),
        P(61, 1, "/home/ann/dockerd", ("dockerd",), uid=1000, comm="dockerd"),
        P(62, 1, "/home/ann/slirp4netns", ("slirp4netns",), uid=1000),
        P(63, 1, "/home/ann/x", ("/usr/sbin/dockerd",), comm="dockerd"),
    )

    assert [h(p, "role") for p in (60, 61, 62)] == ["host-user"] * 3
    assert h(63, "role") == "host-root"  # neither comm nor argv makes a daemon
    assert (h(50, "monitors"), h(60, "monitors")) == ((ID[:12],), ())


NAMES = (
    *("dockerd", "containerd", "podman", "crio", "slirp4netns", "docker-proxy", "rootlesskit"),
    *("rootlessport", "pasta", "conmon", "containerd-shim-runc-v2", "fuse-overlayfs", "catatonit"),
)


@pytest.mark.parametrize("exe", NAMES)
@pytest.mark.parametrize("does", [None, "idle"])
def test_a_user_with_a_container_gets_no_role_by_a_name(exe, does):
    lie = P(60, 1, f"/usr/bin/{exe}", (exe, "system", "service"), uid=1000, does=does, comm=exe)
    h = host(conmon(50, ID, "web", uid=1000, ns=(3, 1, 5)), P(51, 50, ns=(6, 7, 5), uid=1000), lie)

    assert h(50, "role") == "shim"
    assert h(60, "role") == "host-user"


@pytest.mark.parametrize(
    ("exe", "role"), [("dockerd", "daemon"), ("slirp4netns", "network"), ("conmon", "shim")]
)
def test_roots_word_is_taken_where_its_work_was_not_captured(exe, role):
    path = f"/usr/bin/{exe}"

    assert host(P(60, 1, path))(60, "role") == role
    assert host(P(60, 1, path, does="listen"))(60, "role") == role
    assert host(P(60, 1, path, does="idle"))(60, "role") == "host-root"  # a copy of sleep


def test_a_program_that_runs_as_root_for_a_user_is_not_the_daemon():
    h = host(P(60, 1, "/home/ann/dockerd", ("dockerd",), uids=(1000, 0, 0), does="listen"))

    assert h(60, "role") == "host-root"


def test_the_work_of_a_rootless_daemon():
    inner = {"ns": (3, 1, 5), "uid": 1000, "does": "listen"}
    h = host(
        P(40, 1, "/usr/bin/rootlesskit", ("rootlesskit",), uid=1000, does="listen"),
        P(41, 40, "/usr/bin/rootlesskit", ("/proc/self/exe",), **{**inner, "does": "idle"}),
        P(42, 41, "/usr/bin/dockerd", ("dockerd",), **inner),
        P(43, 42, "/usr/bin/containerd", ("containerd",), **inner),
        P(44, 40, "/usr/bin/slirp4netns", ("slirp4netns",), uid=1000, does="tun"),
        P(45, 42, "/usr/bin/docker-proxy", ("docker-proxy",), **{**inner, "does": "udp"}),
        shim(50, ID, **inner),
        P(51, 50, ns=(6, 7, 5), uid=1000),
    )

    want = ["daemon", "daemon", "daemon", "daemon", "network", "network", "shim", "container"]
    assert [h(p, "role") for p in (40, 41, 42, 43, 44, 45, 50, 51)] == want


def test_a_users_own_container_cannot_take_anothers_name():
    mine = (3, 4, 5)
    h = host(
        shim(50, ID),
        P(51, 50, cgroup=f"0::/docker/{ID}\n", ns=(6, 7, 2)),
        conmon(60, ID, "web", uid=1000, ns=mine),  # claims the id of root's container
        P(61, 60, ns=(8, 9, 5), uid=1000),
        conmon(70, OTHER, ID[:12], uid=1000, ns=mine),  # its short id as a name
        P(71, 70, ns=(10, 11, 5), uid=1000),
        users={"1000": "ann"},
    )

    assert h(51) == ID[:12]
    assert h(51, "aliases") == (ID[:12], ID)
    taken = set(h(51, "aliases"))
    assert h(61) == "web@ann"
    assert not taken & set(h(61, "aliases"))
    assert h(71) == f"{OTHER[:12]}@ann"  # what its own first name became is its neighbour's
    assert not taken & set(h(71, "aliases"))


def test_a_delegated_cgroup_cannot_pose_as_roots_container():
    fake = f"0::/user.slice/user-1000.slice/user@1000.service/docker/{ID}\n"
    h = host(
        P(20, cgroup=fake, uid=1000),
        shim(50, ID),
        P(51, 50, cgroup=f"0::/docker/{ID}\n", ns=(6, 7, 2)),
    )

    assert h(51) == ID[:12]
    assert h(20) == f"{ID[:12]}@user@1000.service"


def test_a_cgroup_that_a_container_made_below_its_own_changes_nothing():
    nested = f"0::/docker/{ID}/docker/{OTHER}\n"
    h = host(
        shim(50, ID),
        P(51, 50, cgroup=nested, ns=(3, 4, 2)),
        shim(60, OTHER),
        P(61, 60, cgroup=f"0::/docker/{OTHER}\n", ns=(5, 6, 2)),
    )

    assert (h(51), h(61)) == (ID[:12], OTHER[:12])


def test_a_process_of_a_container_has_no_role_on_the_host():
    path = f"0::/docker/{ID}\n"
    h = host(
        shim(50, ID),
        P(51, 50, "/usr/sbin/dockerd", ("dockerd",), path, (3, 4, 2)),
        P(52, 51, "/usr/bin/conmon", ("conmon", "-c", OTHER, "-n", "x"), path, (3, 4, 2)),
        P(53, 52, "/bin/sh", ("sh",), path, (5, 6, 2)),
    )

    assert [h(p) for p in (51, 52, 53)] == [ID[:12]] * 3
    assert [h(p, "role") for p in (51, 52, 53)] == ["container"] * 3


def test_a_sandbox_in_a_container_is_part_of_the_container():
    mine = (3, 4, 5)
    h = host(
        conmon(60, ID, "web", uid=1000),
        P(61, 60, ns=mine, uid=1000),
        P(62, 61, "/usr/bin/bwrap", ("bwrap",), ns=mine, uid=1000),
        P(63, 62, "/usr/bin/bwrap", ("bwrap",), ns=(6, 7, 8), uid=1000),
        conmon(64, OTHER, "db", ppid=61, ns=mine, uid=1000),
        P(65, 64, ns=(9, 10, 5), uid=1000),
    )

    assert [h(p) for p in (61, 62, 63, 64, 65)] == ["web"] * 5
    assert [h(p, "role") for p in (62, 64)] == ["container"] * 2


def test_bytes_that_are_no_text():
    odd = "0::/system.slice/\udcff\x1b[31m.service\n"
    h = host(
        P(50, 1, "/x\n\udcfe (deleted)", ("\udcff", ""), odd, comm="\x1b[2J"),
        conmon(60, ID, "web\n\udcff"),
        P(61, 60, ns=(3, 4, 2)),
    )

    assert h(50) is None
    assert h(50, "unit") is None
    assert h(61) == "web\n\udcff"


# -- what could not be read -----------------------------------------------------------------


def test_unknown_ids_give_no_role():
    h = host(P(50, uid=NO_ID), P(51, uids=(1000, 1000, 0)), P(52, uids=(1000,) * 3))

    assert [h(p, "role") for p in (50, 51, 52)] == [None, "host-root", "host-user"]
    assert (h(50, "user"), h(52, "user")) == (None, "1000")


def test_namespaces_that_were_not_read_make_no_container():
    h = host(P(50, exe=None, ns=(-1, -1, -1), uid=5), shim(60, ID, ns=(-1, -1, -1)))

    assert h(50) is None
    assert h(60, "role") == "host-root"


def test_a_capture_of_a_few_processes():
    named = Host([P(51, 50, ns=(3, 4, 2)), P(52, 51, ns=(3, 4, 2)), P(60, 9)]).roles()

    assert [named(p) for p in (51, 52, 60)] == ["ns-51", "ns-51", None]


def test_no_processes():
    assert name(Host([]).snapshot()).container == []


PIDS = st.integers(1, 12)
EXES = st.sampled_from(
    ["/usr/bin/conmon", "/usr/bin/bwrap", RUNSC, "/usr/sbin/dockerd", "/bin/sh", None]
)
ARGS = st.sampled_from(["-c", "-n", ID, "web", "boot", "gofer", "instance://", "", "\udcff"])
ROWS = st.builds(
    P,
    pid=PIDS,
    ppid=st.integers(0, 12),
    exe=EXES,
    argv=st.lists(ARGS, max_size=5).map(tuple),
    cgroup=st.sampled_from([f"0::/docker/{ID}\n", "0::/\n", "", f"0::/x.service/docker/{ID}\n"]),
    ns=st.tuples(*[st.integers(-2, 6)] * 3),
    uid=st.sampled_from([0, 1000, NO_ID]),
)


@given(st.lists(ROWS, max_size=8, unique_by=lambda p: p.pid))
def test_any_columns_give_aligned_names_and_no_alias_twice(rows):
    """Loops of parents and all: a damaged file must not hang or mix containers."""
    named = Host(rows).roles()

    owner: dict[str, str] = {}
    for label, aliases in zip(named.roles.container, named.roles.aliases, strict=True):
        assert (label is None) == (aliases == ())
        assert label is None or aliases[0] == label
        for alias in aliases:
            assert owner.setdefault(alias, label) == label
    lengths = {len(getattr(named.roles, f)) for f in Roles.__slots__}
    assert lengths == {len(rows)}
