/*
 * Reading a restore point's disk back.
 *
 * Image and sums of a point stand on those of its backing point, down to a full
 * (chain.c).
 *
 * With verify, every read is cut at chunks: whole ones are read and digested in
 * place, of others the chunk goes through a small cache of verified chunks.
 */
#include "disk_internal.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define CACHE_BYTES (8 * MIB)
#define WHOLE_CHUNKS_MOST 64u
#define ATTEMPTS_LEAST 2u
#define ATTEMPTS_MOST 50u

struct cached_chunk {
	uint64_t chunk;
	uint64_t last_used; /* 0: empty */
	uint8_t *bytes;
};

/* The block that verifies what it reads. */
struct verified {
	struct block block;
	struct repository_disk *disk;
	pthread_mutex_t mutex;
	uint64_t clock;
	struct cached_chunk *slots;
	size_t nr_slots;
};

struct repository_disk {
	struct repository *repo;
	struct lock *lease;
	struct repository_point *point;
	const struct repository_disk_info *info;
	bool own_layer;
	struct chain *chain;
	struct block *image;
	struct block *verified; /* NULL without verify */
	struct copy_chunk_sink sink;
};

/* --- the chain ------------------------------------------------------------------- */

static int open_image(struct repository_disk *disk, struct err *err)
{
	/* A prune may write to images beneath: only what those above hide. */
	const struct qcow2_open_options options = {.read_only = true,
		.merged = true,
		.own_layer = disk->own_layer,
		.size_bytes = disk->info->size_bytes};
	char *AUTO_FREE path = NULL;
	if (asprintf(&path, "%s/%s", disk->repo->info.path, disk->info->image) < 0)
		return err_errno(err, ENOMEM, "cannot open %s", disk->info->image);
	disk->image = qcow2_open(path, &options, err);
	if (!disk->image)
		return -1;
	uint64_t size_bytes = block_info(disk->image)->size_bytes;
	if (size_bytes != disk->info->size_bytes)
		return err_set(err, ERR_CORRUPT, "%s has %" PRIu64 " bytes instead of %" PRIu64,
			disk->info->image, size_bytes, disk->info->size_bytes);
	return 0;
}

/* --- comparing --------------------------------------------------------------------- */

struct sums_reader *disk_sums(struct repository_disk *disk)
{
	return chain_sums(disk->chain);
}

static int mismatch(const struct repository_disk *disk, uint64_t chunk, struct err *err)
{
	err_set(err, ERR_CORRUPT,
		"disk %s of restore point %s of VM \"%s\" is damaged at offset %" PRIu64
		": the digest of its data is wrong",
		disk->info->key, disk->point->id, disk->point->vm, chunk * DIGEST_CHUNK_BYTES);
	if (err)
		err->sys_errno = EIO;
	return err_hint(err, "sendense verify tells what else is damaged");
}

const struct chain *disk_chain(const struct repository_disk *disk)
{
	return disk->chain;
}

int disk_match(struct repository_disk *disk, uint64_t chunk, bool is_zero, const uint8_t *leaf,
	bool *matches, struct err *err)
{
	enum sums_kind kind;
	uint64_t nr;
	uint8_t expect[DIGEST_LEAF_BYTES_MAX];
	if (sums_reader_run(disk_sums(disk), chunk, 1, &kind, &nr, expect, err) < 0)
		return -1;
	if (kind == SUMS_ZERO || is_zero)
		*matches = kind == SUMS_ZERO && is_zero;
	else
		*matches = memcmp(leaf, expect, digest_leaf_bytes(disk->repo->key.algorithm)) == 0;
	return 0;
}

int disk_match_zeros(
	struct repository_disk *disk, uint64_t first, uint64_t nr, uint64_t *wrong, struct err *err)
{
	while (nr > 0) {
		enum sums_kind kind;
		uint64_t run;
		uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
		if (sums_reader_run(disk_sums(disk), first, nr, &kind, &run, leaf, err) < 0)
			return -1;
		if (kind == SUMS_DATA)
			break;
		first += run;
		nr -= run;
	}
	*wrong = nr > 0 ? first : UINT64_MAX;
	return 0;
}

int disk_match_bytes(struct repository_disk *disk, uint64_t chunk, const void *bytes, size_t length,
	bool *matches, struct err *err)
{
	uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
	bool is_zero = digest_is_zero(bytes, length);
	if (!is_zero)
		digest_leaf(&disk->repo->key, bytes, length, leaf);
	return disk_match(disk, chunk, is_zero, leaf, matches, err);
}

