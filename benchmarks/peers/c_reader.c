/* The floor: reads maps and pagemap of processes and throws them away.
 *
 * What it must know to go on it finds out (bounds of VMAs; how many entries are absent); it
 * counts and sums frame numbers, so that its answer can be compared, and keeps nothing.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define CHUNK 2048
#define LEAP 256
#define TEXT (1 << 20)
#define PFN_MASK ((1ULL << 55) - 1)
#define PAGEMAP_SCAN_NR 0xC0606610UL

struct region { uint64_t start, end, categories; };
struct scan {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t inverted, mask, anyof, ret;
};

struct result {
	uint64_t vmas, present, absent, sum; /* sum of frame numbers */
	uint64_t cpu_ns, wall_ns;
};

static uint64_t now(clockid_t clock)
{
	struct timespec t;
	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

static uint64_t next_populated(int fd, uint64_t page, uint64_t end)
{
	struct region found;
	struct scan arg = {
		.size = sizeof arg, .start = page << 12, .end = end << 12, .vec = (uint64_t)&found,
		.vec_len = 1, .max_pages = 1, .anyof = 24, .ret = 24,
	};
	int n = ioctl(fd, PAGEMAP_SCAN_NR, &arg);
	if (n < 0)
		return page;
	return n ? found.start >> 12 : end;
}

static int span(int fd, uint64_t p, uint64_t end, int gallop, struct result *out)
{
	static __thread uint64_t entries[CHUNK];
	uint64_t absent = 0;
	while (p < end) {
		size_t n = end - p < CHUNK ? end - p : CHUNK;
		ssize_t got = pread(fd, entries, n * 8, p * 8);
		if (got != (ssize_t)(n * 8))
			return -1;
		for (size_t i = 0; i < n; i++) {
			if (entries[i] >> 63) {
				out->present++;
				out->sum += entries[i] & PFN_MASK;
				absent = 0;
			} else {
				absent++;
				out->absent++;
			}
		}
		p += n;
		if (gallop && absent >= LEAP && p < end) {
			p = next_populated(fd, p, end);
			absent = 0;
		}
	}
	return 0;
}

static int one(int pid, int gallop, int only_maps, char *text, struct result *out)
{
	char path[64];
	size_t size = 0;
	ssize_t got;
	uint64_t begin = 0, last = 0;
	snprintf(path, sizeof path, "/proc/%d/maps", pid);
	int maps = open(path, O_RDONLY | O_CLOEXEC);
	if (maps < 0)
		return -1;
	while ((got = read(maps, text + size, TEXT - size - 1)) > 0)
		size += got;
	close(maps);
	if (only_maps)
		return 0;
	text[size] = 0;
	snprintf(path, sizeof path, "/proc/%d/pagemap", pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	for (char *p = text; *p; p++) {
		uint64_t start = strtoull(p, &p, 16);
		uint64_t end = strtoull(p + 1, &p, 16);
		p = strchr(p, '\n');
		if (start >> 63)
			continue;
		out->vmas++;
		if (gallop && start >> 12 == last) {
			last = end >> 12;
			continue;
		}
		if (last && span(fd, begin, last, gallop, out))
			goto bad;
		begin = start >> 12;
		last = end >> 12;
	}
	if (last && span(fd, begin, last, gallop, out))
		goto bad;
	close(fd);
	return 0;
bad:
	close(fd);
	return -1;
}

/* Returns the number of processes that were read. */
int read_all(const int *pids, int n, int gallop, int only_maps, struct result *out)
{
	char *text = malloc(TEXT);
	int done = 0;
	memset(out, 0, sizeof *out);
	if (!text)
		return 0;
	uint64_t cpu = now(CLOCK_THREAD_CPUTIME_ID), wall = now(CLOCK_MONOTONIC);
	for (int i = 0; i < n; i++)
		done += one(pids[i], gallop, only_maps, text, out) == 0;
	out->cpu_ns = now(CLOCK_THREAD_CPUTIME_ID) - cpu;
	out->wall_ns = now(CLOCK_MONOTONIC) - wall;
	free(text);
	return done;
}
