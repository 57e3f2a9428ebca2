/* Leaves and marks: what is known, what is in doubt, and the map that follows from it. */
#include "scratch.h"

#include "replica_internal.h"

#define NR_CHUNKS 10000u
#define SIZE (NR_CHUNKS * (uint64_t)DIGEST_CHUNK_BYTES - 100)

static struct leaves open_leaves(bool fresh)
{
	struct leaves leaves = {.fd = -1, .marks_fd = -1};
	assert_int_equal(leaves_open(&leaves, AT_FDCWD, "k", SIZE, fresh, NULL), 0);
	assert_int_equal(leaves_open_marks(&leaves, AT_FDCWD, "k", 1, fresh, NULL), 0);
	assert_int_equal(leaves.nr_chunks, NR_CHUNKS);
	return leaves;
}

static void tell(struct leaves *leaves, uint64_t chunk, uint8_t value, enum leaf_mark mark)
{
	uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
	memset(leaf, value, sizeof leaf);
	assert_int_equal(leaves_tell(leaves, chunk, 1, leaf, 0, mark, NULL), 0);
}

static bool is_same(struct leaves *leaves, uint64_t chunk, uint8_t value)
{
	uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
	uint64_t same;
	memset(leaf, value, sizeof leaf);
	assert_int_equal(leaves_same(leaves, chunk, 1, leaf, value == 0, &same, NULL), 0);
	return same;
}

static void test_what_is_known(void **state)
{
	(void)state;
	struct leaves leaves = open_leaves(true);
	leaves.unknown = true;
	assert_false(is_same(&leaves, 5, 0));
	tell(&leaves, 5, 7, MARK_TOLD);
	assert_false(is_same(&leaves, 5, 7)); /* the target may have lost it */
	tell(&leaves, 5, 7, MARK_LOOKED);
	assert_true(is_same(&leaves, 5, 7));
	assert_false(is_same(&leaves, 5, 8));
	assert_false(is_same(&leaves, 5, 0));
	leaves.unknown = false;
	assert_true(is_same(&leaves, 6, 0));
	leaves_close(&leaves);
	leaves = open_leaves(false);
	assert_true(is_same(&leaves, 5, 7));
	leaves_close(&leaves);
}

static void test_zeros(void **state)
{
	(void)state;
	struct leaves leaves = open_leaves(true);
	uint64_t nr, found;
	bool same;
	tell(&leaves, 5000, 3, MARK_LOOKED);
	assert_int_equal(leaves_same_zeros(&leaves, 0, NR_CHUNKS, &nr, &same, NULL), 0);
	assert_true(same);
	assert_int_equal(nr, 4096);
	assert_int_equal(leaves_same_zeros(&leaves, 4096, NR_CHUNKS - 4096, &nr, &same, NULL), 0);
	assert_true(same);
	assert_int_equal(nr, 5000 - 4096);
	assert_int_equal(leaves_same_zeros(&leaves, 5000, 10, &nr, &same, NULL), 0);
	assert_false(same);
	assert_int_equal(nr, 1);
	struct err err = ERR_INIT;
	assert_int_equal(leaves_compare_zeros(&leaves, 4999, 2, &err), -1);
	assert_int_equal(err.code, ERR_CORRUPT);
	assert_non_null(strstr(err.text, "327680000"));
	assert_int_equal(leaves_tell_zeros(&leaves, 4000, 3000, MARK_TOLD, NULL), 0);
	assert_int_equal(leaves_compare_zeros(&leaves, 0, NR_CHUNKS, NULL), 0);
	assert_int_equal(leaves_next_data(&leaves, 0, NR_CHUNKS, &found, NULL), 0);
	assert_int_equal(found, NR_CHUNKS);
	assert_int_equal(leaves_next_told(&leaves, 0, NR_CHUNKS, &found, NULL), 0);
	assert_int_equal(found, 4000);
	assert_int_equal(leaves_next_told(&leaves, 6999, NR_CHUNKS, &found, NULL), 0);
	assert_int_equal(found, 6999);
	assert_int_equal(leaves_next_told(&leaves, 7000, NR_CHUNKS, &found, NULL), 0);
	assert_int_equal(found, NR_CHUNKS);
	assert_int_equal(leaves_tell_zeros(&leaves, NR_CHUNKS - 1, 2, MARK_TOLD, NULL), -1);
	leaves_close(&leaves);
}

static void test_root(void **state)
{
	(void)state;
	struct leaves leaves = open_leaves(true);
	struct digest_tree tree;
	uint8_t expected[DIGEST_ROOT_BYTES], root[DIGEST_ROOT_BYTES], leaf[DIGEST_LEAF_BYTES_MAX];
	digest_tree_init(&tree, DIGEST_XXH3_128, SIZE);
	for (uint64_t i = 0; i < NR_CHUNKS; i++) {
		if (i % 7 != 0 && (i < 2000 || i > 6000)) {
			memset(leaf, (int)(i % 250 + 1), sizeof leaf);
			digest_tree_leaf(&tree, leaf);
			tell(&leaves, i, leaf[0], MARK_TOLD);
		} else {
			digest_tree_zeros(&tree, 1);
		}
	}
	digest_tree_root(&tree, expected);
	assert_int_equal(leaves_root(&leaves, NULL, root, NULL), 0);
	assert_memory_equal(root, expected, sizeof root);
	leaves_close(&leaves);
}

/* The extents that a map makes of one UNCHANGED or plain extent over chunks 10 to 20. */
static size_t map_of(struct leaves *leaves, bool only, uint32_t flags, struct block_extent out[8])
{
	struct leaves_map map = {leaves, only};
	struct block_extent from = {10 * (uint64_t)DIGEST_CHUNK_BYTES - 1000, flags};
	size_t nr;
	assert_int_equal(leaves_remap(&map, 10 * (uint64_t)DIGEST_CHUNK_BYTES + 1000, &from, 1, out,
				 8, &nr, NULL),
		0);
	uint64_t sum = 0;
	for (size_t i = 0; i < nr; i++)
		sum += out[i].length;
	assert_int_equal(sum, from.length);
	return nr;
}

static void test_map(void **state)
{
	(void)state;
	struct leaves leaves = open_leaves(true);
	struct block_extent out[8];
	assert_int_equal(map_of(&leaves, false, BLOCK_UNCHANGED, out), 1);
	tell(&leaves, 12, 1, MARK_TOLD);
	tell(&leaves, 13, 1, MARK_LOOKED);
	assert_int_equal(map_of(&leaves, false, BLOCK_UNCHANGED, out), 3);
	assert_int_equal(out[0].length, 2 * DIGEST_CHUNK_BYTES - 1000);
	assert_int_equal(out[0].flags, BLOCK_UNCHANGED);
	assert_int_equal(out[1].length, 2 * DIGEST_CHUNK_BYTES);
	assert_int_equal(out[1].flags, 0);
	assert_int_equal(map_of(&leaves, false, 0, out), 1);
	assert_int_equal(map_of(&leaves, true, 0, out), 3);
	assert_int_equal(out[2].flags, BLOCK_UNCHANGED);
	assert_int_equal(map_of(&leaves, true, BLOCK_ZERO, out), 3);
	assert_int_equal(out[1].flags, BLOCK_ZERO);
	leaves_close(&leaves);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(
			test_what_is_known, support_setup, support_teardown),
		SUPPORT_TEST(test_zeros),
		SUPPORT_TEST(test_root),
		SUPPORT_TEST(test_map),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
