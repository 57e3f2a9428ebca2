/*
 * Whether what is given is what the record says: disks, targets, and what those hold.
 *
 * All of a target is read only when that was asked for.  Otherwise a sample is: fixed places
 * (both ends, the middle, the first data), where other disks differ, and random ones, half of them
 * where there is data.  After a run, a third is of what it wrote.
 */
#include "replica_internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>

#define SAMPLE_CHUNKS 64u
#define SUFFIX ".replica.json"

/* --- the run itself -------------------------------------------------------------------- */

static int check_pair(const struct replica_disk *a, const struct replica_disk *b, struct err *err)
{
	if (strcmp(a->key, b->key) == 0)
		return err_set(err, ERR_USAGE, "disk key %s is given twice", a->key);
	if (strcmp(a->target_id, b->target_id) == 0)
		return err_set(err, ERR_CONFLICT, "disks %s and %s have the same target: %s",
			a->key, b->key, b->target);
	if (strcmp(a->source_id, b->source_id) == 0)
		return err_set(err, ERR_CONFLICT, "disks %s and %s are the same source: %s", a->key,
			b->key, b->source_id);
	return 0;
}

/* The record is JSON. */
static int check_names(const struct replica_disk *disk, struct err *err)
{
	const char *const names[] = {disk->target, disk->target_id, disk->source_id};
	for (size_t i = 0; i < ARRAY_LENGTH(names); i++) {
		json_t *text = json_string(names[i]);
		bool good = text != NULL;
		json_decref(text);
		if (!good)
			return err_set(err, ERR_USAGE,
				"disk %s: its %s has a name that is not UTF-8, and cannot be "
				"recorded",
				disk->key, i < 2 ? "target" : "source");
	}
	return 0;
}

static int check_sizes(const struct replica_disk *disk, struct err *err)
{
	uint64_t from = disk->size_bytes;
	const struct block_info *to = block_info(disk->target_block);
	if (from != to->size_bytes)
		return err_set(err, ERR_RANGE,
			"disk %s has %" PRIu64 " bytes, its target %s has %" PRIu64
			" (sizes must be equal)",
			disk->key, from, disk->target, to->size_bytes);
	if (to->read_only)
		return err_set(
			err, ERR_DENIED, "disk %s: %s is read-only", disk->key, disk->target);
	return 0;
}

/* --- the record -------------------------------------------------------------------------- */

/* What is not as it was; the disk is taken as a new one when that is forced. */
static int differs(struct replica *r, struct one_disk *disk, const char *what, const char *now,
	const char *then, struct err *err)
{
	if (r->options.force) {
		disk->retake = true;
		snprintf(
			disk->reason, sizeof disk->reason, "--force: another %s than before", what);
		return 0;
	}
	err_set(err, ERR_CONFLICT, "disk %s: its %s is %s, and was %s in generation %" PRIu64,
		disk->given->key, what, now, then, r->record.generation);
	return err_hint(err, "--force takes it, and writes all of the disk");
}

/* Not to where another disk was, and not in the middle of a run. */
static bool may_have_moved(
	const struct replica *r, const struct ledger_disk *record, const struct replica_disk *given)
{
	for (size_t i = 0; i < r->record.nr_disks; i++)
		if (strcmp(r->record.disks[i].target_id, given->target_id) == 0)
			return false;
	return given->may_move && !r->record.running && record->root_hex[0];
}

static int check_disk(struct replica *r, struct one_disk *disk, struct err *err)
{
	const struct ledger_disk *record = ledger_disk(&r->record, disk->given->key);
	const struct replica_disk *given = disk->given;
	uint64_t size_bytes = given->size_bytes;
	if (!record)
		return 0;
	disk->moved = strcmp(record->target_id, given->target_id) != 0;
	if (disk->moved && !may_have_moved(r, record, given))
		return differs(r, disk, "target", given->target_id, record->target_id, err);
	if (strcmp(record->source_id, given->source_id) != 0)
		return differs(r, disk, "source", given->source_id, record->source_id, err);
	if (record->size_bytes != size_bytes) {
		char now[32], then[32];
		snprintf(now, sizeof now, "%" PRIu64 " bytes", size_bytes);
		snprintf(then, sizeof then, "%" PRIu64, record->size_bytes);
		return differs(r, disk, "size", now, then, err);
	}
	return 0;
}

static bool is_given(const struct replica *r, const char *key)
{
	for (size_t i = 0; i < r->nr_disks; i++)
		if (strcmp(r->disks[i].given->key, key) == 0)
			return true;
	return false;
}

/* All disks of a machine go from generation to generation together. */
static int check_missing(const struct replica *r, struct err *err)
{
	for (size_t i = 0; i < r->record.nr_disks; i++) {
		const struct ledger_disk *disk = &r->record.disks[i];
		if (is_given(r, disk->key) || r->options.force)
			continue;
		err_set(err, ERR_CONFLICT,
			"disk %s is missing: generation %" PRIu64 " has it, in %s", disk->key,
			r->record.generation, disk->target);
		return err_hint(err, "--force forgets it");
	}
	return 0;
}

/* --- other machines -------------------------------------------------------------------- */

