/*
 * Copies of what changed: a source that says what is unchanged, and a target that
 * has its parent's bytes already.
 */
#include "fake.h"

#include <stdlib.h>

#define SIZE ((size_t)(9 << 20) + 12345)

static struct digest_key key;

struct scene {
	struct fake *source, *target;
	uint8_t *parent; /* what the target holds before the copy */
	struct told *told;
	struct copy_chunk_sink sink;
	struct copy_baseline baseline;
	struct copy_progress progress;
	struct copy_options options;
	atomic_uint nr_asked; /* of the baseline */
	bool refuse;
	struct err err;
};

static size_t chunk_bytes(const struct scene *s, uint64_t chunk)
{
	return min_size(DIGEST_CHUNK_BYTES, s->source->size - chunk * DIGEST_CHUNK_BYTES);
}

static bool parent_is_zero(const struct scene *s, uint64_t chunk)
{
	return digest_is_zero(s->parent + chunk * DIGEST_CHUNK_BYTES, chunk_bytes(s, chunk));
}

static int ask_chunks(void *context, uint64_t first, unsigned nr, const uint8_t *leaves,
	uint64_t zero_mask, uint64_t *same, struct err *err)
{
	struct scene *s = context;
	s->nr_asked++;
	if (s->refuse)
		return err_set(err, ERR_IO, "the parent cannot be read");
	assert_true(nr >= 1 && nr <= 64 && first + nr <= s->told->nr_chunks);
	*same = 0;
	for (unsigned i = 0; i < nr; i++) {
		uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
		bool zero = parent_is_zero(s, first + i), equal = zero;
		if (!zero) {
			digest_leaf(&key, s->parent + (first + i) * DIGEST_CHUNK_BYTES,
				chunk_bytes(s, first + i), leaf);
			equal = memcmp(leaf, leaves + i * DIGEST_LEAF_BYTES_MAX, 16) == 0;
		}
		if ((zero_mask >> i & 1) == zero && equal)
			*same |= (uint64_t)1 << i;
	}
	return 0;
}

static int ask_zeros(
	void *context, uint64_t first, uint64_t nr, uint64_t *nr_alike, bool *same, struct err *err)
{
	struct scene *s = context;
	s->nr_asked++;
	if (s->refuse)
		return err_set(err, ERR_IO, "the parent cannot be read");
	assert_true(nr >= 1 && first + nr <= s->told->nr_chunks);
	*same = parent_is_zero(s, first);
	for (*nr_alike = 1; *nr_alike < nr; ++*nr_alike)
		if (parent_is_zero(s, first + *nr_alike) != *same)
			break;
	return 0;
}

static void begin(struct scene *s, size_t size, bool source_queues, bool target_queues)
{
	memset(s, 0, sizeof *s);
	s->source = fake_new(size, true, source_queues);
	s->target = fake_new(size, false, target_queues);
	s->source->block.info.has_changes = true;
	fake_fill(s->source, (unsigned)size);
	s->told = told_new(size);
	s->sink = told_sink(s->told);
	s->baseline = (struct copy_baseline){s, ask_chunks, ask_zeros};
	s->options.digest_key = &key;
	s->options.sink = &s->sink;
	s->options.baseline = &s->baseline;
	s->options.progress = &s->progress;
	s->parent = malloc(size);
}

/* The parent differs from the source in stretches, each of which was written (also
 * with the same bytes) or became zeros; the source says what is unchanged. */
static void make_parent(struct scene *s, unsigned seed)
{
	static const size_t lengths[] = {512, 4096, 65536, 65536, 131072, 300032};
	memcpy(s->parent, s->source->bytes, s->source->size);
	memset(s->source->unchanged, 1, s->source->size / 512 + 1);
	for (unsigned i = 0; i < 14; i++) {
		size_t n = lengths[(unsigned)rand_r(&seed) % ARRAY_LENGTH(lengths)];
		size_t at = (unsigned)rand_r(&seed) % s->source->size / 512 * 512;
		n = min_size(n, s->source->size - at);
		if (i % 3 != 0)
			memset(s->parent + at, i % 3 == 1 ? 0 : (int)i + 0x80, n);
		for (size_t sector = at / 512; sector * 512 < at + n; sector++)
			s->source->unchanged[sector] = 0;
	}
	memcpy(s->target->bytes, s->parent, s->source->size);
	memcpy(s->target->durable, s->parent, s->source->size);
}

static void end(struct scene *s)
{
	assert_int_equal(s->source->nr_lanes, 0);
	assert_int_equal(s->target->nr_lanes, 0);
	fake_free(s->source);
	fake_free(s->target);
	told_free(s->told);
	free(s->parent);
}