static int sink_chunks(void *context, uint64_t first, unsigned nr, const uint8_t *leaves,
	uint64_t zero_mask, struct err *err)
{
	struct repository_disk *disk = context;
	for (unsigned i = 0; i < nr; i++) {
		bool matches;
		if (disk_match(disk, first + i, zero_mask >> i & 1,
			    leaves + (size_t)i * DIGEST_LEAF_BYTES_MAX, &matches, err) < 0)
			return -1;
		if (!matches)
			return mismatch(disk, first + i, err);
	}
	return 0;
}

static int sink_zeros(void *context, uint64_t first, uint64_t nr, struct err *err)
{
	struct repository_disk *disk = context;
	uint64_t wrong;
	if (disk_match_zeros(disk, first, nr, &wrong, err) < 0)
		return -1;
	return wrong == UINT64_MAX ? 0 : mismatch(disk, wrong, err);
}

/* --- the verifying block -------------------------------------------------------------- */

static size_t chunk_length(const struct repository_disk *disk, uint64_t chunk)
{
	return (size_t)min_u64(
		DIGEST_CHUNK_BYTES, disk->info->size_bytes - chunk * DIGEST_CHUNK_BYTES);
}

static int read_whole(struct repository_disk *disk, uint8_t *buffer, uint64_t first, size_t length,
	struct err *err)
{
	if (block_read(disk->image, buffer, length, first * DIGEST_CHUNK_BYTES, err) < 0)
		return -1;
	for (uint64_t chunk = first; length > 0; chunk++) {
		size_t part = min_size(length, DIGEST_CHUNK_BYTES);
		bool matches;
		if (disk_match_bytes(disk, chunk, buffer, part, &matches, err) < 0)
			return -1;
		if (!matches)
			return mismatch(disk, chunk, err);
		buffer += part;
		length -= part;
	}
	return 0;
}

/* Copies from a cached chunk; false when it is not there. */
static bool read_cached(
	struct verified *verified, uint64_t chunk, size_t at, void *buffer, size_t length)
{
	WITH_LOCK(&verified->mutex);
	for (size_t i = 0; i < verified->nr_slots; i++) {
		struct cached_chunk *slot = &verified->slots[i];
		if (slot->last_used && slot->chunk == chunk) {
			slot->last_used = ++verified->clock;
			memcpy(buffer, slot->bytes + at, length);
			return true;
		}
	}
	return false;
}

/* Takes bytes; what it replaces is freed. */
static void keep_cached(struct verified *verified, uint64_t chunk, uint8_t *bytes)
{
	WITH_LOCK(&verified->mutex);
	struct cached_chunk *oldest = &verified->slots[0];
	for (size_t i = 0; i < verified->nr_slots; i++) {
		struct cached_chunk *slot = &verified->slots[i];
		if (slot->last_used && slot->chunk == chunk) {
			oldest = slot; /* another reader was faster */
			break;
		}
		if (slot->last_used < oldest->last_used)
			oldest = slot;
	}
	free(oldest->bytes);
	*oldest = (struct cached_chunk){
		.chunk = chunk, .last_used = ++verified->clock, .bytes = bytes};
}

static int read_part(struct verified *verified, uint64_t chunk, size_t at, void *buffer,
	size_t length, struct err *err)
{
	if (read_cached(verified, chunk, at, buffer, length))
		return 0;
	uint8_t *bytes = malloc(DIGEST_CHUNK_BYTES);
	if (!bytes)
		return err_errno(err, ENOMEM, "cannot read %zu bytes", length);
	if (read_whole(verified->disk, bytes, chunk, chunk_length(verified->disk, chunk), err) <
		0) {
		free(bytes);
		return -1;
	}
	memcpy(buffer, bytes + at, length);
	keep_cached(verified, chunk, bytes);
	return 0;
}

static int verified_read(
	struct block *block, void *buffer, size_t length, uint64_t offset, struct err *err)
{
	struct verified *verified = (struct verified *)block;
	uint64_t size_bytes = verified->disk->info->size_bytes;
	uint8_t *out = buffer;
	while (length > 0) {
		uint64_t chunk = offset / DIGEST_CHUNK_BYTES;
		size_t at = offset % DIGEST_CHUNK_BYTES;
		size_t part = min_size(length, WHOLE_CHUNKS_MOST * (size_t)DIGEST_CHUNK_BYTES);
		if (at == 0 && offset + part != size_bytes)
			part -= part % DIGEST_CHUNK_BYTES;
		int rc;
		if (at == 0 && part > 0) {
			rc = read_whole(verified->disk, out, chunk, part, err);
		} else {
			part = min_size(length, DIGEST_CHUNK_BYTES - at);
			rc = read_part(verified, chunk, at, out, part, err);
		}
		if (rc < 0)
			return -1;
		out += part;
		offset += part;
		length -= part;
	}
	return 0;
}

