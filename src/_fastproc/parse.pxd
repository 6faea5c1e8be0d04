# The parsers of /proc/<pid>/stat and status: text in, structs out; no file is opened here.
from libc.errno cimport EBADMSG, ENOMEM
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport realloc
from libc.string cimport memchr, memcmp, memcpy, memset

from _fastproc.bits cimport (
    STAT_ARG_START,
    STAT_END_CODE,
    STAT_ENV_END,
    STAT_FLAGS,
    STAT_MAJ_FLT,
    STAT_MIN_FLT,
    STAT_NUM_THREADS,
    STAT_PGRP,
    STAT_PPID,
    STAT_SESSION,
    STAT_START_CODE,
    STAT_START_DATA,
    STAT_START_STACK,
    STAT_START_TIME,
    STAT_TTY_NR,
    STAT_VSIZE,
)

cdef enum:
    FIRST_ROOM = 16384  # bytes of a fresh buffer: any of these files fits nearly always

cdef struct Cred:
    uint64_t[5] cap      # inh prm eff bnd amb
    uint32_t[4] uid      # real effective saved fs
    uint32_t[4] gid
    int8_t no_new_privs  # -1 not told
    int8_t seccomp       # -1 not told
    int8_t[6] zero       # padding with a value: a Cred is compared as bytes

cdef struct Span:        # arena[start:start + size]; size -1: not read
    int64_t start
    int64_t size

cdef struct Stat:
    uint64_t start_time
    uint64_t start_code
    uint64_t start_stack
    uint64_t arg_start
    uint64_t layout      # hash of the other addresses that execve sets
    uint64_t vsize
    uint64_t min_flt
    uint64_t maj_flt
    int64_t comm_start   # within the text
    int64_t comm_size
    int32_t pid
    int32_t ppid
    int32_t pgid
    int32_t sid
    int32_t tty
    int32_t threads
    uint32_t flags
    uint8_t state

cdef struct Buffer:      # grows; data may move
    char* data
    int64_t used
    int64_t room


cdef inline int reserve(Buffer* b, int64_t more) noexcept nogil:
    cdef int64_t room = b.room
    cdef char* data
    if b.used + more <= room:
        return 0
    while room < b.used + more:
        room = room * 2 if room else FIRST_ROOM
    data = <char*>realloc(b.data, room)
    if data == NULL:
        return -ENOMEM
    b.data, b.room = data, room
    return 0


cdef inline int append(Buffer* b, const void* data, int64_t n, Span* at) noexcept nogil:
    if reserve(b, n) < 0:
        return -ENOMEM
    if n:
        memcpy(b.data + b.used, data, n)
    at.start, at.size = b.used, n
    b.used += n
    return 0


cdef inline const char* number(const char* p, const char* end, uint64_t* out) noexcept nogil:
    # Decimal, a sign allowed (two's complement). Returns the place after it; p if there is none.
    cdef const char* first
    cdef uint64_t value = 0
    cdef bint negative = p < end and p[0] == c"-"
    first = p + negative
    cdef const char* q = first
    while q < end and c"0" <= q[0] <= c"9":
        value = value * 10 + <uint64_t>(q[0] - c"0")
        q += 1
    if q == first:
        return p
    out[0] = 0 - value if negative else value
    return q


cdef inline const char* hexadecimal(const char* p, const char* end, uint64_t* out) noexcept nogil:
    cdef uint64_t value = 0
    cdef const char* q = p
    while q < end:
        if c"0" <= q[0] <= c"9":
            value = value << 4 | <uint64_t>(q[0] - c"0")
        elif c"a" <= q[0] <= c"f":
            value = value << 4 | <uint64_t>(q[0] - c"a" + 10)
        else:
            break
        q += 1
    if q != p:
        out[0] = value
    return q


cdef inline const char* blank(const char* p, const char* end) noexcept nogil:
    while p < end and (p[0] == c" " or p[0] == c"\t"):
        p += 1
    return p


cdef inline int stat_of(const char* text, int64_t n, Stat* s) noexcept nogil:
    # The name may hold anything, ") " and newlines too: it ends at the last ")".
    cdef:
        const char* end = text + n
        const char* left = <const char*>memchr(text, c"(", n)
        const char* right = end
        const char* p
        const char* q
        uint64_t value = 0
        int field
    memset(s, 0, sizeof(Stat))
    if left == NULL:
        return -EBADMSG
    p = number(text, left, &value)
    if p == text:
        return -EBADMSG
    s.pid = <int32_t>value
    while right > left and (right - 1)[0] != c")":
        right -= 1
    right -= 1  # on the ")"
    if right <= left or right + 2 >= end:
        return -EBADMSG
    s.comm_start, s.comm_size = left + 1 - text, right - left - 1
    s.state = <uint8_t>right[2]
    p = right + 3
    field = 3
    while True:
        p = blank(p, end)
        q = number(p, end, &value)
        if q == p:
            break
        p = q
        field += 1
        if field == STAT_PPID:
            s.ppid = <int32_t>value
        elif field == STAT_PGRP:
            s.pgid = <int32_t>value
        elif field == STAT_SESSION:
            s.sid = <int32_t>value
        elif field == STAT_TTY_NR:
            s.tty = <int32_t>value
        elif field == STAT_FLAGS:
            s.flags = <uint32_t>value
        elif field == STAT_MIN_FLT:
            s.min_flt = value
        elif field == STAT_MAJ_FLT:
            s.maj_flt = value
        elif field == STAT_NUM_THREADS:
            s.threads = <int32_t>value
        elif field == STAT_START_TIME:
            s.start_time = value
        elif field == STAT_VSIZE:
            s.vsize = value
        elif field == STAT_START_CODE:
            s.start_code = value
        elif field == STAT_START_STACK:
            s.start_stack = value
        elif field == STAT_ARG_START:
            s.arg_start = value
        elif field == STAT_END_CODE or STAT_START_DATA <= field <= STAT_ENV_END:
            s.layout = (s.layout ^ value) * <uint64_t>0x9E3779B97F4A7C15
            s.layout ^= s.layout >> 29
            if field == STAT_ENV_END:
                break
    return 0 if field >= STAT_ARG_START else -EBADMSG


