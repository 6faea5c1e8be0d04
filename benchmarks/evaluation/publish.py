"""Take out of a snapshot what is of this machine alone: names that anybody may read remain.

A list of what may stay, not of what must go: a directory, a cgroup, a mount's source or a
socket's name that neither Debian nor the evaluation brought becomes ``x1``, ``x2`` ..., the
same in every place, so that equal paths stay equal and folders stay folders.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evaluation.base import cache_dir
from osmosis.snapshot import Snapshot

__all__ = ["publish"]

CACHE = b"/var/cache/osmosis"  # whoever's home the cache is in
WORK = b"/var/tmp/osmosis-evaluation"  # wherever the mechanisms had their folders
HOST = "host"
BOOT = "00000000-0000-4000-8000-000000000000"
# Directories of Debian, of the runtimes and of this evaluation: below them all may stay.
KNOWN = re.compile(
    rb"/+(?:"
    rb"bin|boot|dev|etc|lib\w*|proc|sbin|sys|usr"
    rb"|run/(?:\.containerenv|\.ro\d+|containerd|containers|crun|docker\w*|libpod|lock|netns"
    rb"|podman|runc|shm|systemd|user|host)"
    rb"|var/(?:cache/osmosis|lib/(?:apptainer|cni|containerd|containers|docker)|log|run"
    rb"|tmp/(?:osm-[^/]*|osmosis-evaluation))"
    rb"|root/(?:\.apptainer|bin|dev|etc|lib\w*|proc|sys|tmp|usr)"  # a gofer's tree is /root
    rb"|mnt/(?:cache|kvs\.sock|old)|shared"
    rb"|docker|libpod_parent|machine\.slice|payload|supervisor|system\.slice|user\.slice"
    rb"|acpi|bus|fs|full|host|irq|kmsg|null|ptmx|pts|random|shm|tty|urandom|zero"  # mounts' roots
    rb"|\d+|\.\#proc-[^/]*|memfd:[^/]*|SYSV\w*|\[[\w:]+\]"
    rb")(?=/|$)"
)
# Directories whose own names may stay, but not what is in them.
PARENTS = {b"home", b"media", b"mnt", b"opt", b"root", b"run", b"srv", b"tmp", b"var"}
PARENTS |= {b"var/cache", b"var/lib", b"var/tmp"}
PATHS = (
    "process_exe process_cwd process_root vma_path open_name mount_root mount_point quota_path "
    "cgroupfile_path cgroupmount_root object_path ctlplace_path ctlplace_clear"
)
TOKEN = re.compile(rb"(?<![^\0\n\t ,:=@])/[^\0\n\t ,:=]*")
SOURCE = re.compile(rb"[a-z0-9_.-]*|/.*")
SOURCES = {b"none", b"nsfs", b"overlay", b"runsc-root", b"shm", b"udev", b"rootfs", b""}
ABSTRACT = re.compile(rb"\0(?:[0-9a-f]{5}|runsc-[\w.-]+|/[^\0]*|x\d+)\0?")


class _Names:
    """The names given in place of those that must not stay."""

    def __init__(self, renames: Iterable[tuple[bytes, bytes]], hostname: bytes) -> None:
        self._given: dict[bytes, bytes] = {}
        self._renames = sorted(renames, key=lambda pair: -len(pair[0]))
        self._hostname = hostname

    def of(self, name: bytes) -> bytes:
        if re.fullmatch(rb"x\d+|\.\.?|", name):
            return name
        return self._given.setdefault(name, b"x%d" % (len(self._given) + 1))

    def path(self, path: bytes) -> bytes:
        """Return a path of which only known names are left; an unknown part becomes x1/x2."""
        path, gone = path.removesuffix(b" (deleted)"), path.endswith(b" (deleted)")
        for old, new in self._renames:
            if path == old or path.startswith(old + b"/"):
                path = new + path[len(old) :]
                break
        if not KNOWN.match(path):
            parts = path.lstrip(b"/").split(b"/")
            kept = 0
            while kept < len(parts) and b"/".join(parts[: kept + 1]) in PARENTS:
                kept += 1
            slashes = path[: len(path) - len(path.lstrip(b"/"))]
            path = slashes + b"/".join([*parts[:kept], *map(self.of, parts[kept:])])
        if self._hostname:
            path = b"/".join(
                HOST.encode() if part == self._hostname else part for part in path.split(b"/")
            )
        return path + (b" (deleted)" if gone else b"")

    def text(self, text: bytes) -> bytes:
        return TOKEN.sub(lambda found: self.path(found[0]), text)


def publish(snapshot: Snapshot, work: Path | None = None) -> Snapshot:
    """Return *snapshot* without names of this machine; publishing twice changes nothing.

    *work* is the folder that the mechanisms worked in.
    """
    names = _Names(_renames(work), str(snapshot.host.get("hostname") or "").encode())
    paths = {row for column in PATHS.split() for row in snapshot[column].tolist()}
    sources = set(snapshot["mount_source"].tolist())
    kinds = {t.encode() for t in snapshot.texts("mount_kind")} | SOURCES
    sockets = set(snapshot["socket_name"].tolist())
    texts = []
    for row in range(len(snapshot["string_indptr"]) - 1):
        text = snapshot.bytes(row)
        if row in paths and text.startswith(b"/"):
            text = names.path(text)
        elif row in sockets and text.startswith(b"\0") and not ABSTRACT.fullmatch(text):
            text = b"\0" + names.of(text[1:])
        elif row in sources and not text.startswith(b"/") and text not in kinds:
            text = names.of(text)
        else:
            text = names.text(text)
        texts.append(text)
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    columns: dict[str, Any] = {
        **snapshot.columns,
        "string_indptr": np.concatenate([[0], np.cumsum(lengths)]).astype("<i8"),
        "byte_data": np.frombuffer(b"".join(texts), np.uint8),
        **_addresses(snapshot),
    }
    return Snapshot(columns, _host(snapshot))


def _renames(work: Path | None) -> list[tuple[bytes, bytes]]:
    places = [(cache_dir(), CACHE), *([(work, WORK)] if work else [])]
    return [
        (os.fsencode(name), new)
        for path, new in places
        for name in {os.path.abspath(path), os.path.realpath(path)}
    ]


def _host(snapshot: Snapshot) -> dict[str, Any]:
    """Return the host's facts: the numbers of the kernel's version, and users that are here."""
    host = dict(snapshot.host)
    release = re.match(r"[\d.]+", str(host.get("kernel") or ""))
    ids = ("process_ruid", "process_euid", "process_suid", "process_fsuid")
    here = {str(uid) for column in ids for uid in snapshot[column].tolist()}
    named = {uid: name for uid, name in (host.get("users") or {}).items() if uid in here}
    return {
        **host,
        "boot_id": BOOT,
        "hostname": HOST,
        "kernel": release[0].rstrip(".") if release else "",
        "users": {
            uid: name if int(uid) < 1000 or name.startswith("osmosis") else f"user-{uid}"
            for uid, name in named.items()
        },
    }


def _addresses(snapshot: Snapshot) -> dict[str, Any]:
    """Give addresses of the Internet others, of the range for documentation."""
    given: dict[int, int] = {}
    first = int(ipaddress.IPv6Address("2001:db8::"))
    changed = {}
    for prefix in ("address", "socket_local", "socket_remote"):
        high, low = snapshot[f"{prefix}_hi"].copy(), snapshot[f"{prefix}_lo"].copy()
        for i, number in enumerate((int(h) << 64 | int(w)) for h, w in zip(high, low, strict=True)):
            if _is_public(ipaddress.IPv6Address(number)):
                new = given.setdefault(number, first + len(given) + 1)
                high[i], low[i] = new >> 64, new & (1 << 64) - 1
        changed[f"{prefix}_hi"], changed[f"{prefix}_lo"] = high, low
    return changed


def _is_public(address: ipaddress.IPv6Address) -> bool:
    return (address.ipv4_mapped or address).is_global