static int go(struct scene *s)
{
	return copy_run(&s->source->block, &s->target->block, &s->options, &s->err);
}

static bool differs(const struct scene *s, uint64_t chunk)
{
	size_t at = chunk * DIGEST_CHUNK_BYTES;
	return memcmp(s->parent + at, s->source->bytes + at, chunk_bytes(s, chunk)) != 0;
}

/* The source's bytes are there; told is what differs from the parent, and no more. */
static void check(struct scene *s, bool again)
{
	assert_memory_equal(s->source->bytes, s->target->bytes, s->source->size);
	assert_memory_equal(s->source->bytes, s->target->durable, s->source->size);
	for (uint64_t c = 0; c < s->told->nr_chunks; c++) {
		if (again ? s->told->times[c] == 0 : s->told->times[c] != differs(s, c))
			assert_int_equal(differs(s, c), s->told->times[c]);
		if (differs(s, c))
			told_check(s->told, &key, s->source->bytes, s->source->size, c);
		else
			assert_int_equal(s->told->times[c], 0);
	}
	assert_int_equal(s->progress.logical, s->source->size);
	assert_int_equal(s->progress.read, s->source->bytes_read);
	assert_int_equal(s->progress.sent, s->target->bytes_written);
}

/* Bytes of the units of that size in which some chunk differs. */
static uint64_t bytes_differing(const struct scene *s, uint64_t unit)
{
	uint64_t bytes = 0;
	for (uint64_t at = 0; at < s->source->size; at += unit) {
		uint64_t stop = min_u64(at + unit, s->source->size);
		bool any = false;
		for (uint64_t c = at / 65536; c * 65536 < stop; c++)
			any |= differs(s, c);
		bytes += any ? stop - at : 0;
	}
	return bytes;
}

static void test_only_what_differs(void **state)
{
	static const size_t sizes[] = {1, 65536, 65537, SIZE};
	static const uint32_t granules[] = {4096, 65536, 262144, 2 << 20};
	(void)state;
	for (unsigned i = 0; i < 64; i++) {
		struct scene s;
		uint32_t granule = granules[i / 4 % 4];
		begin(&s, sizes[i / 16 % 4], i & 1, i & 2);
		make_parent(&s, i);
		s.options.nr_lanes = 1 + i % 3;
		s.options.changed_only = i & 8;
		s.options.piece_bytes = 65536u << (i % 4);
		s.source->most_extents = i % 5;
		s.target->block.info.granule_bytes = granule;
		assert_int_equal(go(&s), 0);
		check(&s, false);
		assert_true(s.target->bytes_written + s.target->bytes_zeroed <=
			    bytes_differing(&s, max_u64(granule, 65536)));
		end(&s);
	}
}

/* Only by the source's word: all of what it calls changed is written and told. */
static void test_changed_without_baseline(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 16; i++) {
		struct scene s;
		begin(&s, SIZE, i & 1, i & 2);
		make_parent(&s, i);
		s.options.baseline = NULL;
		s.options.changed_only = true;
		s.options.piece_bytes = 65536u << (i % 4);
		assert_int_equal(go(&s), 0);
		assert_memory_equal(s.source->bytes, s.target->bytes, SIZE);
		for (uint64_t c = 0; c < s.told->nr_chunks; c++) {
			size_t at = c * DIGEST_CHUNK_BYTES, n = chunk_bytes(&s, c);
			bool unchanged =
				!memchr(s.source->unchanged + at / 512, 0, (n + 511) / 512);
			assert_int_equal(s.told->times[c], !unchanged);
			if (!unchanged)
				told_check(s.told, &key, s.source->bytes, SIZE, c);
		}
		assert_int_equal(s.progress.logical, SIZE);
		end(&s);
	}
}

/* The flag counts only where it was asked for: a full never loses anything by it. */
static void test_unchanged_is_believed_only_when_asked(void **state)
{
	(void)state;
	for (unsigned changed_only = 0; changed_only < 2; changed_only++) {
		struct scene s;
		begin(&s, SIZE, true, true);
		make_parent(&s, 5);
		memset(s.source->unchanged, 1, SIZE / 512 + 1); /* a lie */
		s.options.changed_only = changed_only;
		assert_int_equal(go(&s), 0);
		if (changed_only)
			assert_memory_equal(s.parent, s.target->bytes, SIZE);
		else
			check(&s, false);
		assert_int_equal(s.source->bytes_read == 0, changed_only);
		end(&s);
	}
}

