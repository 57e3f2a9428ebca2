/* The byte budget: bounds, first pieces for all, and no more than a half for one. */
#include "test_support.h"

#include "nbd_internal.h"

static void test_sizes(void **state)
{
	(void)state;
	static const struct {
		size_t budget_bytes;
		unsigned max_connections;
		size_t piece_bytes;
		unsigned nr_shared;
	} rows[] = {
		{32 * MIB, 16, 256 * KIB, 112},
		{32 * MIB, 64, 256 * KIB, 64},
		{32 * MIB, 1000, 16 * KIB, 1048},
		{64 * KIB, 1, 32 * KIB, 1},
		{64 * KIB, 4096, 4 * KIB, 0},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(rows); i++) {
		struct pool pool;
		pool_init(&pool, rows[i].budget_bytes, rows[i].max_connections);
		assert_int_equal(pool.piece_bytes, rows[i].piece_bytes);
		assert_int_equal(pool.nr_shared, rows[i].nr_shared);
		pool_destroy(&pool);
	}
}

struct asker {
	struct pool *pool;
	struct pool_share *share;
	void *piece;
	atomic_bool has_it;
	pthread_t thread;
};

static void *ask(void *arg)
{
	struct asker *asker = arg;
	asker->piece = pool_get(asker->pool, asker->share);
	atomic_store(&asker->has_it, true);
	return NULL;
}

static void wait_until_waiting(struct pool *pool)
{
	struct deadline until = deadline_after_ms(TEST_TIMEOUT_MS);
	for (;;) {
		pthread_mutex_lock(&pool->mutex);
		unsigned nr = pool->nr_waiting;
		pthread_mutex_unlock(&pool->mutex);
		if (nr > 0)
			return;
		assert_false(deadline_passed(until));
		sched_yield();
	}
}

static void test_a_greedy_one_waits_and_others_do_not(void **state)
{
	(void)state;
	struct pool pool;
	struct pool_share greedy = {0}, modest = {0};
	void *pieces[5];
	pool_init(&pool, 12 * 256 * KIB, 4); /* 8 shared, at most 4 of them for one */
	for (unsigned i = 0; i < 5; i++)
		assert_non_null(pieces[i] = pool_get(&pool, &greedy));
	struct asker asker = {.pool = &pool, .share = &greedy};
	assert_int_equal(thread_start(&asker.thread, "asker", ask, &asker, NULL), 0);
	wait_until_waiting(&pool);
	void *mine = pool_get(&pool, &modest);
	assert_non_null(mine);
	pool_put(&pool, &modest, mine);
	assert_false(atomic_load(&asker.has_it));
	pool_put(&pool, &greedy, pieces[0]);
	pthread_join(asker.thread, NULL);
	assert_non_null(asker.piece);
	pieces[0] = asker.piece;
	for (unsigned i = 0; i < 5; i++)
		pool_put(&pool, &greedy, pieces[i]);
	assert_int_equal(greedy.nr_held, 0);
	pool_destroy(&pool);
}

static void test_all_get_their_first(void **state)
{
	(void)state;
	struct pool pool;
	struct pool_share shares[8] = {0};
	void *pieces[8];
	pool_init(&pool, 64 * KIB, 8); /* nothing is shared but what is left over */
	for (unsigned i = 0; i < 8; i++)
		assert_non_null(pieces[i] = pool_get(&pool, &shares[i]));
	assert_int_equal(pool.nr_shared_out, 0);
	for (unsigned i = 0; i < 8; i++)
		pool_put(&pool, &shares[i], pieces[i]);
	pool_destroy(&pool);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sizes),
		cmocka_unit_test(test_a_greedy_one_waits_and_others_do_not),
		cmocka_unit_test(test_all_get_their_first),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
