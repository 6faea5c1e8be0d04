/* The floor of reading descriptors: the system calls that it cannot be done without.
 *
 * A listing of /proc/<pid>/fd; for each descriptor lstat (its mode bits are how it was opened) and
 * statx (what it leads to); readlink for each anonymous inode (its text is its kind) and once for
 * each file; kcmp between anonymous inodes, in the order of a merge sort, as they share one inode
 * number. Kept are a set of files, and sums to compare answers by.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define KCMP_FILE 0
#define LIST 32768

struct result {
	uint64_t descriptors, links, files, anonymous; /* anonymous: open files of anonymous inodes */
	uint64_t sum, cpu_ns, kcmp_ns;
};

struct open_file { int pid, fd; uint64_t kind; };

static uint64_t *seen, slots, used;
static struct open_file *files;
static size_t n_files, room;

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

static uint64_t mix(uint64_t h)
{
	h = (h ^ h >> 30) * 0xBF58476D1CE4E5B9ULL;
	h = (h ^ h >> 27) * 0x94D049BB133111EBULL;
	return h ^ h >> 31;
}

/* Whether a hash of (dev, inode) was not there before; a collision of 64 bits costs one readlink. */
static int is_new(uint64_t key)
{
	if (used * 2 >= slots) {
		uint64_t *old = seen, n = slots;
		slots = n ? n * 2 : 4096;
		seen = calloc(slots, 8);
		used = 0;
		for (uint64_t i = 0; i < n; i++)
			if (old[i])
				is_new(old[i]);
		free(old);
	}
	uint64_t at = key & (slots - 1);
	while (seen[at]) {
		if (seen[at] == key)
			return 0;
		at = (at + 1) & (slots - 1);
	}
	seen[at] = key;
	used++;
	return 1;
}

static int one(int pid, struct result *out)
{
	char path[64], text[4096];
	static char list[LIST];
	long got;
	snprintf(path, sizeof path, "/proc/%d/fd", pid);
	int at = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (at < 0)
		return -1;
	while ((got = syscall(SYS_getdents64, at, list, LIST)) > 0) {
		for (long p = 0; p < got; p += *(uint16_t *)(list + p + 16)) {
			const char *name = list + p + 19;
			struct stat link;
			struct statx facts;
			if (*name == '.')
				continue;
			if (fstatat(at, name, &link, AT_SYMLINK_NOFOLLOW) ||
			    statx(at, name, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT,
				  STATX_TYPE | STATX_MODE | STATX_INO | STATX_BTIME, &facts))
				goto bad;
			uint64_t dev = (uint64_t)facts.stx_dev_major << 32 | facts.stx_dev_minor;
			uint64_t rdev = (uint64_t)facts.stx_rdev_major << 32 | facts.stx_rdev_minor;
			uint64_t access = (link.st_mode & 0400 ? 4 : 0) | (link.st_mode & 0200 ? 2 : 0);
			int fd = atoi(name), type = facts.stx_mode & S_IFMT;
			out->descriptors++;
			out->sum += mix(mix(mix(mix(((uint64_t)pid << 32 | fd) * 8 + access) + dev) +
					    facts.stx_ino) + rdev);
			if (type == 0) {
				if (n_files == room)
					files = realloc(files, (room = room ? room * 2 : 1024) * sizeof *files);
				long size = readlinkat(at, name, text, sizeof text);
				uint64_t kind = 0;
				for (long i = 0; i < size; i++)
					kind = kind * 31 + text[i];
				files[n_files++] = (struct open_file){pid, fd, kind};
				out->links++;
			} else if (type != S_IFSOCK && type != S_IFIFO &&
				   is_new(mix(mix(dev) + facts.stx_ino) | 1)) {
				if (readlinkat(at, name, text, sizeof text) < 0)
					goto bad;
				out->links++;
				out->files++;
			}
		}
	}
	close(at);
	return got;
bad:
	close(at);
	return -1;
}

static int by_file(const void *a, const void *b)
{
	const struct open_file *x = a, *y = b;
	if (x->kind != y->kind)
		return x->kind < y->kind ? -1 : 1;
	long found = syscall(SYS_kcmp, x->pid, y->pid, KCMP_FILE, x->fd, y->fd);
	return found == 0 ? 0 : found == 1 ? -1 : 1;
}

/* Returns the number of processes that were read. */
int read_descriptors(const int *pids, int n, struct result *out)
{
	int done = 0;
	memset(out, 0, sizeof *out);
	n_files = used = slots = 0;
	uint64_t began = now();
	for (int i = 0; i < n; i++)
		done += one(pids[i], out) == 0;
	uint64_t read = now();
	qsort(files, n_files, sizeof *files, by_file); /* glibc merges where there is room */
	for (size_t i = 0; i < n_files; i++)
		out->anonymous += i == 0 || by_file(&files[i - 1], &files[i]) != 0;
	out->kcmp_ns = now() - read;
	out->cpu_ns = now() - began;
	free(seen);
	free(files);
	seen = NULL;
	files = NULL;
	room = 0;
	return done;
}
