"""What every mechanism needs: a stage that puts back all it changed, and a rootfs cache.

Nothing here outlives ``Stage.close``: processes are stopped by pidfd (never by name), mounts,
users, links, firewall rules and sysctls go back to what they were.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import pwd
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks.evaluation import firewall

__all__ = [
    "PATH",
    "CannotRun",
    "Instances",
    "Mechanism",
    "Stage",
    "below",
    "cache_dir",
    "cgroup_roots",
    "command",
    "descendants",
    "is_running",
    "need",
    "staged",
    "wait_for",
]


class CannotRun(Exception):  # not a failure: a reason
    """This mechanism cannot run on this machine, and why."""


@dataclass
class Instances:
    """The processes of one mechanism, by role, as host pids."""

    db: int
    app: int
    bystander: int
    others: dict[str, list[int]] = field(default_factory=dict)  # daemon, shim, network, sentry
    containers: dict[str, str] = field(default_factory=dict)  # id -> the name we gave it

    @classmethod
    def of(cls, pids: Sequence[int], others: dict[str, list[int]] | None = None) -> Instances:
        """Return the instances from (db, app, bystander)."""
        db, app, bystander = pids
        return cls(db, app, bystander, others or {})

    def roles(self) -> dict[str, str]:
        """Return ``host["roles"]`` of a snapshot: only what structure cannot tell."""
        given = {"db": self.db, "app": self.app, "bystander": self.bystander}
        return {f"{pid}:{start_time(pid)}": role for role, pid in given.items()}

    def all(self) -> set[int]:
        """Return every pid that is named here."""
        return {self.db, self.app, self.bystander, *(p for ps in self.others.values() for p in ps)}


class Mechanism(Protocol):
    """One isolation mechanism, brought up and torn down for real."""

    name: str

    def up(self, work: Path) -> Instances:
        """Start it; raises CannotRun with the reason. Call ``down`` in every case."""

    def pids(self) -> Instances:
        """Return the processes as they are now."""

    def down(self) -> None:
        """Leave nothing behind."""


def cache_dir() -> Path:
    """Return where built root filesystems are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "osmosis"


def need(*programs: str, package: str, path: str = "") -> None:
    """Raise CannotRun unless all *programs* are there: in PATH, or in the folder *path*."""
    if os.geteuid() != 0:
        raise CannotRun("root is needed to start it")
    for program in programs:
        if shutil.which(program, path=path or PATH) is None:
            raise CannotRun(f"{program} is not installed: apt-get install {package}")


PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/libexec"
_ENV = {**os.environ, "PATH": PATH, "LC_ALL": "C"}


def command(*argv: str | Path, check: bool = True, timeout: float = 120, **kw: Any) -> str:
    """Run a command to its end and return its output; raises with stderr if it fails."""
    with open(kw.pop("stdin", None) or os.devnull, "rb") as given:
        done = subprocess.run(
            [str(a) for a in argv],
            env={**_ENV, **kw.pop("env", {})},
            stdin=given,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            **kw,
        )
    if check and done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise RuntimeError(f"{' '.join(map(str, argv))}: exit {done.returncode}: {said}")
    return str(done.stdout)


def wait_for(what: str, test: Callable[[], Any], timeout: float = 30) -> Any:
    """Poll *test* until it gives something true, and return that."""
    until = time.monotonic() + timeout
    while True:
        with contextlib.suppress(OSError, RuntimeError, ValueError, subprocess.TimeoutExpired):
            if value := test():
                return value
        if time.monotonic() > until:
            raise RuntimeError(f"{what}: not there after {timeout:.0f} s")
        time.sleep(0.1)


def start_time(pid: int) -> int:
    """Return stat field 22, in clock ticks since boot: with the pid it names a process."""
    stat = Path(f"/proc/{pid}/stat").read_bytes()
    return int(stat[stat.rindex(b")") + 2 :].split()[19])


def parents() -> dict[int, int]:
    """Return pid -> parent's pid, of all processes."""
    table = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, ValueError):
                stat = Path(f"/proc/{entry}/stat").read_bytes()
                table[int(entry)] = int(stat[stat.rindex(b")") + 2 :].split()[1])
    return table


def parent(pid: int) -> int:
    """Return the pid of *pid*'s parent."""
    return parents()[pid]


def descendants(pid: int) -> list[int]:
    """Return the pids below *pid*, itself first."""
    table = parents()
    below, found = {pid}, [pid]
    while fresh := [p for p, parent in table.items() if parent in below and p not in below]:
        below.update(fresh)
        found += sorted(fresh)
    return found


def ancestors(pid: int) -> list[int]:
    """Return the pids above *pid*, its parent first."""
    table, found = parents(), []
    while (pid := table.get(pid, 0)) > 0 and pid not in found:
        found.append(pid)
    return found