cdef inline bint four(const char* p, const char* end, uint32_t* out) noexcept nogil:
    cdef const char* q
    cdef uint64_t value = 0
    cdef int i
    for i in range(4):
        p = blank(p, end)
        q = number(p, end, &value)
        if q == p:
            return False
        out[i] = <uint32_t>value
        p = q
    return True


cdef inline int number_list(const char* p, const char* end, Buffer* arena, Span* at) noexcept nogil:
    # Blank-separated numbers, 32 bits each, to the arena.
    cdef const char* q
    cdef uint64_t value = 0
    cdef uint32_t small
    at.start, at.size = arena.used, 0
    while True:
        p = blank(p, end)
        q = number(p, end, &value)
        if q == p:
            return 0
        if reserve(arena, 4) < 0:
            return -ENOMEM
        small = <uint32_t>value
        memcpy(arena.data + arena.used, &small, 4)
        arena.used += 4
        at.size += 4
        p = q


cdef inline bint begins(const char* line, int64_t n, const char* label, int64_t m) noexcept nogil:
    return n >= m and memcmp(line, label, m) == 0


cdef inline int status_of(
    const char* text, int64_t n, Cred* c, int32_t* tracer, int32_t* tgid,
    Buffer* arena, Span* groups, Span* nspid, Span* cpus,
) noexcept nogil:
    # A name's newline is escaped here (proc_task_name), so that a line is a line. cpus may be
    # NULL: the text of Cpus_allowed_list is not wanted.
    cdef:
        const char* end = text + n
        const char* line = text
        const char* stop
        const char* p
        int64_t m
        uint64_t value = 0
        int seen = 0
    memset(c, 0, sizeof(Cred))
    c.no_new_privs = c.seccomp = -1
    tracer[0] = tgid[0] = -1
    groups.start = nspid.start = arena.used
    groups.size = nspid.size = -1
    if cpus != NULL:
        cpus.size = -1
    while line < end:
        stop = <const char*>memchr(line, c"\n", end - line)
        if stop == NULL:
            stop = end
        m = stop - line
        if m < 5:
            pass
        elif begins(line, m, b"Uid:", 4):
            if not four(line + 4, stop, &c.uid[0]):
                return -EBADMSG
            seen |= 1
        elif begins(line, m, b"Gid:", 4):
            if not four(line + 4, stop, &c.gid[0]):
                return -EBADMSG
            seen |= 2
        elif line[0] == c"G" and begins(line, m, b"Groups:", 7):
            if number_list(line + 7, stop, arena, groups) < 0:
                return -ENOMEM
            seen |= 4
        elif line[0] == c"N" and begins(line, m, b"NSpid:", 6):
            if number_list(line + 6, stop, arena, nspid) < 0:
                return -ENOMEM
        elif line[0] == c"T" and begins(line, m, b"Tgid:", 5):
            p = blank(line + 5, stop)
            if number(p, stop, &value) != p:
                tgid[0] = <int32_t>value
                seen |= 128
        elif line[0] == c"T" and begins(line, m, b"TracerPid:", 10):
            p = blank(line + 10, stop)
            if number(p, stop, &value) != p:
                tracer[0] = <int32_t>value
        elif line[0] == c"C" and m > 7 and begins(line, m, b"Cap", 3) and line[6] == c":":
            p = blank(line + 7, stop)
            if hexadecimal(p, stop, &value) == p:
                return -EBADMSG
            if begins(line, m, b"CapInh", 6):
                c.cap[0] = value
                seen |= 8
            elif begins(line, m, b"CapPrm", 6):
                c.cap[1] = value
                seen |= 16
            elif begins(line, m, b"CapEff", 6):
                c.cap[2] = value
                seen |= 32
            elif begins(line, m, b"CapBnd", 6):
                c.cap[3] = value
                seen |= 64
            elif begins(line, m, b"CapAmb", 6):
                c.cap[4] = value
        elif line[0] == c"C" and cpus != NULL and begins(line, m, b"Cpus_allowed_list:", 18):
            p = blank(line + 18, stop)
            if append(arena, p, stop - p, cpus) < 0:
                return -ENOMEM
        elif line[0] == c"N" and begins(line, m, b"NoNewPrivs:", 11):
            p = blank(line + 11, stop)
            if number(p, stop, &value) != p:
                c.no_new_privs = <int8_t>value
        elif line[0] == c"S" and begins(line, m, b"Seccomp:", 8):
            p = blank(line + 8, stop)
            if number(p, stop, &value) != p:
                c.seccomp = <int8_t>value
        line = stop + 1
    return 0 if seen == 255 else -EBADMSG
