"""Every column of a snapshot: its table, type, meaning, and which table it points into.

A column's full name is ``table_name``: ``process_pid`` is column ``pid`` of table
``process``. All columns of a table have one row count. Three spellings of a relation:

* ``refers="vma"``: each value is a row of that table, or negative (see ``UNKNOWN``).
* ``indptr="vma"``: CSR layout; one entry more than the table has rows, from 0 to the row
  count of the table that it divides, never falling.
* ``refers="string"``: a row of the pool of byte strings, -1 for "not known".

Capture writes these, ``archive`` checks them, relations read them. Nothing else
may pass between the two stairs.
"""

from dataclasses import dataclass

__all__ = [
    "COLUMNS",
    "NAMESPACES",
    "NO_ID",
    "UNKNOWN",
    "VERSION",
    "CgroupVerb",
    "Column",
    "FileKind",
    "FrameKind",
    "HandleKind",
    "Status",
    "VmaKind",
]

VERSION = 1  # of the file format; raised when a column changes its meaning
UNKNOWN = -1  # a reference, flag or id that could not be read
NO_ID = 0xFFFF_FFFF  # a uid or gid that could not be read: (uid_t) -1 is never a real one

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")  # as in /proc/pid/ns


class VmaKind:
    """What a VMA is, as far as its maps line tells (``vma_kind``)."""

    ANON, FILE, SHM, HEAP, STACK, VDSO, VVAR, VSYSCALL, OTHER = range(9)
    NAMES = ("ANON", "FILE", "SHM", "HEAP", "STACK", "VDSO", "VVAR", "VSYSCALL", "OTHER")


class FileKind:
    """What a mapped object is (``object_kind``)."""

    FILE, SYSV, SHARED_ANON, DEVICE = range(4)


class FrameKind:
    """What a memory object's frames are (``class_kind``)."""

    ANON, FILE, KSM, HUGETLB, SWAP, DEVICE = range(6)
    NAMES = ("anon", "file", "ksm", "hugetlb", "swap", "device")


class CgroupVerb:
    """What a cgroup's file is for (``cgroupfile_verb``)."""

    KILL, FREEZE, LIMIT, DIRECTORY = range(4)


class HandleKind:
    """What a process holds that gives it power over others (``handle_kind``)."""

    PTY_MASTER, SECCOMP, USERFAULT, FANOTIFY, NAMESPACE, TRACER, TERMINAL = range(7)


class Status:
    """What became of one (process, source) in the ledger (``ledger_status``)."""

    READ, GONE, DENIED, TORN, HIDDEN, PARTIAL, SKIPPED = range(7)
    NAMES = ("read", "gone", "denied", "torn", "hidden", "partial", "skipped")


@dataclass(frozen=True, slots=True)
class Column:
    """One column: where it stands, what it holds, what its values may be."""

    table: str
    dtype: str  # NumPy's, little-endian
    doc: str
    refers: str | None = None  # the table whose rows the values name
    indptr: str | None = None  # the table that this column divides


def _table(table: str, text: str) -> dict[str, Column]:
    """Read ``name dtype [>refers | /indptr] meaning`` lines: a table at a glance."""
    columns = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, dtype, rest = line.split(None, 2)
        refers = indptr = None
        if rest[0] in ">/":
            mark, rest = rest.split(None, 1)
            refers, indptr = (mark[1:], None) if mark[0] == ">" else (None, mark[1:])
        columns[f"{table}_{name}"] = Column(table, "<" + dtype, rest, refers, indptr)
    return columns


_CREDENTIALS = """
    ruid         u4  real uid, in the collector's user namespace, as are all ids
    euid         u4  effective uid
    suid         u4  saved uid
    fsuid        u4  filesystem uid
    rgid         u4  real gid
    egid         u4  effective gid
    sgid         u4  saved gid
    fsgid        u4  filesystem gid
    cap_inh      u8  CapInh
    cap_prm      u8  CapPrm
    cap_eff      u8  CapEff
    cap_bnd      u8  CapBnd
    cap_amb      u8  CapAmb
    no_new_privs i1  NoNewPrivs, -1 if not told
    seccomp      i1  Seccomp mode: 0 none, 1 strict, 2 filter, -1 not told
"""

