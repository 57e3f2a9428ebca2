/* The record of what was told; see told.h. */
#include "told.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#define SEGMENT_CHUNKS 4096u

enum chunk_state { CHUNK_NOTHING, CHUNK_ZERO, CHUNK_DATA };
/* Of a whole segment. */
enum segment_state { SEGMENT_NOTHING, SEGMENT_ZERO, SEGMENT_MIXED };

struct told {
	enum digest_algorithm algorithm;
	size_t leaf_bytes;
	uint64_t size_bytes, nr_chunks, nr_segments;
	int fd;
	char name[512]; /* of the file's folder, for messages */
	pthread_mutex_t mutex; /* over the states, in memory and in the file */
	uint8_t *segments; /* enum segment_state */
};

/* What is read of a segment at once. */
struct segment {
	uint8_t states[SEGMENT_CHUNKS];
	uint8_t leaves[SEGMENT_CHUNKS * DIGEST_LEAF_BYTES_MAX];
};

struct told *told_new(enum digest_algorithm algorithm, uint64_t size_bytes, struct err *err)
{
	const char *folder = getenv("TMPDIR");
	if (!folder || !folder[0])
		folder = "/var/tmp";
	struct told *told = calloc(1, sizeof *told);
	if (!told) {
		err_errno(err, ENOMEM, "cannot keep a record of digests");
		return NULL;
	}
	told->algorithm = algorithm;
	told->leaf_bytes = digest_leaf_bytes(algorithm);
	told->size_bytes = size_bytes;
	told->nr_chunks = div_round_up(size_bytes, DIGEST_CHUNK_BYTES);
	told->nr_segments = div_round_up(told->nr_chunks, SEGMENT_CHUNKS);
	pthread_mutex_init(&told->mutex, NULL);
	snprintf(told->name, sizeof told->name, "a temporary file in %.400s", folder);
	told->segments = calloc(told->nr_segments + 1, 1);
	told->fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (told->segments && told->fd >= 0)
		return told;
	err_errno(
		err, told->segments ? errno : ENOMEM, "cannot make a temporary file in %s", folder);
	err_hint(err, "TMPDIR names the folder for digests that are told at the end");
	told_free(told);
	return NULL;
}

void told_free(struct told *told)
{
	if (!told)
		return;
	if (told->fd >= 0)
		close(told->fd);
	free(told->segments);
	pthread_mutex_destroy(&told->mutex);
	free(told);
}

/* --- telling ------------------------------------------------------------------------- */

static uint64_t place_of(const struct told *told, uint64_t segment)
{
	return segment * SEGMENT_CHUNKS * (1 + told->leaf_bytes);
}

/* Chunks of one segment, all alike; under the mutex. */
static int set_states(
	struct told *told, uint64_t first, uint64_t nr, enum chunk_state state, struct err *err)
{
	uint8_t states[SEGMENT_CHUNKS];
	uint64_t segment = first / SEGMENT_CHUNKS, place = place_of(told, segment);
	uint64_t whole = min_u64(SEGMENT_CHUNKS, told->nr_chunks - segment * SEGMENT_CHUNKS);
	uint8_t *now = &told->segments[segment];
	if (state == CHUNK_ZERO &&
		(*now == SEGMENT_ZERO || (*now == SEGMENT_NOTHING && nr == whole))) {
		*now = SEGMENT_ZERO;
		return 0;
	}
	/* What was said of the whole is said of each. */
	memset(states, CHUNK_ZERO, sizeof states);
	if (*now == SEGMENT_ZERO &&
		file_pwrite(told->fd, states, SEGMENT_CHUNKS, place, told->name, err) < 0)
		return -1;
	*now = SEGMENT_MIXED;
	memset(states, (int)state, (size_t)nr);
	return file_pwrite(
		told->fd, states, (size_t)nr, place + first % SEGMENT_CHUNKS, told->name, err);
}

static int set_run(
	struct told *told, uint64_t first, uint64_t nr, enum chunk_state state, struct err *err)
{
	WITH_LOCK(&told->mutex);
	while (nr > 0) {
		uint64_t here = min_u64(nr, SEGMENT_CHUNKS - first % SEGMENT_CHUNKS);
		if (set_states(told, first, here, state, err) < 0)
			return -1;
		first += here;
		nr -= here;
	}
	return 0;
}

static int check_range(const struct told *told, uint64_t first, uint64_t nr, struct err *err)
{
	if (first > told->nr_chunks || nr > told->nr_chunks - first)
		return err_set(err, ERR_RANGE, "digests of chunks beyond the end of the disk");
	return 0;
}

/* Leaves of consecutive data chunks, packed as the file has them. */
static int put_leaves(
	struct told *told, uint64_t first, unsigned nr, const uint8_t *leaves, struct err *err)
{
	uint8_t packed[64 * DIGEST_LEAF_BYTES_MAX];
	for (unsigned i = 0; i < nr; i++)
		memcpy(packed + i * told->leaf_bytes, leaves + (size_t)i * DIGEST_LEAF_BYTES_MAX,
			told->leaf_bytes);
	for (unsigned done = 0; done < nr;) {
		uint64_t chunk = first + done;
		unsigned here =
			(unsigned)min_u64(nr - done, SEGMENT_CHUNKS - chunk % SEGMENT_CHUNKS);
		uint64_t place = place_of(told, chunk / SEGMENT_CHUNKS) + SEGMENT_CHUNKS +
				 chunk % SEGMENT_CHUNKS * told->leaf_bytes;
		if (file_pwrite(told->fd, packed + done * told->leaf_bytes, here * told->leaf_bytes,
			    place, told->name, err) < 0)
			return -1;
		done += here;
	}
	return set_run(told, first, nr, CHUNK_DATA, err);
}

