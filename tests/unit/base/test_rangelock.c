/* The range lock: who may hold what together, order of arrival, many threads. */
#include "test_support.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

static void test_holds_side_by_side(void **state)
{
	(void)state;
	struct rangelock lock;
	struct rangelock_hold a, b, c, d;
	rangelock_init(&lock);
	rangelock_acquire(&lock, &a, 0, 100, false);
	rangelock_acquire(&lock, &b, 50, 100, false);
	rangelock_acquire(&lock, &c, 150, 1, true);
	rangelock_acquire(&lock, &d, UINT64_MAX - 1, 100, true);
	assert_true(d.end == UINT64_MAX);
	rangelock_release(&lock, &b);
	rangelock_release(&lock, &a);
	rangelock_release(&lock, &d);
	rangelock_release(&lock, &c);
	rangelock_destroy(&lock);
}

struct waiter {
	struct rangelock *lock;
	uint64_t offset;
	bool exclusive;
	atomic_uint *counter; /* the next place */
	unsigned place;
};

static void *wait_main(void *arg)
{
	struct waiter *w = arg;
	struct rangelock_hold hold;
	rangelock_acquire(w->lock, &hold, w->offset, 10, w->exclusive);
	w->place = atomic_fetch_add(w->counter, 1);
	rangelock_release(w->lock, &hold);
	return NULL;
}

static unsigned nr_waiting(struct rangelock *lock)
{
	WITH_LOCK(&lock->mutex);
	return lock->nr_waiting;
}

static void await_waiting(struct rangelock *lock, unsigned nr)
{
	struct deadline until = deadline_after_ms(60000);
	while (nr_waiting(lock) != nr) {
		assert_false(deadline_passed(until));
		sched_yield();
	}
}

/* A writer that waits goes before a reader that came later. */
static void test_order_of_arrival(void **state)
{
	(void)state;
	struct rangelock lock;
	struct rangelock_hold reader;
	atomic_uint counter = 0;
	struct waiter writer = {.lock = &lock, .exclusive = true, .counter = &counter};
	struct waiter late = {.lock = &lock, .offset = 5, .counter = &counter};
	struct waiter elsewhere = {
		.lock = &lock, .offset = 100, .exclusive = true, .counter = &counter};
	pthread_t threads[3];
	rangelock_init(&lock);
	rangelock_acquire(&lock, &reader, 0, 10, false);
	thread_start(&threads[0], "writer", wait_main, &writer, NULL);
	await_waiting(&lock, 1);
	thread_start(&threads[1], "late", wait_main, &late, NULL);
	await_waiting(&lock, 2);
	/* Another range is not held up. */
	thread_start(&threads[2], "elsewhere", wait_main, &elsewhere, NULL);
	pthread_join(threads[2], NULL);
	assert_int_equal(elsewhere.place, 0);
	assert_int_equal(nr_waiting(&lock), 2);
	rangelock_release(&lock, &reader);
	pthread_join(threads[0], NULL);
	pthread_join(threads[1], NULL);
	assert_int_equal(writer.place, 1);
	assert_int_equal(late.place, 2);
	rangelock_destroy(&lock);
}

#define NR_CELLS 32
#define NR_ROUNDS 3000

static struct {
	struct rangelock lock;
	unsigned cells[NR_CELLS]; /* plain: only the range lock guards them */
	atomic_bool torn;
} shared;

/* Writers give a range one value; readers must never see two. */
static void *storm_main(void *arg)
{
	unsigned seed = (unsigned)(uintptr_t)arg;
	for (unsigned i = 0; i < NR_ROUNDS; i++) {
		unsigned first = (unsigned)rand_r(&seed) % NR_CELLS;
		unsigned length = 1 + (unsigned)rand_r(&seed) % (NR_CELLS - first);
		bool exclusive = rand_r(&seed) % 3 == 0;
		struct rangelock_hold hold;
		rangelock_acquire(&shared.lock, &hold, first, length, exclusive);
		unsigned before = shared.cells[first];
		if (exclusive) {
			for (unsigned k = first; k < first + length; k++)
				shared.cells[k]++;
			if (shared.cells[first] != before + 1)
				atomic_store(&shared.torn, true);
		} else if (shared.cells[first] != before) {
			atomic_store(&shared.torn, true);
		}
		rangelock_release(&shared.lock, &hold);
	}
	return NULL;
}

static void test_storm(void **state)
{
	(void)state;
	pthread_t threads[6];
	rangelock_init(&shared.lock);
	for (size_t i = 0; i < ARRAY_LENGTH(threads); i++)
		assert_int_equal(thread_start(&threads[i], "storm", storm_main,
					 (void *)(uintptr_t)(i + 1), NULL),
			0);
	for (size_t i = 0; i < ARRAY_LENGTH(threads); i++)
		pthread_join(threads[i], NULL);
	assert_false(atomic_load(&shared.torn));
	/* Not one increment was lost: replay them. */
	unsigned expected[NR_CELLS] = {0};
	for (size_t t = 0; t < ARRAY_LENGTH(threads); t++) {
		unsigned seed = (unsigned)t + 1;
		for (unsigned i = 0; i < NR_ROUNDS; i++) {
			unsigned first = (unsigned)rand_r(&seed) % NR_CELLS;
			unsigned length = 1 + (unsigned)rand_r(&seed) % (NR_CELLS - first);
			if (rand_r(&seed) % 3 == 0)
				for (unsigned k = first; k < first + length; k++)
					expected[k]++;
		}
	}
	assert_memory_equal(shared.cells, expected, sizeof expected);
	rangelock_destroy(&shared.lock);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_holds_side_by_side),
		cmocka_unit_test(test_order_of_arrival),
		cmocka_unit_test(test_storm),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
