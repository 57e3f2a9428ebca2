/*
 * The chunk digest; see digest.h for the tree's definition.
 *
 * The tree is built like a binary counter: level[k].full says that a finished
 * node of level k waits for its right-hand sibling.
 */
#include "digest.h"

#include "bytes.h"

#include <assert.h>
#include <errno.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <pthread.h>
#include <string.h>
#include <xxhash.h>
#ifdef HAVE_XXH_DISPATCH
#include <xxh_x86dispatch.h>
#endif

#define NR_LEVELS 64

_Static_assert(DIGEST_SECRET_BYTES >= XXH3_SECRET_SIZE_MIN, "XXH3 needs a longer secret");

/* The library's plain functions are built for the oldest processors; these take
 * AVX2 or AVX-512 where there is one (four times as fast), with the same result. */
#ifdef HAVE_XXH_DISPATCH
#define xxh3_128 XXH3_128bits_withSecret_dispatch
#else
#define xxh3_128 XXH3_128bits_withSecret
#endif

static uint8_t zero_nodes[NR_LEVELS][DIGEST_ROOT_BYTES];
static pthread_once_t zero_nodes_once = PTHREAD_ONCE_INIT;

void digest_sha256(const void *bytes, size_t length, uint8_t out[DIGEST_ROOT_BYTES])
{
	int rc = gnutls_hash_fast(GNUTLS_DIG_SHA256, bytes, length, out);
	assert(rc == 0);
}

static void join(const uint8_t left[DIGEST_ROOT_BYTES], const uint8_t right[DIGEST_ROOT_BYTES],
	uint8_t out[DIGEST_ROOT_BYTES])
{
	uint8_t both[2 * DIGEST_ROOT_BYTES];
	memcpy(both, left, DIGEST_ROOT_BYTES);
	memcpy(both + DIGEST_ROOT_BYTES, right, DIGEST_ROOT_BYTES);
	digest_sha256(both, sizeof both, out);
}

static void make_zero_nodes(void)
{
	memset(zero_nodes[0], 0xff, DIGEST_ROOT_BYTES);
	for (int k = 1; k < NR_LEVELS; k++)
		join(zero_nodes[k - 1], zero_nodes[k - 1], zero_nodes[k]);
}

void digest_key_init(struct digest_key *key, enum digest_algorithm algorithm,
	const uint8_t seed[DIGEST_SEED_BYTES])
{
	key->algorithm = algorithm;
	/* SHA-256 in counter mode stretches the seed: a definition that another
	 * program can follow, unlike a library's own secret generator. */
	for (unsigned i = 0; i < DIGEST_SECRET_BYTES / DIGEST_ROOT_BYTES; i++) {
		uint8_t block[DIGEST_SEED_BYTES + 1];
		memcpy(block, seed, DIGEST_SEED_BYTES);
		block[DIGEST_SEED_BYTES] = (uint8_t)i;
		digest_sha256(block, sizeof block, key->secret + (size_t)i * DIGEST_ROOT_BYTES);
	}
}

size_t digest_leaf_bytes(enum digest_algorithm algorithm)
{
	return algorithm == DIGEST_SHA256 ? 32 : 16;
}

const char *digest_algorithm_name(enum digest_algorithm algorithm)
{
	return algorithm == DIGEST_SHA256 ? "sha256" : "xxh3-128";
}

bool digest_algorithm_parse(const char *name, enum digest_algorithm *algorithm)
{
	if (strcmp(name, "xxh3-128") == 0)
		*algorithm = DIGEST_XXH3_128;
	else if (strcmp(name, "sha256") == 0)
		*algorithm = DIGEST_SHA256;
	else
		return false;
	return true;
}

bool digest_is_zero(const void *bytes, size_t length)
{
	static const uint8_t zeros[64];
	const uint8_t *at = bytes;
	/* Most data shows itself in the first bytes.  After that, zeros are what
	 * equals itself one step further on: memcmp() has the widest registers. */
	if (length <= sizeof zeros)
		return memcmp(at, zeros, length) == 0;
	return memcmp(at, zeros, sizeof zeros) == 0 &&
	       memcmp(at, at + sizeof zeros, length - sizeof zeros) == 0;
}

void digest_leaf(const struct digest_key *key, const void *chunk, size_t length, uint8_t *leaf)
{
	assert(length > 0 && length <= DIGEST_CHUNK_BYTES);
	if (key->algorithm == DIGEST_SHA256) {
		digest_sha256(chunk, length, leaf);
		return;
	}
	XXH128_hash_t hash = xxh3_128(chunk, length, key->secret, DIGEST_SECRET_BYTES);
	XXH128_canonical_t canonical;
	XXH128_canonicalFromHash(&canonical, hash);
	memcpy(leaf, canonical.digest, 16);
}

void digest_hex(const uint8_t *bytes, size_t length, char *out)
{
	static const char digits[] = "0123456789abcdef";
	for (size_t i = 0; i < length; i++) {
		*out++ = digits[bytes[i] >> 4];
		*out++ = digits[bytes[i] & 15];
	}
	*out = '\0';
}

static int hex_value(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return -1;
}

bool digest_unhex(const char *text, uint8_t *bytes, size_t length)
{
	for (size_t i = 0; i < length; i++) {
		int high = hex_value(text[2 * i]);
		int low = high < 0 ? -1 : hex_value(text[2 * i + 1]);
		if (low < 0)
			return false;
		bytes[i] = (uint8_t)(high << 4 | low);
	}
	return text[2 * length] == '\0';
}

