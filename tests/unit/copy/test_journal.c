/* What is written again after a loss. */
#include "fake.h"

#include <stdlib.h>

static struct copy_item item_at(uint64_t offset, uint64_t length, bool zero)
{
	return (struct copy_item){.offset = offset, .length = length, .zero = zero};
}

static void test_flushed_is_safe(void **state)
{
	struct journal *j = calloc(1, sizeof *j);
	struct copy_item a = item_at(0, 65536, false), b = item_at(65536, 65536, true), got;
	(void)state;
	journal_add(j, &a, false);
	journal_flush_begin(j);
	journal_add(j, &b, false); /* acknowledged while the flush is under way */
	journal_flush_end(j);
	journal_lose(j);
	assert_true(journal_take(j, &got));
	assert_int_equal(got.offset, b.offset);
	assert_true(got.zero && got.again);
	assert_int_equal(got.nr_spans, 0);
	assert_false(journal_take(j, &got));
	free(j);
}

static void test_flush_that_was_cut(void **state)
{
	struct journal *j = calloc(1, sizeof *j);
	struct copy_item a = item_at(0, 65536, false), got;
	(void)state;
	journal_add(j, &a, false);
	journal_flush_begin(j);
	journal_lose(j);
	assert_int_equal(j->nr_flushing, 0);
	assert_true(journal_take(j, &got));
	assert_int_equal(got.nr_spans, 1);
	assert_int_equal(got.spans[0].end, 65536);
	free(j);
}

static void test_half_before_half_after(void **state)
{
	struct journal *j = calloc(1, sizeof *j);
	struct copy_item a = item_at(131072, 65536, false), got;
	(void)state;
	journal_add(j, &a, true);
	assert_int_equal(j->nr, 0);
	assert_true(journal_take(j, &got));
	assert_int_equal(got.offset, a.offset);
	free(j);
}

static void test_flush_is_due(void **state)
{
	struct journal *j = calloc(1, sizeof *j);
	struct copy_item zeros = item_at(0, GIB, true), data = item_at(0, 4 * MIB, false);
	(void)state;
	journal_add(j, &zeros, false);
	assert_false(journal_wants_flush(j));
	for (unsigned i = 0; i < JOURNAL_FLUSH_BYTES / (4 * MIB); i++)
		journal_add(j, &data, false);
	assert_true(journal_wants_flush(j));
	journal_flush_begin(j);
	assert_false(journal_wants_flush(j));
	journal_flush_end(j);
	while (journal_has_room(j))
		journal_add(j, &zeros, false);
	assert_true(journal_wants_flush(j));
	free(j);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_flushed_is_safe),
		cmocka_unit_test(test_flush_that_was_cut),
		cmocka_unit_test(test_half_before_half_after),
		cmocka_unit_test(test_flush_is_due),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
