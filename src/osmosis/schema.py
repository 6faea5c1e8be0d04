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
    "KERNEL_FILESYSTEMS",
    "NAMESPACES",
    "NO_ID",
    "UNKNOWN",
    "VERSION",
    "CgroupVerb",
    "Column",
    "FileKind",
    "FrameKind",
    "HandleKind",
    "OpenKind",
    "QuotaKind",
    "Status",
    "SysvKind",
    "VmaKind",
    "is_served",
]

VERSION = 2  # of the file format; raised when a column changes its meaning, or is not optional
UNKNOWN = -1  # a reference, flag or id that could not be read
NO_ID = 0xFFFF_FFFF  # a uid or gid that could not be read: (uid_t) -1 is never a real one

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")  # as in /proc/pid/ns


# Filesystems that the kernel makes of its own state. Nothing is stored in them, and what writing to
# their files does is control (of processes, cgroups ...), not a file that is shared.
KERNEL_FILESYSTEMS = frozenset(
    [
        "autofs",
        "binfmt_misc",
        "bpf",
        "cgroup",
        "cgroup2",
        "configfs",
        "debugfs",
        "devpts",
        "efivarfs",
        "fusectl",
        "mqueue",
        "nsfs",
        "proc",
        "pstore",
        "rpc_pipefs",
        "securityfs",
        "selinuxfs",
        "smackfs",
        "sysfs",
        "tracefs",
    ]
)
# Filesystems behind which somebody else answers, and decides who may do what: looking at them could
# take for ever.
_SERVED = frozenset(
    [
        "9p",
        "afs",
        "autofs",
        "ceph",
        "cifs",
        "fuse",
        "fuseblk",
        "lustre",
        "nfs",
        "nfs4",
        "smb3",
        "virtiofs",
    ]
)


def is_served(kind: str) -> bool:
    """Whether a file server or a daemon answers for this type of filesystem."""
    return kind in _SERVED or kind.startswith("fuse.")


class VmaKind:
    """What a VMA is, as far as its maps line tells (``vma_kind``)."""

    ANON, FILE, SHM, HEAP, STACK, VDSO, VVAR, VSYSCALL, OTHER = range(9)
    NAMES = ("ANON", "FILE", "SHM", "HEAP", "STACK", "VDSO", "VVAR", "VSYSCALL", "OTHER")


class FileKind:
    """What a mapped object is (``object_kind``)."""

    FILE, SYSV, SHARED_ANON, DEVICE = range(4)


class OpenKind:
    """What an open file is (``open_kind``): by its mode, and by its name where it has none."""

    (
        FILE,
        DIRECTORY,
        PIPE,
        SOCKET,
        CHAR,
        BLOCK,
        NAMESPACE,
        PIDFD,
        EVENTFD,
        EPOLL,
        TIMERFD,
        SIGNALFD,
        INOTIFY,
        FANOTIFY,
        IO_URING,
        ANON,
        PTY,
        OTHER,
        MQUEUE,
    ) = range(19)
    NAMES = (
        "file",
        "directory",
        "pipe",
        "socket",
        "char",
        "block",
        "namespace",
        "pidfd",
        "eventfd",
        "epoll",
        "timerfd",
        "signalfd",
        "inotify",
        "fanotify",
        "io_uring",
        "anon",
        "pty",
        "other",
        "mqueue",
    )


class FrameKind:
    """What a memory object's frames are (``class_kind``)."""

    ANON, FILE, KSM, HUGETLB, SWAP, DEVICE = range(6)
    NAMES = ("anon", "file", "ksm", "hugetlb", "swap", "device")


class QuotaKind:
    """What a cgroup's controller counts (``quota_kind``)."""

    PAGE, PID, CPU, IO = range(4)
    NAMES = ("PAGE_QUOTA", "PID_QUOTA", "CPU_QUOTA", "IO_QUOTA")


class SysvKind:
    """What an object of an ipc namespace is (``sysv_kind``)."""

    SHM, SEM, MSG = range(3)


class CgroupVerb:
    """What a cgroup's file is for (``cgroupfile_verb``)."""

    KILL, FREEZE, LIMIT, DIRECTORY = range(4)


