/* One actor of the control tests: takes on what its arguments say, then does on stdin's word
 * what a controller would do, and answers with the errno of the kernel (0: permitted).
 *
 * usage: probe op[:value] ...      ops run in order; "exec" starts the program again.
 * A line "ready <pid>" follows. Then each line "verb number [text]" gets one line "errno".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <grp.h>
#include <unistd.h>

static void die(const char *what)
{
	fprintf(stderr, "probe: %s: %s\n", what, strerror(errno));
	exit(99);
}

static void check(long result, const char *what)
{
	if (result < 0)
		die(what);
}

static void wait_for_word(void)
{
	char c;
	while (read(0, &c, 1) == 1 && c != '\n')
		;
}

static void capabilities(unsigned long long effective, unsigned long long permitted)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[2] = {
		{effective, permitted, 0},
		{effective >> 32, permitted >> 32, 0},
	};
	check(syscall(SYS_capset, &header, data), "capset");
}

static int try_getfd(int pid)
{
	int fd = syscall(SYS_pidfd_open, pid, 0), got;
	if (fd < 0 && errno == ENOENT) /* a thread that is no leader: PIDFD_THREAD */
		fd = syscall(SYS_pidfd_open, pid, O_EXCL);
	if (fd < 0)
		return errno;
	got = syscall(SYS_pidfd_getfd, fd, 9999, 0) < 0 ? errno : 0;
	close(fd);
	return got == EBADF ? 0 : got;
}

static int try_open(const char *name, int pid, int flags)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
	int fd = open(path, flags | O_CLOEXEC);
	if (fd < 0)
		return errno;
	close(fd);
	return 0;
}

static int try_readlink(int pid)
{
	char path[64], out[4096];
	snprintf(path, sizeof path, "/proc/%d/cwd", pid);
	return readlink(path, out, sizeof out) < 0 ? errno : 0;
}

static int by_child(int (*ask)(const char *, int), const char *text, int pid)
{
	int status;
	pid_t child = fork();
	if (!child)
		_exit(ask(text, pid));
	waitpid(child, &status, 0);
	return WEXITSTATUS(status);
}

static int try_seize(const char *unused, int pid)
{
	(void)unused;
	return ptrace(PTRACE_SEIZE, pid, 0, 0) ? errno : 0;
}

/* text: kind=flag=number in our /proc; pid: number in our pid namespace; 0 for none */
static int try_join(const char *text, int pid)
{
	char path[64], kind[16];
	int fd, flag, by_file, number;
	sscanf(text, "%15[^=]=%d=%d", kind, &flag, &number);
	snprintf(path, sizeof path, "/proc/%d/ns/%s", number, kind);
	fd = number ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	by_file = fd < 0 || setns(fd, flag) ? (number ? errno : ESRCH) : 0;
	if (!by_file || !pid)
		return by_file;
	fd = syscall(SYS_pidfd_open, pid, 0);
	return fd < 0 || setns(fd, flag) ? by_file : 0;
}

static int attempt(const char *verb, int pid, const char *text)
{
	cpu_set_t all;
	struct rlimit old;
	if (!strcmp(verb, "kill"))
		return kill(pid, 0) ? errno : 0;
	if (!strcmp(verb, "continue"))
		return kill(pid, SIGCONT) ? errno : 0;
	if (!strcmp(verb, "signal"))
		return kill(pid, atoi(text)) ? errno : 0;
	if (!strcmp(verb, "trace-attach"))
		return try_getfd(pid);
	if (!strcmp(verb, "mem-write"))
		return try_open("mem", pid, O_WRONLY);
	if (!strcmp(verb, "trace-read"))
		return try_readlink(pid);
	if (!strcmp(verb, "oom"))
		return try_open("oom_score_adj", pid, O_WRONLY);
	if (!strcmp(verb, "limit"))
		return prlimit(pid, RLIMIT_CORE, NULL, &old) ? errno : 0;
	if (!strcmp(verb, "sched")) {
		memset(&all, 0xff, sizeof all);
		return sched_setaffinity(pid, sizeof all, &all) ? errno : 0;
	}
	if (!strcmp(verb, "trace")) /* and stays its tracer */
		return ptrace(PTRACE_SEIZE, pid, 0, 0) ? errno : 0;
	if (!strcmp(verb, "seize")) /* the child's exit lets it go again */
		return by_child(try_seize, text, pid);
	if (!strcmp(verb, "join"))
		return by_child(try_join, text, pid);
	if (!strcmp(verb, "write")) { /* "path=data" */
		char path[256];
		const char *data = strchr(text, '=') + 1;
		snprintf(path, sizeof path, "%.*s", (int)(data - 1 - text), text);
		int fd = open(path, O_WRONLY | O_CLOEXEC);
		if (fd < 0)
			return errno;
		return *data && write(fd, data, strlen(data)) < 0 ? errno : 0;
	}
	return 250;
}

