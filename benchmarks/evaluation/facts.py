"""What the snapshot of each mechanism must say: every finding of docs/evaluation.md, as a check.

Held against the saved snapshots by the unit tests and against running systems by the live
tests. A check that answers None is not decided by this snapshot, which is a failure as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from osmosis.graph.sets import PDSet
from osmosis.model import Model

__all__ = ["FACTS", "Fact", "all_of", "own_network", "roles_of"]

POWERS = {"kill", "trace-attach", "mem-write"}
HOST_ROOT = {"kernel", "host-root"}
ROOTFUL = (
    *("docker", "docker-pid-host", "docker-network-host", "docker-ipc-container"),
    *("docker-volume", "docker-socket", "docker-privileged", "docker-cap-drop-all"),
    *("docker-two-networks", "docker-userns"),
)
ENGINES = (*ROOTFUL, "docker-rootless", "podman", "podman-rootless")
EVERY = (*ENGINES, "processes", "processes-users", "apptainer", "gvisor", "bubblewrap", "nspawn")


@dataclass(frozen=True)
class Fact:
    """One sentence about one mechanism, and what makes it true."""

    text: str
    check: Callable[[Model], bool]


def roles_of(answer: PDSet) -> set[str]:
    """Return the roles of the certain members of an answer."""
    return {answer.table.role[row] or "other" for row in answer.rows.tolist()}


def all_of(model: Model, role: str) -> PDSet:
    """Return all PDs of a role, as one set."""
    return PDSet(model.pds, [pd.row for pd in model.find(f"role:{role}")])


def _controllers(model: Model, verbs: Iterable[str], subject: str = "role:db") -> set[str]:
    return roles_of(model.controllers(subject, verbs=set(verbs)))


def _may(model: Model, actor: str, verb: str, target: str) -> bool | None:
    return model.may(f"role:{actor}", verb, f"role:{target}").state


def _layer(model: Model, x: str, y: str, layer: str) -> str:
    return model.isolation(all_of(model, x), all_of(model, y))[layer].state


def _shares(model: Model, x: str, y: str, types: set[str], access: str) -> bool:
    return bool(model.shares(f"role:{x}", f"role:{y}", types=types, access=access))


FACTS: dict[str, list[Fact]] = {name: [] for name in EVERY}


def _of(*names: str) -> Callable[[Callable[[Model], bool]], Callable[[Model], bool]]:
    """Register a function as a fact of these mechanisms; its docstring is the sentence."""

    def register(check: Callable[[Model], bool]) -> Callable[[Model], bool]:
        for name in names:
            FACTS[name].append(Fact((check.__doc__ or "").strip(), check))
        return check

    return register


# -- every mechanism


@_of(*EVERY)
def kernel_and_root(model: Model) -> bool:
    """The kernel and root of the host are in the TCB of the database."""
    return roles_of(model.tcb("role:db")) >= HOST_ROOT


@_of(*(name for name in EVERY if name != "gvisor"))
def no_host_user(model: Model) -> bool:
    """An ordinary user of the host can neither kill, trace nor rewrite the database."""
    found = model.controllers("role:db", verbs=POWERS | {"cgroup-kill", "daemon", "limit"})
    named = {found.table.role[row] for row in (*found.rows.tolist(), *found.unknown.rows.tolist())}
    return "host-user" not in named


@_of(*EVERY)
def connection(model: Model) -> bool:
    """The connection puts the application into the TCB and the Impact Boundary of the database."""
    rootless = not _shares(model, "db", "app", {"SOCKET"}, "W")
    through = {"network"} if rootless else {"app"}  # rootlessport stands between the two
    tcb, ib = model.tcb("role:db"), model.impact_boundary("role:db")
    return roles_of(tcb) >= through and roles_of(ib) >= through


# -- what keeps instances apart


@_of(*(name for name in EVERY if name not in ("processes", "gvisor")))
def bystander_cannot(model: Model) -> bool:
    """The bystander can neither kill, trace nor write into the database."""
    return all(_may(model, "bystander", verb, "db") is False for verb in POWERS)


@_of(*(n for n in ENGINES if n not in ("docker-pid-host", "docker-socket")), "nspawn", "bubblewrap")
def app_cannot(model: Model) -> bool:
    """The application can neither kill nor trace the database, nor the database it."""
    return all(
        _may(model, x, verb, y) is False
        for x, y in (("app", "db"), ("db", "app"))
        for verb in POWERS
    )


@_of(*(name for name in ENGINES if name not in ("docker-volume",)))
def no_writable_file(model: Model) -> bool:
    """No file and no memory is shared for writing between application and database."""
    return not _shares(model, "db", "app", {"FILE", "MO", "SHM"}, "W")


@_of("processes", "processes-users", *ENGINES)
def image_pages(model: Model) -> bool:
    """They share memory for reading: the pages of one image's libraries."""
    return _shares(model, "db", "app", {"MO"}, "R")


