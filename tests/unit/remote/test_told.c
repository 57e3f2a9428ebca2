/* The record of what was told, held against a model that keeps everything in memory: random
 * tellings in any order, from several threads, then both digests. */
#include "test_support.h"

#include "told.h"

#include <stdlib.h>
#include <string.h>

#define SEGMENT 4096u

enum { NOTHING, ZERO, DATA };

struct model {
	uint64_t nr_chunks, size_bytes;
	uint8_t *states;
	uint8_t *leaves; /* 32 apart */
};

static void model_init(struct model *model, uint64_t size_bytes)
{
	model->size_bytes = size_bytes;
	model->nr_chunks = div_round_up(size_bytes, DIGEST_CHUNK_BYTES);
	model->states = calloc(model->nr_chunks, 1);
	model->leaves = calloc(model->nr_chunks, DIGEST_LEAF_BYTES_MAX);
	assert_true(model->states && model->leaves);
}

static void model_free(struct model *model)
{
	free(model->states);
	free(model->leaves);
}

static void expect_digests(
	struct told *told, const struct model *model, enum digest_algorithm algorithm)
{
	struct digest_tree tree;
	struct digest_sent sent;
	uint8_t expect[DIGEST_ROOT_BYTES], got[DIGEST_ROOT_BYTES];
	digest_tree_init(&tree, algorithm, model->size_bytes);
	assert_int_equal(digest_sent_init(&sent, algorithm, NULL), 0);
	for (uint64_t i = 0; i < model->nr_chunks; i++) {
		const uint8_t *leaf = model->leaves + i * DIGEST_LEAF_BYTES_MAX;
		if (model->states[i] == DATA) {
			digest_tree_leaf(&tree, leaf);
			digest_sent_leaf(&sent, i, leaf);
		} else {
			digest_tree_zeros(&tree, 1);
			if (model->states[i] == ZERO)
				digest_sent_zeros(&sent, i, 1);
		}
	}
	digest_tree_root(&tree, expect);
	assert_int_equal(told_root(told, NULL, got, NULL), 0);
	assert_memory_equal(got, expect, sizeof got);
	digest_sent_end(&sent, expect);
	assert_int_equal(told_sent(told, NULL, got, NULL), 0);
	assert_memory_equal(got, expect, sizeof got);
}

static void tell_chunks(
	struct told *told, struct model *model, uint64_t first, unsigned nr, unsigned *seed)
{
	uint8_t leaves[64 * DIGEST_LEAF_BYTES_MAX] = {0};
	size_t leaf_bytes = 16;
	uint64_t zeros = 0;
	for (unsigned i = 0; i < nr; i++) {
		bool zero = rand_r(seed) % 3 == 0;
		uint8_t *leaf = leaves + (size_t)i * DIGEST_LEAF_BYTES_MAX;
		for (size_t k = 0; !zero && k < leaf_bytes; k++)
			leaf[k] = (uint8_t)rand_r(seed);
		zeros |= (uint64_t)zero << i;
		model->states[first + i] = zero ? ZERO : DATA;
		memcpy(model->leaves + (first + i) * DIGEST_LEAF_BYTES_MAX, leaf,
			DIGEST_LEAF_BYTES_MAX);
	}
	assert_int_equal(told_chunks(told, first, nr, leaves, zeros, NULL), 0);
}

static void test_model(void **state)
{
	(void)state;
	unsigned seed = 7;
	for (unsigned round = 0; round < 12; round++) {
		struct model model;
		/* A few segments, the last one cut, the last chunk short. */
		model_init(&model,
			(uint64_t)(SEGMENT * (1 + round % 3) + 77) * DIGEST_CHUNK_BYTES - 9);
		struct told *told = told_new(DIGEST_XXH3_128, model.size_bytes, NULL);
		assert_non_null(told);
		for (unsigned i = 0; i < 400; i++) {
			uint64_t first = (uint64_t)rand_r(&seed) % model.nr_chunks;
			uint64_t left = model.nr_chunks - first;
			if (rand_r(&seed) % 4) {
				unsigned nr = 1 + (unsigned)rand_r(&seed) % 64;
				tell_chunks(
					told, &model, first, (unsigned)min_u64(nr, left), &seed);
				continue;
			}
			/* Sometimes over whole segments. */
			uint64_t nr = min_u64(left, (uint64_t)rand_r(&seed) % (2 * SEGMENT) + 1);
			assert_int_equal(told_zeros(told, first, nr, NULL), 0);
			memset(model.states + first, ZERO, nr);
		}
		expect_digests(told, &model, DIGEST_XXH3_128);
		told_free(told);
		model_free(&model);
	}
}

