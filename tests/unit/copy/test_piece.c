/* Gaps, zeros and digests in one buffer. */
#include "fake.h"

#include <stdlib.h>

static struct digest_key key;

static struct piece_plan plan_of(uint32_t granule, uint32_t shortest_zero)
{
	return (struct piece_plan){
		.unit_bytes = granule < 65536 ? granule : 65536,
		.granule_bytes = granule,
		.shortest_zero = shortest_zero,
		.key = &key,
	};
}

/* Each granule, against a look at every byte. */
static void check_runs(const struct piece_plan *plan, const struct piece *piece,
	const uint8_t *bytes, uint64_t length)
{
	enum run_kind kind;
	for (uint64_t at = 0, end; at < length; at = end) {
		end = piece_run(plan, piece, length, at, &kind);
		assert_true(end > at && end <= length);
		bool all_zero = true;
		for (uint64_t i = at; i < end; i++)
			all_zero &= bytes[i] == 0;
		assert_true(kind != RUN_ZERO || all_zero);
		assert_true(kind != RUN_SAME);
		for (uint64_t g = at; kind == RUN_DATA && plan->shortest_zero == 0 && g < end;
			g += plan->granule_bytes)
			assert_false(digest_is_zero(
				bytes + g, (size_t)min_u64(plan->granule_bytes, end - g)));
	}
}

static void examine(uint32_t granule, uint64_t length, unsigned seed)
{
	struct piece_plan plan = plan_of(granule, 0);
	struct copy_item item = {.length = length, .nr_spans = 1, .spans = {{0, (uint32_t)length}}};
	struct piece *piece = malloc(sizeof *piece);
	uint8_t *bytes = calloc(1, length);
	for (unsigned i = 0; i < 6; i++) /* some bytes that are not zero */
		bytes[(uint64_t)rand_r(&seed) % length] = 1;
	piece_examine(&plan, &item, bytes, piece);
	check_runs(&plan, piece, bytes, length);
	for (uint64_t c = 0; c * 65536 < length; c++) {
		uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
		size_t n = (size_t)min_u64(65536, length - c * 65536);
		bool zero = digest_is_zero(bytes + c * 65536, n);
		assert_int_equal(piece->zero_chunks >> c & 1, zero);
		if (zero)
			continue;
		digest_leaf(&key, bytes + c * 65536, n, leaf);
		assert_memory_equal(leaf, piece->leaves + c * DIGEST_LEAF_BYTES_MAX, 16);
	}
	free(bytes);
	free(piece);
}

static void test_every_granule_and_odd_lengths(void **state)
{
	static const uint64_t lengths[] = {1, 511, 4096, 65536, 65537, 262144, 1000001, 4194304};
	(void)state;
	for (uint32_t granule = 4096; granule <= 2 << 20; granule *= 2)
		for (unsigned i = 0; i < ARRAY_LENGTH(lengths); i++)
			examine(granule, lengths[i], granule + i);
}

/* Old bytes of the buffer never count, in gaps within chunks and in whole chunks. */
static void test_gaps(void **state)
{
	struct piece_plan plan = plan_of(4096, 0);
	struct copy_item item = {
		.length = 262144 + 100, .nr_spans = 2, .spans = {{70000, 70010}, {200000, 200001}}};
	struct piece *piece = malloc(sizeof *piece);
	uint8_t *bytes = malloc(item.length), *clean = calloc(1, item.length), leaf[32];
	(void)state;
	memset(bytes, 0xee, item.length);
	memset(clean + 70000, 0xee, 10);
	clean[200000] = 0xee;
	piece_examine(&plan, &item, bytes, piece);
	assert_int_equal(piece->zero_chunks, 0x1 | 0x4 | 0x10);
	digest_leaf(&key, clean + 65536, 65536, leaf);
	assert_memory_equal(leaf, piece->leaves + 32, 16);
	check_runs(&plan, piece, clean, item.length);
	assert_memory_equal(bytes + 65536, clean + 65536, 65536);
	free(clean);
	free(bytes);
	free(piece);
}

static void test_short_zeros_go_along(void **state)
{
	struct piece_plan plan = plan_of(4096, 16384);
	struct copy_item item = {.length = 65536, .nr_spans = 1, .spans = {{0, 65536}}};
	struct piece *piece = malloc(sizeof *piece);
	uint8_t *bytes = calloc(1, 65536);
	enum run_kind kind;
	(void)state;
	bytes[4096] = bytes[3 * 4096] = bytes[9 * 4096] = 1;
	piece_examine(&plan, &item, bytes, piece);
	assert_int_equal(piece_run(&plan, piece, 65536, 0, &kind), 4096);
	assert_int_equal(kind, RUN_ZERO);
	assert_int_equal(piece_run(&plan, piece, 65536, 4096, &kind), 4 * 4096);
	assert_int_equal(kind, RUN_DATA);
	assert_int_equal(piece_run(&plan, piece, 65536, 4 * 4096, &kind), 9 * 4096);
	assert_int_equal(kind, RUN_ZERO);
	free(bytes);
	free(piece);
}

/* What is the same is passed over by whole chunks and granules, whatever is beside it. */
static void same_runs(uint32_t granule, uint32_t shortest_zero, uint64_t length, unsigned seed)
{
	struct piece_plan plan = plan_of(granule, shortest_zero);
	struct copy_item item = {.length = length, .nr_spans = 1, .spans = {{0, (uint32_t)length}}};
	struct piece *piece = malloc(sizeof *piece);
	uint8_t *bytes = calloc(1, length);
	uint64_t same = (uint64_t)rand_r(&seed) << 33 ^ (uint64_t)rand_r(&seed) << 11 ^
			(uint64_t)rand_r(&seed);
	uint64_t unit = max_u64(granule, 65536);
	enum run_kind kind;
	same |= seed & 1 ? 0xff00ff : UINT64_C(0xffffffff) << 28;
	for (unsigned i = 0; i < 20; i++)
		bytes[(uint64_t)rand_r(&seed) % length] = 1;
	piece_examine(&plan, &item, bytes, piece);
	piece_set_same(&plan, piece, length, same);
	for (uint64_t at = 0, end; at < length; at = end) {
		end = piece_run(&plan, piece, length, at, &kind);
		assert_true(end > at && end <= length);
		for (uint64_t u = round_down(at, unit); u < end; u += unit) {
			bool all = true;
			for (uint64_t c = u; c < min_u64(u + unit, length); c += 65536)
				all &= same >> c / 65536 & 1;
			assert_int_equal(all, kind == RUN_SAME);
		}
		if (kind == RUN_ZERO)
			assert_true(digest_is_zero(bytes + at, (size_t)(end - at)));
	}
	free(bytes);
	free(piece);
}

static void test_same(void **state)
{
	static const uint64_t lengths[] = {1, 65536, 65537, 1000001, 4194303, 4194304};
	(void)state;
	for (uint32_t granule = 4096; granule <= 2 << 20; granule *= 2)
		for (unsigned i = 0; i < 4 * ARRAY_LENGTH(lengths); i++)
			same_runs(granule, i & 1 ? 16384 : 0, lengths[i / 4], granule + i);
}

int main(void)
{
	static const uint8_t seed[DIGEST_SEED_BYTES] = {7};
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_granule_and_odd_lengths),
		cmocka_unit_test(test_gaps),
		cmocka_unit_test(test_short_zeros_go_along),
		cmocka_unit_test(test_same),
	};
	digest_key_init(&key, DIGEST_XXH3_128, seed);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