/* A second thread with credentials of its own, which tries what the first may not. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turn = PTHREAD_COND_INITIALIZER;
static struct { int has, uid, asked, pid, answer; const char *verb, *text; } other;

static void *second(void *unused)
{
	(void)unused;
	check(syscall(SYS_setresuid, other.uid, other.uid, other.uid), "thread setresuid");
	pthread_mutex_lock(&lock);
	other.has = 1;
	pthread_cond_broadcast(&turn);
	for (;;) {
		while (!other.asked)
			pthread_cond_wait(&turn, &lock);
		other.answer = attempt(other.verb, other.pid, other.text);
		other.asked = 0;
		pthread_cond_broadcast(&turn);
	}
	return NULL;
}

static int through_any(const char *verb, int pid, const char *text)
{
	int answer = attempt(verb, pid, text);
	if (!answer || !other.has)
		return answer;
	pthread_mutex_lock(&lock);
	other.verb = verb, other.pid = pid, other.text = text, other.asked = 1;
	pthread_cond_broadcast(&turn);
	while (other.asked)
		pthread_cond_wait(&turn, &lock);
	answer = other.answer;
	pthread_mutex_unlock(&lock);
	return answer;
}

static long twin_uid;

static int twin(void *unused)
{
	(void)unused;
	syscall(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	syscall(SYS_setresuid, twin_uid, twin_uid, twin_uid);
	syscall(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	for (;;)
		syscall(SYS_pause);
}

static void become(char **argv, int i)
{
	const char *op = argv[i];
	long a = -1, b = -1, c = -1;
	unsigned long long effective, permitted;
	const char *value = strchr(op, ':');
	if (value)
		sscanf(value + 1, "%ld:%ld:%ld", &a, &b, &c);
	if (!strncmp(op, "user", 4)) {
		check(unshare(CLONE_NEWUSER), op);
		printf("map %d\n", getpid());
		fflush(stdout);
		wait_for_word(); /* the parent writes the maps */
	} else if (!strncmp(op, "enterpid", 8)) { /* a child in the pid namespace of that pid */
		char path[64];
		snprintf(path, sizeof path, "/proc/%ld/ns/pid", a);
		check(setns(open(path, O_RDONLY), CLONE_NEWPID), op);
		pid_t child = fork();
		check(child, "fork");
		if (child) {
			waitpid(child, NULL, 0);
			_exit(0);
		}
	} else if (!strncmp(op, "twin", 4)) { /* a child that shares the mm, with a uid of its own */
		static char stack[1 << 16] __attribute__((aligned(16)));
		twin_uid = a;
		check(clone(twin, stack + sizeof stack, CLONE_VM | SIGCHLD, NULL), "clone");
	} else if (!strncmp(op, "pid", 3)) {
		check(unshare(CLONE_NEWPID), op);
		pid_t child = fork();
		check(child, "fork");
		if (child) {
			waitpid(child, NULL, 0);
			_exit(0);
		}
	} else if (!strncmp(op, "child", 5)) { /* the rest is done by a child */
		pid_t child = fork();
		check(child, "fork");
		if (child) {
			waitpid(child, NULL, 0);
			_exit(0);
		}
	} else if (!strncmp(op, "unshare", 7)) {
		check(unshare(a), op);
	} else if (!strncmp(op, "proc", 4)) {
		check(unshare(CLONE_NEWNS), op);
		check(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "private");
		check(mount("proc", "/proc", "proc", 0, value ? value + 1 : NULL), "mount proc");
	} else if (!strncmp(op, "roproc", 6)) {
		check(unshare(CLONE_NEWNS), op);
		check(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "private");
		check(mount("/proc", "/proc", NULL, MS_BIND, NULL), "bind");
		check(mount(NULL, "/proc", NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL), "read-only");
	} else if (!strncmp(op, "keep", 4)) {
		check(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0), op);
	} else if (!strncmp(op, "uid", 3)) {
		check(syscall(SYS_setresuid, a, b, c), op);
	} else if (!strncmp(op, "gid", 3)) {
		check(syscall(SYS_setresgid, a, b, c), op);
	} else if (!strncmp(op, "fsuid", 5)) {
		setfsuid(a);
	} else if (!strncmp(op, "groups", 6)) {
		gid_t one = a;
		check(setgroups(a < 0 ? 0 : 1, &one), op);
	} else if (!strncmp(op, "caps", 4)) { /* caps:effective:permitted, hexadecimal */
		sscanf(value + 1, "%llx:%llx", &effective, &permitted);
		capabilities(effective, permitted);
	} else if (!strncmp(op, "dumpable", 8)) {
		check(prctl(PR_SET_DUMPABLE, a, 0, 0, 0), op);
	} else if (!strncmp(op, "nnp", 3)) {
		check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), op);
	} else if (!strncmp(op, "seccomp", 7)) {
		struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
		struct sock_fprog program = {1, &allow};
		check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), op);
		check(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), op);
	} else if (!strncmp(op, "session", 7)) {
		check(setsid(), op);
	} else if (!strncmp(op, "group", 5)) {
		check(setpgid(0, a < 0 ? 0 : a), op);
	} else if (!strncmp(op, "thread", 6)) {
		pthread_t thread;
		other.uid = a;
		pthread_mutex_lock(&lock);
		pthread_create(&thread, NULL, second, NULL);
		while (!other.has)
			pthread_cond_wait(&turn, &lock);
		pthread_mutex_unlock(&lock);
	} else if (!strncmp(op, "exec", 4)) {
		argv[i] = argv[0];
		execv("/proc/self/exe", argv + i);
		die("exec");
	} else {
		errno = EINVAL;
		die(op);
	}
}

int main(int argc, char **argv)
{
	sigset_t usr1, pending;
	char line[512], verb[32], text[400];
	int pid;
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	sigprocmask(SIG_BLOCK, &usr1, NULL);
	signal(SIGCONT, SIG_IGN);
	for (int i = 1; i < argc; i++)
		become(argv, i);
	(void)argc;
	printf("ready %d\n", getpid());
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		*text = 0;
		sscanf(line, "%31s %d %399[^\n]", verb, &pid, text);
		if (!strcmp(verb, "got")) { /* 1 if SIGUSR1 came since the last time */
			struct timespec now = {0, 0};
			sigpending(&pending);
			int came = sigismember(&pending, SIGUSR1);
			while (sigtimedwait(&usr1, NULL, &now) > 0)
				;
			printf("%d\n", came);
		} else {
			printf("%d\n", through_any(verb, pid, text));
		}
		fflush(stdout);
	}
	return 0;
}