int told_chunks(void *context, uint64_t first, unsigned nr, const uint8_t *leaves,
	uint64_t zero_mask, struct err *err)
{
	struct told *told = context;
	if (check_range(told, first, nr, err) < 0)
		return -1;
	for (unsigned i = 0, end; i < nr; i = end) {
		bool zero = zero_mask >> i & 1;
		for (end = i + 1; end < nr && (zero_mask >> end & 1) == zero;)
			end++;
		int rc = zero ? set_run(told, first + i, end - i, CHUNK_ZERO, err)
			      : put_leaves(told, first + i, end - i,
					leaves + (size_t)i * DIGEST_LEAF_BYTES_MAX, err);
		if (rc < 0)
			return -1;
	}
	return 0;
}

int told_zeros(void *context, uint64_t first, uint64_t nr, struct err *err)
{
	struct told *told = context;
	if (check_range(told, first, nr, err) < 0)
		return -1;
	return set_run(told, first, nr, CHUNK_ZERO, err);
}

/* --- the digests ------------------------------------------------------------------------ */

/* Calls run() for each run of one segment that is alike; data chunks come alone. */
typedef void told_run(
	void *context, enum chunk_state state, uint64_t first, uint64_t nr, const uint8_t *leaf);

static int walk_mixed(struct told *told, uint64_t segment, struct segment *buffer, told_run *run,
	void *context, struct err *err)
{
	uint64_t first = segment * SEGMENT_CHUNKS;
	uint64_t nr = min_u64(SEGMENT_CHUNKS, told->nr_chunks - first);
	size_t length = SEGMENT_CHUNKS * (1 + told->leaf_bytes);
	memset(buffer, 0, sizeof *buffer);
	/* It may end where the last leaf was written. */
	for (size_t done = 0; done < length;) {
		ssize_t n = pread(told->fd, (uint8_t *)buffer + done, length - done,
			(off_t)(place_of(told, segment) + done));
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return err_errno(err, errno, "cannot read %s", told->name);
		if (n == 0)
			break;
		done += (size_t)n;
	}
	for (uint64_t i = 0, end; i < nr; i = end) {
		enum chunk_state state = buffer->states[i];
		for (end = i + 1; state != CHUNK_DATA && end < nr && buffer->states[end] == state;)
			end++;
		run(context, state, first + i, end - i, buffer->leaves + i * told->leaf_bytes);
	}
	return 0;
}

static int walk(
	struct told *told, struct cancel *cancel, told_run *run, void *context, struct err *err)
{
	struct segment *AUTO_FREE buffer = malloc(sizeof *buffer);
	if (!buffer)
		return err_errno(err, ENOMEM, "cannot read %s", told->name);
	for (uint64_t segment = 0; segment < told->nr_segments; segment++) {
		uint64_t first = segment * SEGMENT_CHUNKS;
		uint64_t nr = min_u64(SEGMENT_CHUNKS, told->nr_chunks - first);
		if (cancel_check(cancel, err) < 0)
			return -1;
		if (told->segments[segment] == SEGMENT_MIXED) {
			if (walk_mixed(told, segment, buffer, run, context, err) < 0)
				return -1;
		} else {
			run(context,
				told->segments[segment] == SEGMENT_ZERO ? CHUNK_ZERO
									: CHUNK_NOTHING,
				first, nr, NULL);
		}
	}
	return 0;
}

static void into_tree(
	void *context, enum chunk_state state, uint64_t first, uint64_t nr, const uint8_t *leaf)
{
	struct digest_tree *tree = context;
	(void)first;
	if (state == CHUNK_DATA)
		digest_tree_leaf(tree, leaf);
	else
		digest_tree_zeros(tree, nr);
}

int told_root(
	struct told *told, struct cancel *cancel, uint8_t root[DIGEST_ROOT_BYTES], struct err *err)
{
	struct digest_tree tree;
	digest_tree_init(&tree, told->algorithm, told->size_bytes);
	if (walk(told, cancel, into_tree, &tree, err) < 0)
		return -1;
	digest_tree_root(&tree, root);
	return 0;
}

static void into_sent(
	void *context, enum chunk_state state, uint64_t first, uint64_t nr, const uint8_t *leaf)
{
	struct digest_sent *sent = context;
	if (state == CHUNK_DATA)
		digest_sent_leaf(sent, first, leaf);
	else if (state == CHUNK_ZERO)
		digest_sent_zeros(sent, first, nr);
}

int told_sent(struct told *told, struct cancel *cancel, uint8_t digest[DIGEST_ROOT_BYTES],
	struct err *err)
{
	struct digest_sent sent;
	if (digest_sent_init(&sent, told->algorithm, err) < 0)
		return -1;
	int rc = walk(told, cancel, into_sent, &sent, err);
	digest_sent_end(&sent, digest);
	return rc;
}
