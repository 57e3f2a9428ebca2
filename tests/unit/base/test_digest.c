/*
 * The chunk digest against known vectors, and the tree's root against a second
 * computation of its definition: a recursion over all chunks that knows nothing
 * of counters or constant subtrees.
 */
#include "test_support.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

static void expect_hex(const uint8_t *bytes, size_t length, const char *hex)
{
	char text[2 * 64 + 1];
	digest_hex(bytes, length, text);
	assert_string_equal(text, hex);
}

static void test_sha256_vectors(void **state)
{
	(void)state;
	uint8_t out[DIGEST_ROOT_BYTES];
	/* FIPS 180-4, examples. */
	digest_sha256("", 0, out);
	expect_hex(out, 32, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
	digest_sha256("abc", 3, out);
	expect_hex(out, 32, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
	digest_sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56, out);
	expect_hex(out, 32, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
}

static void test_hex(void **state)
{
	(void)state;
	uint8_t bytes[4];
	char text[9];
	assert_true(digest_unhex("00ff10a5", bytes, 4));
	digest_hex(bytes, 4, text);
	assert_string_equal(text, "00ff10a5");
	static const char *const bad[] = {"00ff10a", "00ff10a55", "00ff10A5", "00ff10ag", "", "zz"};
	for (size_t i = 0; i < ARRAY_LENGTH(bad); i++)
		assert_false(digest_unhex(bad[i], bytes, 4));
}

static void test_hex_as_people_copy_it(void **state)
{
	(void)state;
	uint8_t bytes[4];
	static const char *const good[] = {"00ff10a5", "00:FF:10:a5", "00FF:10A5"};
	for (size_t i = 0; i < ARRAY_LENGTH(good); i++) {
		assert_true(digest_unhex_pairs(good[i], bytes, 4));
		assert_memory_equal(bytes, "\x00\xff\x10\xa5", 4);
	}
	static const char *const bad[] = {"", "00:ff:10", "00:ff:10:a5:", ":00ff10a5", "00::ff10a5",
		"0:0ff10a5", "00ff10a55", "00ff10a5 ", "00ff10ag"};
	for (size_t i = 0; i < ARRAY_LENGTH(bad); i++)
		assert_false(digest_unhex_pairs(bad[i], bytes, 4));
}

static void test_names(void **state)
{
	(void)state;
	enum digest_algorithm a;
	assert_true(digest_algorithm_parse("sha256", &a) && a == DIGEST_SHA256);
	assert_string_equal(digest_algorithm_name(a), "sha256");
	assert_true(digest_algorithm_parse("xxh3-128", &a) && a == DIGEST_XXH3_128);
	assert_string_equal(digest_algorithm_name(a), "xxh3-128");
	assert_false(digest_algorithm_parse("md5", &a));
	assert_int_equal(digest_leaf_bytes(DIGEST_XXH3_128), 16);
	assert_int_equal(digest_leaf_bytes(DIGEST_SHA256), 32);
}

/* One byte anywhere, at any length and alignment, is found. */
static void test_is_zero_looks_at_every_byte(void **state)
{
	(void)state;
	static uint8_t buffer[1100];
	for (size_t start = 0; start < 3; start++)
		for (size_t length = 0; length <= 1030; length += length < 300 ? 1 : 73) {
			buffer[start + length] = 1; /* just behind */
			assert_true(digest_is_zero(buffer + start, length));
			buffer[start + length] = 0;
			for (size_t i = 0; i < length; i++) {
				buffer[start + i] = 0x80;
				assert_false(digest_is_zero(buffer + start, length));
				buffer[start + i] = 0;
			}
		}
}

static void test_leaves(void **state)
{
	(void)state;
	uint8_t seed[DIGEST_SEED_BYTES] = {1, 2, 3}, other_seed[DIGEST_SEED_BYTES] = {1, 2, 4};
	struct digest_key key, other;
	uint8_t *AUTO_FREE chunk = malloc(DIGEST_CHUNK_BYTES);
	for (size_t i = 0; i < DIGEST_CHUNK_BYTES; i++)
		chunk[i] = (uint8_t)(i * 7);
	uint8_t a[32], b[32];
	digest_key_init(&key, DIGEST_XXH3_128, seed);
	digest_key_init(&other, DIGEST_XXH3_128, other_seed);
	digest_leaf(&key, chunk, DIGEST_CHUNK_BYTES, a);
	digest_leaf(&other, chunk, DIGEST_CHUNK_BYTES, b);
	assert_memory_not_equal(a, b, 16);
	digest_leaf(&key, chunk, DIGEST_CHUNK_BYTES - 1, b);
	assert_memory_not_equal(a, b, 16);
	/* The secret is SHA-256(seed || counter byte), the leaf the hash under it. */
	uint8_t block[DIGEST_SEED_BYTES + 1];
	memcpy(block, seed, sizeof seed);
	block[DIGEST_SEED_BYTES] = 5;
	digest_sha256(block, sizeof block, b);
	assert_memory_equal(key.secret + 5 * 32, b, 32);
	XXH128_hash_t h = XXH3_128bits_withSecret(chunk, 100, key.secret, DIGEST_SECRET_BYTES);
	digest_leaf(&key, chunk, 100, a);
	assert_true(be64_get(a) == h.high64 && be64_get(a + 8) == h.low64);
	/* SHA-256 leaves are not keyed. */
	digest_key_init(&key, DIGEST_SHA256, seed);
	digest_leaf(&key, chunk, 1000, a);
	digest_sha256(chunk, 1000, b);
	assert_memory_equal(a, b, 32);
}

/* --- the tree ---------------------------------------------------------------- */

struct naive {
	enum digest_algorithm algorithm;
	uint64_t nr_chunks;
	const uint8_t (*leaves)[32]; /* of chunk i: leaf, or unused when zero[i] */
	const bool *zero;
};

static void naive_node(const struct naive *n, unsigned level, uint64_t index, uint8_t out[32])
{
	if (level == 0) {
		memset(out, 0xff, 32);
		if (index < n->nr_chunks && !n->zero[index]) {
			memset(out, 0, 32);
			memcpy(out, n->leaves[index], n->algorithm == DIGEST_SHA256 ? 32 : 16);
		}
		return;
	}
	uint8_t both[64];
	naive_node(n, level - 1, 2 * index, both);
	naive_node(n, level - 1, 2 * index + 1, both + 32);
	digest_sha256(both, 64, out);
}

static void naive_root(const struct naive *n, uint64_t size_bytes, uint8_t root[32])
{
	unsigned top = 0;
	while (((uint64_t)1 << top) < n->nr_chunks)
		top++;
	uint8_t block[15 + 1 + 4 + 8 + 32];
	memcpy(block, "sendense-root-1", 15);
	block[15] = (uint8_t)n->algorithm;
	be32_put(block + 16, 65536);
	be64_put(block + 20, size_bytes);
	naive_node(n, top, 0, block + 28);
	digest_sha256(block, sizeof block, root);
}

/* Feeds zeros in runs of random lengths, or leaves the last ones out. */
static void feed(struct digest_tree *tree, const struct naive *n, unsigned *seed)
{
	for (uint64_t i = 0; i < n->nr_chunks;) {
		if (!n->zero[i]) {
			digest_tree_leaf(tree, n->leaves[i++]);
			continue;
		}
		uint64_t run = 0;
		while (i + run < n->nr_chunks && n->zero[i + run])
			run++;
		if (i + run == n->nr_chunks && rand_r(seed) % 2)
			return;
		if (rand_r(seed) % 2)
			run = 1 + (uint64_t)rand_r(seed) % run;
		digest_tree_zeros(tree, run);
		i += run;
	}
}

static void test_tree_against_recursion(void **state)
{
	(void)state;
	enum { MOST = 300 };
	static uint8_t leaves[MOST][32];
	static bool zero[MOST];
	unsigned seed = 7;
	for (unsigned round = 0; round < 400; round++) {
		struct naive n = {
			.algorithm = round % 2 ? DIGEST_SHA256 : DIGEST_XXH3_128,
			.nr_chunks = round < 70 ? round : (unsigned)rand_r(&seed) % MOST,
			.leaves = (const uint8_t(*)[32])leaves,
			.zero = zero,
		};
		int density = rand_r(&seed) % 101;
		for (uint64_t i = 0; i < n.nr_chunks; i++) {
			zero[i] = rand_r(&seed) % 100 < density;
			for (unsigned k = 0; k < 32; k++)
				leaves[i][k] = (uint8_t)rand_r(&seed);
		}
		uint64_t last = 1 + (uint64_t)rand_r(&seed) % DIGEST_CHUNK_BYTES;
		uint64_t size_bytes =
			n.nr_chunks ? (n.nr_chunks - 1) * DIGEST_CHUNK_BYTES + last : 0;
		struct digest_tree tree;
		uint8_t expected[32], root[32];
		digest_tree_init(&tree, n.algorithm, size_bytes);
		assert_true(tree.nr_chunks == n.nr_chunks);
		feed(&tree, &n, &seed);
		digest_tree_root(&tree, root);
		naive_root(&n, size_bytes, expected);
		assert_memory_equal(root, expected, 32);
	}
}

/* Computed once with Python's hashlib from the definition in digest.h. */
static void test_tree_known_roots(void **state)
{
	(void)state;
	const struct {
		uint64_t size_bytes;
		enum digest_algorithm algorithm;
		const char *root;
	} rows[] = {
		{0, DIGEST_XXH3_128,
			"90ea9e5a9f66227c0114b243338a2f0ba62372ad55abc7ae61b9e4ee35b1cd23"},
		{512, DIGEST_SHA256,
			"2097d34698766e8b66ec6ece39b5c058ecc3a9c515e7041333d679d52fe5d476"},
		{(uint64_t)8 << 40, DIGEST_XXH3_128,
			"7a1d3716059e58900c40e0627745b8a36bba524d8c6c6c1ba2753531ce34217a"},
		{INT64_MAX, DIGEST_XXH3_128,
			"c57bd53b702e7113f306f8576d62c7c128549c00ca6f99c66bb32dfc2d1d5546"},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(rows); i++) {
		struct digest_tree tree;
		uint8_t root[32];
		digest_tree_init(&tree, rows[i].algorithm, rows[i].size_bytes);
		digest_tree_root(&tree, root);
		expect_hex(root, 32, rows[i].root);
	}
}

static void test_size_and_algorithm_are_covered(void **state)
{
	(void)state;
	struct digest_tree tree;
	uint8_t a[32], b[32], c[32];
	digest_tree_init(&tree, DIGEST_SHA256, 65536);
	digest_tree_root(&tree, a);
	digest_tree_init(&tree, DIGEST_SHA256, 65535);
	digest_tree_root(&tree, b);
	digest_tree_init(&tree, DIGEST_XXH3_128, 65536);
	digest_tree_root(&tree, c);
	assert_memory_not_equal(a, b, 32);
	assert_memory_not_equal(a, c, 32);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sha256_vectors),
		cmocka_unit_test(test_hex),
		cmocka_unit_test(test_hex_as_people_copy_it),
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_is_zero_looks_at_every_byte),
		cmocka_unit_test(test_leaves),
		cmocka_unit_test(test_tree_against_recursion),
		cmocka_unit_test(test_tree_known_roots),
		cmocka_unit_test(test_size_and_algorithm_are_covered),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
