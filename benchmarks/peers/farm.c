/* One zygote of the farm: makes its memory, then forks children as it is told.
 *
 * Commands on stdin, one a line: a number of children to fork. For each child, once it has
 * touched its pages, its pid is written to stdout. End of file: exit. The children die with the
 * zygote (PR_SET_PDEATHSIG), so that a benchmark that crashes leaves nothing behind.
 *
 * Arguments: heap pages, of them hot (the first ones, where copies happen), pages that a child
 * copies, pages of its own, small VMAs, GiB of reservation, seed, memfd of the shared segments,
 * number of segments, pages of a segment, descriptors that a child opens, the directory of the
 * files among them, then files to map.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define PAGE 4096L
#define SMALL 4 /* pages of a small VMA */
#define FIRST_FILE 13
#define FILES 2000 /* in the directory of files to open */
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

static uint64_t state;

static uint64_t draw(uint64_t below)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (state >> 11) % below;
}

static char *area(size_t bytes, int extra)
{
	char *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | extra, -1, 0);
	if (p == MAP_FAILED) {
		perror("mmap");
		exit(1);
	}
	madvise(p, bytes, MADV_NOHUGEPAGE);
	return p;
}

/* About n descriptors as a server has them: of ten, three files, a directory or /dev/null, two
 * ends of a pipe, two sockets of a pair, and an eventfd, epoll or timerfd. */
static void open_descriptors(long n, const char *directory, long child)
{
	char name[4096];
	int ends[2];
	for (long i = 0; i < n / 10; i++) {
		for (int k = 0; k < 3; k++) {
			/* One of the three is open in all. */
			long file = k ? child * 31 + i * 2 + k : i;
			snprintf(name, sizeof name, "%s/%ld", directory, file % FILES);
			open(name, k == 2 ? O_RDWR : O_RDONLY);
		}
		open(i & 1 ? "/dev/null" : directory, O_RDONLY);
		open("/dev/null", O_RDWR);
		if (pipe(ends) || socketpair(AF_UNIX, SOCK_STREAM, 0, ends))
			_exit(1);
		if (i % 3 == 0)
			eventfd(0, 0);
		else if (i % 3 == 1)
			epoll_create1(0);
		else
			timerfd_create(CLOCK_MONOTONIC, 0);
	}
}

int main(int argc, char **argv)
{
	long heap_pages = atol(argv[1]), hot = atol(argv[2]), copies = atol(argv[3]);
	long own = atol(argv[4]), small = atol(argv[5]), reserve = atol(argv[6]);
	uint64_t seed = strtoull(argv[7], NULL, 10);
	int fd = atoi(argv[8]);
	long segments = atol(argv[9]), segment_pages = atol(argv[10]), forked = 0;
	long descriptors = atol(argv[11]);
	const char *directory = argv[12];
	char *heap = area(heap_pages * PAGE, 0), *reserved = NULL;
	char line[64];

	for (long i = 0; i < heap_pages; i++)
		*(long *)(heap + i * PAGE) = i;
	/* VMAs that the kernel cannot merge: every second one is read-only. */
	char *smalls = area(small * SMALL * PAGE, 0);
	for (long i = 0; i < small; i++) {
		char *p = smalls + i * SMALL * PAGE;
		p[0] = p[PAGE] = 1;
		if (i & 1)
			mprotect(p, SMALL * PAGE, PROT_READ);
	}
	if (reserve)
		reserved = area(reserve << 30, MAP_NORESERVE);
	for (int i = FIRST_FILE; i < argc; i++) {
		int file = open(argv[i], O_RDONLY | O_CLOEXEC);
		struct stat facts;
		if (file < 0 || fstat(file, &facts) || facts.st_size == 0)
			continue;
		mmap(NULL, facts.st_size, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0);
		close(file);
	}
	while (fgets(line, sizeof line, stdin)) {
		for (long n = atol(line); n > 0; n--, forked++) {
			int ready[2];
			char byte;
			if (pipe(ready))
				return 1;
			pid_t pid = fork();
			if (pid < 0) {
				perror("fork");
				return 1;
			}
			if (pid == 0) {
				prctl(PR_SET_PDEATHSIG, SIGKILL);
				close(ready[0]);
				close(0);
				state = seed * 1000003 + forked * 7919 + 88172645463325252ULL;
				for (int i = 0; i < 8; i++)
					draw(2);
				for (long i = 0; i < copies && hot; i++)
					*(long *)(heap + draw(hot) * PAGE) = ~i;
				char *mine = area((own ? own : 1) * PAGE, 0);
				for (long i = 0; i < own; i++)
					mine[i * PAGE] = 1;
				if (segments) {
					off_t at = (forked % segments) * segment_pages * PAGE;
					char *p = mmap(NULL, segment_pages * PAGE, PROT_READ | PROT_WRITE,
						       MAP_SHARED, fd, at);
					if (p != MAP_FAILED)
						for (long i = 0; i < segment_pages; i++)
							p[i * PAGE] = 1;
				}
				if (reserved)
					for (int i = 0; i < 16; i++)
						reserved[draw(reserve << 18) * PAGE] = 1;
				for (int i = FIRST_FILE; i < argc; i++) {
					int file = open(argv[i], O_RDONLY | O_CLOEXEC);
					struct stat facts;
					if (file < 0 || fstat(file, &facts) || facts.st_size == 0)
						continue;
					char *p = mmap(NULL, facts.st_size, PROT_READ, MAP_PRIVATE, file, 0);
					madvise(p, facts.st_size, MADV_POPULATE_READ);
					close(file);
				}
				open_descriptors(descriptors, directory, forked);
				if (write(ready[1], "x", 1) != 1)
					_exit(1);
				close(ready[1]);
				close(1);
				for (;;)
					pause();
			}
			close(ready[1]);
			if (read(ready[0], &byte, 1) != 1)
				return 1;
			close(ready[0]);
			printf("%d\n", pid);
			fflush(stdout);
		}
	}
	return 0;
}