def state(pid: int) -> str:
    """Return the letter of *pid*'s state, "" if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return ""
    return stat[stat.rindex(b")") + 2 :].split()[0].decode()


def comm(pid: int) -> str:
    """Return the name of *pid*, "" if it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return ""


def is_running(pid: int, wanted: Sequence[str]) -> bool:
    """Whether *pid* is named ``wanted[0]`` and has the other words among its arguments."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return comm(pid) == wanted[0] and all(w.encode() in words for w in wanted[1:])


def below(pid: int, wanted: Sequence[str], timeout: float = 30) -> int:
    """Wait for a process that ``is_running`` *wanted* at or below *pid*."""
    return int(
        wait_for(
            f"{wanted[0]} below {pid}",
            lambda: next((p for p in descendants(pid) if is_running(p, wanted)), None),
            timeout,
        )
    )


@dataclass(frozen=True)
class Handle:
    """A process that cannot be mistaken for a later one with its pid."""

    pid: int
    fd: int

    def alive(self) -> bool:
        """Whether it still runs."""
        return not select.select([self.fd], [], [], 0)[0]

    def stop(self, grace: float = 10) -> None:
        """SIGTERM, then SIGKILL after *grace* seconds; waits for the end."""
        for sig, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.fd, sig)
            if select.select([self.fd], [], [], patience)[0]:
                break
        with contextlib.suppress(ChildProcessError, OSError):
            os.waitpid(self.pid, 0)


class Stage:
    """Everything that one mechanism changed on the host, and how to put it back.

    ``close`` undoes in reverse order, goes on after a failure, and reports all failures.
    """

    def __init__(self, work: Path) -> None:
        self.work = work
        self._undo: list[tuple[str, Callable[[], Any]]] = []
        work.mkdir(parents=True, exist_ok=True)
        work.chmod(0o755)  # an ordinary user's container starts from here

    def on_close(self, what: str, undo: Callable[[], Any]) -> None:
        """Call *undo* at the end."""
        self._undo.append((what, undo))

    def close(self) -> None:
        """Undo all; raises RuntimeError that lists what could not be undone."""
        failed = []
        while self._undo:
            what, undo = self._undo.pop()
            try:
                undo()
            except Exception as exc:
                failed.append(f"{what}: {exc}")
        if failed:
            raise RuntimeError("left behind: " + "; ".join(failed))

    def folder(self, name: str) -> Path:
        """Make a folder below the work directory that is removed at the end."""
        path = self.work / name
        path.mkdir(parents=True, exist_ok=True)

        def remove() -> None:
            # A mount left below would be emptied through: refuse to.
            wait_for(f"no mount below {path}", lambda: not mounts_below(path), 5)
            shutil.rmtree(path)

        self.on_close(f"folder {path}", remove)
        return path

    def short_folder(self) -> Path:
        """Make a folder with a short path, removed at the end."""
        path = Path(tempfile.mkdtemp(prefix="osm-", dir="/var/tmp"))

        def remove() -> None:
            unmount_below(path)
            shutil.rmtree(path)

        self.on_close(f"folder {path}", remove)
        path.chmod(0o755)
        return path

    def keep_folders(self, *paths: str) -> None:
        """Remove these at the end, with the mounts below, if they were not there."""
        for path in map(Path, paths):
            if not path.exists():

                def remove(path: Path = path) -> None:
                    unmount_below(path)
                    if path.is_dir():
                        shutil.rmtree(path, ignore_errors=True)
                    else:
                        path.unlink(missing_ok=True)

                self.on_close(f"folder {path}", remove)

    def track(self, pid: int) -> Handle:
        """Stop process *pid* at the end."""
        handle = Handle(pid, os.pidfd_open(pid))

        def end() -> None:
            handle.stop()
            os.close(handle.fd)

        self.on_close(f"process {pid}", end)
        return handle

    def spawn(self, *argv: str | Path, log: str, **kw: Any) -> Handle:
        """Start a process in a session of its own; its output goes to a log file."""
        with (self.work / f"{log}.log").open("ab") as out:
            child = subprocess.Popen(
                [str(a) for a in argv],
                env={**_ENV, **kw.pop("env", {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                **kw,
            )
        handle = self.track(child.pid)
        child.returncode = 0  # Handle waits for it: Popen need not warn
        return handle

    def log(self, name: str) -> str:
        """Return the end of a log file."""
        path = self.work / f"{name}.log"
        return path.read_text(errors="replace")[-2000:] if path.exists() else ""

    def keep_network(self, *ours: str) -> None:
        """Put forwarding, the firewall and these links back at the end; one user at a time."""
        cache_dir().mkdir(parents=True, exist_ok=True)
        lock = (cache_dir() / "network.lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        self.on_close("network lock", lock.close)
        sysctls = {}
        for path in Path("/proc/sys/net").glob("ipv[46]/**/*forward*"):
            with contextlib.suppress(OSError):
                sysctls[path] = path.read_text()
        fresh = [link for link in ours if not Path("/sys/class/net", link).exists()]
        tools = [t for t in ("iptables", "ip6tables") if shutil.which(f"{t}-save", path=PATH)]
        rules = {tool: firewall.save(tool, PATH) for tool in tools}

        def restore() -> None:
            for link in fresh:
                if Path("/sys/class/net", link).exists():
                    command("ip", "link", "delete", link)
            for tool, before in rules.items():
                firewall.take_away(tool, PATH, before)
            for path, value in sysctls.items():
                with contextlib.suppress(OSError):
                    if path.read_text() != value:
                        path.write_text(value)

        self.on_close("network", restore)

    def keep_cgroups(self, *names: str) -> None:
        """Remove the top-level cgroups of these names at the end, if they were not there."""
        fresh = [root / n for root in cgroup_roots() for n in names if not (root / n).exists()]

        def remove() -> bool:
            for top in fresh:
                folders = [Path(folder) for folder, _, _ in os.walk(top, topdown=False)]
                for folder in folders:
                    folder.rmdir()
            return True

        self.on_close("cgroups", lambda: wait_for("empty cgroups", remove, 10))

    def mode(self, path: str, bits: int) -> None:
        """Change a file's mode until the end."""
        old = os.stat(path).st_mode & 0o7777
        os.chmod(path, bits)
        self.on_close(f"mode of {path}", lambda: os.chmod(path, old))

    def user(self, name: str) -> int:
        """Make an ordinary user with subordinate ids, gone at the end; returns the uid.

        The uid is one that no process and no account has, so that all its processes are ours.
        """
        home = self.work / f"home-{name}"
        uid = _free_uid()
        argv = ("--uid", str(uid), "--create-home", "--home-dir", home, "--shell", "/bin/sh")
        shutil.rmtree(home, ignore_errors=True)
        command("useradd", *argv, name)

        def stopped() -> bool:
            for pid in owned_by(uid):
                with contextlib.suppress(OSError):
                    Handle(pid, os.pidfd_open(pid)).stop(2)
            # --force: others may use ids of the range that was its subordinate one.
            command("userdel", "--force", name)
            return True

        def remove() -> None:
            wait_for(f"userdel {name}", stopped, 20)
            shutil.rmtree(home, ignore_errors=True)

        self.on_close(f"user {name}", remove)
        run = Path(f"/run/user/{uid}")
        if not run.exists():
            run.mkdir(parents=True, mode=0o700)
            os.chown(run, uid, uid)
            self.on_close(f"folder {run}", lambda: shutil.rmtree(run))
        return uid


