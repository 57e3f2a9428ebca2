/* How the map is cut into items. */
#include "fake.h"

#include <stdlib.h>

static struct work *new_work(uint64_t size, uint64_t unit, uint64_t piece, uint64_t rate)
{
	struct work *work = malloc(sizeof *work);
	work_init(work, size, unit, piece, rate, true);
	for (unsigned i = 0; i < COPY_LANES_MAX; i++)
		work->wake_fds[i] = -1;
	return work;
}

static void free_work(struct work *work)
{
	work_destroy(work);
	free(work);
}

static bool all_unchanged(const struct fake *f, uint64_t start, uint64_t end)
{
	for (uint64_t at = start; at < end; at += 512)
		if (!f->unchanged[at / 512])
			return false;
	return true;
}

/* Whole units that are unchanged are passed over, and nothing else is. */
static void check_passed(const struct fake *f, const struct copy_item *item, uint64_t unit)
{
	uint64_t end = item->offset + item->length;
	for (uint64_t at = item->offset; at < end; at += unit)
		assert_int_equal(
			item->unchanged, all_unchanged(f, at, min_u64(at + unit, f->size)));
}

/* Walks all items; each byte of data is read, items are in order, without gaps,
 * on unit borders, within a piece. */
static unsigned walk(struct fake *f, uint64_t unit, uint64_t piece)
{
	struct work *work = new_work(f->size, unit, piece, 0);
	struct block_extent *extents = calloc(WORK_ASK_EXTENTS, sizeof *extents);
	struct copy_item item;
	struct work_question question;
	struct deadline later;
	uint64_t at = 0;
	unsigned nr = 0;
	for (enum work_answer answer = WORK_WAIT; answer != WORK_END;) {
		answer = work_next(work, 0, &item, &question, &later);
		if (question.length > 0) {
			size_t got;
			block_extents(&f->block, question.offset, question.length, extents,
				WORK_ASK_EXTENTS, &got, NULL);
			work_mapped(work, extents, got);
		}
		if (answer != WORK_ITEM)
			continue;
		nr++;
		assert_int_equal(item.offset, at);
		at += item.length;
		assert_true(at == f->size || at % unit == 0);
		assert_true(item.zero || item.unchanged || (at - 1) / piece == item.offset / piece);
		check_passed(f, &item, unit);
		if (item.unchanged)
			continue;
		unsigned span = 0;
		for (uint64_t i = 0; i < item.length; i++) {
			while (span < item.nr_spans && item.spans[span].end <= i)
				span++;
			bool read = span < item.nr_spans && item.spans[span].start <= i;
			if (!read)
				assert_true(f->holes[(item.offset + i) / 512]);
		}
	}
	assert_int_equal(at, f->size);
	free(extents);
	free_work(work);
	return nr;
}

static void test_fragmented(void **state)
{
	static const size_t sizes[] = {1, 511, 65537, 3000001, 16 << 20};
	(void)state;
	for (unsigned i = 0; i < ARRAY_LENGTH(sizes); i++) {
		struct fake *f = fake_new(sizes[i], true, false);
		fake_fill(f, i);
		for (unsigned most = 0; most < 4; most++) {
			f->most_extents = most;
			walk(f, 65536, 65536);
			walk(f, 65536, 524288);
			walk(f, 2 << 20, 2 << 20);
		}
		fake_free(f);
	}
}

/* Changed and unchanged, zeros and data, in stretches of many lengths. */
static void fill_changes(struct fake *f, unsigned seed)
{
	static const size_t sectors[] = {1, 7, 8, 127, 128, 300, 4096};
	size_t nr = f->size / 512 + 1;
	for (size_t at = 0, n; at < nr; at += n) {
		n = sectors[(unsigned)rand_r(&seed) % ARRAY_LENGTH(sectors)];
		n = min_size(n, nr - at);
		memset(f->unchanged + at, rand_r(&seed) % 4 != 0, n);
	}
}

static void test_changes(void **state)
{
	static const size_t sizes[] = {1, 65537, 3000001, 16 << 20};
	(void)state;
	for (unsigned i = 0; i < 4 * ARRAY_LENGTH(sizes); i++) {
		struct fake *f = fake_new(sizes[i / 4], true, false);
		fake_fill(f, i);
		fill_changes(f, i);
		for (unsigned most = 0; most < 4; most++) {
			f->most_extents = most;
			walk(f, 65536, 65536);
			walk(f, 65536, 524288);
			walk(f, 2 << 20, 2 << 20);
		}
		fake_free(f);
	}
}

/* Changes without end fill the ring once, not more: unchanged stretches with a
 * piece on either side, in answers as large as they get. */