static void test_whole_segments_of_zeros(void **state)
{
	(void)state;
	struct model model;
	model_init(&model, (uint64_t)(2 * SEGMENT + 1) * DIGEST_CHUNK_BYTES);
	struct told *told = told_new(DIGEST_SHA256, model.size_bytes, NULL);
	assert_non_null(told);
	expect_digests(told, &model, DIGEST_SHA256);
	assert_int_equal(told_zeros(told, 0, model.nr_chunks, NULL), 0);
	memset(model.states, ZERO, model.nr_chunks);
	expect_digests(told, &model, DIGEST_SHA256);
	/* Data into what was zeros as a whole. */
	uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
	memset(leaf, 0xab, sizeof leaf);
	assert_int_equal(told_chunks(told, SEGMENT + 5, 1, leaf, 0, NULL), 0);
	model.states[SEGMENT + 5] = DATA;
	memcpy(model.leaves + (SEGMENT + 5) * DIGEST_LEAF_BYTES_MAX, leaf, sizeof leaf);
	expect_digests(told, &model, DIGEST_SHA256);
	told_free(told);
	model_free(&model);
}

static void test_beyond_the_end(void **state)
{
	(void)state;
	struct told *told = told_new(DIGEST_XXH3_128, 3 * DIGEST_CHUNK_BYTES, NULL);
	uint8_t leaves[2 * DIGEST_LEAF_BYTES_MAX] = {1};
	struct err err = ERR_INIT;
	assert_non_null(told);
	assert_int_equal(told_chunks(told, 2, 2, leaves, 0, &err), -1);
	assert_int_equal(err.code, ERR_RANGE);
	assert_int_equal(told_zeros(told, 4, 1, NULL), -1);
	assert_int_equal(told_zeros(told, 1, UINT64_MAX, NULL), -1);
	told_free(told);
}

/* 64 TiB: what is not told costs nothing, and the record little memory. */
static void test_huge(void **state)
{
	(void)state;
	uint64_t size_bytes = (uint64_t)64 << 40, nr = size_bytes / DIGEST_CHUNK_BYTES;
	struct told *told = told_new(DIGEST_XXH3_128, size_bytes, NULL);
	uint8_t leaf[DIGEST_LEAF_BYTES_MAX] = {9}, root[DIGEST_ROOT_BYTES], expect[sizeof root];
	struct digest_tree tree;
	assert_non_null(told);
	assert_int_equal(told_zeros(told, 0, nr, NULL), 0);
	assert_int_equal(told_chunks(told, nr - 1, 1, leaf, 0, NULL), 0);
	digest_tree_init(&tree, DIGEST_XXH3_128, size_bytes);
	digest_tree_zeros(&tree, nr - 1);
	digest_tree_leaf(&tree, leaf);
	digest_tree_root(&tree, expect);
	assert_int_equal(told_root(told, NULL, root, NULL), 0);
	assert_memory_equal(root, expect, sizeof root);
	told_free(told);
}

struct teller {
	struct told *told;
	struct model *model;
	unsigned nr, of;
};

static void *tell_part(void *arg)
{
	struct teller *teller = arg;
	unsigned seed = teller->nr;
	for (uint64_t first = (uint64_t)teller->nr * 8; first + 8 <= teller->model->nr_chunks;
		first += (uint64_t)teller->of * 8)
		tell_chunks(teller->told, teller->model, first, 8, &seed);
	return NULL;
}

static void test_threads(void **state)
{
	(void)state;
	struct model model;
	model_init(&model, (uint64_t)SEGMENT * 2 * DIGEST_CHUNK_BYTES);
	struct told *told = told_new(DIGEST_XXH3_128, model.size_bytes, NULL);
	struct teller tellers[4];
	pthread_t threads[4];
	for (unsigned i = 0; i < 4; i++) {
		tellers[i] = (struct teller){told, &model, i, 4};
		assert_int_equal(pthread_create(&threads[i], NULL, tell_part, &tellers[i]), 0);
	}
	for (unsigned i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	expect_digests(told, &model, DIGEST_XXH3_128);
	told_free(told);
	model_free(&model);
}

static void test_no_folder(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	const char *before = getenv("TMPDIR");
	char *kept = before ? strdup(before) : NULL;
	setenv("TMPDIR", "/nonexistent/folder", 1);
	assert_null(told_new(DIGEST_XXH3_128, 1, &err));
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_non_null(strstr(err.text, "TMPDIR"));
	if (kept)
		setenv("TMPDIR", kept, 1);
	else
		unsetenv("TMPDIR");
	free(kept);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_model),
		cmocka_unit_test(test_whole_segments_of_zeros),
		cmocka_unit_test(test_beyond_the_end),
		cmocka_unit_test(test_huge),
		cmocka_unit_test(test_threads),
		cmocka_unit_test(test_no_folder),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