def owned_by(uid: int) -> list[int]:
    """Return the processes with effective uid *uid*."""
    found = []
    for pid in parents():
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{pid}/task").st_uid == uid:
                found.append(pid)
    return found


def _free_uid() -> int:
    """Return a uid below login.defs' UID_MAX that nobody has: useradd gives it subuids."""
    busy = {entry.pw_uid for entry in pwd.getpwall()} | {g.gr_gid for g in grp.getgrall()}
    for pid in parents():
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_bytes().splitlines():
                if line.startswith((b"Uid:", b"Gid:", b"Groups:")):
                    busy.update(int(word) for word in line.split()[1:])
    return next(uid for uid in range(50000, 60000) if uid not in busy)


def cgroup_roots() -> list[Path]:
    """Return where each hierarchy of cgroups is mounted."""
    lines = [line.split(" ") for line in Path("/proc/mounts").read_text().splitlines()]
    return [Path(words[1]) for words in lines if words[2] in ("cgroup", "cgroup2")]


def mounts_below(path: Path) -> list[str]:
    """Return the mount points of this mount namespace at or below *path*, deepest first."""
    root = os.path.realpath(path)
    points = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        point = line.split(" ")[4].encode("latin-1", "surrogateescape").decode("unicode_escape")
        if point == root or point.startswith(root + "/"):
            points.append(point)
    return sorted(points, key=len, reverse=True)


def unmount_below(*paths: Path) -> None:
    """Unmount all at or below these."""
    for point in (p for path in paths for p in mounts_below(path)):
        command("umount", "--lazy", point, check=False)


@contextlib.contextmanager
def staged(mechanism: Mechanism, work: Path) -> Iterator[Instances]:
    """Bring a mechanism up for the length of a with block."""
    try:
        yield mechanism.up(work)
    finally:
        mechanism.down()


def pid_list(text: str | Sequence[str]) -> list[int]:
    """Return the numbers in a command's output."""
    words = text.split() if isinstance(text, str) else text
    return [int(w) for w in words if w.isdigit()]
