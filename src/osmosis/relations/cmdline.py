"""What the executable's name and the arguments of a runtime's monitor tell of its container.

A monitor is the process that a runtime leaves beside a container: containerd-shim, conmon,
bwrap ... All of this is the process's own words: ``roles`` decides what to believe.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

__all__ = [
    "SYSTEM",
    "Monitor",
    "arguments",
    "basename",
    "is_hypervisor",
    "monitor",
    "option",
    "words",
]

# Directories that only root fills; elsewhere the name of a program is its owner's word.
SYSTEM = ("/usr/", "/bin/", "/sbin/", "/opt/", "/snap/")


def words(text: str) -> frozenset[str]:
    """Return the set of the words of *text*: a long list that is short to read."""
    return frozenset(text.split())


_HYPERVISORS = words(
    "firecracker cloud-hypervisor crosvm lkvm stratovirt dragonball qemu-kvm kvm "
    "VBoxHeadless VirtualBoxVM vmware-vmx"
)
_QEMU = re.compile(r"qemu-system-[\w-]+")


def is_hypervisor(name: str) -> bool:
    """Whether an executable is a machine: what runs within is not a process of this host.

    >>> is_hypervisor("qemu-system-x86_64"), is_hypervisor("qemu-img")
    (True, False)
    """
    return name in _HYPERVISORS or _QEMU.fullmatch(name) is not None


class Monitor(NamedTuple):
    """A runtime's process, and what it says about its container."""

    runtime: str
    id: str | None = None  # what the runtime calls the container
    name: str | None = None  # what people call it
    parent: bool = True  # its children in other namespaces are the container
    itself: bool = False  # the process is in the container: nothing else of it is to be seen
    sentry: str | None = None  # the role of such a process
    standing: bool = False  # known as a monitor even when its container has no process
    bundle: str | None = None  # where it was told that the container's files are


def basename(path: str) -> str:
    """Return the last component of an exe link; a replaced executable ends in " (deleted)"."""
    return path.removesuffix(" (deleted)").rpartition("/")[2]


def arguments(cmdline: bytes) -> list[str]:
    """Split /proc/pid/cmdline: arguments that each end in NUL."""
    text = cmdline.decode("utf-8", "surrogateescape")
    return text.removesuffix("\0").split("\0") if text else []


def option(argv: Sequence[str], *names: str) -> str | None:
    """Return the value of the first of *names*, as ``--name value`` or ``--name=value``."""
    for i, arg in enumerate(argv[1:], 1):
        if arg == "--":
            break
        head, equals, value = arg.partition("=")
        if head in names:
            return value if equals else (argv[i + 1] if i + 1 < len(argv) else None)
    return None


def monitor(exe: str, argv: Sequence[str]) -> Monitor | None:
    """Return what a process with executable *exe* (its last component) is a monitor of.

    >>> monitor("conmon", ["conmon", "-c", "ab12", "-n", "web"]).name
    'web'
    """
    if exe.startswith(("containerd-shim", "docker-containerd-shim")):
        return _shim(exe, argv)
    if exe.startswith("runsc"):
        return _runsc(argv)
    reader = _READERS.get(exe)
    return reader(argv) if reader else None


def _shim(exe: str, argv: Sequence[str]) -> Monitor:
    space = option(argv, "-namespace", "--namespace")
    ident = option(argv, "-id", "--id")
    if ident is None:  # the first shim: its work directory ends in the id
        work = option(argv, "-workdir", "--workdir")
        ident = work.rstrip("/").rpartition("/")[2] if work else None
    runtime = "docker" if space == "moby" or exe.startswith("docker-") else "containerd"
    if exe.startswith("containerd-shim-runsc"):
        runtime = "gvisor"
    return Monitor(runtime, ident or None, standing=True)


def _runsc(argv: Sequence[str]) -> Monitor | None:
    # "runsc-sandbox [flags] boot [flags] ID", "runsc-gofer [flags] gofer [flags]".
    for verb, role in (("boot", "sentry"), ("gofer", "gofer")):
        if verb in argv[1:]:
            ident = argv[-1] if verb == "boot" and not argv[-1].startswith("-") else None
            bundle = option(argv, "--bundle", "-bundle")
            if ident is None and bundle:
                ident = bundle.rstrip("/").rpartition("/")[2]
            return Monitor("gvisor", ident, parent=False, itself=True, sentry=role, bundle=bundle)
    return Monitor("gvisor", argv[-1] if len(argv) > 2 and "run" in argv[1:] else None)


