/*
 * Sums of a whole chain, looked at from its top.
 *
 *   segment n of the top  ─┐
 *   of the one beneath    ─┼─► what the chain says of segment n, kept in a cache
 *   ...  of the full      ─┘
 *
 * A segment is merged once, link by link, until nothing of it is open any more, and is then as
 * good as a full's: a look at a chunk costs the same at any depth.  Where no link tells
 * anything at all is remembered as a gap of zeros.
 */
#include "sums_internal.h"

#include <assert.h>
#include <errno.h>

#define CACHE_BYTES (8 * MIB)
#define WAYS 4u

struct sums_merged {
	pthread_mutex_t mutex;
	struct sums_segment **slots; /* sets of WAYS, by the segment's number */
	uint64_t nr_sets;
	struct sums_segment *scratch;
	uint64_t gap_first, gap_end; /* segments of which no link tells */
	uint64_t clock;
};

static struct sums_merged *merged_new(const struct sums_facts *facts)
{
	size_t segment_bytes = sizeof(struct sums_segment) +
			       SUMS_SEGMENT_CHUNKS * digest_leaf_bytes(facts->algorithm);
	struct sums_merged *merged = calloc(1, sizeof *merged);
	if (!merged)
		return NULL;
	pthread_mutex_init(&merged->mutex, NULL);
	merged->nr_sets = min_u64(CACHE_BYTES / segment_bytes / WAYS, sums_nr_segments(facts));
	merged->slots = calloc(merged->nr_sets * WAYS, sizeof(struct sums_segment *));
	merged->scratch = sums_segment_new(facts);
	if (merged->slots && merged->scratch)
		return merged;
	sums_merged_free(merged);
	return NULL;
}

void sums_merged_free(struct sums_merged *merged)
{
	if (!merged)
		return;
	for (uint64_t i = 0; merged->slots && i < merged->nr_sets * WAYS; i++)
		free(merged->slots[i]);
	pthread_mutex_destroy(&merged->mutex);
	free(merged->slots);
	free(merged->scratch);
	free(merged);
}

static struct sums_merged *get_merged(struct sums_reader *reader, struct err *err)
{
	WITH_LOCK(&reader->mutex);
	if (!reader->merged)
		reader->merged = merged_new(&reader->facts);
	if (!reader->merged)
		err_errno(err, ENOMEM, "cannot read %s", reader->path);
	return reader->merged;
}

/* --- merging -------------------------------------------------------------------------- */

/* What is still open in `to` and told by `from`; returns how many chunks that were. */
static unsigned lay_under(const struct sums_facts *facts, struct sums_segment *to,
	const struct sums_segment *from, unsigned in_segment)
{
	size_t leaf_bytes = digest_leaf_bytes(facts->algorithm);
	unsigned nr_closed = 0;
	for (unsigned i = 0; i < in_segment; i++) {
		if (i % 8 == 0 && be64_get(from->kinds + i) == 0) {
			i += 7; /* eight that are inherited */
			continue;
		}
		if (to->kinds[i] != SUMS_INHERIT || from->kinds[i] == SUMS_INHERIT)
			continue;
		to->kinds[i] = from->kinds[i];
		nr_closed++;
		if (from->kinds[i] == SUMS_DATA)
			memcpy(to->leaves + i * leaf_bytes, from->leaves + i * leaf_bytes,
				leaf_bytes);
	}
	return nr_closed;
}

static unsigned close_with_zeros(struct sums_segment *segment, unsigned from, unsigned to)
{
	unsigned nr_closed = 0;
	for (unsigned i = from; i < to; i++) {
		if (segment->kinds[i] != SUMS_INHERIT)
			continue;
		segment->kinds[i] = SUMS_ZERO;
		nr_closed++;
	}
	return nr_closed;
}

/* How many chunks of a segment a link's disk has; it may not have grown to there yet. */
static unsigned in_link(const struct sums_reader *link, uint64_t number)
{
	uint64_t nr_chunks = sums_nr_chunks(&link->facts), start = number * SUMS_SEGMENT_CHUNKS;
	return start < nr_chunks ? sums_in_segment(&link->facts, number) : 0;
}

/* Fills segment, unless no link tells of it: then *told is false, and *next the first number
 * that any link tells of. */
