/*
 * The chunk digest: what a disk's bytes were, cut into chunks of 64 KiB.
 *
 *   guest space   | chunk 0 | chunk 1 | ...            | last, at its true length |
 *   leaf           keyed XXH3-128 (16 bytes) or SHA-256 (32 bytes) of the chunk
 *   node level 0   the leaf followed by zeros to 32 bytes; for a chunk that is
 *                  all zeros, or a hole, 32 bytes of 0xff instead
 *   node level k   SHA-256(left node of level k-1 || right node of level k-1)
 *   top            the level at which one node covers all chunks; missing
 *                  chunks on the right count as zero chunks
 *   root           SHA-256("sendense-root-1" || algorithm (1 byte) ||
 *                  chunk size (be32) || disk size in bytes (be64) || top)
 *
 * Zero subtrees are constants, so an empty disk of any size costs nothing.
 * A disk of no chunks has the zero node as its top.
 * The key makes XXH3 leaves unpredictable for a guest that would build
 * collisions; SHA-256 leaves are not keyed.
 */
#ifndef SENDENSE_DIGEST_H
#define SENDENSE_DIGEST_H

#include "err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DIGEST_CHUNK_BYTES 65536u
#define DIGEST_SEED_BYTES 32u
#define DIGEST_SECRET_BYTES 192u
#define DIGEST_LEAF_BYTES_MAX 32u
#define DIGEST_ROOT_BYTES 32u
#define DIGEST_ROOT_HEX_BYTES 65u

enum digest_algorithm {
	DIGEST_XXH3_128 = 1,
	DIGEST_SHA256 = 2,
};

struct digest_key {
	enum digest_algorithm algorithm;
	uint8_t secret[DIGEST_SECRET_BYTES]; /* for XXH3, derived from the seed */
};

/* The seed is random and stays the same for all disks that are compared.  It is
 * not used by SHA-256.  Borrows seed. */
void digest_key_init(struct digest_key *key, enum digest_algorithm algorithm,
	const uint8_t seed[DIGEST_SEED_BYTES]);

/* 16 or 32. */
size_t digest_leaf_bytes(enum digest_algorithm algorithm);

/* "xxh3-128" or "sha256"; 0 and false for an unknown name. */
const char *digest_algorithm_name(enum digest_algorithm algorithm);
bool digest_algorithm_parse(const char *name, enum digest_algorithm *algorithm);

/* True when all bytes are zero; looks at every one.  length may be 0. */
bool digest_is_zero(const void *bytes, size_t length);

/* The leaf of one chunk (1..DIGEST_CHUNK_BYTES bytes that are not all zero);
 * writes digest_leaf_bytes() bytes. */
void digest_leaf(const struct digest_key *key, const void *chunk, size_t length, uint8_t *leaf);

void digest_sha256(const void *bytes, size_t length, uint8_t out[DIGEST_ROOT_BYTES]);

/* Lower-case hex; out has room for 2 * length + 1. */
void digest_hex(const uint8_t *bytes, size_t length, char *out);
/* Reads exactly length bytes of hex and the end of the text. */
bool digest_unhex(const char *text, uint8_t *bytes, size_t length);
/* The same as people copy fingerprints: large or small letters, colons between bytes or none. */
bool digest_unhex_pairs(const char *text, uint8_t *bytes, size_t length);

/* Computes a root from leaves that come in order; needs 2 KiB whatever the size. */
struct digest_tree {
	enum digest_algorithm algorithm;
	uint64_t size_bytes;
	uint64_t nr_chunks;
	uint64_t next_chunk;
	struct {
		bool full;
		uint8_t node[DIGEST_ROOT_BYTES];
	} level[64];
};

void digest_tree_init(
	struct digest_tree *tree, enum digest_algorithm algorithm, uint64_t size_bytes);
/* Not more than nr_chunks in all (asserted). */
void digest_tree_leaf(struct digest_tree *tree, const uint8_t *leaf);
void digest_tree_zeros(struct digest_tree *tree, uint64_t nr_chunks);
/* Chunks that were not given count as zeros. */
void digest_tree_root(struct digest_tree *tree, uint8_t root[DIGEST_ROOT_BYTES]);

/*
 * The digest over what a client sent of a disk: SHA-256 over index (be64) and node of level 0
 * (32 bytes) of each chunk that it sent, in ascending order.
 */
struct digest_sent {
	enum digest_algorithm algorithm;
	void *hash;
	size_t used;
	uint8_t bytes[64 * (8 + DIGEST_ROOT_BYTES)];
};

int digest_sent_init(struct digest_sent *sent, enum digest_algorithm algorithm, struct err *err);
void digest_sent_leaf(struct digest_sent *sent, uint64_t chunk, const uint8_t *leaf);
void digest_sent_zeros(struct digest_sent *sent, uint64_t first, uint64_t nr_chunks);
/* Frees what init made; required after it. */
void digest_sent_end(struct digest_sent *sent, uint8_t digest[DIGEST_ROOT_BYTES]);

#endif