bool digest_unhex_pairs(const char *text, uint8_t *bytes, size_t length)
{
	for (size_t i = 0; i < length; i++) {
		if (i && *text == ':')
			text++;
		int value = hex_pair(text);
		if (value < 0)
			return false;
		bytes[i] = (uint8_t)value;
		text += 2;
	}
	return *text == '\0';
}

void digest_tree_init(
	struct digest_tree *tree, enum digest_algorithm algorithm, uint64_t size_bytes)
{
	pthread_once(&zero_nodes_once, make_zero_nodes);
	memset(tree, 0, sizeof *tree);
	tree->algorithm = algorithm;
	tree->size_bytes = size_bytes;
	tree->nr_chunks = div_round_up(size_bytes, DIGEST_CHUNK_BYTES);
}

/* Puts a finished node of the given level behind what is there. */
static void push(struct digest_tree *tree, unsigned level, const uint8_t node[DIGEST_ROOT_BYTES])
{
	uint8_t carry[DIGEST_ROOT_BYTES];
	memcpy(carry, node, sizeof carry);
	for (; tree->level[level].full; level++) {
		join(tree->level[level].node, carry, carry);
		tree->level[level].full = false;
	}
	memcpy(tree->level[level].node, carry, sizeof carry);
	tree->level[level].full = true;
}

void digest_tree_leaf(struct digest_tree *tree, const uint8_t *leaf)
{
	assert(tree->next_chunk < tree->nr_chunks);
	uint8_t node[DIGEST_ROOT_BYTES] = {0};
	memcpy(node, leaf, digest_leaf_bytes(tree->algorithm));
	push(tree, 0, node);
	tree->next_chunk++;
}

/* Appends zero chunks as the largest subtrees that fit the position. */
static void push_zeros(struct digest_tree *tree, uint64_t nr_chunks)
{
	while (nr_chunks > 0) {
		unsigned level = 63 - (unsigned)__builtin_clzll(nr_chunks);
		if (tree->next_chunk != 0) {
			unsigned aligned = (unsigned)__builtin_ctzll(tree->next_chunk);
			level = aligned < level ? aligned : level;
		}
		push(tree, level, zero_nodes[level]);
		tree->next_chunk += (uint64_t)1 << level;
		nr_chunks -= (uint64_t)1 << level;
	}
}

void digest_tree_zeros(struct digest_tree *tree, uint64_t nr_chunks)
{
	assert(nr_chunks <= tree->nr_chunks - tree->next_chunk);
	push_zeros(tree, nr_chunks);
}

void digest_tree_root(struct digest_tree *tree, uint8_t root[DIGEST_ROOT_BYTES])
{
	unsigned height = 0;
	while (((uint64_t)1 << height) < tree->nr_chunks)
		height++;
	push_zeros(tree, ((uint64_t)1 << height) - tree->next_chunk);
	assert(tree->level[height].full);

	static const char label[] = "sendense-root-1";
	uint8_t block[sizeof label - 1 + 1 + 4 + 8 + DIGEST_ROOT_BYTES], *at = block;
	memcpy(at, label, sizeof label - 1);
	at += sizeof label - 1;
	*at++ = (uint8_t)tree->algorithm;
	be32_put(at, DIGEST_CHUNK_BYTES);
	at += 4;
	be64_put(at, tree->size_bytes);
	at += 8;
	memcpy(at, tree->level[height].node, DIGEST_ROOT_BYTES);
	digest_sha256(block, sizeof block, root);
}

/* --- what was sent --------------------------------------------------------------- */

int digest_sent_init(struct digest_sent *sent, enum digest_algorithm algorithm, struct err *err)
{
	gnutls_hash_hd_t hash;
	sent->algorithm = algorithm;
	sent->used = 0;
	sent->hash = NULL;
	if (gnutls_hash_init(&hash, GNUTLS_DIG_SHA256) < 0)
		return err_errno(err, ENOMEM, "cannot digest");
	sent->hash = hash;
	return 0;
}

static void flush_sent(struct digest_sent *sent)
{
	int rc = gnutls_hash(sent->hash, sent->bytes, sent->used);
	assert(rc == 0);
	sent->used = 0;
}

static uint8_t *add_sent(struct digest_sent *sent, uint64_t chunk)
{
	if (sent->used == sizeof sent->bytes)
		flush_sent(sent);
	uint8_t *at = sent->bytes + sent->used;
	be64_put(at, chunk);
	sent->used += 8 + DIGEST_ROOT_BYTES;
	return at + 8;
}

void digest_sent_leaf(struct digest_sent *sent, uint64_t chunk, const uint8_t *leaf)
{
	size_t length = digest_leaf_bytes(sent->algorithm);
	uint8_t *node = add_sent(sent, chunk);
	memcpy(node, leaf, length);
	memset(node + length, 0, DIGEST_ROOT_BYTES - length);
}

void digest_sent_zeros(struct digest_sent *sent, uint64_t first, uint64_t nr_chunks)
{
	for (uint64_t i = 0; i < nr_chunks; i++)
		memset(add_sent(sent, first + i), 0xff, DIGEST_ROOT_BYTES);
}

void digest_sent_end(struct digest_sent *sent, uint8_t digest[DIGEST_ROOT_BYTES])
{
	flush_sent(sent);
	gnutls_hash_deinit(sent->hash, digest);
	sent->hash = NULL;
}