# -- processes


@_of("processes")
def same_user(model: Model) -> bool:
    """Each can kill and trace each other: nothing separates processes of one user."""
    three = ("db", "app", "bystander")
    return all(
        _may(model, x, verb, y) is True
        for x in three
        for y in three
        if x != y
        for verb in ("kill", "trace-attach")
    )


@_of("processes-users")
def other_users(model: Model) -> bool:
    """Another uid alone ends it: only root and the kernel control the database."""
    return _controllers(model, POWERS) == HOST_ROOT


# -- Docker


@_of(*ROOTFUL)
def docker_tcb(model: Model) -> bool:
    """dockerd, containerd and all three shims control the database: its own and the others'."""
    found = model.controllers("role:db", verbs=POWERS)
    roles = [found.table.role[row] for row in found.rows.tolist()]
    return roles.count("daemon") == 2 and roles.count("shim") == 3


@_of(*ROOTFUL, "docker-rootless")
def docker_daemon_ib(model: Model) -> bool:
    """All containers are in the Impact Boundary of the daemon."""
    three = {"db", "app", "bystander"}
    return all(
        roles_of(model.impact_boundary(daemon)) >= three for daemon in model.find("role:daemon")[:1]
    )


@_of("docker", "docker-network-host", "docker-ipc-container", "docker-cap-drop-all")
@_of("docker-two-networks", "docker-userns", "docker-privileged", "podman")
def only_these(model: Model) -> bool:
    """Nobody else is in the TCB of the database: not the bystander, not the host's user."""
    found = model.tcb("role:db")
    return roles_of(found) - {"daemon"} == HOST_ROOT | {"shim", "app"} and not len(found.unknown)


@_of("docker", "docker-cap-drop-all", "docker-userns", "podman")
def database_ib(model: Model) -> bool:
    """The database affects two processes: its client, and its shim, which reads its output."""
    return roles_of(model.impact_boundary("role:db")) == {"app", "shim"}


@_of("docker-pid-host")
def pid_host(model: Model) -> bool:
    """With --pid=host the application can kill and trace the database; the bystander cannot."""
    return all(_may(model, "app", verb, "db") is True for verb in POWERS)


@_of("docker-network-host")
def network_host(model: Model) -> bool:
    """With --network=host the three share a network namespace, with each other and the host."""
    return {_layer(model, "db", y, "net") for y in ("app", "bystander", "host-root")} == {"shared"}


@_of("docker-ipc-container")
def ipc_container(model: Model) -> bool:
    """With --ipc=container: application and database share System V IPC and /dev/shm."""
    return (
        _layer(model, "db", "app", "ipc") == "shared"
        and _layer(model, "db", "bystander", "ipc") == "separated"
    )


@_of("docker-volume")
def volume(model: Model) -> bool:
    """The application could open what the database keeps in the volume; the bystander could not."""
    options = {"types": {"MOUNT"}, "access": "W", "potential": True}
    found = roles_of(model.shared_resources("role:db", **options))
    return "app" in found and "bystander" not in found


@_of("docker-socket")
def socket(model: Model) -> bool:
    """Who has docker.sock has the daemon's power over the database; the bystander has it not."""
    return (
        _may(model, "app", "daemon", "db") is True
        and _may(model, "bystander", "daemon", "db") is False
        and all(_may(model, "app", verb, "db") is False for verb in POWERS)
    )


@_of("docker-privileged")
def privileged(model: Model) -> bool:
    """Full capabilities and no seccomp filter do not reach the database: it has no pid there."""
    return _layer(model, "app", "bystander", "seccomp") == "separated"


@_of("docker-two-networks")
def two_networks(model: Model) -> bool:
    """Another bridge for the bystander changes no layer: each container has its own network."""
    return {_layer(model, "db", y, "net") for y in ("app", "bystander")} == {"separated"}


