"""Who a process is on its host: its container, systemd unit, user, cgroup and role.

A pure function of snapshot columns; no daemon is asked. What decides, strongest first:

* The *outermost* container component of the cgroup path. A container's root may make cgroups
  below its own, under any name, but none above it.
* The monitor that is the parent: a process whose executable is a known monitor
  (containerd-shim, conmon, bwrap ...) and whose child is in other namespaces. A parent is a
  true ancestor (a subreaper too), so a monitor speaks for what it started and nothing else.
* The topmost process whose mnt, pid or user namespaces differ from its parent's; a mount
  namespace alone counts if the root directory differs too, since systemd gives many services
  their own mount table over the same root.

comm is never read: any process sets it as it likes. An executable's name and the arguments are
the process's own words as well, so they only tell *which* runtime a structure belongs to. A
daemon, a network helper or a monitor without a container is what it says only if it does that
work, too (``relations.serving``): it listens, or it holds the tun or fuse device. Where the
sockets were not captured root's word is taken, and a user's is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from osmosis.relations.cgroup_path import HEX64, CgroupFacts, read_cgroup
from osmosis.relations.cmdline import (
    SYSTEM,
    Monitor,
    arguments,
    basename,
    is_hypervisor,
    monitor,
    words,
)
from osmosis.relations.serving import serving
from osmosis.schema import NO_ID
from osmosis.snapshot import Snapshot

__all__ = ["DAEMONS", "NETWORK", "Roles", "name"]

# Executables that manage containers for others, or connect them. Only names: see the module.
DAEMONS = words(
    "dockerd docker-containerd containerd podman crio lxd incusd balenad "
    "balena-engine-daemon buildkitd cri-dockerd kubelet systemd-machined rootlesskit "
    "k3s-server"
)
_ON_THE_BUS = words("systemd-machined")  # listens nowhere
NETWORK = words(
    "slirp4netns pasta pasta.avx2 passt passt.avx2 docker-proxy rootlessport vpnkit "
    "gvproxy netavark aardvark-dns rootlesskit-docker-proxy lxc-user-nic"
)
_SHORT_LIVED = words("netavark lxc-user-nic")  # sets a network up, and serves nothing
# Part of a runtime, in namespaces of its own, and in no container.
_FUSE = words("fuse-overlayfs squashfuse squashfuse_ll fuse2fs")
_KEEPERS = words("catatonit podman")  # of a user's namespaces, for the containers to come
_HELPERS = _FUSE | words("catatonit")
_SHORT = 12  # hex digits of an id that people use


@dataclass(frozen=True, slots=True, eq=False)
class Roles:
    """Names of the P processes of a snapshot, row for row; None stands for "none known"."""

    container: list[str | None]  # the container's one name: a human one, else a short id
    aliases: list[tuple[str, ...]]  # every name that selects it, that one first
    container_id: list[str | None]  # the full id, where there is one
    container_runtime: list[str | None]  # docker, podman, containerd, cri-o, lxc ...
    monitors: list[tuple[str, ...]]  # the containers that this process is the monitor of
    unit: list[str | None]
    user_unit: list[str | None]
    user: list[str | None]  # name of the effective uid, or the uid as text
    cgroup: list[str | None]
    role: list[str | None]


@dataclass(slots=True, eq=False)
class _Container:
    """One container while it is being put together."""

    key: tuple[object, ...]
    runtime: str
    id: str | None
    names: list[str]  # best first
    rank: tuple[bool, int, str]  # of two with one name, the lower keeps it
    owner: str  # what stands after the @ if it cannot keep it
    weak: bool = False  # nothing but namespaces says so
    anonymous: bool = False  # its monitor does not say which container it is
    label: str = ""
    aliases: tuple[str, ...] = ()
    members: list[int] = field(default_factory=list)


def name(snapshot: Snapshot) -> Roles:
    """Name every process of *snapshot*.

    Parameters
    ----------
    snapshot
        P processes. ``host["users"]`` maps uid to name, ``host["roles"]`` pid (or
        ``pid:start_time``, or a PD's key) to a role that somebody gave, such as db;
        ``host["containers"]`` container ids to the names that people gave. All may be missing.

    Returns
    -------
    Roles
        Lists of length P. ``role`` is a given one, else daemon, shim, network, helper,
        vmm, sentry, gofer, container (any other process in one), host-root, host-user, or None if
        the ids could not be read.

    Notes
    -----
    O(P) time and memory, plus O(length) once for each distinct string.

    """
    return _Naming(snapshot).roles()


class _Naming:
    """The columns as lists, and the state of one run of ``name``."""

    def __init__(self, snapshot: Snapshot) -> None:
        s = snapshot
        self.host: Mapping[str, Any] = s.host
        self.pid: list[int] = s["process_pid"].tolist()
        self.n = len(self.pid)
        row = {pid: i for i, pid in enumerate(self.pid)}
        self.parent = [row.get(p, -1) if p > 0 else -1 for p in s["process_ppid"].tolist()]
        self.children: dict[int, list[int]] = {}
        for r, p in enumerate(self.parent):
            self.children.setdefault(p, []).append(r)
        self.start: list[int] = s["process_start_time"].tolist()
        self.uids: list[tuple[int, ...]] = list(
            zip(*(s[f"process_{u}"].tolist() for u in ("ruid", "euid", "suid")), strict=True)
        )
        self.ns: list[tuple[int, ...]] = list(
            zip(*(s[f"process_ns_{k}"].tolist() for k in ("mnt", "pid", "user")), strict=True)
        )
        self.root = list(
            zip(s["process_root_dev"].tolist(), s["process_root_inode"].tolist(), strict=True)
        )
        self.ns_parent: list[int] = s["namespace_parent"].tolist()
        self.ns_owner: list[int] = s["namespace_owner"].tolist()
        self.seccomp: list[int] = s["process_seccomp"].tolist()
        self.does = serving(s)
        self.cgroup = [read_cgroup(text) for text in s.texts("process_cgroup")]
        paths = s.texts("process_exe")
        self.exe = [basename(text) for text in paths]
        self.of_system = [text.startswith(SYSTEM) for text in paths]
        self.argv = [arguments(s.bytes(i)) for i in s["process_cmdline"].tolist()]
        self.monitor = [monitor(e, a) for e, a in zip(self.exe, self.argv, strict=True)]
        self.init = row[1] if 1 in row else self._first_namespaces()
        self.inside: list[_Container | None] = [None] * self.n
        self.serves: list[list[_Container]] = [[] for _ in range(self.n)]
        self.containers: dict[tuple[object, ...], _Container] = {}
        self.sandboxes: set[int] = set()
        self.users: Mapping[str, Any] = s.host.get("users") or {}

    def roles(self) -> Roles:
        """Do it: containers from the top of the process tree down, then names, then roles."""
        order = list(self._top_down())
        for r in order:
            self.inside[r] = self._strong(r)
        self._joined(order)
        for r, c in enumerate(self.inside):
            if c is not None:
                c.members.append(r)
        self._shims()
        self._sentries()
        self._labels()
        tied: dict[int, set[tuple[int, ...]]] = {}  # uid -> namespaces of its monitors
        for r in range(self.n):
            if self.serves[r] and self.uids[r][0] != NO_ID:
                tied.setdefault(self.uids[r][0], set()).add(self.ns[r])
        given = self._given()
        inside = self.inside
        return Roles(
            container=[c.label if c else None for c in inside],
            aliases=[c.aliases if c else () for c in inside],
            container_id=[c.id if c else None for c in inside],
            container_runtime=[c.runtime if c else None for c in inside],
            monitors=[tuple(c.label for c in cs) for cs in self.serves],
            unit=[c.unit for c in self.cgroup],
            user_unit=[c.user_unit for c in self.cgroup],
            user=[self._user(u[1]) for u in self.uids],
            cgroup=[c.path or None for c in self.cgroup],
            role=[given.get(r) or self._role(r, tied) for r in range(self.n)],
        )

    def _first_namespaces(self) -> int:
        """Return a row that stands for the host where pid 1 was not captured; -1 for none.

        Initial pid and user namespaces have no parent; of the mount namespaces seen with
        those, the one with most processes.
        """
        rows: dict[int, list[int]] = {}
        for r, (mnt, *both) in enumerate(self.ns):
            if mnt >= 0 and all(k >= 0 and self.ns_parent[k] == -1 for k in both):
                rows.setdefault(mnt, []).append(r)
        return max(rows.values(), key=len, default=[-1])[0]

    def _top_down(self) -> Iterator[int]:
        """Rows, each after its parent; a loop of parents (a damaged file) is cut."""
        done = [False] * self.n
        for r in range(self.n):
            path = []
            while r >= 0 and not done[r]:
                done[r] = True
                path.append(r)
                r = self.parent[r]
            yield from reversed(path)

    # -- containers -----------------------------------------------------------------------

    def _strong(self, r: int) -> _Container | None:
        """Return the container of row *r* as cgroup, parent and namespaces tell it."""
        p = self.parent[r]
        outer = self.inside[p] if p >= 0 else None
        if outer is not None and not outer.weak:
            return outer
        facts = self.cgroup[r]
        boss = self.monitor[p] if p >= 0 else None
        if facts.container is not None and not facts.monitor and not self._is_monitor(r):
            return self._by_cgroup(facts, r)
        if boss is not None and boss.parent and self._differs(r, p, root=False):
            return self._by_monitor(boss, p)
        me = self.monitor[r]
        if me is not None and me.itself and not self._like_init(r):
            return self._by_monitor(me, r)
        if outer is not None:
            return outer
        if not self._infrastructure(r) and self._apart(r):
            return self._by_namespaces(r)
        return None

    def _is_monitor(self, r: int) -> bool:
        """Whether row *r* is a monitor that stands in its container's own cgroup."""
        me = self.monitor[r]
        return me is not None and me.parent and self._like_init(r)

    def _infrastructure(self, r: int) -> bool:
        exe = self.exe[r]
        return exe in DAEMONS or exe in NETWORK or exe in _HELPERS or self.monitor[r] is not None

    def _differs(self, r: int, p: int, *, root: bool) -> bool:
        """Whether *r* is in another pid, user or mount namespace than row *p*.

        With *root*, a mount namespace alone is not enough: the root directory must differ.
        """
        mine, theirs = self.ns[r], self.ns[p]
        mnt, pid, user = (a != b and a >= 0 and b >= 0 for a, b in zip(mine, theirs, strict=True))
        if mnt and root:
            a, b = self.root[r], self.root[p]
            mnt = a != b and a[1] != 0 and b[1] != 0
        return pid or user or mnt

    def _like_init(self, r: int) -> bool:
        """Whether nothing tells row *r* from the host by its pid and mount namespaces."""
        return self.init < 0 or self.ns[r][:2] == self.ns[self.init][:2]

    def _apart(self, r: int) -> bool:
        """Whether row *r* is the topmost process of namespaces of its own.

        A service of systemd over the host's root is none, PrivateUsers= or not.
        """
        p = self.parent[r]
        if p >= 0:
            service = self.exe[p] == "systemd" and self.root[r] == self.root[p]
            if service and self.ns[r][1] == self.ns[p][1]:
                return False
            return self._differs(r, p, root=True)
        if self.init >= 0 and r != self.init:
            return self._differs(r, self.init, root=True)
        # The parent is not in the snapshot: a namespace that has a parent is not the first.
        return any(k >= 0 and self.ns_parent[k] >= 0 for k in self.ns[r][1:])

    def _add(self, key: tuple[object, ...], **facts: Any) -> _Container:
        if key not in self.containers:
            self.containers[key] = _Container(key, **facts)
        return self.containers[key]

    def _by_cgroup(self, facts: CgroupFacts, r: int) -> _Container:
        p = self.parent[r]
        boss = self.monitor[p] if p >= 0 else None
        ident, runtime = str(facts.container), facts.runtime or "oci"
        if boss is not None and boss.parent and runtime in ("oci", "kubepods"):
            runtime = boss.runtime
        key = ("id", ident, facts.within)
        c = self._add(
            key,
            runtime=runtime,
            id=ident if HEX64.fullmatch(ident) else None,
            names=[],
            rank=(facts.within is not None, 0, ident),
            owner=facts.within or runtime,
        )
        if boss is not None and boss.parent and boss.id == ident and boss.name:
            c.names.insert(0, boss.name)
        if c.id is None and ident not in c.names:
            c.names.append(ident)
        return c

    def _by_monitor(self, boss: Monitor, p: int) -> _Container:
        uid = self.uids[p][0]
        trusted = uid == 0 and self._host_user(p)
        ident = boss.id or boss.name
        key: tuple[object, ...]
        if ident is None:
            key = ("monitor", self.pid[p])
        elif trusted and boss.id:
            key = ("id", ident, None)
        else:
            key = ("monitor", boss.runtime, ident, uid)
        hexadecimal = boss.id is not None and HEX64.fullmatch(boss.id) is not None
        names = [n for n in (boss.name, None if hexadecimal else boss.id) if n]
        if not names and not hexadecimal:
            names = [f"{boss.runtime}-{self.pid[p]}"]
        return self._add(
            key,
            runtime=boss.runtime,
            id=boss.id if hexadecimal else None,
            names=names,
            rank=(not trusted, uid, ident or ""),
            owner=boss.runtime if trusted else self._user(uid) or "unknown",
            anonymous=ident is None,
        )

    def _by_namespaces(self, r: int) -> _Container:
        uid = self.uids[r][0]
        return self._add(
            ("ns", self.pid[r]),
            runtime="namespaces",
            id=None,
            names=[f"ns-{self.pid[r]}"],
            rank=(True, uid, ""),
            owner=self._user(uid) or "unknown",
            weak=True,
        )

    def _joined(self, order: Sequence[int]) -> None:
        """Put what entered a container from outside (exec, nsenter) into that container."""
        home: dict[tuple[int, ...], _Container] = {}
        for r in order:
            c = self.inside[r]
            if c is None or c.weak or c.anonymous or min(self.ns[r]) < 0 or self._like_init(r):
                continue
            home.setdefault(self.ns[r], c)
        before = list(self.inside)
        for r in order:
            c, p = before[r], self.parent[r]
            if c is None or not (c.weak or c.anonymous):
                continue
            if self.ns[r] in home:
                self.inside[r] = home[self.ns[r]]
            elif p >= 0 and before[p] is c:
                self.inside[r] = self.inside[p]  # wherever its parent went

    def _shims(self) -> None:
        """Find the monitors: parents, outside, of what is inside."""
        for r, c in enumerate(self.inside):
            p = self.parent[r]
            if c is None or p < 0:
                continue
            outer, boss = self.inside[p], self.monitor[p]
            if outer is c or not (outer is None or outer.weak):
                continue
            if boss is not None and boss.parent and c not in self.serves[p]:
                self.serves[p].append(c)

    def _sentries(self) -> None:
        """Find gVisor's processes: a sentry and a gofer, put in from outside, side by side.

        A program in an image, or a user's, can be called runsc too. What the one has not is a
        sibling outside its own process tree, in another mount namespace; what the other has not
        is that root made its namespaces. Both of runsc's filter their system calls.
        """
        top: dict[int, list[int]] = {}
        for r, c in enumerate(self.inside):
            me = self.monitor[r]
            told = c is not None and me is not None and me.sentry is not None
            if told and self._at_top(r) and self._made_by_root(r):
                top.setdefault(self.parent[r], []).append(r)
        real = set()
        for rows in top.values():
            for r in rows:
                if any(self._pair(r, other) for other in rows):
                    self.sandboxes.add(r)
                    real.add(id(self.inside[r]))
            self._one_sandbox(rows)
        for c in self.containers.values():
            if id(c) in real:
                c.runtime = "gvisor"
            elif c.runtime == "gvisor":  # so it says
                c.runtime = "namespaces"

    def _one_sandbox(self, rows: Sequence[int]) -> None:
        """Put a gofer, which is not told the id, into the container of the sentry of its bundle."""
        mine = {r: me for r in rows if r in self.sandboxes and (me := self.monitor[r]) is not None}
        for r, me in mine.items():
            told = [q for q, m in mine.items() if m.sentry == "sentry" and m.bundle == me.bundle]
            old, new = self.inside[r], self.inside[told[0]] if len(told) == 1 else None
            if me.sentry == "gofer" and me.bundle and old is not None and new not in (None, old):
                old.members.remove(r)
                self.inside[r] = new
                if new is not None:
                    new.members.append(r)

    def _made_by_root(self, r: int) -> bool:
        """Whether root of the host put row *r* where it is: it is root, or root made its ids."""
        if self._host_user(r):
            return set(self.uids[r]) == {0}
        user = self.ns[r][2]
        return user >= 0 and self.ns_owner[user] == 0

    def _pair(self, r: int, other: int) -> bool:
        """Whether two rows are a sentry and a gofer in different mount namespaces."""
        a, b = self.monitor[r], self.monitor[other]
        mine, theirs = self.ns[r][0], self.ns[other][0]
        kinds = {a.sentry if a else None, b.sentry if b else None}
        filtered = 0 not in (self.seccomp[r], self.seccomp[other])
        apart = mine != theirs and min(mine, theirs) >= 0
        return kinds == {"sentry", "gofer"} and filtered and apart

    # -- names ----------------------------------------------------------------------------

    def _labels(self) -> None:
        """Give each container one name of its own, and the aliases that nobody before it has."""
        told: Mapping[str, Any] = self.host.get("containers") or {}
        taken: dict[str, _Container] = {}
        alive = [c for c in self.containers.values() if c.members]
        for c in sorted(alive, key=lambda c: (c.rank, repr(c.key))):
            names = list(dict.fromkeys(c.names))
            if c.id is not None:
                if isinstance(told.get(c.id), str):
                    names.insert(0, told[c.id])
                names += [c.id[:_SHORT], c.id]
            free = [n for n in dict.fromkeys(names) if n not in taken]
            # An id that another holds is not this one's own word either: see the module.
            if len(free) < len(set(names)) or not free:
                free = [f"{n}@{c.owner}" for n in names]
                free = [n for n in free if n not in taken] or [f"{names[0]}@{c.key!r}"]
            c.label, c.aliases = free[0], tuple(free)
            taken.update(dict.fromkeys(free, c))

    def _user(self, uid: int) -> str | None:
        if uid == NO_ID:
            return None
        known = self.users.get(str(uid))
        return known if isinstance(known, str) else str(uid)

    # -- roles ----------------------------------------------------------------------------

    def _host_user(self, r: int) -> bool:
        """Whether row *r* is in the host's user namespace, or nothing tells that it is not."""
        k = self.ns[r][2]
        if k < 0:
            return False
        return k == self.ns[self.init][2] if self.init >= 0 else self.ns_parent[k] == -1

    def _given(self) -> dict[int, str]:
        by_key = {
            tuple(key.replace("/", ":").split(":")[-2:]): role
            for key, role in (self.host.get("roles") or {}).items()
            if isinstance(role, str)
        }
        given = {}
        for r in range(self.n):
            pid, start = str(self.pid[r]), str(self.start[r])
            role = by_key.get((pid, start)) or by_key.get((pid,))
            if role is not None:
                given[r] = role
        return given

    def _role(self, r: int, tied: Mapping[int, set[tuple[int, ...]]]) -> str | None:
        me = self.monitor[r]
        c = self.inside[r]
        if self.serves[r]:
            return "shim"
        if c is not None:
            if me is not None and r in self.sandboxes:
                return me.sentry
            if me is not None and me.runtime == c.runtime == "apptainer" and self._at_top(r):
                return "shim"  # appinit: Apptainer's own init, the first process of an instance
            return "container"
        if self.of_system[r] and is_hypervisor(self.exe[r]):
            return "vmm"
        root = set(self.uids[r]) == {0} and self._host_user(r)
        if root or self.uids[r][0] in tied:
            role = self._infrastructure_role(r, root, tied)
            if role is not None:
                return role
        if NO_ID in self.uids[r]:
            return None
        return "host-root" if 0 in self.uids[r] else "host-user"

    def _infrastructure_role(
        self, r: int, root: bool, tied: Mapping[int, set[tuple[int, ...]]]
    ) -> str | None:
        """Role of a process of root, or of a user who runs containers, that does what it says.

        The name alone is the word of root, where what it does was not captured; of a user never.
        """
        me, exe = self.monitor[r], self.exe[r]

        def does(work: frozenset[int]) -> bool:
            return r in work or (root and r not in self.does.seen)

        kin = self._with_its_kin(r)
        if exe in DAEMONS and (exe != "podman" or {"system", "service"} <= {*self.argv[r]}):
            busy = bool(kin & self.does.listening) or does(frozenset())
            return "daemon" if busy or (root and exe in _ON_THE_BUS) else None
        if exe in NETWORK:
            busy = bool(kin & (self.does.listening | self.does.tun)) or does(frozenset())
            return "network" if busy or (root and exe in _SHORT_LIVED) else None
        if me is not None and me.standing:
            return "shim" if does(self.does.listening) else None
        if exe in _FUSE:
            return "helper" if does(self.does.fuse) else None
        if exe in _KEEPERS:
            mine = {(mnt, user) for mnt, _, user in tied.get(self.uids[r][0], ())}
            return "helper" if root or (self.ns[r][0], self.ns[r][2]) in mine else None
        return None

    def _with_its_kin(self, r: int) -> set[int]:
        """Row *r*, its parent and its children of the same program: rootlessport is two."""
        near = {r, self.parent[r], *self.children.get(r, ())} - {-1}
        return {k for k in near if self.exe[k] == self.exe[r] and self.uids[k] == self.uids[r]}

    def _at_top(self, r: int) -> bool:
        """Whether row *r* was put into its container from outside."""
        p = self.parent[r]
        return p < 0 or self.inside[p] is not self.inside[r]
