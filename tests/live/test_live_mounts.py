"""Mounts against what a process inside can really open, read and write.

Each child lives in a mount namespace and root of its own: a tmpfs with what the test puts there.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest
from children import child

import osmosis

pytestmark = pytest.mark.live(root=True)

SOURCES = {"files", "mounts", "namespaces", "memory"}
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 0x1000, 0x4000, 0x40000


def jail(base, *binds, pivot=False, before=""):
    """A child below a tmpfs of its own at *base*; *binds* are (source, name, read_only)."""
    base.mkdir()
    lines = [
        "unshare(CLONE_NEWNS)",
        f"mount(None, '/', None, {MS_REC | MS_PRIVATE})",
        f"mount('jail', {str(base)!r}, 'tmpfs')",
    ]
    for source, name, read_only in binds:
        at = str(base / name)
        make = "os.mkdir" if Path(source).is_dir() else "lambda p: open(p, 'w').close()"
        lines += [f"({make})({at!r})", f"mount({str(source)!r}, {at!r}, None, {MS_BIND})"]
        if read_only:
            lines.append(f"mount(None, {at!r}, None, {MS_BIND | MS_REMOUNT | MS_RDONLY})")
    lines.append(before)
    if pivot:
        lines += [
            f"os.chdir({str(base)!r})",
            "os.mkdir('old')",
            "ok(libc.syscall(155 if os.uname().machine == 'x86_64' else 41, b'.', b'old'))",
            "os.chdir('/')",
            "ok(libc.umount2(b'/old', 2))",
        ]
    else:
        lines += [f"os.chroot({str(base)!r})", "os.chdir('/')"]
    return child("\n".join(lines))


def model_of(*children):
    return osmosis.capture([c.pid for c in children], sources=SOURCES).model()


def shares(model, x, y, access="ANY"):
    found = model.shared_resources(x.pid, types="MOUNT", access=access, potential=True)
    return "yes" if y.pid in found.pids else "unknown" if y.pid in found.unknown.pids else "no"


def passes(writer, write_at, reader, read_at):
    """Whether what one process writes is what the other reads."""
    text = uuid.uuid4().hex
    writer.do(f"""
try:
    with open({write_at!r}, 'w') as f:
        f.write({text!r})
except OSError:
    pass
