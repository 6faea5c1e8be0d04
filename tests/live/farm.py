"""A farm of real processes that share memory in every way there is, and a second way to see it.

    with Farm() as farm:
        farm.pids                         # by name
        farm.ask("writer", "look()")      # runs in that process; JSON values
        farm.frames()                     # pid -> set of frames, read entry by entry in Python

The farm is one Child (children.py) that forks workers; each worker waits on a socket of its own
and does nothing between two questions, so that its pages stay what they are.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any, Self

from children import Child

WORKERS = r"""
import mmap as pymmap
import random
workers, areas, plan = {}, {}, {}
PAGE = 4096
NONE, READ, WRITE = 0, 1, 2
SHARED, PRIVATE, ANONYMOUS, NORESERVE = 1, 2, 0x20, 0x4000
libc.mmap.restype = libc.shmat.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.madvise.argtypes = libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

def area(name, pages, prot=READ | WRITE, flags=PRIVATE | ANONYMOUS, fd=-1):
    # Map it, and let stamps and looks know of it.
    address = libc.mmap(None, pages * PAGE, prot, flags, fd, 0)
    if address == ctypes.c_void_p(-1).value:
        ok(-1)
    areas[name] = (address, pages, prot)
    return address

def put(address, value):
    ctypes.c_uint64.from_address(address).value = value

def get(address):
    return ctypes.c_uint64.from_address(address).value

def fill(name, pages=None):
    address, n, _ = areas[name]
    for page in range(n) if pages is None else pages:
        put(address + page * PAGE + 4088, os.getpid() << 20 | page)

def touch(name, pages=None):
    address, n, _ = areas[name]
    for page in range(n) if pages is None else pages:
        get(address + page * PAGE)

def stamp(slot, value):
    # Write *value* into our slot of every page that we may write.
    for address, n, prot in areas.values():
        if prot & WRITE:
            for page in range(n):
                put(address + page * PAGE + 8 * slot, value)

def look(slot, value):
    # Whether any page of ours shows it.
    return [
        name
        for name, (address, n, prot) in areas.items()
        if prot & READ and any(get(address + p * PAGE + 8 * slot) == value for p in range(n))
    ]

def spawn(name, work=None):
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if not pid:
        prctl(1, 9)  # PR_SET_PDEATHSIG: ends with its parent
        ours.close()
        for fd in (0, 1):
            os.close(fd)
        stream = theirs.makefile("rw")
        try:
            work and work()
            answer = [True, None]
        except BaseException:
            answer = [False, traceback.format_exc()]
        while True:
            stream.write(json.dumps(answer, default=repr) + "\n")
            stream.flush()
            line = stream.readline()
            if not line:
                os._exit(0)
            try:
                answer = [True, eval(json.loads(line), globals())]
            except BaseException:
                answer = [False, traceback.format_exc()]
    theirs.close()
    kids.append(pid)
    workers[name] = (pid, ours.makefile("rw"))
    ask(name, None)
    return pid

def ask(name, code):
    stream = workers[name][1]
    if code is not None:
        stream.write(json.dumps(code) + "\n")
        stream.flush()
    good, value = json.loads(stream.readline())
    if not good:
        raise RuntimeError(value)
    return value
"""

ZYGOTE = r"""
random.seed(5)
area("heap", 300); fill("heap")
area("zeros", 40); touch("zeros")
area("anon_touched", 20, flags=SHARED | ANONYMOUS); fill("anon_touched")
area("anon_untouched", 20, flags=SHARED | ANONYMOUS)
area("locked", 16); ok(libc.mlock(areas["locked"][0], 16 * PAGE))

big = area("reservation", 1 << 24, NONE, PRIVATE | ANONYMOUS | NORESERVE)  # 64 GiB
del areas["reservation"]
for at in (0, 12345678, (1 << 24) - 1):
    ok(libc.mprotect(big + at * PAGE, PAGE, READ | WRITE))
    put(big + at * PAGE, 7)

huge = area("thp", 1536)
libc.madvise(huge, 1536 * PAGE, 14)  # MADV_HUGEPAGE
fill("thp")

guarded = area("guarded", 8); fill("guarded")
has_guards = libc.madvise(guarded + 2 * PAGE, 2 * PAGE, 102) == 0  # MADV_GUARD_INSTALL, v6.13
del areas["guarded"]

disk = open(DIRECTORY + "/file", "wb+")
disk.write(b"d" * 30 * PAGE); disk.flush()
area("file_private", 10, fd=disk.fileno(), flags=PRIVATE); touch("file_private")
ro = os.open(DIRECTORY + "/file", os.O_RDONLY)
memory = os.memfd_create("farm")
os.ftruncate(memory, 12 * PAGE)
posix = os.open(f"/dev/shm/farm-{os.getpid()}", os.O_RDWR | os.O_CREAT | os.O_EXCL)
os.unlink(f"/dev/shm/farm-{os.getpid()}")
os.ftruncate(posix, 6 * PAGE)

