/*
 * The bytes of a merge: the child's own clusters and digests, over those of the point beneath.
 *
 *   child.qcow2   . d . 0 d .          child.sums   . d . 0 d .
 *   X.qcow2       a b c . e .    and   X.sums       a b c . e .
 *   ─────────────────────────          ────────────────────────
 *   X.qcow2       a d c 0 d .          child.part   a d c 0 d .
 *
 * What is written into X.qcow2 the child hides; its own bytes are read twice, first to
 * compare them with their digests: what is damaged is not moved.
 */
#include "chain.h"
#include "merge_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define BATCH 64u

/* --- images ----------------------------------------------------------------------- */

static struct block *open_image(const struct merge *merge, const char *image,
	const struct qcow2_open_options *options, struct err *err)
{
	char *AUTO_FREE path = NULL;
	if (asprintf(&path, "%s/%s", merge->repo->info.path, image) < 0) {
		err_errno(err, ENOMEM, "cannot open %s", image);
		return NULL;
	}
	return qcow2_open(path, options, err);
}

static struct block *open_child(
	const struct merge *merge, const struct merge_disk *disk, struct err *err)
{
	const struct qcow2_open_options options = {.read_only = true,
		.own_layer = true,
		.merged = true,
		.size_bytes = disk->size_bytes};
	return open_image(merge, disk->child_image, &options, err);
}

int merge_data_write(const struct merge *merge, const struct merge_disk *disk, struct err *err)
{
	const struct repository_settings *settings = &merge->repo->info.settings;
	const struct qcow2_open_options options = {.merge = true,
		.size_bytes = disk->size_bytes,
		.compress = settings->compression != REPOSITORY_COMPRESS_NONE,
		.compress_level = settings->compress_level};
	const struct copy_options copy = {
		.changed_only = true, .progress = merge->progress, .cancel = merge->cancel};
	struct block *from = open_child(merge, disk, err);
	struct block *to = from ? open_image(merge, disk->image, &options, err) : NULL;
	int rc = to ? copy_run(from, to, &copy, err) : -1;
	struct err why = ERR_INIT;
	if (block_close(to, &why) < 0 && rc == 0)
		rc = err_copy(err, &why);
	block_close(from, NULL);
	if (rc < 0)
		return err_context(err, "cannot merge %s into %s", disk->child_image, disk->image);
	int AUTO_CLOSE fd =
		openat(merge->repo->dir_fd, disk->image, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0 || fsync(fd) < 0)
		return err_errno(err, errno, "cannot sync %s", disk->image);
	return 0;
}

/* Reading does not show it, and verification neither: only writing uses the refcounts. */
static int check_tables(const struct merge *merge, const struct merge_disk *disk, struct err *err)
{
	struct qcow2_check_result result;
	char *AUTO_FREE path = NULL;
	if (asprintf(&path, "%s/%s", merge->repo->info.path, disk->image) < 0)
		return err_errno(err, ENOMEM, "cannot check %s", disk->image);
	if (qcow2_check(path, false, merge->cancel, NULL, NULL, &result, err) < 0)
		return -1;
	if (result.errors == 0)
		return 0;
	err_set(err, ERR_CORRUPT,
		"%s has %" PRIu64 " errors in its tables, so nothing can be written into it",
		disk->image, result.errors);
	return err_hint(err, "sendense repo check tells of them");
}

/* --- the child's own bytes against its digests ---------------------------------------- */

struct comparison {
	const struct merge *merge;
	const struct merge_disk *disk;
	struct sums_reader *sums;
};

static int differs(const struct comparison *c, uint64_t chunk, struct err *err)
{
	err_set(err, ERR_CORRUPT,
		"disk %s of restore point %s of VM \"%s\", which stands on this one, is damaged at "
		"offset %" PRIu64 ": the digest of its data is wrong",
		c->disk->key, c->merge->child, c->merge->vm, chunk * DIGEST_CHUNK_BYTES);
	return err_hint(err, "sendense verify tells what else is damaged");
}

static int compare_chunks(void *context, uint64_t first, unsigned nr, const uint8_t *leaves,
	uint64_t zero_mask, struct err *err)
{
	const struct comparison *c = context;
	size_t leaf_bytes = digest_leaf_bytes(c->merge->repo->key.algorithm);
	for (unsigned i = 0; i < nr; i++) {
		enum sums_kind kind;
		uint64_t run;
		uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
		bool is_zero = zero_mask >> i & 1;
		if (sums_reader_run(c->sums, first + i, 1, &kind, &run, leaf, err) < 0)
			return -1;
		if (is_zero != (kind == SUMS_ZERO) ||
			(!is_zero && memcmp(leaf, leaves + (size_t)i * DIGEST_LEAF_BYTES_MAX,
					     leaf_bytes) != 0))
			return differs(c, first + i, err);
	}
	return 0;
}

static int compare_zeros(void *context, uint64_t first, uint64_t nr, struct err *err)
{
	const struct comparison *c = context;
	for (uint64_t run = 0; nr > 0; first += run, nr -= run) {
		enum sums_kind kind;
		uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
		if (sums_reader_run(c->sums, first, nr, &kind, &run, leaf, err) < 0)
			return -1;
		if (kind != SUMS_ZERO)
			return differs(c, first, err);
	}
	return 0;
}