COLUMNS: dict[str, Column] = {
    # One row per live userland process (thread group), by rising pid.
    **_table(
        "process",
        """
        pid          i4  thread group id in the pid namespace of the /proc that was read
        start_time   u8  stat field 22: clock ticks since boot, of the leader
        ppid         i4  parent's pid, 0 if outside that pid namespace
        pgid         i4  process group
        sid          i4  session
        tty          i4  tty_nr of the controlling terminal (makedev), 0 for none
        state        u1  ASCII letter of the leader's state
        flags        u4  PF_* flags of the leader
        threads      i4  threads in the group
        """
        + _CREDENTIALS
        + """
        tracer       i4  TracerPid, 0 for none, -1 not told
        dumpable     i1  SUID_DUMP_*: 0 no, 1 yes, 2 root only, -1 undecided
        mem_uid      u4  owner of /proc/pid/mem
        mem_mode     u2  permission bits of /proc/pid/mem
        oom_adj      i2  oom_score_adj
        comm         i4  >string name of the leader
        exe          i4  >string /proc/pid/exe as the collector's root sees it
        cwd          i4  >string /proc/pid/cwd
        root         i4  >string /proc/pid/root
        root_dev     u8  st_dev of /proc/pid/root, 0 if not read
        root_inode   u8  st_ino of /proc/pid/root, 0 if not read
        cmdline      i4  >string arguments, each ended by NUL
        label        i4  >string LSM label (attr/current), trailing newline and NUL removed
        cgroup       i4  >string the text of /proc/pid/cgroup
        uid_map      i4  >string the text of uid_map of its user namespace
        ns_cgroup    i4  >namespace
        ns_ipc       i4  >namespace
        ns_mnt       i4  >namespace
        ns_net       i4  >namespace
        ns_pid       i4  >namespace its own (ns/pid), not that of its children
        ns_time      i4  >namespace
        ns_user      i4  >namespace
        ns_uts       i4  >namespace
        mm           i4  >mm its address space
        group_indptr i8  /group supplementary groups
        nspid_indptr i8  /nspid NSpid: its pid in each namespace, outermost first
        """.replace(">namespace\n", ">namespace row of the namespace that it is in\n"),
    ),
    **_table("group", "gid u4 a supplementary gid"),
    **_table("nspid", "pid i4 a pid, one level deeper than the row before it"),
    # Threads whose credentials or namespaces are not those of their leader.
    **_table(
        "thread",
        """
        process      i4  >process
        tid          i4  its thread id
        """.replace(">process\n", ">process the process that it is a thread of\n")
        + _CREDENTIALS
        + """
        ns_mnt       i4  >namespace mount namespace
        ns_user      i4  >namespace user namespace
        ns_net       i4  >namespace network namespace
        group_indptr i8  /threadgroup supplementary groups
        """,
    ),
    **_table("threadgroup", "gid u4 a supplementary gid"),
    **_table("kthread", "pid i4 pid of a kernel thread (PF_KTHREAD): it resolves to the kernel"),
    # Namespaces that a process is in, and the ancestors of those.
    **_table(
        "namespace",
        """
        kind         u1  index into NAMESPACES
        inode        u8  inode number in nsfs; reused as soon as the namespace dies
        id           u8  NS_GET_ID, never reused; 0 where the kernel has it not
        owner        u4  user namespace: uid that made it (NS_GET_OWNER_UID)
        parent       i4  >namespace pid and user: parent; -1 initial, -2 not readable
        user         i4  >namespace user namespace that owns it; -1 initial, -2 not readable
        """,
    ),
    # Address spaces. CLONE_VM without CLONE_THREAD: several processes, one row.
    **_table(
        "mm",
        """
        process      i4  >process the process it was read through
        status       u1  Status of its memory: READ, HIDDEN (maps but no frame numbers), DENIED ...
        vma_indptr   i8  /vma its VMAs, by rising address
        """,
    ),
    **_table(
        "vma",
        """
        start        u8  first address, bytes
        end          u8  one past the last address, bytes
        offset       u8  offset into the mapped object, bytes
        prot         u1  R 4, W 2, X 1, MAP_SHARED 8
        kind         u1  VmaKind
        object       i4  >object the file or shared memory object that is mapped, -1 for none
        path         i4  >string the maps line's last field, escapes undone, -1 for none
        region       i4  its number in region order, where VMAs of one kind stand together
        present      i8  pages in the page table, zero page included
        swapped      i8  pages in swap
        zero         i8  pages that are the zero page, or the huge zero page
        """,
    ),
    # Mapped objects: files and shared memory, by identity and not by path.
    **_table(
        "object",
        """
        kind         u1  FileKind
        dev          u8  device number as maps prints it: major << 32 | minor
        inode        u8  inode number; of a SysV segment its shmid
        rdev         u8  of a character or block device: major << 32 | minor; else 0
        ipc          i4  >namespace SysV: the ipc namespace of the process that maps it
        path         i4  >string one path of it
        sure         i1  1: (dev, inode) names one object; 0: the filesystem reuses pairs (btrfs)
        """,
    ),
    # Memory objects: all frames of one kind that exactly the same regions map.
    **_table(
        "class",
        """
        kind         u1  FrameKind
        pages        i8  distinct frames, in base pages
        run_indptr   i8  /run the regions that map it
        frame_indptr i8  /frame its frame numbers, if the snapshot kept them
        """,
    ),
    **_table(
        "run",
        """
        first        i4  first region of a run, in region order
        last         i4  last region of the run, itself included
        """,
    ),
    **_table("frame", "pfn u8 a page frame number, or a swap slot with bit 63 set"),
    # Control facts (capture/views.py, cgroups.py, handles.py): empty where they were not read.
    # One row per process, in the order of table process.
    **_table(
        "control",
        """
        view         i4  >view its view of the file tree, -1 if not read
        untraced     i4  of a traced process, threads that nobody traces; -1 not told, 0 else
        fds          u1  Status of its file descriptors, as far as table handle goes
        """,
    ),
    **_table(
        "userns",
        """
        namespace    i4  >namespace a user namespace
        uid_map      i4  >string the text of its uid_map
        gid_map      i4  >string the text of its gid_map
        """,
    ),
    # What the processes of one mount namespace and one root directory see.
    **_table(
        "view",
        """
        process      i4  >process the process it was read through
        mnt          i4  >namespace mount namespace
        status       u1  Status of its mountinfo
        """,
    ),
    **_table(
        "procmount",
        """
        view         i4  >view a mounted procfs, whole (not a part of one)
        pid          i4  >namespace the pid namespace that it shows, -2 not known
        writable     i1  neither the mount nor its superblock is read-only
        reach        i1  1: everybody may walk to its mount point; 0: not everybody
        hidepid      u1  0 off, 1 noaccess, 2 invisible, 4 ptraceable
        gid          u4  group that hidepid exempts
        """,
    ),
    **_table(
        "nsmount",
        """
        view         i4  >view that shows it
        namespace    i4  >namespace bind-mounted there
        """,
    ),
    **_table(
        "cgroupmount",
        """
        view         i4  >view that shows it
        controllers  i4  >string as in /proc/pid/cgroup: "" of v2, "freezer", "name=systemd" ...
        root         i4  >string cgroup that the mount shows as its root
        writable     i1  neither the mount nor its superblock is read-only
        reach        i1  1: everybody may walk to its mount point; 0: not everybody
        delegate     i1  nsdelegate: the root of a cgroup namespace is closed to its inside
        """,
    ),
    # Files of cgroups that processes are in, and of those above them.
    **_table(
        "cgroupfile",
        """
        controllers  i4  >string hierarchy, as in cgroupmount
        path         i4  >string path of the cgroup, as /proc/pid/cgroup gives it
        verb         u1  CgroupVerb: what writing to the file does
        uid          u4  owner
        gid          u4  group
        mode         u2  permission bits
        status       u1  READ or DENIED (Status); a file that is not there has no row
        """,
    ),
    # Things held that give power over others.
    **_table(
        "handle",
        """
        process      i4  >process that holds it
        kind         u1  HandleKind
        number       i8  of a pty, master or controlling terminal, its index; else 0
        node         u8  of a pty, st_dev of its devpts; 0 if not known
        target       i4  >process of a tracer, whom; else -1
        namespace    i4  >namespace of kind 4, which; else -1
        """,
    ),
    # What was read, and what was not.
    **_table(
        "ledger",
        """
        process      i4  >process -1 for a process that is not in the snapshot, or for the host
        pid          i4  its pid, 0 for the host
        source       i4  >string the source of truth: a module of capture/, or a file
        status       u1  Status
        count        i8  how many (frames, threads, fds ...) the row speaks of; 0 if it is one thing
        reason       i4  >string why
        """,
    ),
    # The pool of byte strings. Names in /proc are bytes: no encoding is promised.
    **_table("string", "indptr i8 /byte bytes of string i: indptr[i] to indptr[i + 1]"),
    **_table("byte", "data u1 the strings, end to end"),
}