/*
 * Zeros in chunks that the sums do not know as zeros are told as data: whoever reads
 * them learns whether they are damage, instead of skipping them.
 */
static int verified_extents(struct block *block, uint64_t offset, uint64_t length,
	struct block_extent *extents, size_t max, size_t *nr_extents, struct err *err)
{
	struct repository_disk *disk = ((struct verified *)block)->disk;
	if (block_extents(disk->image, offset, length, extents, max, nr_extents, err) < 0)
		return -1;
	for (size_t i = 0; i < *nr_extents; offset += extents[i++].length) {
		if (!(extents[i].flags & BLOCK_ZERO))
			continue;
		uint64_t end = offset + extents[i].length, wrong;
		uint64_t first = offset / DIGEST_CHUNK_BYTES;
		uint64_t last = div_round_up(end, DIGEST_CHUNK_BYTES);
		if (disk_match_zeros(disk, first, last - first, &wrong, err) < 0)
			return -1;
		if (wrong == UINT64_MAX)
			continue;
		uint64_t wrong_offset = wrong * DIGEST_CHUNK_BYTES;
		if (wrong_offset > offset) {
			extents[i].length = wrong_offset - offset;
		} else {
			extents[i].length = min_u64(extents[i].length,
				wrong_offset + chunk_length(disk, wrong) - offset);
			extents[i].flags = 0;
		}
		*nr_extents = i + 1;
		return 0;
	}
	return 0;
}

static uint64_t verified_stored_bytes(struct block *block)
{
	return block_stored_bytes(((struct verified *)block)->disk->image);
}

static int verified_close(struct block *block, struct err *err)
{
	(void)err;
	struct verified *verified = (struct verified *)block;
	for (size_t i = 0; i < verified->nr_slots; i++)
		free(verified->slots[i].bytes);
	free(verified->slots);
	pthread_mutex_destroy(&verified->mutex);
	block_fini(block);
	free(verified);
	return 0;
}

static const struct block_driver verified_driver = {
	.name = "restore point",
	.read = verified_read,
	.extents = verified_extents,
	.stored_bytes = verified_stored_bytes,
	.close = verified_close,
};

static int open_verified(struct repository_disk *disk, size_t cache_bytes, struct err *err)
{
	char *label = NULL;
	struct verified *verified = calloc(1, sizeof *verified);
	if (!verified)
		return err_errno(err, ENOMEM, "cannot open disk %s", disk->info->key);
	verified->nr_slots =
		max_u64((cache_bytes ? cache_bytes : CACHE_BYTES) / DIGEST_CHUNK_BYTES, 1);
	verified->slots = calloc(verified->nr_slots, sizeof *verified->slots);
	if (!verified->slots || asprintf(&label, "%s@%s disk %s", disk->point->vm, disk->point->id,
					disk->info->key) < 0) {
		free(verified->slots);
		free(verified);
		return err_errno(err, ENOMEM, "cannot open disk %s", disk->info->key);
	}
	pthread_mutex_init(&verified->mutex, NULL);
	verified->disk = disk;
	block_init(&verified->block, &verified_driver, label);
	verified->block.info = *block_info(disk->image);
	disk->verified = &verified->block;
	return 0;
}

/* --- opening and closing ------------------------------------------------------------ */

static int choose_disk(struct repository_disk *disk, const char *key, struct err *err)
{
	const struct repository_point *point = disk->point;
	char keys[512] = "";
	for (size_t i = 0, used = 0; i < point->nr_disks && used < sizeof keys; i++)
		used += (size_t)snprintf(keys + used, sizeof keys - used, "%s%s", i ? ", " : "",
			point->disks[i].key);
	if (!key && point->nr_disks > 1)
		return err_set(err, ERR_USAGE,
			"restore point %s of VM \"%s\" has several disks: name one of %s",
			point->id, point->vm, keys);
	disk->info = key ? repository_point_disk(point, key) : &point->disks[0];
	if (disk->info)
		return 0;
	char shown[REPOSITORY_KEY_BYTES];
	name_printable(key, shown, sizeof shown);
	return err_set(err, ERR_NOT_FOUND,
		"restore point %s of VM \"%s\" has no disk \"%s\" (it has %s)", point->id,
		point->vm, shown, keys);
}