/* 5 % in random blocks of 64 KiB: what is read and sent is what changed. */
static void test_random_blocks(void **state)
{
	(void)state;
	for (unsigned queues = 0; queues < 2; queues++) {
		struct scene s;
		unsigned seed = 1;
		uint64_t changed = 0;
		begin(&s, 64 << 20, queues, queues);
		memset(s.source->bytes, 1, 64 << 20);
		memset(s.source->holes, 0, (64 << 20) / 512);
		memcpy(s.parent, s.source->bytes, 64 << 20);
		memset(s.source->unchanged, 1, (64 << 20) / 512);
		for (unsigned i = 0; i < 51; i++) {
			size_t at = (size_t)((unsigned)rand_r(&seed) % 1024) * 65536;
			memset(s.parent + at, 2, 65536);
			memset(s.source->unchanged + at / 512, 0, 128);
		}
		memcpy(s.target->bytes, s.parent, 64 << 20);
		memcpy(s.target->durable, s.parent, 64 << 20);
		s.options.changed_only = true;
		assert_int_equal(go(&s), 0);
		check(&s, false);
		changed = bytes_differing(&s, 65536);
		assert_int_equal(s.progress.read, changed);
		assert_int_equal(s.progress.sent, changed);
		end(&s);
	}
}

/* Zeros: those that the parent has too are skipped and not told; others are written,
 * whole granules at a time, unless the target starts as zeros. */
static void test_zeros(void **state)
{
	(void)state;
	for (unsigned starts_zero = 0; starts_zero < 2; starts_zero++) {
		struct scene s;
		begin(&s, 16 << 20, false, starts_zero);
		memset(s.source->bytes, 0, 16 << 20);
		memset(s.source->holes, 1, (16 << 20) / 512);
		memset(s.parent, 0, 16 << 20);
		s.parent[5 << 20] = s.parent[(5 << 20) + 70000] = s.parent[(16 << 20) - 1] = 1;
		memcpy(s.target->bytes, s.parent, 16 << 20);
		s.target->block.info.granule_bytes = 1 << 20;
		s.target->block.info.starts_zero = starts_zero;
		assert_int_equal(go(&s), 0);
		assert_int_equal(s.progress.zeros_skipped, 16 << 20);
		assert_int_equal(s.progress.read, 0);
		assert_int_equal(s.target->bytes_zeroed, starts_zero ? 0 : 2 << 20);
		if (!starts_zero)
			check(&s, false);
		end(&s);
	}
}

/* A server that dies takes what was told and not flushed along: it is written again,
 * and told again, and what is the same as the parent stays so. */
static void test_losses(void **state)
{
	(void)state;
	for (unsigned i = 1; i <= 16; i++) {
		struct scene s;
		begin(&s, SIZE, i & 1, true);
		make_parent(&s, i);
		memset(s.parent, 3, SIZE / 2);
		memset(s.source->unchanged, 0, SIZE / 2 / 512 + 1);
		memcpy(s.target->bytes, s.parent, SIZE);
		memcpy(s.target->durable, s.parent, SIZE);
		s.target->block.info.can_vanish = true;
		s.target->crash_at_byte = i * 50000;
		s.target->seed = i;
		s.options.changed_only = i & 2;
		s.options.nr_lanes = 1 + i % 3;
		s.options.piece_bytes = 65536;
		assert_int_equal(go(&s), 0);
		assert_int_equal(s.target->nr_crashes, 1);
		check(&s, true);
		end(&s);
	}
}

static void test_scan(void **state)
{
	struct scene s;
	(void)state;
	begin(&s, SIZE, true, false);
	make_parent(&s, 9);
	assert_int_equal(copy_scan(&s.source->block, &s.options, &s.err), 0);
	for (uint64_t c = 0; c < s.told->nr_chunks; c++)
		assert_int_equal(s.told->times[c], differs(&s, c));
	assert_int_equal(s.target->bytes_written, 0);
	end(&s);
}

static void test_baseline_fails(void **state)
{
	(void)state;
	for (unsigned holes = 0; holes < 2; holes++) {
		struct scene s;
		begin(&s, SIZE, true, true);
		make_parent(&s, 2);
		memset(s.source->holes, (int)holes, SIZE / 512 + 1);
		s.refuse = true;
		assert_int_equal(go(&s), -1);
		assert_int_equal(s.err.code, ERR_IO);
		assert_non_null(strstr(s.err.text, "the parent cannot be read"));
		end(&s);
	}
}

int main(void)
{
	static const uint8_t seed[DIGEST_SEED_BYTES] = {3};
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_only_what_differs),
		cmocka_unit_test(test_changed_without_baseline),
		cmocka_unit_test(test_unchanged_is_believed_only_when_asked),
		cmocka_unit_test(test_random_blocks),
		cmocka_unit_test(test_zeros),
		cmocka_unit_test(test_losses),
		cmocka_unit_test(test_scan),
		cmocka_unit_test(test_baseline_fails),
	};
	digest_key_init(&key, DIGEST_XXH3_128, seed);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