static void test_ring_with_changes(void **state)
{
	struct work *work = new_work(64 * GIB, 65536, 65536, 0);
	struct block_extent *extents = calloc(WORK_ASK_EXTENTS, sizeof *extents);
	struct work_question question;
	struct copy_item item;
	struct deadline later;
	unsigned most = 0, nr_passed = 0;
	(void)state;
	for (size_t i = 0; i < WORK_ASK_EXTENTS; i++)
		extents[i] = i % 2 ? (struct block_extent){4096, 0}
				   : (struct block_extent){
					     5 * 65536 - 4096, BLOCK_ZERO | BLOCK_UNCHANGED};
	/* Within units, so that each unchanged extent has a head and a tail. */
	extents[0].length -= 8192;
	extents[WORK_ASK_EXTENTS - 2].length += 8192;
	for (unsigned i = 0; i < 100000; i++) {
		enum work_answer answer = work_next(work, 0, &item, &question, &later);
		assert_true(answer == WORK_ITEM || question.length > 0);
		if (question.length > 0)
			work_mapped(work, extents, WORK_ASK_EXTENTS);
		work->ask_bytes = TIB; /* as after quick answers: it asks when there is room */
		if (work->nr > most)
			most = work->nr;
		nr_passed += answer == WORK_ITEM && item.unchanged;
	}
	assert_true(most > 2 * WORK_ASK_EXTENTS && most <= WORK_KEPT_EXTENTS);
	assert_true(nr_passed > 10000);
	free(extents);
	free_work(work);
}

/* Without being asked to, nothing is passed over. */
static void test_unchanged_is_not_heeded(void **state)
{
	struct work *work = malloc(sizeof *work);
	struct block_extent unchanged = {.length = 65536, .flags = BLOCK_UNCHANGED};
	struct work_question question;
	struct copy_item item;
	struct deadline later;
	(void)state;
	work_init(work, 65536, 65536, 65536, 0, false);
	work_next(work, 0, &item, &question, &later);
	work_mapped(work, &unchanged, 1);
	assert_int_equal(work_next(work, 0, &item, &question, &later), WORK_ITEM);
	assert_false(item.unchanged);
	assert_int_equal(item.nr_spans, 1);
	assert_int_equal(item.spans[0].end, 65536);
	free_work(work);
}

static void test_empty_disk_is_few_items(void **state)
{
	struct fake *f = fake_new(16 << 20, true, false);
	(void)state;
	memset(f->holes, 1, (16 << 20) / 512);
	assert_int_equal(walk(f, 65536, 262144), 1);
	fake_free(f);
}

/* Alternating sectors: neither the ring nor the spans overflow. */
static void test_crumbs(void **state)
{
	struct fake *f = fake_new(8 << 20, true, false);
	(void)state;
	for (size_t i = 0; i < (8 << 20) / 512; i++)
		f->holes[i] = i % 2;
	walk(f, 2 << 20, 4 << 20);
	fake_free(f);
}

/* While one lane asks, others take what is known, and wait when it is used up. */
static void test_others_go_on(void **state)
{
	struct work *work = new_work(10 * GIB, 65536, 262144, 0);
	struct work_question question;
	struct copy_item item;
	struct deadline later;
	struct block_extent data = {.length = MIB};
	(void)state;
	assert_int_equal(work_next(work, 0, &item, &question, &later), WORK_WAIT);
	assert_int_equal(question.offset, 0);
	assert_true(question.length > 0 && question.length < GIB); /* no wait for a whole map */
	work_mapped(work, &data, 1);
	assert_int_equal(work_next(work, 0, &item, &question, &later), WORK_ITEM);
	assert_int_equal(question.offset, MIB); /* the next part, asked for ahead */
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(work_next(work, 1, &item, &question, &later), WORK_ITEM);
		assert_int_equal(question.length, 0);
	}
	assert_int_equal(work_next(work, 1, &item, &question, &later), WORK_WAIT);
	assert_int_equal(work->waiting, 2);
	free_work(work);
}

/* A hole that is not said to read as zeros is read. */
static void test_hole_without_zero(void **state)
{
	struct work *work = new_work(65536, 65536, 262144, 0);
	struct work_question question;
	struct copy_item item;
	struct deadline later;
	struct block_extent hole = {.length = 65536, .flags = BLOCK_HOLE};
	(void)state;
	work_next(work, 0, &item, &question, &later);
	work_mapped(work, &hole, 1);
	assert_int_equal(work_next(work, 0, &item, &question, &later), WORK_ITEM);
	assert_false(item.zero);
	assert_int_equal(item.spans[0].end, 65536);
	free_work(work);
}

static void test_rate(void **state)
{
	struct work *work = new_work(GIB, 65536, 262144, MIB);
	struct work_question question;
	struct copy_item item;
	struct deadline later = {0};
	struct block_extent data = {.length = 100 * MIB};
	unsigned nr = 0;
	(void)state;
	work_next(work, 0, &item, &question, &later);
	work_mapped(work, &data, 1);
	while (work_next(work, 0, &item, &question, &later) == WORK_ITEM)
		nr++;
	assert_true(nr >= 1 && nr <= 2);
	int64_t ahead_ns = later.at_ns - clock_now_ns();
	assert_true(ahead_ns > 0 && ahead_ns < 500000000);
	free_work(work);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_fragmented),
		cmocka_unit_test(test_changes),
		cmocka_unit_test(test_ring_with_changes),
		cmocka_unit_test(test_unchanged_is_not_heeded),
		cmocka_unit_test(test_empty_disk_is_few_items),
		cmocka_unit_test(test_crumbs),
		cmocka_unit_test(test_others_go_on),
		cmocka_unit_test(test_hole_without_zero),
		cmocka_unit_test(test_rate),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
