/* Threads: start with a name, wait on a condition with a deadline. */
#ifndef SENDENSE_THREAD_H
#define SENDENSE_THREAD_H

#include "clock.h"
#include "err.h"

#include <pthread.h>

/*
 * Starts main(arg) on a thread of its own, with all signals blocked (the main
 * thread handles them) and a stack of 512 KiB.  name: at most 15 bytes, shown
 * by ps -T.  To be joined with pthread_join().
 */
int thread_start(
	pthread_t *thread, const char *name, void *(*main)(void *), void *arg, struct err *err);

/* Makes a condition variable whose timed waits use the monotonic clock.
 * Cannot fail on Linux; asserted. */
void thread_cond_init(pthread_cond_t *cond);

/* Waits once (spurious wake-ups happen).  False when the deadline passed. */
bool thread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex, struct deadline until);

/* Processors that this process may run on, at least 1. */
unsigned thread_nr_cpus(void);

#endif