def breaker(k):
    def work():
        r = random.Random(k)
        fill("heap", [p for p in range(300) if r.random() < 0.3])
        fill("thp", [p for p in range(1536) if r.random() < 0.02])
        fill("locked", [k])
    return work

for k in range(5):
    spawn(f"fork{k}", breaker(k))
spawn("memfd_shared", lambda: (area("m", 12, fd=memory, flags=SHARED), fill("m", range(6))))
spawn("memfd_shared_untouched", lambda: area("m", 12, fd=memory, flags=SHARED))
spawn("memfd_read", lambda: (area("m", 12, READ, fd=memory, flags=SHARED), touch("m", [1])))
spawn("memfd_private", lambda: area("m", 12, fd=memory, flags=PRIVATE))
spawn("memfd_private_written", lambda: (area("m", 12, fd=memory, flags=PRIVATE), fill("m", [2, 3])))
spawn("posix", lambda: (area("p", 6, fd=posix, flags=SHARED), fill("p")))
spawn("posix_read", lambda: (area("p", 6, READ, fd=posix, flags=SHARED), touch("p")))
spawn("file_shared", lambda: (area("f", 10, fd=disk.fileno(), flags=SHARED), fill("f", [4])))
spawn("file_read", lambda: area("f", 10, READ, fd=ro, flags=SHARED))
spawn("file_written", lambda: fill("file_private", [1, 2]))

def sysv(join=None):
    def work():
        if join is None:
            unshare(CLONE_NEWIPC)
            key = ok(libc.shmget(0x7777, 5 * PAGE, 0o1600))
        else:
            fd = os.open(f"/proc/{workers[join][0]}/ns/ipc", os.O_RDONLY)
            ok(libc.setns(fd, CLONE_NEWIPC)); os.close(fd)
            key = ok(libc.shmget(0x7777, 0, 0))
        plan["shmid"] = key
        address = libc.shmat(key, None, 0)
        areas["s"] = (address, 5, READ | WRITE)
        join is None and fill("s", [0, 1])
    return work

spawn("sysv_a", sysv())
spawn("sysv_a2", sysv("sysv_a"))
spawn("sysv_b", sysv())
spawn("userns", lambda: (new_user_namespace(), fill("heap", [9])))
unshare(CLONE_NEWPID)
spawn("pidns", lambda: fill("heap", [10]))
"""


class Farm:
    """The processes above; ``pids`` by name, "zygote" included."""

    def __init__(self, directory: Path, *, program: str = ZYGOTE) -> None:
        self.child = Child(f"DIRECTORY = {str(directory)!r}\n" + WORKERS)
        self.child.do(program)
        self.pids: dict[str, int] = {"zygote": self.child.pid}
        self.pids |= self.child.ask("{k: v[0] for k, v in workers.items()}")

    def ask(self, name: str, code: str) -> Any:
        """Evaluate an expression in one of them."""
        if name == "zygote":
            return self.child.ask(code)
        return self.child.ask(f"ask({name!r}, {code!r})")

    def frames(self) -> dict[int, set[int]]:
        """Frames of each process, by pid; see ``frames_of``."""
        return {pid: frames_of(pid) for pid in self.pids.values()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.child.stop()


def frames_of(pid: int) -> set[int]:
    """Frames that a process maps now, zero pages and the kernel's own left out.

    Entry by entry, in plain Python: maps for the ranges, pagemap for the entries, and
    /proc/kpageflags to know a zero page (KPF_ZERO_PAGE, bit 24).
    """
    found: set[int] = set()
    with (
        open(f"/proc/{pid}/maps", "rb") as maps,
        open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap,
        open("/proc/kpageflags", "rb", buffering=0) as flags,
    ):
        for line in maps:
            span, *_, name = (
                line.split(maxsplit=5) if line.count(b" ") > 5 else [*line.split(), b""]
            )
            name = name.strip()
            if name.startswith((b"[vdso]", b"[vvar", b"[vsyscall]")):
                continue
            first, last = (int(side, 16) // 4096 for side in span.split(b"-"))
            if last - first > 1 << 22:  # the reservation: only its two ends can hold anything
                spans = [(first, first + 1024), (last - 1024, last)]
            else:
                spans = [(first, last)]
            for lo, hi in spans:
                pagemap.seek(lo * 8)
                data = pagemap.read((hi - lo) * 8)
                while len(data) < (hi - lo) * 8:
                    more = pagemap.read((hi - lo) * 8 - len(data))
                    assert more, (pid, line)
                    data += more
                for (word,) in struct.iter_unpack("=Q", data):
                    if word >> 63:
                        found.add(word & ((1 << 55) - 1))
        zeros = set()
        for pfn in found:
            flags.seek(pfn * 8)
            (word,) = struct.unpack("=Q", flags.read(8))
            if word >> 24 & 1:
                zeros.add(pfn)
    return found - zeros


if __name__ == "__main__":
    sys.exit("a helper of the live tests")
