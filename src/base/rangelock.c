/*
 * Range lock; see rangelock.h.
 *
 * One list of holds in order of arrival.  A hold is granted when no earlier
 * entry, granted or waiting, conflicts with it: that is what keeps the order.
 */
#include "rangelock.h"

#include "thread.h"

#include <assert.h>

void rangelock_init(struct rangelock *lock)
{
	*lock = (struct rangelock){0};
	pthread_mutex_init(&lock->mutex, NULL);
	thread_cond_init(&lock->changed);
}

void rangelock_destroy(struct rangelock *lock)
{
	assert(!lock->first);
	pthread_cond_destroy(&lock->changed);
	pthread_mutex_destroy(&lock->mutex);
}

static bool conflict(const struct rangelock_hold *a, const struct rangelock_hold *b)
{
	return (a->exclusive || b->exclusive) && a->start < b->end && b->start < a->end;
}

static bool may_be_granted(const struct rangelock_hold *hold)
{
	for (const struct rangelock_hold *h = hold->previous; h; h = h->previous)
		if (conflict(h, hold))
			return false;
	return true;
}

void rangelock_acquire(struct rangelock *lock, struct rangelock_hold *hold, uint64_t offset,
	uint64_t length, bool exclusive)
{
	assert(length > 0);
	*hold = (struct rangelock_hold){.start = offset, .exclusive = exclusive};
	if (__builtin_add_overflow(offset, length, &hold->end))
		hold->end = UINT64_MAX;

	pthread_mutex_lock(&lock->mutex);
	hold->previous = lock->last;
	if (lock->last)
		lock->last->next = hold;
	else
		lock->first = hold;
	lock->last = hold;
	while (!may_be_granted(hold)) {
		lock->nr_waiting++;
		pthread_cond_wait(&lock->changed, &lock->mutex);
		lock->nr_waiting--;
	}
	hold->granted = true;
	pthread_mutex_unlock(&lock->mutex);
}

void rangelock_release(struct rangelock *lock, struct rangelock_hold *hold)
{
	pthread_mutex_lock(&lock->mutex);
	assert(hold->granted);
	if (hold->previous)
		hold->previous->next = hold->next;
	else
		lock->first = hold->next;
	if (hold->next)
		hold->next->previous = hold->previous;
	else
		lock->last = hold->previous;
	if (lock->nr_waiting > 0)
		pthread_cond_broadcast(&lock->changed);
	pthread_mutex_unlock(&lock->mutex);
}
