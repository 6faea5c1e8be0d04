"""rewrite against the kernel: each actor really opens each mapped file, and writes nothing."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from control_actors import Actor, build_for

import osmosis
from osmosis.relations.control.table import control

pytestmark = pytest.mark.live

MAPPER = r"""
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>
int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		int fd = open(argv[i], O_RDONLY);
		if (fd < 0 || mmap(0, 4096, PROT_READ, MAP_PRIVATE, fd, 0) == MAP_FAILED)
			return 1;
		close(fd);
	}
	puts("ready");
	fflush(stdout);
	char c;
	return read(0, &c, 1) < 0;
}
"""
# Owner, group, mode of each file, and of the directory that it is alone in.
FILES = {
    "root.lib": (0, 0, 0o644, 0o755),
    "user.lib": (1000, 1000, 0o644, 0o755),
    "readonly.lib": (1000, 1000, 0o444, 0o755),
    "others.lib": (1001, 1001, 0o206, 0o755),
    "group.lib": (0, 1005, 0o664, 0o755),
    "group-less.lib": (0, 1005, 0o646, 0o755),
    "world.lib": (0, 0, 0o666, 0o755),
    "shut.lib": (0, 0, 0o666, 0o700),
    "shut-user.lib": (0, 0, 0o666, 0o500),
    "shifted.lib": (100000, 100000, 0o644, 0o755),
    "deleted.lib": (0, 0, 0o666, 0o755),
    "linked.lib": (0, 0, 0o666, 0o755),
    "acl.lib": (0, 0, 0o660, 0o755),
}
USER = "groups gid:1000:1000:1000 uid:1000:1000:1000"
FULL = "0/0/4294967295"
ACTORS = {
    "root": ("",),
    "root without any": ("caps:0:0",),
    "root without CAP_DAC_OVERRIDE": ("caps:1fffefffffd:1fffefffffd",),
    "root with CAP_DAC_READ_SEARCH only": ("caps:4:4",),
    "user": (f"{USER} exec",),
    "other user": ("groups gid:1001:1001:1001 uid:1001:1001:1001 exec",),
    "user in the group": ("groups:1005 gid:1000:1000:1000 uid:1000:1000:1000 exec",),
    "user of the group": ("groups gid:1005:1005:1005 uid:1002:1002:1002 exec",),
    "user with CAP_DAC_OVERRIDE": (f"keep {USER} caps:2:2 dumpable:1",),
    "fsuid 1000": ("fsuid:1000 dumpable:1",),
    "userns of root": ("user uid:0:0:0", FULL),
    "userns of root, shifted": ("user gid:0:0:0 uid:0:0:0 exec", "0/100000/65536"),
    "userns of user": (f"{USER} exec user uid:0:0:0 gid:0:0:0", "0/1000/1"),
    "a thread of root": ("groups gid:1000:1000:1000 keep uid:0:0:1000 caps:c0:c0 thread:1000",),
}
# What is done in a mount namespace of the actor's own, before it starts.
MOUNTED = {
    "read-only": "mount --bind {0} {0}; mount -o remount,ro,bind {0}",
    "covered": "mount -t tmpfs none {0}",
    "covered, all seen elsewhere": "mount --bind {0} {1}; mount -t tmpfs none {0}",
    "covered, all seen read-only": "mount --bind {0} {1}; mount -o remount,ro,bind {1}; "
    "mount -t tmpfs none {0}",
    "one directory seen elsewhere": "mount --bind {0}/shut.lib.d {1}; mount -t tmpfs none {0}",
    "one file seen elsewhere": "mount --bind {0}/world.lib.d/world.lib {1}/one; "
    "mount -t tmpfs none {0}",
    "one file read-only": "mount --bind {0}/world.lib.d/world.lib {0}/world.lib.d/world.lib; "
    "mount -o remount,ro,bind {0}/world.lib.d/world.lib",
    "all read-only": "mount -o remount,ro,bind /; mount --bind {0} {1}; "
    "mount -o remount,ro,bind {1}",
    "under another": "mount --bind {0} {0}; mount -o remount,ro,bind {0}; mount --bind {1} {0}",
}
LIBC = ctypes.CDLL(None, use_errno=True)


def apart(script: str, root: str | None = None):
    """Return what the child does before it becomes the probe."""

    def prepare() -> None:
        if LIBC.unshare(0x20000):  # CLONE_NEWNS
            raise OSError(ctypes.get_errno(), "unshare")
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["sh", "-ec", script], check=True)
        if root:
            os.chroot(root)
            os.chdir("/")

    return prepare


@pytest.fixture(scope="module")
def place():
    """A folder that everybody may walk to, on a filesystem that is stored."""
    home = Path("/var/tmp") / f"osmosis-rewrite-{os.getpid()}"
    (home / "files").mkdir(parents=True)
    (home / "elsewhere").mkdir()
    (home / "elsewhere" / "one").touch()
    (home / "root").mkdir()
    for path in (home, *home.iterdir()):
        path.chmod(0o755)
    yield home
    shutil.rmtree(home)


@pytest.fixture(scope="module")
def targets(place):
    """A process for each file, statically linked: it maps that file and its own text only."""
    source = place / "mapper.c"
    source.write_text(MAPPER)
    program = place / "mapper"
    done = subprocess.run(["gcc", "-static", "-o", program, source], check=False)
    if done.returncode:
        pytest.skip("the target must be linked statically: needs libc.a")
    program.chmod(0o777)
    started = {}
    for name, (uid, gid, mode, directory_mode) in FILES.items():
        path = place / "files" / f"{name}.d" / name
        path.parent.mkdir()
        path.write_bytes(b"x" * 4096)
        os.chown(path, uid, gid)
        path.chmod(mode)
        if name == "acl.lib":
            give(path, user=1000)
        if name == "linked.lib":
            os.link(path, place / "elsewhere" / "linked.lib")
        started[name] = subprocess.Popen(
            [program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert started[name].stdout.readline() == b"ready\n"
        if name == "deleted.lib":
            path.unlink()
        owner = 1001 if name == "shut-user.lib" else 0
        os.chown(path.parent, owner, owner)
        path.parent.chmod(directory_mode)
    yield {name: child.pid for name, child in started.items()}
    for child in started.values():
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()


def give(path: Path, *, user: int) -> None:
    """Let one more user write (include/uapi/linux/posix_acl_xattr.h)."""
    none = 0xFFFFFFFF
    entries = [(1, 6, none), (2, 6, user), (4, 0, none), (0x10, 6, none), (0x20, 0, none)]
    data = (2).to_bytes(4, "little") + b"".join(
        tag.to_bytes(2, "little") + perm.to_bytes(2, "little") + who.to_bytes(4, "little")
        for tag, perm, who in entries
    )
    os.setxattr(path, "system.posix_acl_access", data)


@pytest.fixture(scope="module")
def actors(place, targets, tmp_path_factory):
    probe = build_for(tmp_path_factory)
    files, elsewhere = place / "files", place / "elsewhere"
    started = []
    try:
        for name, (ops, *maps) in ACTORS.items():
            started.append(Actor(name, probe, ops, tuple(maps)))
        for name, script in MOUNTED.items():
            script = script.format(files, elsewhere)
            for ops in ("", f"{USER} exec"):
                started.append(Actor(f"{name} {ops}", probe, ops, preexec_fn=apart(script)))
        root = place / "root"
        for name, options in {"chroot": "rw", "chroot, read-only": "ro"}.items():
            script = f"mount --bind / {root}; mount -o remount,bind,{options} {root}; "
            script += f"mount --bind /proc {root}/proc; mount --bind {probe.parent} "
            script += f"{root}/{probe.parent}"
            for ops in ("", f"{USER} exec"):
                prepare = apart(script, str(root))
                started.append(Actor(f"{name} {ops}", probe, ops, preexec_fn=prepare))
        yield started
    finally:
        for actor in started:
            actor.stop()


@pytest.fixture(scope="module")
def asked(actors, targets):
    pids = [a.pid for a in actors] + list(targets.values())
    snap = osmosis.capture(pids=pids)
    row = {pid: i + 1 for i, pid in enumerate(snap["process_pid"].tolist())}
    assert set(pids) <= set(row)
    return control(snap), row


def opens(actor: Actor, place: Path, path: str) -> bool:
    """Try every name that some mount namespace of this test has for the file."""
    files, elsewhere = str(place / "files"), str(place / "elsewhere")
    names = {path}
    if path.startswith(files):
        inner = path[len(files) :]
        names |= {elsewhere + inner, f"{elsewhere}/{Path(path).name}"}
        if actor.name.startswith("one file seen elsewhere") and "world.lib" in path:
            names.add(f"{elsewhere}/one")
    return any(actor.ask("write", 0, f"{name}=") == 0 for name in names)


def mapped_by(pid: int) -> set[str]:
    """Paths of the files that a process maps, as maps tells them; deleted ones have none."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    paths = {line.split(None, 5)[5] for line in lines if len(line.split(None, 5)) > 5}
    return {p for p in paths if p.startswith("/") and not p.endswith(" (deleted)")}