class HandleKind:
    """What a process holds that gives it power over others (``handle_kind``)."""

    PTY_MASTER, SECCOMP, USERFAULT, FANOTIFY, NAMESPACE, TRACER, TERMINAL, MEMORY = range(8)


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
    # Threads whose credentials, namespaces or root directory are not those of their leader.
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
        ns_ipc       i4  >namespace ipc namespace
        ns_uts       i4  >namespace uts namespace
        ns_cgroup    i4  >namespace cgroup namespace
        root_dev     u8  st_dev of its root directory, 0 if not read
        root_inode   u8  st_ino of its root directory, 0 if not read
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
    # Open files (capture/files.py), and whose they are.
    **_table(
        "fdtable",
        """
        process      i4  >process whose file descriptors were read, or could not be
        status       u1  Status of them
        """,
    ),
    **_table(
        "fd",
        """
        process      i4  >process that has it
        fd           i4  its number there
        tid          i4  thread whose own table it is in; 0: in the process's
        access       u1  R 4, W 2, as it was opened; 0 for O_PATH
        open         i4  >open what it leads to
        """,
    ),
    **_table(
        "open",
        """
        kind         u1  OpenKind
        dev          u8  st_dev, major << 32 | minor; of a pty that of its devpts, 0 if not known
        inode        u8  st_ino; of a pty its index
        rdev         u8  of a character or block device, major << 32 | minor; else 0
        number       i8  of what only its open file tells apart, which; of a pidfd the pid; else -1
        birth        i8  when the inode was made, ns since 1970; 0 if the filesystem does not tell
        super        u8  s_dev of its superblock, as maps and mountinfo print it; 0 if not known
        name         i4  >string where one link to it leads; "pipe:", "socket:" go without [inode]
        sure         i1  1: told apart from every other; 0: may be the same as others of its kind
        seals        i4  of a memfd F_SEAL_*, -1 if they were not told; else 0
        """,
    ),
    # Sockets (capture/sockets.py), by network namespace; those that are held and were in no answer
    # come last.
    **_table(
        "socket",
        """
        inode        u8  of sockfs; 0 of a connection that no process has accepted yet, or closed
        space        i4  >socketns the namespace it was read in, -1 if it was in no answer
        status       u1  READ; SKIPPED: in no table since it is not bound; HIDDEN: nothing is known
        family       u1  AF_*; 0 not told
        type         u1  SOCK_*; 0 not told
        protocol     u2  of inet, netlink and packet sockets
        state        u1  TCP_*, of unix sockets too: 1 connected, 7 not, 10 listening
        shutdown     u1  1 receives nothing more, 2 sends nothing more, 3 both; 255 not told
        v6only       u1  1: an IPv6 socket that takes no IPv4
        cookie       u8  the kernel's own number of it, never reused
        peer         u8  unix: inode of the socket it sends to; netlink: port id; 0 none
        local_hi     u8  first half of its address; an IPv4 address is IPv4-mapped
        local_lo     u8  second half
        local_port   u4  port; netlink: its port id; 0 none
        remote_hi    u8  first half of the address that it is connected to
        remote_lo    u8  second half
        remote_port  u4  port that it is connected to
        device       u4  number of the interface it is bound to, 0 for none
        uid          u4  owner
        queue        u4  listener: connections that wait to be accepted; unix: bytes to be received
        vfs_dev      u8  unix: device of the socket file, major << 32 | minor, 0 for none
        vfs_inode    u8  unix: lower 32 bits of its inode number
        name         i4  >string unix: name, as bound; of one that was in no answer its protocol
        """,
    ),
    **_table(
        "socketwait",
        """
        socket       i4  >socket a listening unix socket
        client       u8  inode of a socket whose connection waits there, 0 if it has closed
        """,
    ),
    **_table(
        "socketns",
        """
        net          i4  >namespace a network namespace; -1 if no process is in it
        inode        u8  its inode number
        status       u1  Status of its sockets
        nat          u1  1: the connections that it translates are known (table nat)
        """,
    ),
    **_table(
        "address",
        """
        space        i4  >socketns namespace that has it
        hi           u8  first half of an IP address, as in table socket
        lo           u8  second half
        """,
    ),
    # Connections whose addresses a namespace translates (conntrack).
    **_table(
        "nat",
        """
        space        i4  >socketns namespace that does it
        protocol     u2  IPPROTO_*
        src_hi       u8  as sent: from
        src_lo       u8  from, second half
        src_port     u4  from, port
        dst_hi       u8  as sent: to
        dst_lo       u8  to, second half
        dst_port     u4  to, port
        back_src_hi  u8  as answered: from
        back_src_lo  u8  from, second half
        back_src_port u4 from, port
        back_dst_hi  u8  as answered: to
        back_dst_lo  u8  to, second half
        back_dst_port u4 to, port
        """,
    ),
    **_table(
        "tunnel",
        """
        space        i4  >socketns namespace that a tun or tap device is in
        name         i4  >string its name there
        up           u1  1: a descriptor is attached to it
        """,
    ),
    **_table(
        "tap",
        """
        process      i4  >process that holds a descriptor of /dev/net/tun
        name         i4  >string name, now, of the device that it is attached to
        space        i4  >socketns namespace that the device is in, now; -1 if it was not told
        """,
    ),
    **_table(
        "fuse",
        """
        process      i4  >process that holds a descriptor of /dev/fuse
        dev          u8  s_dev of the superblock that it serves
        known        u1  1: dev is known
        """,
    ),
    # What the processes of one mount namespace, root and mount of that root see mounted.
    **_table(
        "tree",
        """
        process      i4  >process it was read through
        status       u1  Status of its mountinfo
        """,
    ),
    **_table(
        "treemember",
        """
        process      i4  >process one that has a file tree
        tree         i4  >tree what it sees; -1 if that was not read
        """,
    ),
    **_table(
        "mount",
        """
        tree         i4  >tree that it stands in
        id           i4  its number; 0 of the root directory of a chroot that is no mount
        parent       i4  number of the mount it stands on
        dev          u8  s_dev of its superblock, major << 32 | minor
        root         i4  >string what of the filesystem is mounted
        point        i4  >string where, from the root of the tree
        read_only    u1  bits: 1 the mount, 2 the superblock
        kind         i4  >string type of filesystem
        source       i4  >string what is mounted, in the words of who did it
        options      i4  >string options of the mount, a space, and those of the superblock
        propagation  i4  >string optional fields: shared:N master:N propagate_from:N unbindable
        uid          u4  owner of its root; 0xFFFFFFFF if that was not looked at
        gid          u4  group of its root
        mode         u4  st_mode of its root
        reach        i1  1: everybody may walk to it; 0: not everybody; -1 not looked at
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
    # Controllers of the cgroups that processes are in, and of those above (capture/quotas.py).
    **_table(
        "quota",
        """
        hierarchy    i4  >string as in cgroupmount
        path         i4  >string path of the cgroup; "" for all that is above what can be seen
        kind         u1  QuotaKind
        limit        i4  >string its limits, file=value; "" none is set, -1 not readable
        status       u1  READ; DENIED: it is there; SKIPPED, HIDDEN: it could not be looked for
        """,
    ),
    **_table(
        "processor",
        """
        number       i4  of a CPU that is online
        node         i4  its NUMA node, -1 if not told
        """,
    ),
    **_table(
        "affinity",
        """
        process      i4  >process all of whose threads are kept off some processors
        processor    i4  >processor one that it may run on; -1 if that was not read
        """,
    ),
    # System V objects of every ipc namespace that a process is in (capture/ipc.py).
    **_table(
        "sysv",
        """
        ipc          i4  >namespace that it is in
        kind         u1  SysvKind
        id           i8  shmid, semid or msqid
        key          i8  0 is IPC_PRIVATE
        mode         u2  permission bits
        uid          u4  owner, in the collector's user namespace
        gid          u4  its group
        cuid         u4  who made it
        cgid         u4  the group of who made it
        size         u8  shm: bytes; sem: how many; msg: bytes in the queue
        attached     i8  shm: mappings of it (nattch), in all processes; else 0
        """,
    ),
    **_table(
        "ipcspace",
        """
        ipc          i4  >namespace an ipc namespace
        status       u1  Status of its System V objects
        """,
    ),
    # Things held that give power over others.
    **_table(
        "handle",
        """
        process      i4  >process that holds it
        kind         u1  HandleKind
        number       i8  of a pty its index; of a kind 7 1 if it is the memory of now; else 0
        node         u8  of a pty, st_dev of its devpts; 0 if not known
        target       i4  >process of a tracer, or of /proc/pid/mem, whom; else -1
        namespace    i4  >namespace of kind 4, which; else -1
        """,
    ),
    # Mapped regular files and control sockets, and where they lie: who could open them for writing
    # (capture/mapped_files.py, control_sockets.py).
    **_table(
        "ctlfile",
        """
        object       i4  >object the mapped object that it is; -1 for a socket
        socket       i4  >socket the listening socket that it is; -1 for a mapped object
        status       u1  READ; GONE, DENIED: nothing is known; SKIPPED: a link to it is nowhere
        uid          u4  owner
        gid          u4  group
        mode         u4  st_mode
        flags        u1  bits: 1 text of a running program, 2 immutable or fs-verity, 4 has an ACL
        links        u4  hard links
        """,
    ),
    **_table(
        "ctlplace",
        """
        file         i4  >ctlfile which
        dev          u8  s_dev of the superblock, major << 32 | minor; 0 not known
        path         i4  >string from the root of that filesystem; -1 not known
        clear        i4  >string from this directory down everybody may walk to it; -1 nowhere
        sure         i1  1: who opens this opens it; 0: perhaps (a layer of an overlay)
        """,
    ),
    # Programs that listen where connecting is power over others.
    **_table(
        "daemon",
        """
        process      i4  >process one that holds the listening socket
        file         i4  >ctlfile the socket file; -1 if it was not found
        name         i4  >string base name of its program
        trusted      i1  1: root owns the program and nobody else may write to it
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
