/* Threads; see thread.h. */
#include "thread.h"

#include "bytes.h"

#include <assert.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>

#define STACK_BYTES (512 * KIB)

int thread_start(
	pthread_t *thread, const char *name, void *(*main)(void *), void *arg, struct err *err)
{
	sigset_t all, old;
	pthread_attr_t attr;
	sigfillset(&all);
	int rc = pthread_attr_init(&attr);
	if (rc == 0) {
		pthread_attr_setstacksize(&attr, STACK_BYTES);
		pthread_sigmask(SIG_SETMASK, &all, &old);
		rc = pthread_create(thread, &attr, main, arg);
		pthread_sigmask(SIG_SETMASK, &old, NULL);
		pthread_attr_destroy(&attr);
	}
	if (rc != 0)
		return err_errno(err, rc, "cannot start thread %s", name);
	pthread_setname_np(*thread, name);
	return 0;
}

void thread_cond_init(pthread_cond_t *cond)
{
	pthread_condattr_t attr;
	int rc = pthread_condattr_init(&attr);
	assert(rc == 0);
	rc = pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	assert(rc == 0);
	rc = pthread_cond_init(cond, &attr);
	assert(rc == 0);
	pthread_condattr_destroy(&attr);
}

bool thread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex, struct deadline until)
{
	struct timespec at = deadline_timespec(until);
	return pthread_cond_timedwait(cond, mutex, &at) != ETIMEDOUT;
}

unsigned thread_nr_cpus(void)
{
	cpu_set_t set;
	if (sched_getaffinity(0, sizeof set, &set) != 0)
		return 1;
	int n = CPU_COUNT(&set);
	return n > 0 ? (unsigned)n : 1;
}