static int compare_child(const struct merge *merge, const struct merge_disk *disk,
	struct sums_reader *sums, struct err *err)
{
	struct comparison comparison = {.merge = merge, .disk = disk, .sums = sums};
	const struct copy_chunk_sink sink = {
		.context = &comparison, .chunks = compare_chunks, .zeros = compare_zeros};
	const struct copy_options copy = {.digest_key = &merge->repo->key,
		.sink = &sink,
		.changed_only = true,
		.cancel = merge->cancel};
	struct block *child = open_child(merge, disk, err);
	int rc = child ? copy_scan(child, &copy, err) : -1;
	block_close(child, NULL);
	return rc;
}

/* --- the sums of both ------------------------------------------------------------------- */

/* Data chunks that follow each other, on their way to the writer. */
struct batch {
	struct sums_writer *writer;
	uint64_t first;
	unsigned nr;
	uint8_t leaves[BATCH * DIGEST_LEAF_BYTES_MAX];
};

static int flush_batch(struct batch *batch, struct err *err)
{
	unsigned nr = batch->nr;
	batch->nr = 0;
	return nr == 0 ? 0
		       : sums_writer_chunks(batch->writer, batch->first, nr, batch->leaves, 0, err);
}

static int add_to_batch(struct batch *batch, uint64_t chunk,
	const uint8_t leaf[DIGEST_LEAF_BYTES_MAX], struct err *err)
{
	if ((batch->nr == BATCH || chunk != batch->first + batch->nr) &&
		flush_batch(batch, err) < 0)
		return -1;
	if (batch->nr == 0)
		batch->first = chunk;
	memcpy(batch->leaves + (size_t)batch->nr++ * DIGEST_LEAF_BYTES_MAX, leaf,
		DIGEST_LEAF_BYTES_MAX);
	return 0;
}

static int tell_all(const struct merge *merge, uint64_t nr_chunks, struct sums_writer *writer,
	struct sums_reader *above, struct sums_reader *beneath, struct err *err)
{
	struct batch batch = {.writer = writer};
	bool increment = sums_reader_facts(beneath)->increment;
	for (uint64_t chunk = 0, nr; chunk < nr_chunks; chunk += nr) {
		enum sums_kind kind;
		uint8_t leaf[DIGEST_LEAF_BYTES_MAX] = {0};
		if (chunk % SUMS_SEGMENT_CHUNKS == 0 && cancel_check(merge->cancel, err) < 0)
			return -1;
		if (sums_reader_own_run(above, chunk, nr_chunks - chunk, &kind, &nr, leaf, err) < 0)
			return -1;
		if (kind == SUMS_INHERIT &&
			sums_reader_own_run(beneath, chunk, nr, &kind, &nr, leaf, err) < 0)
			return -1;
		/* What a full does not tell is zero. */
		if (kind == SUMS_ZERO && increment && sums_writer_zeros(writer, chunk, nr, err) < 0)
			return -1;
		if (kind == SUMS_DATA && add_to_batch(&batch, chunk, leaf, err) < 0)
			return -1;
	}
	return flush_batch(&batch, err);
}

static int write_sums(const struct merge *merge, const struct merge_disk *disk,
	struct sums_reader *above, struct sums_reader *beneath, struct err *err)
{
	struct sums_facts facts = *sums_reader_facts(above);
	struct sums_totals totals;
	facts.increment = sums_reader_facts(beneath)->increment;
	struct sums_writer *writer = sums_writer_create(merge->repo->dir_fd, disk->child_part,
		&facts, facts.increment ? beneath : NULL, err);
	if (!writer)
		return -1;
	int rc = tell_all(merge, div_round_up(facts.size_bytes, DIGEST_CHUNK_BYTES), writer, above,
		beneath, err);
	if (rc == 0)
		rc = sums_writer_finish(writer, &totals, err);
	sums_writer_free(writer);
	if (rc == 0 && memcmp(totals.root, sums_reader_totals(above)->root, DIGEST_ROOT_BYTES) != 0)
		rc = err_set(err, ERR_CORRUPT,
			"the checksums of disk %s in %s and %s together are not those of restore "
			"point %s",
			disk->key, disk->sums, disk->child_sums, merge->child);
	return rc;
}

int merge_data_prepare(const struct merge *merge, const struct merge_disk *disk,
	const struct repository_point *point, const struct repository_point *child, struct err *err)
{
	const struct repository_disk_info *info = repository_point_disk(point, disk->key);
	const struct repository_disk_info *child_info = repository_point_disk(child, disk->key);
	if (check_tables(merge, disk, err) < 0)
		return -1;
	struct chain *beneath = chain_open(merge->repo, point, info, err);
	struct chain *above = beneath ? chain_open(merge->repo, child, child_info, err) : NULL;
	int rc = -1;
	if (above && compare_child(merge, disk, chain_sums(above), err) == 0)
		rc = write_sums(merge, disk, chain_sums(above), chain_sums(beneath), err);
	chain_free(above);
	chain_free(beneath);
	return rc;
}