static int check_other(const struct replica *r, const char *name, struct err *err)
{
	char *AUTO_FREE bytes = NULL;
	size_t length;
	/* One that cannot be read says nothing; its own machine's run does. */
	if (file_load(r->dir_fd, name, 4u << 20, &bytes, &length, NULL) < 0 ||
		jsontext_shape(bytes, length).depth > 8)
		return 0;
	json_t *root = json_loadb(bytes, length, 0, NULL);
	const char *vm = json_string_value(json_object_get(root, "vm"));
	json_t *disk;
	size_t i;
	int rc = 0;
	json_array_foreach(json_object_get(root, "disks"), i, disk)
	{
		const char *id = json_string_value(json_object_get(disk, "target_id"));
		for (size_t k = 0; id && vm && rc == 0 && k < r->nr_disks; k++)
			if (strcmp(id, r->disks[k].given->target_id) == 0)
				rc = err_set(err, ERR_CONFLICT,
					"%s, the target of disk %s, is that of a disk of VM \"%s\"",
					r->disks[k].given->target, r->disks[k].given->key, vm);
	}
	json_decref(root);
	return rc < 0 ? err_hint(err, "--force takes it") : 0;
}

static int check_others(const struct replica *r, struct err *err)
{
	if (r->options.force)
		return 0;
	int fd = openat(r->dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *folder = fd < 0 ? NULL : fdopendir(fd);
	if (!folder) {
		err_errno(err, errno, "cannot list %s", r->options.folder);
		if (fd >= 0)
			close(fd);
		return -1;
	}
	struct dirent *entry;
	int rc = 0;
	while (rc == 0 && (entry = readdir(folder))) {
		size_t length = strlen(entry->d_name), suffix = strlen(SUFFIX);
		if (length > suffix && strcmp(entry->d_name + length - suffix, SUFFIX) == 0 &&
			strcmp(entry->d_name, r->record_name) != 0)
			rc = check_other(r, entry->d_name, err);
	}
	closedir(folder);
	return rc;
}

int match_record(struct replica *r, struct err *err)
{
	for (size_t i = 0; i < r->nr_disks; i++) {
		for (size_t k = 0; k < i; k++)
			if (check_pair(r->disks[k].given, r->disks[i].given, err) < 0)
				return -1;
		if (check_names(r->disks[i].given, err) < 0 ||
			check_sizes(r->disks[i].given, err) < 0)
			return -1;
	}
	if (check_missing(r, err) < 0)
		return -1;
	for (size_t i = 0; i < r->nr_disks; i++)
		if (check_disk(r, &r->disks[i], err) < 0)
			return -1;
	return check_others(r, err);
}

/* --- what a target holds --------------------------------------------------------------------- */

struct sampler {
	struct replica *replica;
	struct one_disk *disk;
	bool settled_only; /* what has a mark is in doubt anyhow */
};

static int look_at(const struct sampler *sampler, uint64_t chunk, struct err *err)
{
	struct leaves *leaves = &sampler->disk->leaves;
	uint8_t bytes[DIGEST_CHUNK_BYTES], ours[REPLICA_LEAF_BYTES];
	uint8_t leaf[DIGEST_LEAF_BYTES_MAX] = {0};
	uint64_t offset = chunk * DIGEST_CHUNK_BYTES;
	size_t length = (size_t)min_u64(sizeof bytes, leaves->size_bytes - offset);
	enum leaf_mark mark;
	if (leaves_get(leaves, chunk, ours, &mark, err) < 0)
		return -1;
	if (sampler->settled_only && mark != MARK_NONE)
		return 0;
	if (block_read(sampler->disk->given->target_block, bytes, length, offset, err) < 0)
		return -1;
	if (!digest_is_zero(bytes, length))
		digest_leaf(&sampler->replica->key, bytes, length, leaf);
	if (memcmp(leaf, ours, sizeof ours) == 0)
		return 0;
	return err_set(
		err, ERR_CORRUPT, "the target holds something else at offset %" PRIu64, offset);
}

static int look_at_sample(const struct sampler *sampler, struct err *err)
{
	struct leaves *leaves = &sampler->disk->leaves;
	uint64_t random[SAMPLE_CHUNKS], first, nr = leaves->nr_chunks;
	if (file_random(random, sizeof random, err) < 0 ||
		leaves_next_data(leaves, 0, nr, &first, err) < 0)
		return -1;
	const uint64_t fixed[] = {0, nr - 1, nr / 2, first < nr ? first : 0};
	for (size_t i = 0; i < ARRAY_LENGTH(fixed); i++)
		if (look_at(sampler, fixed[i], err) < 0)
			return -1;
	for (unsigned i = 0; i < SAMPLE_CHUNKS; i++) {
		uint64_t chunk = random[i] % nr;
		if (i % 2 == 0 && leaves_next_data(leaves, chunk, nr, &chunk, err) < 0)
			return -1;
		if (i % 3 == 0 && sampler->disk->begun &&
			leaves_next_told(leaves, chunk % nr, nr, &chunk, err) < 0)
			return -1;
		if (cancel_check(sampler->replica->options.cancel, err) < 0 ||
			look_at(sampler, chunk < nr ? chunk : nr - 1, err) < 0)
			return -1;
	}
	return 0;
}

static int compare_chunks(void *context, uint64_t first, unsigned nr, const uint8_t *of,
	uint64_t zero_mask, struct err *err)
{
	struct one_disk *disk = context;
	return leaves_compare(&disk->leaves, first, nr, of, zero_mask, err);
}

static int compare_zeros(void *context, uint64_t first, uint64_t nr, struct err *err)
{
	struct one_disk *disk = context;
	return leaves_compare_zeros(&disk->leaves, first, nr, err);
}

int match_target(struct replica *r, struct one_disk *disk, bool whole,
	struct copy_progress *figures, struct err *err)
{
	if (!whole) {
		struct sampler sampler = {r, disk, !disk->begun};
		return look_at_sample(&sampler, err);
	}
	struct copy_chunk_sink sink = {disk, compare_chunks, compare_zeros};
	struct copy_options options = {
		.digest_key = &r->key,
		.sink = &sink,
		.progress = figures,
		.cancel = r->options.cancel,
	};
	return copy_scan(disk->given->target_block, &options, err);
}
