/*
 * What one buffer holds.
 *
 * A chunk that no span touches is zeros without a look at its buffer, which may
 * hold old bytes there.  Where its units are marked as zeros and zeros are never
 * sent as data, such bytes are never written; where granules, or the runs of
 * zeros that are sent as data, can be longer than a chunk, they are zeroed.
 * Every other byte is looked at while it is in the cache.
 */
#include "copy_internal.h"

#include <assert.h>
#include <string.h>

static void set_bits(uint64_t *words, uint64_t from, uint64_t to)
{
	for (uint64_t i = from; i < to; i++)
		words[i / 64] |= (uint64_t)1 << (i % 64);
}

static bool bit(const uint64_t *words, uint64_t i)
{
	return words[i / 64] >> (i % 64) & 1;
}

/* Zeros [from, to) as far as its blocks have data beside it. */
static void fill_gap(uint8_t *buffer, uint64_t from, uint64_t to, uint64_t block)
{
	uint64_t head = min_u64(round_up(from, block), to);
	uint64_t tail = max_u64(round_down(to, block), head);
	memset(buffer + from, 0, head - from);
	memset(buffer + tail, 0, to - tail);
}

static void fill_gaps(const struct piece_plan *plan, const struct copy_item *item, uint8_t *buffer)
{
	/* A chunk is hashed whole, and a granule is written whole. */
	uint64_t at = 0, block = max_u64(DIGEST_CHUNK_BYTES, plan->granule_bytes);
	for (unsigned i = 0; i < item->nr_spans; i++) {
		fill_gap(buffer, at, item->spans[i].start, block);
		at = item->spans[i].end;
	}
	fill_gap(buffer, at, item->length, block);
}

/* Marks the zero units of one chunk; true when it is nothing but zeros. */
static bool find_zeros(const struct piece_plan *plan, const uint8_t *chunk, uint64_t length,
	uint64_t first_unit, struct piece *piece)
{
	bool all = true;
	for (uint64_t at = 0, unit = first_unit; at < length; at += plan->unit_bytes, unit++) {
		if (digest_is_zero(chunk + at, (size_t)min_u64(plan->unit_bytes, length - at)))
			set_bits(piece->zero_units, unit, unit + 1);
		else
			all = false;
	}
	return all;
}

void piece_examine(const struct piece_plan *plan, const struct copy_item *item, uint8_t *buffer,
	struct piece *piece)
{
	uint64_t units_per_chunk = DIGEST_CHUNK_BYTES / plan->unit_bytes;
	uint64_t nr_units = div_round_up(item->length, plan->unit_bytes);
	bool may_be_sent = plan->granule_bytes > DIGEST_CHUNK_BYTES ||
			   plan->shortest_zero > DIGEST_CHUNK_BYTES;
	unsigned span = 0;

	memset(piece->zero_units, 0, (size_t)div_round_up(nr_units, 64) * 8);
	piece->zero_chunks = piece->same_chunks = 0;
	fill_gaps(plan, item, buffer);
	for (uint64_t at = 0, chunk = 0; at < item->length; at += DIGEST_CHUNK_BYTES, chunk++) {
		uint64_t length = min_u64(DIGEST_CHUNK_BYTES, item->length - at);
		uint64_t first_unit = chunk * units_per_chunk;
		while (span < item->nr_spans && item->spans[span].end <= at)
			span++;
		bool untouched = span == item->nr_spans || item->spans[span].start >= at + length;
		if (untouched && may_be_sent)
			memset(buffer + at, 0, length);
		if (untouched)
			set_bits(piece->zero_units, first_unit,
				min_u64(first_unit + units_per_chunk, nr_units));
		if (untouched || find_zeros(plan, buffer + at, length, first_unit, piece))
			piece->zero_chunks |= (uint64_t)1 << chunk;
		else if (plan->key)
			digest_leaf(plan->key, buffer + at, (size_t)length,
				piece->leaves + chunk * DIGEST_LEAF_BYTES_MAX);
	}
}

void piece_set_same(
	const struct piece_plan *plan, struct piece *piece, uint64_t length, uint64_t same)
{
	unsigned nr_chunks = (unsigned)div_round_up(length, DIGEST_CHUNK_BYTES);
	unsigned step = plan->granule_bytes <= DIGEST_CHUNK_BYTES
				? 1
				: plan->granule_bytes / DIGEST_CHUNK_BYTES;
	assert(nr_chunks <= COPY_CHUNKS_MAX && step < COPY_CHUNKS_MAX);
	piece->same_chunks = 0;
	for (unsigned first = 0; first < nr_chunks; first += step) {
		unsigned nr = nr_chunks - first < step ? nr_chunks - first : step;
		uint64_t mask = (((uint64_t)1 << nr) - 1) << first;
		if ((same & mask) == mask)
			piece->same_chunks |= mask;
	}
}

uint64_t piece_zero_bytes(const struct piece *piece, uint64_t length, uint64_t start, uint64_t end)
{
	uint64_t bytes = 0;
	for (uint64_t at = start; at < end; at += DIGEST_CHUNK_BYTES)
		if (bit(&piece->zero_chunks, at / DIGEST_CHUNK_BYTES))
			bytes += min_u64(DIGEST_CHUNK_BYTES, length - at);
	return bytes;
}

/* The end of the chunks from that of start on that are all the same, or all are not. */
static uint64_t same_end(const struct piece *piece, uint64_t length, uint64_t start, bool same)
{
	uint64_t at = round_down(start, DIGEST_CHUNK_BYTES);
	while (at < length && bit(&piece->same_chunks, at / DIGEST_CHUNK_BYTES) == same)
		at += DIGEST_CHUNK_BYTES;
	return min_u64(at, length);
}

static bool granule_is_zero(
	const struct piece_plan *plan, const struct piece *piece, uint64_t length, uint64_t start)
{
	uint64_t end = min_u64(start + plan->granule_bytes, length);
	for (uint64_t at = start; at < end; at += plan->unit_bytes)
		if (!bit(piece->zero_units, at / plan->unit_bytes))
			return false;
	return true;
}

/* The end of the granules from start on that are all zeros, or all are not. */
static uint64_t zeros_end(const struct piece_plan *plan, const struct piece *piece, uint64_t length,
	uint64_t start, bool zero)
{
	uint64_t at = start;
	while (at < length && granule_is_zero(plan, piece, length, at) == zero)
		at += plan->granule_bytes;
	return min_u64(at, length);
}

uint64_t piece_run(const struct piece_plan *plan, const struct piece *piece, uint64_t length,
	uint64_t start, enum run_kind *kind)
{
	if (bit(&piece->same_chunks, start / DIGEST_CHUNK_BYTES)) {
		*kind = RUN_SAME;
		return same_end(piece, length, start, true);
	}
	uint64_t limit = same_end(piece, length, start, false);
	bool zero = granule_is_zero(plan, piece, limit, start);
	uint64_t end = zeros_end(plan, piece, limit, start, zero);
	*kind = zero ? RUN_ZERO : RUN_DATA;
	if (zero)
		return end;
	for (;;) {
		uint64_t next = zeros_end(plan, piece, limit, end, true);
		if (next == limit || next - end >= plan->shortest_zero)
			return end;
		end = zeros_end(plan, piece, limit, next, false);
	}
}