@_of("docker-userns")
def own_user_namespace(model: Model) -> bool:
    """With --userns-remap each container has a user namespace of its own, all with the same ids."""
    inside = {_layer(model, "db", y, "user") for y in ("app", "bystander", "host-root")}
    return inside == {"separated"} and _layer(model, "db", "app", "uid") == "shared"


@_of("podman-rootless", "docker-rootless")
def one_user_namespace(model: Model) -> bool:
    """The containers are in one user namespace, which is not the host's."""
    inside = {_layer(model, "db", y, "user") for y in ("app", "bystander")}
    return inside == {"shared"} and _layer(model, "db", "host-root", "user") == "separated"


@_of("docker-userns", "podman-rootless", "docker-rootless")
def not_root(model: Model) -> bool:
    """Root in the container is not root of the host."""
    return _layer(model, "db", "host-root", "uid") == "separated"


@_of("docker-rootless")
def rootless_daemon(model: Model) -> bool:
    """No process of uid 0 is a daemon, and one slirp4netns is the network of all containers."""
    daemons = model.find("role:daemon")
    helpers = model.find("role:network")
    return bool(daemons) and all(pd.uid != 0 for pd in daemons) and len(helpers) == 1


# -- Podman


@_of("podman", "podman-rootless")
def no_daemon(model: Model) -> bool:
    """There is no daemon: three conmons, each of which can kill every container of its user."""
    found = model.controllers("role:db", verbs={"kill"})
    shims = [row for row in found.rows.tolist() if found.table.role[row] == "shim"]
    return not model.find("role:daemon") and len(shims) == 3


@_of("podman-rootless")
def own_network(model: Model) -> bool:
    """Each container asks (REQUEST) a slirp4netns of its own for its network."""
    asked = [
        [pd.pid for pd in model.services(f"role:{role}") if pd.comm == "slirp4netns"]
        for role in ("db", "app", "bystander")
    ]
    return [len(pids) for pids in asked] == [1, 1, 1] and len({p for [p] in asked}) == 3


# -- the others


@_of("apptainer")
def apptainer_shares(model: Model) -> bool:
    """Network, IPC and user namespace are the host's, and so are the ids: root is root."""
    layers = ("net", "ipc", "user", "uid")
    return {_layer(model, "db", "app", layer) for layer in layers} == {"shared"}


@_of("apptainer")
def apptainer_pid(model: Model) -> bool:
    """Each instance has a pid namespace: no instance can kill another."""
    return (
        _layer(model, "db", "app", "pid") == "separated"
        and _may(model, "app", "kill", "db") is False
        and _may(model, "db", "kill", "app") is False
    )


@_of("apptainer")
def apptainer_no_powers(model: Model) -> bool:
    """Inside, root has no capability (--no-privs): the database controls nobody outside."""
    inside = {"db", "app", "bystander", "shim"}
    return roles_of(model.controls("role:db", verbs=POWERS)) <= inside


@_of("gvisor")
def gvisor_vm(model: Model) -> bool:
    """Each container has a kernel of its own, the sentry: the vm layer separates."""
    return {_layer(model, "db", y, "vm") for y in ("app", "bystander", "daemon")} == {"separated"}


@_of("gvisor")
def gvisor_sentry(model: Model) -> bool:
    """A sentry is itself root in the host's pid namespace: one that is broken can kill another."""
    return _may(model, "bystander", "kill", "db") is True


@_of("bubblewrap")
def bubblewrap_user(model: Model) -> bool:
    """The bwraps outside are of the same user: each can kill every sandbox of that user."""
    found = model.controllers("role:db", verbs={"kill"})
    return [found.table.role[row] for row in found.rows.tolist()].count("shim") == 3


@_of("bubblewrap")
def bubblewrap_layers(model: Model) -> bool:
    """mnt, ipc, net, pid, user and uts are separate; there is no cgroup and no seccomp filter."""
    layers = ("mnt", "ipc", "net", "pid", "user", "uts")
    return {_layer(model, "db", "app", layer) for layer in layers} == {"separated"} and {
        _layer(model, "db", "app", layer) for layer in ("cgroup", "seccomp")
    } == {"shared"}


@_of("nspawn")
def nspawn_root(model: Model) -> bool:
    """Network and user namespace are the host's; systemd-nspawn outside can kill all three."""
    found = model.controllers("role:db", verbs={"kill"})
    shims = [row for row in found.rows.tolist() if found.table.role[row] == "shim"]
    return len(shims) == 3 and _layer(model, "db", "app", "net") == "shared"