static int merge(struct sums_reader *top, struct sums_merged *merged, uint64_t number,
	struct sums_segment *segment, bool *told, uint64_t *next, struct err *err)
{
	unsigned in_segment = sums_in_segment(&top->facts, number), nr_open = in_segment;
	segment->valid = segment->changed = false;
	segment->number = number;
	memset(segment->kinds, SUMS_INHERIT, sizeof segment->kinds);
	*told = false;
	*next = UINT64_MAX;
	for (struct sums_reader *link = top; link && nr_open > 0; link = link->parent) {
		unsigned room = in_link(link, number);
		uint64_t found;
		nr_open -= close_with_zeros(segment, room, in_segment);
		if (room == 0)
			break;
		if (sums_read_segment(link, number, merged->scratch, &found, err) < 0)
			return -1;
		*next = min_u64(*next, found);
		if (found == number) {
			*told = true;
			nr_open -= lay_under(&top->facts, segment, merged->scratch, in_segment);
		}
		if (!link->facts.increment)
			break;
	}
	close_with_zeros(segment, 0, in_segment);
	segment->valid = true;
	return 0;
}

/* From the cache or merged now; NULL when it lies in the gap, which is set then.  The
 * mutex is held. */
static const struct sums_segment *get_segment(struct sums_reader *top, struct sums_merged *merged,
	uint64_t number, bool *failed, struct err *err)
{
	struct sums_segment **set = merged->slots + number % merged->nr_sets * WAYS, **at = set;
	*failed = false;
	for (unsigned i = 0; i < WAYS; i++) {
		if (set[i] && set[i]->valid && set[i]->number == number) {
			set[i]->last_used = ++merged->clock;
			return set[i];
		}
		if (*at && (!set[i] || set[i]->last_used < (*at)->last_used))
			at = &set[i];
	}
	if (!*at)
		*at = sums_segment_new(&top->facts);
	*failed = true;
	if (!*at) {
		err_errno(err, ENOMEM, "cannot read %s", top->path);
		return NULL;
	}
	bool told;
	uint64_t next;
	if (merge(top, merged, number, *at, &told, &next, err) < 0)
		return NULL;
	*failed = false;
	if (told) {
		(*at)->last_used = ++merged->clock;
		return *at;
	}
	(*at)->valid = false;
	(*at)->last_used = 0;
	merged->gap_first = number;
	merged->gap_end = next;
	return NULL;
}

/* --- reading ------------------------------------------------------------------------------ */

int sums_reader_run(struct sums_reader *reader, uint64_t first, uint64_t most, enum sums_kind *kind,
	uint64_t *nr, uint8_t leaf[DIGEST_LEAF_BYTES_MAX], struct err *err)
{
	uint64_t number = first / SUMS_SEGMENT_CHUNKS;
	assert(most > 0 && first < sums_nr_chunks(&reader->facts));
	struct sums_merged *merged = get_merged(reader, err);
	if (!merged)
		return -1;
	WITH_LOCK(&merged->mutex);
	const struct sums_segment *segment = NULL;
	if (number < merged->gap_first || number >= merged->gap_end) {
		bool failed;
		segment = get_segment(reader, merged, number, &failed, err);
		if (failed)
			return -1;
	}
	if (segment) {
		sums_segment_run(
			&reader->facts, segment, first % SUMS_SEGMENT_CHUNKS, most, kind, nr, leaf);
		return 0;
	}
	uint64_t end = min_u64(merged->gap_end, sums_nr_segments(&reader->facts));
	*kind = SUMS_ZERO;
	*nr = min_u64(
		most, min_u64(end * SUMS_SEGMENT_CHUNKS, sums_nr_chunks(&reader->facts)) - first);
	return 0;
}

int sums_reader_root(struct sums_reader *reader, struct cancel *cancel,
	uint8_t root[DIGEST_ROOT_BYTES], struct err *err)
{
	uint64_t nr_chunks = sums_nr_chunks(&reader->facts), nr = 0;
	struct digest_tree tree;
	digest_tree_init(&tree, reader->facts.algorithm, reader->facts.size_bytes);
	for (uint64_t chunk = 0; chunk < nr_chunks; chunk += nr) {
		enum sums_kind kind;
		uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
		if (chunk % SUMS_SEGMENT_CHUNKS == 0 && cancel_check(cancel, err) < 0)
			return -1;
		if (sums_reader_run(reader, chunk, nr_chunks - chunk, &kind, &nr, leaf, err) < 0)
			return -1;
		if (kind == SUMS_DATA)
			digest_tree_leaf(&tree, leaf);
		else
			digest_tree_zeros(&tree, nr);
	}
	digest_tree_root(&tree, root);
	return 0;
}