def _conmon(argv: Sequence[str]) -> Monitor:
    paths = [option(argv, o) or "" for o in ("--exit-dir", "-p", "--container-pidfile", "-b")]
    runtime = "cri-o" if any("/crio" in p or "/cri-o" in p for p in paths) else "podman"
    ident, name = option(argv, "-c", "--cid"), option(argv, "-n", "--name")
    return Monitor(runtime, ident, name, standing=True)


# Options of systemd-nspawn(1) that take a value in an argument of its own. Its own parser
# stops at the first argument that is no option, since what follows is the payload's.
_NSPAWN_SHORT = "DuMLSZipE"
_NSPAWN_LONG = words(
    "directory template image root-hash root-hash-sig verity-data oci-bundle pivot-root "
    "bind-user setenv user kill-signal hostname machine uuid slice property private-users "
    "network-interface network-macvlan network-ipvlan network-veth-extra network-bridge "
    "network-zone network-namespace-path port capability drop-capability "
    "ambient-capability no-new-privileges system-call-filter rlimit oom-score-adjust "
    "cpu-affinity personality selinux-context selinux-apifs-context link-journal bind "
    "bind-ro tmpfs overlay overlay-ro inaccessible chdir settings resolv-conf timezone "
    "set-credential load-credential console background"
)


def _nspawn(argv: Sequence[str]) -> Monitor:
    values: dict[str, str] = {}
    i = 1
    while i < len(argv):
        arg = argv[i]
        i += 1
        if arg == "--" or not arg.startswith("-") or arg == "-":
            break
        if arg.startswith("--"):
            key, equals, value = arg[2:].partition("=")
            if not equals and key in _NSPAWN_LONG and key != "private-users" and i < len(argv):
                value, i = argv[i], i + 1
            values[key] = value
            continue
        for at, letter in enumerate(arg[1:], 2):
            if letter in _NSPAWN_SHORT:
                value = arg[at:]
                if not value and i < len(argv):
                    value, i = argv[i], i + 1
                values[{"M": "machine", "D": "directory", "i": "image"}.get(letter, letter)] = value
                break
    where = values.get("directory") or values.get("image") or ""
    name = values.get("machine") or where.rstrip("/").rpartition("/")[2]
    return Monitor("systemd-nspawn", None, name or None)


def _lxc(argv: Sequence[str]) -> Monitor | None:
    # The monitor renames itself "[lxc monitor] LXCPATH NAME".
    if argv and argv[0].startswith("[lxc monitor] "):
        return Monitor("lxc", None, argv[0].split()[-1], standing=True)
    return None


def _apptainer(argv: Sequence[str]) -> Monitor:
    # "Apptainer instance: USER [NAME]", "Apptainer runtime parent", and Singularity's alike.
    title = argv[0] if argv else ""
    runtime = "singularity" if title.startswith("Singularity") else "apptainer"
    name = None
    if " instance: " in title and title.endswith("]"):
        name = title.rpartition("[")[2][:-1] or None
    return Monitor(runtime, None, name)


def _oci(argv: Sequence[str]) -> Monitor | None:
    if not {"run", "exec", "create"} & set(argv[1:]):
        return None
    ident = argv[-1] if "run" in argv and len(argv) > 2 else None
    return Monitor(basename(argv[0]) or "oci", None, ident)


def _bwrap(_: Sequence[str]) -> Monitor:
    return Monitor("bubblewrap")


def _firejail(argv: Sequence[str]) -> Monitor:
    return Monitor("firejail", None, option(argv, "--name"))


_READERS = {
    "conmon": _conmon,
    "systemd-nspawn": _nspawn,
    "lxc-start": _lxc,
    "lxc-execute": _lxc,
    "lxd": _lxc,
    "incusd": _lxc,
    "starter": _apptainer,
    "starter-suid": _apptainer,
    "runc": _oci,
    "crun": _oci,
    "bwrap": _bwrap,
    "firejail": _firejail,
}
