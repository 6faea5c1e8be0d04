"""Answers of NETLINK_SOCK_DIAG as rows: parsing only, the caller reads them from the kernel.

One row layout for every family. Numbers of ports and addresses are in host order, an IPv4
address is its IPv4-mapped IPv6 one. Raises only OSError and ValueError.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from _fastproc.bits cimport (
    INET_SHUTDOWN_ATTR,
    INET_V6ONLY_ATTR,
    NLA_TYPE_BITS,
    NLM_F_DUMP_INTR_BIT,
    NLMSG_ALIGN_BYTES,
    NLMSG_DONE_TYPE,
    NLMSG_ERROR_TYPE,
    SOCK_DIAG_TYPE,
    UNIX_ICONS_ATTR,
    UNIX_NAME_ATTR,
    UNIX_PEER_ATTR,
    UNIX_RQLEN_ATTR,
    UNIX_SHUTDOWN_ATTR,
    UNIX_UID_ATTR,
    UNIX_VFS_ATTR,
)

import os

cdef enum:
    UNIX = 1  # AF_*: include/linux/socket.h
    INET = 2
    INET6 = 10
    NETLINK = 16
    PACKET = 17
    VSOCK = 40

cdef struct Row:
    uint64_t inode
    uint64_t cookie
    uint64_t peer           # unix: inode of the other end; 0 none. netlink: port id of it
    uint64_t local_hi
    uint64_t local_lo
    uint64_t remote_hi
    uint64_t remote_lo
    uint64_t vfs_dev        # unix: major << 32 | minor of the socket file
    uint64_t vfs_inode      # its lower 32 bits: the kernel tells no more
    int64_t name_start      # span in the data, of a unix name
    int64_t name_size       # -1 for none
    uint32_t local_port
    uint32_t remote_port
    uint32_t device         # bound to this interface, 0 for none
    uint32_t uid
    uint32_t queue          # of a listener, connections that wait; unix: bytes that wait
    uint16_t protocol
    uint8_t family
    uint8_t type            # SOCK_*, 0 where the answer does not tell
    uint8_t state
    uint8_t shutdown        # 1 nothing more is received, 2 nothing more is sent; 255 not told
    uint8_t v6only
    uint8_t[5] pad

ROW_BYTES = sizeof(Row)

cdef inline uint32_t _u4(const uint8_t* p) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, p, 4)
    return value


cdef inline uint16_t _u2(const uint8_t* p) noexcept nogil:
    cdef uint16_t value
    memcpy(&value, p, 2)
    return value


cdef inline uint64_t _be(const uint8_t* p, int n) noexcept nogil:
    # Network order.
    cdef uint64_t value = 0
    cdef int i
    for i in range(n):
        value = value << 8 | p[i]
    return value


cdef inline uint64_t _cookie(const uint8_t* p) noexcept nogil:
    return <uint64_t>_u4(p + 4) << 32 | _u4(p)


cdef inline uint64_t _device(uint32_t dev) noexcept nogil:
    # A dev_t as the kernel keeps it: 12 bits major, 20 bits minor (linux/kdev_t.h).
    return <uint64_t>(dev >> 20) << 32 | (dev & 0xFFFFF)


cdef inline void _address(
    const uint8_t* p, int family, uint64_t* hi, uint64_t* lo
) noexcept nogil:
    if family == INET:
        hi[0] = 0
        lo[0] = <uint64_t>0xFFFF << 32 | _be(p, 4)
    else:
        hi[0] = _be(p, 8)
        lo[0] = _be(p + 8, 8)


cdef int _head(const uint8_t* p, int64_t size, Row* row) noexcept nogil:
    # The fixed part of an answer; how many bytes it has, -1 if they are not there.
    if size < 1:
        return -1
    row.family = p[0]
    if p[0] == UNIX:
        if size < 16:
            return -1
        row.type, row.state = p[1], p[2]
        row.inode = _u4(p + 4)
        row.cookie = _cookie(p + 8)
        return 16
    if p[0] == INET or p[0] == INET6:
        if size < 72:
            return -1
        row.state = p[1]
        row.local_port, row.remote_port = <uint32_t>_be(p + 4, 2), <uint32_t>_be(p + 6, 2)
        _address(p + 8, p[0], &row.local_hi, &row.local_lo)
        _address(p + 24, p[0], &row.remote_hi, &row.remote_lo)
        row.device = _u4(p + 40)
        row.cookie = _cookie(p + 44)
        row.queue = _u4(p + 56)
        row.uid = _u4(p + 64)
        row.inode = _u4(p + 68)
        return 72
    if p[0] == NETLINK:
        if size < 28:
            return -1
        row.type, row.protocol, row.state = p[1], p[2], p[3]
        row.local_port = _u4(p + 4)
        row.peer = row.remote_port = _u4(p + 8)
        row.inode = _u4(p + 16)
        row.cookie = _cookie(p + 20)
        return 28
    if p[0] == PACKET:
        if size < 16:
            return -1
        row.type, row.protocol = p[1], _u2(p + 2)
        row.inode = _u4(p + 4)
        row.cookie = _cookie(p + 8)
        return 16
    if p[0] == VSOCK:
        if size < 32:
            return -1
        row.type, row.state, row.shutdown = p[1], p[2], p[3]
        row.local_lo, row.local_port = _u4(p + 4), _u4(p + 8)
        row.remote_lo, row.remote_port = _u4(p + 12), _u4(p + 16)
        row.inode = _u4(p + 20)
        row.cookie = _cookie(p + 24)
        return 32
    return -1


cdef void _attribute(
    int kind, const uint8_t* p, int64_t size, int64_t offset, Row* row
) noexcept nogil:
    if row.family == UNIX:
        if kind == UNIX_NAME_ATTR:
            row.name_start, row.name_size = offset, size
        elif kind == UNIX_VFS_ATTR and size >= 8:
            row.vfs_inode, row.vfs_dev = _u4(p), _device(_u4(p + 4))
        elif kind == UNIX_PEER_ATTR and size >= 4:
            row.peer = _u4(p)
        elif kind == UNIX_RQLEN_ATTR and size >= 4:
            row.queue = _u4(p)
        elif kind == UNIX_SHUTDOWN_ATTR and size >= 1:
            row.shutdown = p[0]
        elif kind == UNIX_UID_ATTR and size >= 4:
            row.uid = _u4(p)
    elif row.family == INET or row.family == INET6:
        if kind == INET_SHUTDOWN_ATTR and size >= 1:
            row.shutdown = p[0]
        elif kind == INET_V6ONLY_ATTR and size >= 1:
            row.v6only = p[0]


cdef int64_t _walk(
    const uint8_t* data, int64_t size, Row* rows, int64_t room,
    int64_t* waiting, int64_t waiting_room, int64_t* n_waiting, int* flags, int32_t* error
) noexcept nogil:
    # Rows found (written while there is room), -1 if the data does not parse. flags: 1 done,
    # 2 changed while it was read.
    cdef:
        int64_t at = 0, length, end, p, n = 0, k, i
        uint16_t kind, attr_size
        int got
        Row row
    while at + 16 <= size:
        length = _u4(data + at)
        if length < 16 or at + length > size:
            return -1
        kind = _u2(data + at + 4)
        if _u2(data + at + 6) & NLM_F_DUMP_INTR_BIT:
            flags[0] |= 2
        end = at + length
        if kind == NLMSG_DONE_TYPE:
            flags[0] |= 1
            if length >= 20:  # the dump may end in an error
                error[0] = <int32_t>_u4(data + at + 16)
        elif kind == NLMSG_ERROR_TYPE:
            if length < 20:
                return -1
            flags[0] |= 1
            error[0] = <int32_t>_u4(data + at + 16)
        elif kind == SOCK_DIAG_TYPE:
            memset(&row, 0, sizeof(Row))
            row.name_size = -1
            row.shutdown = 255
            got = _head(data + at + 16, length - 16, &row)
            if got < 0:
                return -1
            p = at + 16 + got
            while p + 4 <= end:
                attr_size = _u2(data + p)
                if attr_size < 4 or p + attr_size > end:
                    return -1
                k = _u2(data + p + 2) & NLA_TYPE_BITS
                if row.family == UNIX and k == UNIX_ICONS_ATTR:
                    for i in range((attr_size - 4) // 4):
                        if n_waiting[0] < waiting_room:
                            waiting[2 * n_waiting[0]] = n
                            waiting[2 * n_waiting[0] + 1] = _u4(data + p + 4 + 4 * i)
                        n_waiting[0] += 1
                else:
                    _attribute(<int>k, data + p + 4, attr_size - 4, p + 4, &row)
                p += (attr_size + NLMSG_ALIGN_BYTES - 1) & ~(NLMSG_ALIGN_BYTES - 1)
            if n < room:
                rows[n] = row
            n += 1
        at += (length + NLMSG_ALIGN_BYTES - 1) & ~(NLMSG_ALIGN_BYTES - 1)
    return n


def measure(const uint8_t[::1] data not None):
    """Look through the answers to one request.

    Returns
    -------
    (rows, waiting, done, changed)
        How many rows and pairs ``parse`` will write; whether the answer has ended; whether the
        kernel says that the sockets changed while it was read.

    Raises
    ------
    OSError
        The kernel's answer is an error.
    ValueError
        A message or attribute is longer than the data, or of a family that is not known.
    """
    cdef:
        int64_t n, waiting = 0
        int flags = 0
        int32_t error = 0
    n = _walk(
        &data[0] if data.shape[0] else NULL, data.shape[0], NULL, 0, NULL, 0, &waiting, &flags,
        &error,
    )
    if n < 0:
        raise ValueError("a message of sock_diag does not parse")
    if error < 0:
        raise OSError(-error, os.strerror(-error))
    return n, waiting, bool(flags & 1), bool(flags & 2)


def parse(
    const uint8_t[::1] data not None,
    uint8_t[::1] rows not None,
    int64_t[:, ::1] waiting not None,
):
    """Write the rows, and of each unix listener the connections that wait.

    Parameters
    ----------
    data
        Complete messages, as they came.
    rows : (n * ROW_BYTES,) uint8
        Overwritten; n as ``measure`` says.
    waiting : (m, 2) int64
        Overwritten by (row of the listener, inode of the client's socket).

    Raises
    ------
    ValueError
        There is not exactly as much room as ``measure`` says.
    """
    cdef:
        int64_t n, n_waiting = 0, room = rows.shape[0] // <int64_t>sizeof(Row)
        int flags = 0
        int32_t error = 0
    if waiting.shape[1] != 2:
        raise ValueError("waiting has two columns")
    n = _walk(
        &data[0] if data.shape[0] else NULL, data.shape[0],
        <Row*>&rows[0] if room else NULL, room,
        &waiting[0, 0] if waiting.shape[0] else NULL, waiting.shape[0], &n_waiting, &flags, &error,
    )
    if n != room or n_waiting != waiting.shape[0]:
        raise ValueError(f"{n} rows and {n_waiting} that wait do not fit the arrays given")