""")
    return reader.ask(f"os.path.exists({read_at!r}) and open({read_at!r}).read() == {text!r}")


@pytest.fixture
def volume(tmp_path):
    path = tmp_path / "volume"
    (path / "below").mkdir(parents=True)
    (path / "beside").mkdir()
    (path / "sock").touch()
    return path


@pytest.mark.parametrize("pivot", [False, True], ids=["chroot", "pivot_root"])
def test_a_volume_in_two_containers(tmp_path, volume, pivot):
    with (
        jail(tmp_path / "a", (volume, "data", False), pivot=pivot) as a,
        jail(tmp_path / "b", (volume, "other", True), pivot=pivot) as b,
        jail(tmp_path / "c", (volume / "below", "data", False), pivot=pivot) as c,
        jail(tmp_path / "d", (volume / "beside", "data", False), pivot=pivot) as d,
    ):
        model = model_of(a, b, c, d)
        assert shares(model, b, a, "W") == "yes"
        assert passes(a, "/data/x", b, "/other/x")
        assert shares(model, a, b, "W") == "no"
        assert not passes(b, "/other/y", a, "/data/y")
        assert shares(model, a, b, "R") == "yes"
        # Below a subtree that another sees.
        assert shares(model, a, c, "W") == shares(model, c, a, "W") == "yes"
        assert passes(c, "/data/x", a, "/data/below/x")
        assert passes(a, "/data/below/z", c, "/data/z")
        # Beside it: no path leads from one to the other.
        assert shares(model, c, d) == shares(model, d, c) == "no"
        assert shares(model, b, d, "W") == "yes"
        assert shares(model, d, b, "W") == "no"
        # Observed is nothing of it.
        assert a.pid not in model.shared_resources(b.pid, types="MOUNT").pids


def test_one_socket_bound_into_a_container(tmp_path, volume):
    with (
        jail(tmp_path / "a", (volume / "sock", "docker.sock", False)) as a,
        jail(tmp_path / "b", (volume, "run", False)) as b,
        jail(tmp_path / "c") as c,
    ):
        model = model_of(a, b, c)
        assert shares(model, a, b, "W") == "yes"
        assert passes(b, "/run/sock", a, "/docker.sock")
        assert shares(model, a, c) == "no"


def test_what_a_mount_covers_is_not_reached(tmp_path, volume):
    cover = f"mount('cover', {str(tmp_path / 'b' / 'data' / 'below')!r}, 'tmpfs')"
    with (
        jail(tmp_path / "a", (volume / "below", "data", False)) as a,
        jail(tmp_path / "b", (volume, "data", False), before=cover) as b,
        jail(tmp_path / "c", (volume, "data", False)) as c,
    ):
        model = model_of(a, b, c)
        assert shares(model, a, b) == "no"
        assert not passes(b, "/data/below/x", a, "/data/x")
        assert shares(model, a, c, "W") == shares(model, b, c, "W") == "yes"


def test_the_root_of_a_chroot_is_found_where_it_is_no_mount(tmp_path, volume):
    with (
        child() as whole,
        child(f"os.chroot({str(volume)!r})\nos.chdir('/')") as a,
        jail(tmp_path / "b", (volume / "below", "data", False)) as b,
        jail(tmp_path / "c", (tmp_path / "volume" / "sock", "s", False)) as c,
    ):
        model = model_of(whole, a, b, c)
        assert shares(model, a, b, "W") == "yes"
        assert passes(a, "/below/x", b, "/data/x")
        assert shares(model, whole, a, "W") == "yes"
        assert shares(model, b, c) == "no"
        alone = model_of(a, b)  # nobody there to tell what its root lies on
        assert shares(alone, a, b) == "unknown"


def test_permissions_of_ordinary_users(tmp_path, volume):
    (volume / "below").chmod(0o1777)
    (volume / "beside").chmod(0o700)
    os.chown(volume / "beside", 4242, 4242)
    (volume / "owned").mkdir(mode=0o700)
    binds = (volume / "below", "tmp", False), (volume / "beside", "home", False)
    with (
        jail(tmp_path / "a", *binds) as a,
        jail(tmp_path / "b", *binds[:1]) as b,
        jail(tmp_path / "c", *binds[1:]) as c,
        jail(tmp_path / "d", *binds[1:]) as d,
    ):
        for one, uid in (a, 4242), (b, 4243), (c, 4242), (d, 4244):
            one.do("os.chmod('/', 0o755)\nos.setgroups([])")
            one.do(f"os.setresgid({uid}, {uid}, {uid})\nos.setresuid({uid}, {uid}, {uid})")
        model = model_of(a, b, c, d)
        assert shares(model, a, b, "W") == shares(model, b, a, "W") == "yes"
        assert passes(a, "/tmp/x", b, "/tmp/x")
        assert shares(model, a, c, "W") == "yes"
        assert passes(a, "/home/x", c, "/home/x")
        assert shares(model, a, d, "W") == shares(model, d, a, "W") == "unknown"
        assert not d.ask("os.access('/home', os.R_OK)")


def test_the_kernels_own_filesystems_make_no_neighbours(tmp_path):
    def with_proc(name):
        at = str(tmp_path / name / "proc")
        return jail(tmp_path / name, before=f"os.mkdir({at!r})\nmount('proc', {at!r}, 'proc')")

    with with_proc("a") as a, with_proc("b") as b:
        assert shares(model_of(a, b), a, b) == "no"


def test_a_file_written_through_one_bind_and_read_through_another(tmp_path, volume):
    with (
        jail(tmp_path / "a", (volume, "data", False)) as a,
        jail(tmp_path / "b", (volume, "other", True)) as b,
    ):
        a.do("f = os.open('/data/f', os.O_CREAT | os.O_WRONLY)\nos.write(f, b'told')")
        b.do("f = os.open('/other/f', os.O_RDONLY)")
        assert b.ask("os.read(f, 9).decode()") == "told"
        model = model_of(a, b)
        inode = (volume / "f").stat().st_ino
        writer = model.common_resources(b.pid, a.pid, types="FILE", access="W").ids
        reader = model.common_resources(a.pid, b.pid, types="FILE", access="W").ids
        assert any(name.endswith(f"_{inode}") for name in writer)
        assert not any(name.endswith(f"_{inode}") for name in reader)


def test_a_file_of_an_overlay_is_that_of_its_upper_layer(tmp_path):
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower" / "old").write_text("lower")
    (tmp_path / "lower" / "same").write_text("lower")
    (tmp_path / "base").mkdir()
    options = ",".join(f"{n}dir={tmp_path / n}" for n in ("lower", "upper", "work"))
    enter = f"""
unshare(CLONE_NEWNS)
mount(None, '/', None, {MS_REC | MS_PRIVATE})
mount('o', {str(tmp_path / "base")!r}, 'overlay', 0, {options!r})
os.chroot({str(tmp_path / "base")!r})
os.chdir('/')
"""
    with child(enter) as a, child() as b:
        a.do("""
