"""Where a file lies in its filesystem, and whether everybody may walk to it there.

Looked at by statx alone, which opens nothing. The path of a file within its superblock is the
root of the mount it lies on, plus the names walked since that mount was entered.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Mapping
from typing import NamedTuple

from osmosis.capture.mounts import is_remote
from osmosis.capture.views import Mount

__all__ = ["FILE_ACL", "FILE_FIXED", "NOWHERE", "Place", "Seen", "Walker", "has_acl", "look"]

# Bits of file flags: what beside its mode decides who may write to it.
FILE_FIXED = 2  # immutable, or sealed by fs-verity: nobody may
FILE_ACL = 4  # an access control list, which the mode does not show

# include/uapi/linux/stat.h
_AT_NOFOLLOW, _AT_NO_AUTOMOUNT, _AT_DONT_SYNC = 0x100, 0x800, 0x4000
_STATX_BASIC, _STATX_MNT_ID = 0x7FF, 0x1000
_FIXED = 0x10 | 0x100000  # STATX_ATTR_IMMUTABLE, STATX_ATTR_VERITY
_LIBC = ctypes.CDLL(None, use_errno=True)


class Seen(NamedTuple):
    """What statx tells of a file; uid and gid as the collector's user namespace has them."""

    mode: int
    uid: int
    gid: int
    links: int
    dev: int  # st_dev, major << 32 | minor
    inode: int
    size: int
    mtime: int  # seconds
    mount: int  # number of the mount it lies on, -1 if not told (before Linux 5.8)
    fixed: bool

    @property
    def identity(self) -> tuple[int, int, int]:
        """What tells it from every other file, and the mount it was seen on."""
        return self.dev, self.inode, self.mount


class Place(NamedTuple):
    """Where a file lies in its filesystem."""

    dev: int  # s_dev of the superblock, major << 32 | minor; 0 if it could not be told
    path: bytes | None  # from the root of the filesystem; None if it could not be told
    clear: bytes | None  # from this directory down to the file, everybody may walk


NOWHERE = Place(0, None, None)


def look(dirfd: int, path: bytes, *, follow: bool = False) -> Seen:
    """Statx of *path* below *dirfd*; OSError."""
    buffer = ctypes.create_string_buffer(256)
    flags = _AT_NO_AUTOMOUNT | _AT_DONT_SYNC | (0 if follow else _AT_NOFOLLOW)
    if _LIBC.statx(dirfd, path, flags, _STATX_BASIC | _STATX_MNT_ID, buffer):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    raw = buffer.raw
    mask, _, attributes, links, uid, gid, mode = struct.unpack_from("=IIQIIIH", raw)
    inode, size = struct.unpack_from("=QQ", raw, 32)
    (mtime,) = struct.unpack_from("=q", raw, 112)
    major, minor, mount = struct.unpack_from("=IIQ", raw, 136)
    return Seen(
        mode,
        uid,
        gid,
        links,
        major << 32 | minor,
        inode,
        size,
        mtime,
        mount if mask & _STATX_MNT_ID else -1,
        bool(attributes & _FIXED),
    )


def has_acl(dirfd: int, path: bytes) -> bool:
    """Whether it has an access control list; yes where that cannot be told."""
    try:
        names = os.listxattr(b"/proc/self/fd/%d/%s" % (dirfd, path), follow_symlinks=False)
    except OSError as exc:
        return exc.errno != errno.EOPNOTSUPP
    return "system.posix_acl_access" in names


class Walker:
    """Finds the places of files below root directories; each directory is looked at once.

    Parameters
    ----------
    mounts
        Every mount that is known, by number.

    """

    def __init__(self, mounts: Mapping[int, Mount]) -> None:
        self.mounts = mounts
        self._known: dict[tuple[object, bytes], tuple[Place, int] | None] = {}

    def find(self, key: object, root: int, path: bytes) -> tuple[Seen, Place] | None:
        """Return what stands at *path* below the directory *root*, and where that lies.

        *key* names the root directory. None if nothing is there, if its mount is not known, or
        if somebody else would have to be asked about it.
        """
        parent, _, name = path.rstrip(b"/").rpartition(b"/")
        above = self._directory(key, root, parent)
        if above is None:
            return None
        try:
            seen = look(root, path.strip(b"/"))
        except OSError:
            return None
        place = self._below(above, name, seen)
        return (seen, place) if place else None

    def _directory(self, key: object, root: int, path: bytes) -> tuple[Place, int] | None:
        if (key, path) not in self._known:
            self._known[key, path] = self._look_at(key, root, path)
        return self._known[key, path]

    def _look_at(self, key: object, root: int, path: bytes) -> tuple[Place, int] | None:
        above = None
        parent, _, name = path.rpartition(b"/")
        if path:
            above = self._directory(key, root, parent)
            if above is None:
                return None
        try:
            seen = look(root, path.lstrip(b"/") or b".")
        except OSError:
            return None
        place = self._below(above, name, seen)
        if place is None or not stat.S_ISDIR(seen.mode):
            return None
        if not seen.mode & 1 or has_acl(root, path.lstrip(b"/") or b"."):
            place = place._replace(clear=None)
        elif place.clear is None:
            place = place._replace(clear=place.path)
        return place, seen.mount

    def _below(self, above: tuple[Place, int] | None, name: bytes, seen: Seen) -> Place | None:
        if above is not None and above[1] == seen.mount >= 0:
            place = above[0]
            base = (place.path or b"").rstrip(b"/")
            return place._replace(path=base + b"/" + name)
        mount = self.mounts.get(seen.mount)
        if mount is None or is_remote(mount.kind):
            return None
        return Place(mount.dev, mount.root, mount.root)
