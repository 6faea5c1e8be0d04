/* Takes a processor for a time, and does nothing with it. */
#include <stdint.h>
#include <time.h>

void burn(uint64_t ns)
{
	struct timespec t;
	uint64_t end = 0, now;
	do {
		clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
		now = t.tv_sec * 1000000000ULL + t.tv_nsec;
		if (!end)
			end = now + ns;
	} while (now < end);
}
