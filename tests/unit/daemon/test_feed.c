/* The stream's ring. */
#include "../scratch.h"

#include "feed.h"

static void put(struct feed *feed, int nr)
{
	feed_put(feed, "job", "web01", json_pack("{s:i}", "nr", nr));
}

static int nr_of(struct feed_event *event)
{
	int nr = (int)json_integer_value(json_object_get(event->data, "nr"));
	json_decref(event->data);
	return nr;
}

static void test_ring(void **context)
{
	(void)context;
	struct err err = ERR_INIT;
	struct feed_event event;
	struct feed *feed = feed_new(&err);
	assert_non_null(feed);
	assert_int_equal(feed_next(feed, 0, deadline_after_ms(0), &event), 2);
	put(feed, 1);
	put(feed, 2);
	assert_int_equal(feed_next(feed, 0, deadline_after_ms(0), &event), 1);
	assert_int_equal(event.id, 1);
	assert_string_equal(event.vm, "web01");
	assert_int_equal(nr_of(&event), 1);
	assert_int_equal(feed_next(feed, 2, deadline_after_ms(0), &event), 2);
	/* A number of another hub's life waits for what is new. */
	assert_int_equal(feed_next(feed, 1000, deadline_after_ms(0), &event), 2);
	/* Who was too slow goes on with the oldest that there is. */
	for (int i = 3; i <= FEED_EVENTS + 10; i++)
		put(feed, i);
	uint64_t after = 1;
	for (int expected = 11; expected <= FEED_EVENTS + 10; expected++) {
		assert_int_equal(feed_next(feed, after, deadline_after_ms(0), &event), 1);
		after = event.id;
		assert_int_equal(nr_of(&event), expected);
	}
	assert_int_equal(feed_newest(feed), after);
	feed_end(feed);
	assert_int_equal(feed_next(feed, after, deadline_after_ms(60000), &event), 0);
	feed_free(feed);
}

static void *listen_main(void *arg)
{
	struct feed_event event;
	uint64_t after = 0;
	intptr_t nr = 0;
	while (feed_next(arg, after, deadline_after_ms(30000), &event) == 1) {
		after = event.id;
		nr += nr_of(&event);
	}
	return (void *)nr;
}

/* Several listen while several put: everybody gets everything, and all end. */
static void test_listeners(void **context)
{
	(void)context;
	struct err err = ERR_INIT;
	pthread_t threads[3];
	struct feed *feed = feed_new(&err);
	assert_non_null(feed);
	for (size_t i = 0; i < ARRAY_LENGTH(threads); i++)
		SUPPORT_OK(thread_start(&threads[i], "listener", listen_main, feed, &err), err);
	for (int i = 0; i < 500; i++)
		put(feed, 1);
	/* Until the last one is in, an end would cut it off. */
	struct feed_event event;
	assert_int_equal(feed_next(feed, 499, deadline_after_ms(30000), &event), 1);
	json_decref(event.data);
	feed_end(feed);
	for (size_t i = 0; i < ARRAY_LENGTH(threads); i++) {
		void *nr;
		pthread_join(threads[i], &nr);
		assert_true((intptr_t)nr <= 500);
	}
	feed_free(feed);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ring),
		cmocka_unit_test(test_listeners),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