new = os.open('/new', os.O_CREAT | os.O_RDWR)
old = os.open('/old', os.O_RDWR)
same = os.open('/same', os.O_RDONLY)
os.write(new, b'new')
os.write(old, b'upper')
""")
        b.do(f"""
new = os.open({str(tmp_path / "upper" / "new")!r}, os.O_RDONLY)
old = os.open({str(tmp_path / "upper" / "old")!r}, os.O_RDONLY)
same = os.open({str(tmp_path / "lower" / "same")!r}, os.O_RDWR)
before = os.open({str(tmp_path / "lower" / "old")!r}, os.O_RDWR)
""")
        assert b.ask("[os.read(new, 9).decode(), os.read(old, 9).decode()]") == ["new", "upper"]
        b.do("os.pwrite(same, b'LOWER', 0)\nos.pwrite(before, b'LOWER', 0)")
        assert a.ask("[os.pread(same, 9, 0).decode(), os.pread(old, 9, 0).decode()]") == [
            "LOWER",
            "upper",
        ]
        model = model_of(a, b)
        inodes = {n: b.ask(f"os.fstat({n}).st_ino") for n in ("new", "old", "same", "before")}
        own = {n: a.ask(f"os.fstat({n}).st_ino") for n in ("new", "old", "same")}
        written = model.common_resources(b.pid, a.pid, types="FILE", access="W").ids
        into = model.common_resources(a.pid, b.pid, types="FILE", access="W").ids
    assert own["old"] == inodes["before"]
    for name in ("new", "old"):
        assert any(n.endswith(f"_{inodes[name]}") for n in written), name
    assert any(n.endswith(f"_{inodes['same']}") for n in into)
    # The lower file that was copied is another one by now.
    assert not any(n.endswith(f"_{inodes['before']}") and n in into for n in written)


def test_what_a_thread_with_a_tree_of_its_own_reaches_is_not_told(tmp_path, volume):
    """The leader is in a jail without the volume; its thread stayed where the volume is."""
    outside = jail(tmp_path / "one", (volume, "volume", False))
    inside = child(
        "CLONE_FS = 0x200\nthreading.stack_size(1 << 20)\n"
        "tid = in_thread(lambda: unshare(CLONE_FS))\n"  # from here on its root is its own
        f"os.mkdir({str(tmp_path / 'empty')!r})\nos.chroot({str(tmp_path / 'empty')!r})"
    )
    with outside as a, inside as b:
        (Path(volume) / "file").write_text("x")
        tid = b.ask("tid")
        assert os.readlink(f"/proc/{b.pid}/root") != "/"
        assert Path(f"/proc/{b.pid}/task/{tid}/root{volume}/file").read_text() == "x"
        assert not Path(f"/proc/{b.pid}/root{volume}/file").exists()
        assert shares(model_of(a, b), a, b, "W") == "unknown"


@pytest.mark.parametrize("kind", ["shared", "slave", "private"])
def test_what_is_mounted_later_is_where_propagation_carries_it(tmp_path, kind):
    """One mounts; another, whose namespace was there before, goes to live where it mounted."""
    shared, flag = 1 << 20, {"shared": 1 << 20, "slave": 1 << 19, "private": 1 << 18}[kind]
    base, at = str(tmp_path), str(tmp_path / "later")
    with child("unshare(CLONE_NEWNS)") as a, child() as b:
        a.do(f"""
mount(None, '/', None, {MS_REC | MS_PRIVATE})
mount('base', {base!r}, 'tmpfs')
mount(None, {base!r}, None, {shared})
""")
        b.do(f"""
fd = os.open('/proc/{a.pid}/ns/mnt', os.O_RDONLY)
ok(libc.setns(fd, 0))
unshare(CLONE_NEWNS)
mount(None, {base!r}, None, {flag})
whole = fork()  # it sees what the chroot of the other is part of
""")
        a.do(f"os.mkdir({at!r})\nmount('later', {at!r}, 'tmpfs')")
        whole = b.ask("whole")
        b.do(f"os.chroot({at!r})\nos.chdir('/')")
        snap = osmosis.capture([a.pid, b.pid, whole], sources=SOURCES)
        carried = kind != "private"
        assert passes(a, at + "/x", b, "/x") == carried
        lines = Path(f"/proc/{whole}/mountinfo").read_text().splitlines()
        fields = {line.split()[4]: line.split(" - ")[0].split()[6:] for line in lines}
    assert shares(snap.model(), a, b, "W") == ("yes" if carried else "no")
    told = {
        snap.text(propagation)
        for propagation, point in zip(
            snap["mount_propagation"].tolist(), snap["mount_point"].tolist(), strict=True
        )
        if snap.text(point) == base
    }
    assert " ".join(fields[base]) in told