def linked(path: str) -> bool:
    """Whether the file has another name: a distribution's image may have given it one."""
    return Path(path).exists() and Path(path).stat().st_nlink > 1


def test_rewriting_is_what_open_says(place, actors, targets, asked):
    table, row = asked
    relation = table.relation("rewrite", effective=True)
    names = {pid: name for name, pid in targets.items()} | {a.pid: str(a) for a in actors}
    root = str(place / "root")  # what a chroot shows is the host's
    maps = {pid: {path.removeprefix(root) for path in mapped_by(pid)} for pid in names}
    known: dict[tuple[int, str], bool] = {}
    wrong, unknown, held, denied = [], [], 0, 0
    for a in actors:
        for pid, name in names.items():
            if pid == a.pid:
                continue
            kernel = False
            for path in maps[pid]:
                if (a.pid, path) not in known:
                    known[a.pid, path] = opens(a, place, path)
                kernel |= known[a.pid, path]
            i, j = row[a.pid], row[pid]
            state = relation.state(i, j)
            finding = table.finding("rewrite", i, j, effective=True)
            assert finding.state is state, (a, name, finding)
            held += kernel
            denied += not kernel
            if state is None:
                unknown.append((str(a), name, finding.reason))
            elif state != kernel:
                wrong.append(f"{a} rewrites {name}: kernel says {kernel}, we {finding}")
    assert not wrong, f"{len(wrong)} pairs:\n" + "\n".join(wrong[:10])
    assert held > 100
    assert denied > 100
    # Only where a directory is not everybody's, there is an ACL, or the file has another name.
    excused = {"shut.lib", "shut-user.lib", "acl.lib"}
    excused |= {name for pid, name in names.items() if any(map(linked, maps[pid]))}
    strange = [u for u in unknown if u[1] not in excused]
    assert not strange, sorted({u[0].rpartition(" ")[0] for u in strange})
    assert len(unknown) < (held + denied) / 10


def test_root_of_the_host_is_decided_for_every_file(actors, targets, asked):
    table, row = asked
    relation = table.relation("rewrite", effective=True)
    root = next(a for a in actors if a.name == "root")

    states = {name: relation.state(row[root.pid], row[pid]) for name, pid in targets.items()}

    assert states == {name: name != "deleted.lib" for name in FILES}


def test_without_the_sources_it_is_unknown(actors, targets):
    a, b = actors[0].pid, targets["world.lib"]
    for sources in (["control", "namespaces"], ["control", "namespaces", "memory"]):
        snap = osmosis.capture(pids=[a, b], sources=sources)
        row = {pid: i + 1 for i, pid in enumerate(snap["process_pid"].tolist())}

        assert control(snap).relation("rewrite", effective=True).state(row[a], row[b]) is None
