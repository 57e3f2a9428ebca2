/*
 * Range lock: shared and exclusive holds on byte ranges of one disk.
 *
 * Two holds conflict when their ranges overlap and one of them is exclusive.
 * Waiters are served in order of arrival among those that conflict, so a
 * writer does not starve.  Meant for some hundred holds at once.
 *
 * The hold lives on the caller's stack between lock and unlock.  All functions
 * may be called from any thread.  A hold's owner must always be able to
 * finish: the wait has no deadline because what it waits for has one.
 */
#ifndef SENDENSE_RANGELOCK_H
#define SENDENSE_RANGELOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct rangelock_hold {
	uint64_t start, end; /* [start, end) */
	bool exclusive;
	bool granted;
	struct rangelock_hold *previous, *next;
};

struct rangelock {
	pthread_mutex_t mutex;
	pthread_cond_t changed;
	struct rangelock_hold *first, *last; /* granted and waiting, by arrival */
	unsigned nr_waiting;
};

void rangelock_init(struct rangelock *lock);
/* Nothing is held. */
void rangelock_destroy(struct rangelock *lock);

/* length > 0; an end beyond 2^64 - 1 is cut there. */
void rangelock_acquire(struct rangelock *lock, struct rangelock_hold *hold, uint64_t offset,
	uint64_t length, bool exclusive);
void rangelock_release(struct rangelock *lock, struct rangelock_hold *hold);

#endif