/* The lease comes first: what is looked at after it stays.  Fills in the point's id. */
static int take_lease(struct repository_disk *disk, const char *vm, const char *id,
	char found[REPOSITORY_POINT_BYTES], struct err *err)
{
	char job[REPOSITORY_JOB_BYTES];
	struct err why = ERR_INIT;
	if (repository_name_check_vm(vm, err) < 0 || name_make_job(time(NULL), job, err) < 0)
		return -1;
	if (!id || !id[0] || !repository_name_is_point(id)) {
		/* Also tells what is wrong with a name that is none. */
		struct repository_point *latest = repository_point_load(disk->repo, vm, id, err);
		if (!latest)
			return -1;
		memcpy(found, latest->id, REPOSITORY_POINT_BYTES);
		repository_point_free(latest);
	} else {
		memcpy(found, id, REPOSITORY_POINT_BYTES);
	}
	disk->lease = lock_take(disk->repo, LOCK_KIND_READ, vm, found, job, NULL, &why);
	return disk->lease || why.code == ERR_NONE ? 0 : err_copy(err, &why);
}

/* What one attempt to open has got. */
static void forget(struct repository_disk *disk)
{
	struct err err = ERR_INIT;
	if (block_close(disk->image, &err) < 0)
		log_warning("%s", err.text);
	chain_free(disk->chain);
	repository_point_free(disk->point);
	disk->image = NULL;
	disk->chain = NULL;
	disk->point = NULL;
	disk->info = NULL;
}

static int open_chain(struct repository_disk *disk, struct err *err)
{
	disk->chain = chain_open(disk->repo, disk->point, disk->info, err);
	if (disk->chain && open_image(disk, err) == 0)
		return 0;
	return err_context(err, "disk %s of restore point %s of VM \"%s\"", disk->info->key,
		disk->point->id, disk->point->vm);
}

static bool may_pass(const struct err *err)
{
	return err->code == ERR_NOT_FOUND || err->code == ERR_CORRUPT;
}

/*
 * A prune moves the files of a chain from one good state to the next, and whoever opens them one by
 * one may see some of both: then all is begun again, while each failure is another one.
 */
static int open_all(struct repository_disk *disk, const char *vm, const char *id, const char *key,
	struct err *err)
{
	struct err last = ERR_INIT;
	for (unsigned attempt = 0;; attempt++) {
		struct err why = ERR_INIT;
		forget(disk);
		disk->point = repository_point_load(disk->repo, vm, id, err);
		if (!disk->point || choose_disk(disk, key, err) < 0)
			return -1;
		if (open_chain(disk, &why) == 0)
			return 0;
		bool same = strcmp(why.text, last.text) == 0;
		if (!may_pass(&why) || attempt == ATTEMPTS_MOST ||
			(same && attempt >= ATTEMPTS_LEAST))
			return err_copy(err, &why);
		last = why;
	}
}

static struct repository_disk *open_disk(struct repository *repo, const char *vm, const char *point,
	const char *key, bool own_layer, struct err *err)
{
	char id[REPOSITORY_POINT_BYTES];
	struct repository_disk *disk = calloc(1, sizeof *disk);
	if (!disk) {
		err_errno(err, ENOMEM, "cannot open a restore point");
		return NULL;
	}
	disk->repo = repo;
	disk->own_layer = own_layer;
	repo->nr_users++;
	disk->sink = (struct copy_chunk_sink){
		.context = disk, .chunks = sink_chunks, .zeros = sink_zeros};
	if (take_lease(disk, vm, point, id, err) == 0 && open_all(disk, vm, id, key, err) == 0)
		return disk;
	repository_disk_close(disk);
	return NULL;
}

struct repository_disk *repository_disk_open(struct repository *repo, const char *vm,
	const char *point, const char *key, const struct repository_disk_options *options,
	struct err *err)
{
	struct repository_disk *disk = open_disk(repo, vm, point, key, false, err);
	if (disk && options && options->verify &&
		open_verified(disk, options->cache_bytes, err) < 0) {
		repository_disk_close(disk);
		return NULL;
	}
	return disk;
}

struct repository_disk *disk_open_layer(struct repository *repo, const char *vm, const char *point,
	const char *key, struct err *err)
{
	return open_disk(repo, vm, point, key, true, err);
}

struct block *repository_disk_block(struct repository_disk *disk)
{
	return disk->verified ? disk->verified : disk->image;
}

const struct repository_disk_info *repository_disk_info(const struct repository_disk *disk)
{
	return disk->info;
}

const char *repository_disk_point(const struct repository_disk *disk)
{
	return disk->point->id;
}

const struct copy_chunk_sink *repository_disk_sink(struct repository_disk *disk)
{
	return &disk->sink;
}

const struct digest_key *repository_disk_digest_key(struct repository_disk *disk)
{
	return &disk->repo->key;
}

void repository_disk_close(struct repository_disk *disk)
{
	if (!disk)
		return;
	block_close(disk->verified, NULL);
	forget(disk);
	lock_release(disk->lease);
	disk->repo->nr_users--;
	free(disk);
}
