/* A sink for tests; see fake.h. */
#include "fake.h"

#include <stdlib.h>

static int told_chunks(void *context, uint64_t first, unsigned nr, const uint8_t *leaves,
	uint64_t zero_mask, struct err *err)
{
	struct told *t = context;
	WITH_LOCK(&t->mutex);
	if (t->refuse)
		return err_set(err, ERR_NO_SPACE, "no room for digests");
	assert_true(nr >= 1 && nr <= 64 && first + nr <= t->nr_chunks);
	assert_true(nr == 64 || zero_mask >> nr == 0);
	for (unsigned i = 0; i < nr; i++) {
		t->times[first + i]++;
		t->zero[first + i] = zero_mask >> i & 1;
		memcpy(t->leaves + (first + i) * 32, leaves + i * 32, 32);
	}
	return 0;
}

static int told_zeros(void *context, uint64_t first, uint64_t nr, struct err *err)
{
	struct told *t = context;
	WITH_LOCK(&t->mutex);
	(void)err;
	assert_true(nr >= 1 && first + nr <= t->nr_chunks);
	for (uint64_t i = first; i < first + nr; i++) {
		t->times[i]++;
		t->zero[i] = true;
	}
	return 0;
}

struct told *told_new(size_t size)
{
	struct told *t = calloc(1, sizeof *t);
	pthread_mutex_init(&t->mutex, NULL);
	t->nr_chunks = div_round_up(size, DIGEST_CHUNK_BYTES);
	t->times = calloc(t->nr_chunks + 1, sizeof *t->times);
	t->zero = calloc(t->nr_chunks + 1, sizeof *t->zero);
	t->leaves = calloc(t->nr_chunks + 1, 32);
	return t;
}

void told_free(struct told *t)
{
	pthread_mutex_destroy(&t->mutex);
	free(t->times);
	free(t->zero);
	free(t->leaves);
	free(t);
}

struct copy_chunk_sink told_sink(struct told *t)
{
	return (struct copy_chunk_sink){t, told_chunks, told_zeros};
}

void told_check(const struct told *t, const struct digest_key *key, const uint8_t *bytes,
	size_t size, uint64_t chunk)
{
	uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
	size_t at = chunk * DIGEST_CHUNK_BYTES, n = min_size(DIGEST_CHUNK_BYTES, size - at);
	assert_int_equal(t->zero[chunk], digest_is_zero(bytes + at, n));
	if (t->zero[chunk])
		return;
	digest_leaf(key, bytes + at, n, leaf);
	assert_memory_equal(
		leaf, t->leaves + chunk * DIGEST_LEAF_BYTES_MAX, digest_leaf_bytes(key->algorithm));
}
