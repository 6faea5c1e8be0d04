# Every kernel constant that src/_fastproc uses, with its source. No other file names a bit.
from libc.stdint cimport uint32_t, uint64_t

# One 64-bit entry of /proc/<pid>/pagemap.
# Source: Documentation/admin-guide/mm/pagemap.rst and fs/proc/task_mmu.c (Linux v6.18).
cdef enum:
    PM_ENTRY_BYTES = 8
    PM_PFN_BITS = 55          # bits 0-54: the PFN, if present
    PM_SWAP_TYPE_BITS = 5     # bits 0-4: swap type, bits 5-54: offset, if swapped
    PM_MMAP_EXCLUSIVE_BIT = 56
    PM_GUARD_REGION_BIT = 58
    PM_FILE_BIT = 61          # file page or shared anonymous page
    PM_SWAP_BIT = 62          # also guard markers, uffd-wp markers and migration entries
    PM_PRESENT_BIT = 63
    # A swap type at or above this is a special entry (migration, device, marker ...):
    # include/linux/swap.h, MAX_SWAPFILES with every special type configured.
    SWAP_TYPES_REAL = 23

# ioctl PAGEMAP_SCAN, Linux >= 6.7. Source: include/uapi/linux/fs.h.
cdef struct page_region:
    uint64_t start
    uint64_t end
    uint64_t categories

cdef struct pm_scan_arg:
    uint64_t size
    uint64_t flags
    uint64_t start
    uint64_t end
    uint64_t walk_end
    uint64_t vec
    uint64_t vec_len
    uint64_t max_pages
    uint64_t category_inverted
    uint64_t category_mask
    uint64_t category_anyof_mask
    uint64_t return_mask

cdef enum:
    PAGE_IS_PRESENT = 1 << 3
    PAGE_IS_SWAPPED = 1 << 4

cdef enum:
    PAGEMAP_SCAN = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg)

# /proc/kpageflags. Source: include/uapi/linux/kernel-page-flags.h.
cdef enum:
    KPF_KSM_BIT = 21

cdef inline uint64_t pm_pfn(uint64_t entry) noexcept nogil:
    return entry & ((<uint64_t>1 << PM_PFN_BITS) - 1)

cdef inline bint pm_present(uint64_t entry) noexcept nogil:
    return (entry >> PM_PRESENT_BIT) & 1

cdef inline bint pm_swap(uint64_t entry) noexcept nogil:
    return (entry >> PM_SWAP_BIT) & 1

cdef inline bint pm_file(uint64_t entry) noexcept nogil:
    return (entry >> PM_FILE_BIT) & 1

cdef inline bint pm_exclusive(uint64_t entry) noexcept nogil:
    return (entry >> PM_MMAP_EXCLUSIVE_BIT) & 1

cdef inline bint pm_guard(uint64_t entry) noexcept nogil:
    return (entry >> PM_GUARD_REGION_BIT) & 1

cdef inline uint64_t pm_swap_type(uint64_t entry) noexcept nogil:
    return entry & ((<uint64_t>1 << PM_SWAP_TYPE_BITS) - 1)


# /proc/<pid>/stat: field numbers, counted from 1. Source: Linux v6.18, fs/proc/array.c,
# do_task_stat(); Documentation/filesystems/proc.rst, table 1-4.
cdef enum:
    STAT_PPID = 4
    STAT_PGRP = 5
    STAT_SESSION = 6
    STAT_TTY_NR = 7
    STAT_FLAGS = 9
    STAT_MIN_FLT = 10
    STAT_MAJ_FLT = 12
    STAT_NUM_THREADS = 20
    STAT_START_TIME = 22
    STAT_VSIZE = 23
    STAT_START_CODE = 26
    STAT_END_CODE = 27
    STAT_START_STACK = 28
    STAT_START_DATA = 45
    STAT_ARG_START = 48
    STAT_ENV_END = 51

cdef enum:
    PF_KTHREAD = 0x00200000  # include/linux/sched.h: "I am a kernel thread"

# ioctls of a namespace's file. Source: Linux v6.18, include/uapi/linux/nsfs.h.
cdef enum:
    NS_GET_USERNS = 0xb701     # _IO(NSIO, 1)
    NS_GET_PARENT = 0xb702     # _IO(NSIO, 2)
    NS_GET_OWNER_UID = 0xb704  # _IO(NSIO, 4)
    # Fixed since v3.8 (include/linux/proc_ns.h, PROC_*_INIT_INO); all others begin at 0xF0000000.
    USER_NS_INIT_INO = 0xEFFFFFFD
    PID_NS_INIT_INO = 0xEFFFFFFC

cdef enum:
    NS_GET_ID = 0x8008B70D  # _IOR(NSIO, 13, __u64), since v6.18

# Source: Linux v6.18, include/uapi/linux/pidfd.h. The struct's length is part of the number;
# 72 bytes is the first form with coredump_mask (v6.16).
cdef enum:
    PIDFD_GET_INFO = 0xC048FF0B  # _IOWR(0xFF, 11, 72 bytes)

cdef enum:
    PIDFD_THREAD = 0o200  # O_EXCL, since v6.9
    PIDFD_INFO_PID = 1 << 0
    PIDFD_INFO_COREDUMP = 1 << 4
    PIDFD_COREDUMP_SKIP = 1 << 1  # SUID_DUMP_DISABLE
    PIDFD_COREDUMP_USER = 1 << 2  # SUID_DUMP_USER
    PIDFD_COREDUMP_ROOT = 1 << 3  # SUID_DUMP_ROOT

cdef struct pidfd_info:
    uint64_t mask
    uint64_t cgroupid
    uint32_t pid
    uint32_t tgid
    uint32_t ppid
    uint32_t[9] credentials_and_exit_code
    uint32_t coredump_mask
    uint32_t spare

# kcmp(2). Source: Linux v6.18, include/uapi/linux/kcmp.h.
cdef enum:
    KCMP_FILE = 0
    KCMP_VM = 1
    KCMP_FILES = 2

# Messages of NETLINK_SOCK_DIAG. Source: include/uapi/linux/netlink.h, sock_diag.h, unix_diag.h,
# inet_diag.h, netlink_diag.h, packet_diag.h, vm_sockets_diag.h (Linux v6.18).
cdef enum:
    NLMSG_ERROR_TYPE = 2
    NLMSG_DONE_TYPE = 3
    NLMSG_ALIGN_BYTES = 4
    NLM_F_DUMP_INTR_BIT = 0x10
    SOCK_DIAG_TYPE = 20          # SOCK_DIAG_BY_FAMILY
    NLA_TYPE_BITS = 0x3FFF       # NLA_TYPE_MASK
    UNIX_NAME_ATTR = 0
    UNIX_VFS_ATTR = 1
    UNIX_PEER_ATTR = 2
    UNIX_ICONS_ATTR = 3
    UNIX_RQLEN_ATTR = 4
    UNIX_SHUTDOWN_ATTR = 6
    UNIX_UID_ATTR = 7
    INET_SHUTDOWN_ATTR = 8
    INET_V6ONLY_ATTR = 11
