/*
 * Taking in a disk that somebody else writes.
 *
 *   a write ─┬─ whole chunks ─► digested ─► image ─► told to the sums
 *            └─ a part of one ─► image ─► forgotten by the sums  ··· settle: read back, told
 *
 * What was written in parts is known without a list of it: the image holds something for the
 * chunk, and the sums tell nothing.  That costs no memory whatever the size of the disk, and is
 * still so after a crash.  It does not hold everywhere:
 *
 *   clusters larger than a chunk   the image holds a chunk because its neighbour was written
 *   a full made of the chain       the image has no backing, and what is not told comes from the
 *                                  parent at commit
 *
 * There ("eager") a part is joined with the rest of its chunk at once, and the chunk is told.
 *
 * Each call holds its chunks alone while it changes image and sums, so that the digest that is
 * told last is that of the bytes that were written last.
 */
#include "backup_internal.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define BATCH_CHUNKS 64u
#define READ_BACK_CHUNKS 16u

struct intake {
	struct block block;
	struct backup_disk *disk;
	bool eager;
	struct rangelock lock; /* chunks that are changed */
	struct repository_disk *parent; /* of a full made of the chain; else NULL */
	pthread_mutex_t mutex;
	struct err err; /* the first that left image and sums apart */
};

static struct block *image_of(const struct intake *intake)
{
	return intake->disk->image;
}

static uint64_t chunk_end(const struct intake *intake, uint64_t chunk)
{
	return min_u64((chunk + 1) * DIGEST_CHUNK_BYTES, intake->disk->size_bytes);
}

/* Image and sums may not agree any more: there is no commit. */
static int spoil(struct intake *intake, const struct err *why)
{
	WITH_LOCK(&intake->mutex);
	if (intake->err.code == ERR_NONE)
		err_copy(&intake->err, why);
	return -1;
}

static int is_told(struct intake *intake, uint64_t chunk, bool *told, struct err *err)
{
	enum sums_kind kind;
	uint64_t nr;
	uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
	if (sums_writer_look(intake->disk->sums, chunk, 1, &kind, &nr, leaf, err) < 0)
		return -1;
	*told = kind == SUMS_DATA || kind == SUMS_ZERO;
	return 0;
}

/* --- whole chunks ---------------------------------------------------------------- */

/* One for one: bit i of zero_mask, leaf i. */
static void digest_chunks(const struct intake *intake, const uint8_t *bytes, size_t length,
	uint8_t *leaves, uint64_t *zero_mask)
{
	const struct digest_key *key = &intake->disk->backup->repo->key;
	*zero_mask = 0;
	for (size_t at = 0, i = 0; at < length; at += DIGEST_CHUNK_BYTES, i++) {
		size_t n = min_size(DIGEST_CHUNK_BYTES, length - at);
		if (digest_is_zero(bytes + at, n))
			*zero_mask |= (uint64_t)1 << i;
		else
			digest_leaf(key, bytes + at, n, leaves + i * DIGEST_LEAF_BYTES_MAX);
	}
}

/* Zeros as holes, where that is possible. */
static int write_image(const struct intake *intake, const uint8_t *bytes, size_t length,
	uint64_t offset, uint64_t zero_mask, struct err *err)
{
	size_t nr = div_round_up(length, DIGEST_CHUNK_BYTES);
	for (size_t i = 0, end; i < nr; i = end) {
		bool zero = zero_mask >> i & 1;
		for (end = i + 1; end < nr && (zero_mask >> end & 1) == zero; end++)
			;
		size_t at = i * DIGEST_CHUNK_BYTES;
		size_t n = min_size(end * DIGEST_CHUNK_BYTES, length) - at;
		if ((zero ? block_zero(image_of(intake), offset + at, n, 0, err)
			  : block_write(image_of(intake), bytes + at, n, offset + at, 0, err)) < 0)
			return -1;
	}
	return 0;
}

/* Holding the chunks.  What they are after a write that failed, nobody knows. */
static int forget(struct intake *intake, uint64_t first, uint64_t nr, const struct err *why)
{
	struct err err = ERR_INIT;
	if (intake->eager)
		return spoil(intake, why);
	for (uint64_t i = 0; i < nr; i++)
		if (sums_writer_forget(intake->disk->sums, first + i, &err) < 0)
			return spoil(intake, &err);
	return -1;
}

/* Holding the chunks. */
static int put_chunks(struct intake *intake, const uint8_t *bytes, size_t length, uint64_t offset,
	const uint8_t *leaves, uint64_t zero_mask, struct err *err)
{
	uint64_t first = offset / DIGEST_CHUNK_BYTES;
	unsigned nr = (unsigned)div_round_up(length, DIGEST_CHUNK_BYTES);
	struct err why = ERR_INIT;
	if (write_image(intake, bytes, length, offset, zero_mask, &why) < 0) {
		forget(intake, first, nr, &why);
		return err_copy(err, &why);
	}
	if (sums_writer_chunks(intake->disk->sums, first, nr, leaves, zero_mask, &why) < 0) {
		spoil(intake, &why);
		return err_copy(err, &why);
	}
	return 0;
}

static int write_chunks(struct intake *intake, const uint8_t *bytes, size_t length, uint64_t offset,
	struct err *err)
{
	uint8_t leaves[BATCH_CHUNKS * DIGEST_LEAF_BYTES_MAX];
	uint64_t zero_mask;
	struct rangelock_hold hold;
	digest_chunks(intake, bytes, length, leaves, &zero_mask);
	rangelock_acquire(&intake->lock, &hold, offset, length, true);
	int rc = put_chunks(intake, bytes, length, offset, leaves, zero_mask, err);
	rangelock_release(&intake->lock, &hold);
	return rc < 0 ? -1 : checkpoint_told(intake->disk, length, err);
}

/* --- parts of a chunk ------------------------------------------------------------ */

/* What the chunk is now: what is not told of a full made of the chain is the parent's. */
static int read_chunk(
	struct intake *intake, uint64_t chunk, uint8_t *bytes, size_t *length, struct err *err)
{
	uint64_t offset = chunk * DIGEST_CHUNK_BYTES;
	struct block *from = image_of(intake);
	bool told = true;
	*length = (size_t)(chunk_end(intake, chunk) - offset);
	if (intake->parent && is_told(intake, chunk, &told, err) < 0)
		return -1;
	if (!told)
		from = repository_disk_block(intake->parent);
	return block_read(from, bytes, *length, offset, err);
}

static int tell_chunk(
	struct intake *intake, uint64_t chunk, uint8_t *bytes, size_t length, struct err *err)
{
	uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
	uint64_t zero_mask;
	digest_chunks(intake, bytes, length, leaf, &zero_mask);
	return sums_writer_chunks(intake->disk->sums, chunk, 1, leaf, zero_mask, err);
}

/* bytes NULL: zeros.  Holding the chunk, as all here. */
static int join_part(struct intake *intake, const uint8_t *bytes, size_t length, uint64_t offset,
	struct err *err)
{
	uint64_t chunk = offset / DIGEST_CHUNK_BYTES, zero_mask;
	size_t at = (size_t)(offset % DIGEST_CHUNK_BYTES), whole;
	uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
	uint8_t *AUTO_FREE room = malloc(DIGEST_CHUNK_BYTES);
	if (!room)
		return err_errno(err, ENOMEM, "cannot write to disk %s", intake->disk->key);
	if (read_chunk(intake, chunk, room, &whole, err) < 0)
		return -1;
	if (bytes)
		memcpy(room + at, bytes, length);
	else
		memset(room + at, 0, length);
	digest_chunks(intake, room, whole, leaf, &zero_mask);
	return put_chunks(intake, room, whole, chunk * DIGEST_CHUNK_BYTES, leaf, zero_mask, err);
}

/* A part that left nothing in the image (zeros over nothing) is not found at the end: its chunk is
 * told now. */
static int note_part(struct intake *intake, uint64_t chunk, struct err *err)
{
	bool held;
	uint64_t nr;
	size_t length;
	if (sums_writer_forget(intake->disk->sums, chunk, err) < 0 ||
		resume_held(intake->disk, chunk, 1, &held, &nr, err) < 0)
		return -1;
	if (held)
		return 0;
	uint8_t *AUTO_FREE room = malloc(DIGEST_CHUNK_BYTES);
	if (!room)
		return err_errno(err, ENOMEM, "cannot write to disk %s", intake->disk->key);
	if (read_chunk(intake, chunk, room, &length, err) < 0)
		return -1;
	return tell_chunk(intake, chunk, room, length, err);
}

static int leave_part(struct intake *intake, const uint8_t *bytes, size_t length, uint64_t offset,
	struct err *err)
{
	uint64_t chunk = offset / DIGEST_CHUNK_BYTES;
	struct err why = ERR_INIT;
	if ((bytes ? block_write(image_of(intake), bytes, length, offset, 0, &why)
		   : block_zero(image_of(intake), offset, length, 0, &why)) < 0) {
		forget(intake, chunk, 1, &why);
		return err_copy(err, &why);
	}
	if (note_part(intake, chunk, &why) == 0)
		return 0;
	spoil(intake, &why);
	return err_copy(err, &why);
}

static int change_part(struct intake *intake, const uint8_t *bytes, size_t length, uint64_t offset,
	struct err *err)
{
	struct rangelock_hold hold;
	rangelock_acquire(&intake->lock, &hold, round_down(offset, DIGEST_CHUNK_BYTES),
		DIGEST_CHUNK_BYTES, true);
	int rc = intake->eager ? join_part(intake, bytes, length, offset, err)
			       : leave_part(intake, bytes, length, offset, err);
	rangelock_release(&intake->lock, &hold);
	return rc < 0 ? -1 : checkpoint_told(intake->disk, bytes ? length : 0, err);
}

/* --- the block ------------------------------------------------------------------- */

/* How many of the bytes at offset are whole chunks; 0: a part of one comes first. */
static uint64_t whole_bytes(const struct intake *intake, uint64_t offset, uint64_t length)
{
	if (offset % DIGEST_CHUNK_BYTES != 0)
		return 0;
	if (offset + length == intake->disk->size_bytes)
		return length;
	return round_down(length, DIGEST_CHUNK_BYTES);
}

static uint64_t part_bytes(uint64_t offset, uint64_t length)
{
	return min_u64(length, DIGEST_CHUNK_BYTES - offset % DIGEST_CHUNK_BYTES);
}

static int intake_write(struct block *block, const void *buffer, size_t length, uint64_t offset,
	unsigned flags, struct err *err)
{
	struct intake *intake = (struct intake *)block;
	(void)flags;
	for (const uint8_t *bytes = buffer; length > 0;) {
		size_t n = (size_t)whole_bytes(intake, offset, length);
		n = min_size(n, BATCH_CHUNKS * (size_t)DIGEST_CHUNK_BYTES);
		bool whole = n > 0;
		if (!whole)
			n = (size_t)part_bytes(offset, length);
		if ((whole ? write_chunks(intake, bytes, n, offset, err)
			   : change_part(intake, bytes, n, offset, err)) < 0)
			return -1;
		bytes += n;
		offset += n;
		length -= n;
	}
	return 0;
}

static int zero_chunks(struct intake *intake, uint64_t offset, uint64_t length, struct err *err)
{
	uint64_t first = offset / DIGEST_CHUNK_BYTES;
	uint64_t nr = div_round_up(length, DIGEST_CHUNK_BYTES);
	struct rangelock_hold hold;
	struct err why = ERR_INIT;
	rangelock_acquire(&intake->lock, &hold, offset, length, true);
	int rc = block_zero(image_of(intake), offset, length, 0, &why);
	if (rc < 0)
		forget(intake, first, nr, &why);
	else if (sums_writer_zeros(intake->disk->sums, first, nr, &why) < 0)
		rc = spoil(intake, &why);
	rangelock_release(&intake->lock, &hold);
	return rc < 0 ? err_copy(err, &why) : checkpoint_told(intake->disk, 0, err);
}

static int intake_zero(
	struct block *block, uint64_t offset, uint64_t length, unsigned flags, struct err *err)
{
	struct intake *intake = (struct intake *)block;
	(void)flags;
	while (length > 0) {
		uint64_t n = whole_bytes(intake, offset, length);
		bool whole = n > 0;
		if (!whole)
			n = part_bytes(offset, length);
		if ((whole ? zero_chunks(intake, offset, n, err)
			   : change_part(intake, NULL, (size_t)n, offset, err)) < 0)
			return -1;
		offset += n;
		length -= n;
	}
	return 0;
}

/* A hint: of chunks that it covers in part, it is not taken. */
static int intake_trim(
	struct block *block, uint64_t offset, uint64_t length, unsigned flags, struct err *err)
{
	struct intake *intake = (struct intake *)block;
	uint64_t skip = min_u64(length, round_up(offset, DIGEST_CHUNK_BYTES) - offset);
	uint64_t n = whole_bytes(intake, offset + skip, length - skip);
	(void)flags;
	return n > 0 ? zero_chunks(intake, offset + skip, n, err) : 0;
}

static int intake_read(
	struct block *block, void *buffer, size_t length, uint64_t offset, struct err *err)
{
	struct intake *intake = (struct intake *)block;
	if (!intake->parent)
		return block_read(image_of(intake), buffer, length, offset, err);
	for (uint8_t *out = buffer; length > 0;) {
		bool told;
		size_t n = (size_t)part_bytes(offset, length);
		if (is_told(intake, offset / DIGEST_CHUNK_BYTES, &told, err) < 0 ||
			block_read(told ? image_of(intake) : repository_disk_block(intake->parent),
				out, n, offset, err) < 0)
			return -1;
		out += n;
		offset += n;
		length -= n;
	}
	return 0;
}

static int intake_extents(struct block *block, uint64_t offset, uint64_t length,
	struct block_extent *extents, size_t max, size_t *nr, struct err *err)
{
	const struct intake *intake = (struct intake *)block;
	if (!intake->parent)
		return block_extents(image_of(intake), offset, length, extents, max, nr, err);
	extents[0] = (struct block_extent){.length = length};
	*nr = 1;
	return 0;
}

static int intake_flush(struct block *block, struct err *err)
{
	return block_flush(image_of((struct intake *)block), err);
}

static int intake_close(struct block *block, struct err *err)
{
	struct intake *intake = (struct intake *)block;
	(void)err;
	repository_disk_close(intake->parent);
	rangelock_destroy(&intake->lock);
	pthread_mutex_destroy(&intake->mutex);
	block_fini(block);
	free(intake);
	return 0;
}

static const struct block_driver intake_driver = {
	.name = "intake",
	.read = intake_read,
	.write = intake_write,
	.zero = intake_zero,
	.trim = intake_trim,
	.flush = intake_flush,
	.extents = intake_extents,
	.close = intake_close,
};

static struct intake *intake_new(struct backup_disk *disk, struct err *err)
{
	const struct repository_backup *backup = disk->backup;
	const struct repository_disk_options verified = {.verify = true};
	struct intake *intake = calloc(1, sizeof *intake);
	char *label = NULL;
	if (!intake || asprintf(&label, "disk %s of VM \"%s\"", disk->key, backup->vm) < 0) {
		free(intake);
		err_errno(err, ENOMEM, "cannot take in disk %s", disk->key);
		return NULL;
	}
	block_init(&intake->block, &intake_driver, label);
	rangelock_init(&intake->lock);
	pthread_mutex_init(&intake->mutex, NULL);
	intake->disk = disk;
	intake->eager =
		disk->is_filled || backup->repo->info.settings.cluster_bytes > DIGEST_CHUNK_BYTES;
	const struct block_info *image = block_info(disk->image);
	intake->block.info = (struct block_info){
		.size_bytes = disk->size_bytes,
		.has_extents = !disk->is_filled && image->has_extents,
		.can_trim = true,
		.can_zero = true,
		.multi_lane = true,
		.starts_zero = !disk->chain && disk->resumed == REPOSITORY_FRESH,
		.granule_bytes = (uint32_t)max_u64(DIGEST_CHUNK_BYTES, image->granule_bytes),
	};
	if (disk->is_filled)
		intake->parent = repository_disk_open(
			backup->repo, backup->vm, disk->parent, disk->key, &verified, err);
	if (!disk->is_filled || intake->parent)
		return intake;
	intake_close(&intake->block, NULL);
	return NULL;
}

int repository_backup_intake(
	struct repository_backup *backup, size_t index, struct block **block, struct err *err)
{
	assert(index < backup->nr_disks && backup->state == BACKUP_MAKING);
	struct backup_disk *disk = &backup->disks[index];
	assert(!disk->intake);
	if (checkpoint_start(backup, err) < 0)
		return -1;
	backup_copy_sink(disk); /* for what is filled in at the end */
	disk->intake = intake_new(disk, err);
	if (!disk->intake)
		return -1;
	*block = &disk->intake->block;
	return 0;
}

void intake_free(struct intake *intake)
{
	if (intake)
		block_close(&intake->block, NULL);
}

/* --- settling -------------------------------------------------------------------- */

/* Where clusters hold more than a chunk, an interrupted job may have left some that are not as
 * beneath, and that nobody wrote again. */
static int as_beneath(const struct intake *intake, uint64_t chunk, const uint8_t *leaf,
	bool is_zero, bool *same, struct err *err)
{
	struct backup_disk *disk = intake->disk;
	uint64_t mask = 0;
	*same = false;
	if (!intake->eager)
		return 0;
	if (!disk->chain) {
		*same = is_zero;
		return 0;
	}
	if (backup_copy_parent_chunks(disk, chunk, 1, leaf, is_zero, &mask, err) < 0)
		return -1;
	*same = mask & 1;
	return 0;
}

static int read_back(
	struct intake *intake, uint64_t first, uint64_t nr, uint8_t *room, struct err *err)
{
	while (nr > 0) {
		unsigned n = (unsigned)min_u64(nr, READ_BACK_CHUNKS);
		uint64_t offset = first * DIGEST_CHUNK_BYTES, mask;
		size_t length = (size_t)(chunk_end(intake, first + n - 1) - offset);
		uint8_t leaves[READ_BACK_CHUNKS * DIGEST_LEAF_BYTES_MAX];
		if (cancel_check(intake->disk->backup->cancel, err) < 0 ||
			block_read(image_of(intake), room, length, offset, err) < 0)
			return -1;
		digest_chunks(intake, room, length, leaves, &mask);
		for (unsigned i = 0; i < n; i++) {
			const uint8_t *leaf = leaves + (size_t)i * DIGEST_LEAF_BYTES_MAX;
			bool same, zero = mask >> i & 1;
			if (as_beneath(intake, first + i, leaf, zero, &same, err) < 0 ||
				(!same && sums_writer_chunks(intake->disk->sums, first + i, 1, leaf,
						  zero, err) < 0))
				return -1;
		}
		if (checkpoint_told(intake->disk, 0, err) < 0)
			return -1;
		first += n;
		nr -= n;
	}
	return 0;
}

static int settle(struct intake *intake, struct err *err)
{
	struct backup_disk *disk = intake->disk;
	uint64_t nr_chunks = div_round_up(disk->size_bytes, DIGEST_CHUNK_BYTES), nr;
	uint8_t *AUTO_FREE room = malloc((size_t)READ_BACK_CHUNKS * DIGEST_CHUNK_BYTES);
	if (!room)
		return err_errno(err, ENOMEM, "cannot read back what was written");
	for (uint64_t chunk = 0; chunk < nr_chunks; chunk += nr) {
		enum sums_kind kind;
		uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
		bool held = false;
		if (sums_writer_look(disk->sums, chunk, nr_chunks - chunk, &kind, &nr, leaf, err) <
			0)
			return -1;
		if (kind != SUMS_DATA && kind != SUMS_ZERO &&
			resume_held(disk, chunk, nr, &held, &nr, err) < 0)
			return -1;
		if (held && read_back(intake, chunk, nr, room, err) < 0)
			return -1;
	}
	return 0;
}

int repository_backup_settle(struct repository_backup *backup, size_t index, struct err *err)
{
	assert(index < backup->nr_disks && backup->state == BACKUP_MAKING);
	struct intake *intake = backup->disks[index].intake;
	assert(intake);
	if (intake->err.code != ERR_NONE)
		return err_copy(err, &intake->err);
	/* Where everything was told at once, nothing is left. */
	if (intake->parent || (intake->eager && intake->disk->resumed == REPOSITORY_FRESH))
		return 0;
	return settle(intake, err);
}

/* --- what is held ---------------------------------------------------------------- */

struct holding {
	enum sums_kind kind; /* ZERO, DATA, or INHERIT: not known */
	bool sent;
	uint64_t nr;
	uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
};

/* Of what is not told: whether it may be something else than what lies beneath. */
static int is_unknown(struct backup_disk *disk, uint64_t first, uint64_t most, bool *unknown,
	uint64_t *nr, struct err *err)
{
	const struct intake *intake = disk->intake;
	*unknown = false;
	*nr = most;
	if (!intake || intake->parent || (intake->eager && disk->resumed == REPOSITORY_FRESH))
		return 0;
	return resume_held(disk, first, most, unknown, nr, err);
}

/* What the chunks from first on are, for how many of them (1..most); of data one comes alone.
 * look: whether what was written in parts is to be told from what lies beneath. */
static int holds(struct backup_disk *disk, uint64_t first, uint64_t most, bool look,
	struct holding *what, struct err *err)
{
	bool unknown = false;
	if (sums_writer_look(disk->sums, first, most, &what->kind, &what->nr, what->leaf, err) < 0)
		return -1;
	what->sent = what->kind == SUMS_DATA || what->kind == SUMS_ZERO;
	if (what->sent)
		return 0;
	if (look && is_unknown(disk, first, what->nr, &unknown, &what->nr, err) < 0)
		return -1;
	what->kind = unknown ? SUMS_INHERIT : SUMS_ZERO;
	if (unknown || !disk->chain)
		return 0;
	return sums_reader_run(
		chain_sums(disk->chain), first, what->nr, &what->kind, &what->nr, what->leaf, err);
}

int repository_backup_root(struct repository_backup *backup, size_t index,
	uint8_t root[DIGEST_ROOT_BYTES], struct err *err)
{
	assert(index < backup->nr_disks && backup->state == BACKUP_MAKING);
	struct backup_disk *disk = &backup->disks[index];
	struct holding what = {0};
	struct digest_tree tree;
	digest_tree_init(&tree, backup->repo->key.algorithm, disk->size_bytes);
	for (uint64_t chunk = 0; chunk < tree.nr_chunks; chunk += what.nr) {
		if (chunk % SUMS_SEGMENT_CHUNKS == 0 && cancel_check(backup->cancel, err) < 0)
			return -1;
		if (holds(disk, chunk, tree.nr_chunks - chunk, false, &what, err) < 0)
			return -1;
		if (what.kind == SUMS_DATA)
			digest_tree_leaf(&tree, what.leaf);
		else
			digest_tree_zeros(&tree, what.nr);
	}
	digest_tree_root(&tree, root);
	return 0;
}

int repository_backup_sent(struct repository_backup *backup, size_t index,
	uint8_t digest[DIGEST_ROOT_BYTES], uint64_t *nr_data, uint64_t *nr_zero, struct err *err)
{
	assert(index < backup->nr_disks && backup->state == BACKUP_MAKING);
	struct backup_disk *disk = &backup->disks[index];
	uint64_t nr_chunks = div_round_up(disk->size_bytes, DIGEST_CHUNK_BYTES), nr;
	struct digest_sent sent;
	uint64_t count[2] = {0, 0};
	if (digest_sent_init(&sent, backup->repo->key.algorithm, err) < 0)
		return -1;
	int rc = 0;
	for (uint64_t chunk = 0; chunk < nr_chunks && rc == 0; chunk += nr) {
		enum sums_kind kind;
		uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
		rc = sums_writer_look(disk->sums, chunk, nr_chunks - chunk, &kind, &nr, leaf, err);
		if (rc < 0 || (kind != SUMS_DATA && kind != SUMS_ZERO))
			continue;
		count[kind == SUMS_ZERO] += nr;
		if (kind == SUMS_DATA)
			digest_sent_leaf(&sent, chunk, leaf);
		else
			digest_sent_zeros(&sent, chunk, nr);
	}
	digest_sent_end(&sent, digest);
	if (nr_data)
		*nr_data = count[0];
	if (nr_zero)
		*nr_zero = count[1];
	return rc;
}

/* --- as records ------------------------------------------------------------------ */

#define RECORD_HEAD 5u
#define RUN_MOST UINT32_MAX

struct records {
	uint8_t *bytes;
	size_t room, length;
	size_t head; /* of the record that is open; none where kind is 0xff */
	uint8_t kind;
	uint32_t nr;
};

static void close_record(struct records *records)
{
	if (records->kind != 0xff)
		be32_put(records->bytes + records->head + 1, records->nr);
}

/* False when there is no room. */
static bool put(
	struct records *records, uint8_t kind, const uint8_t *leaf, size_t leaf_bytes, uint64_t nr)
{
	bool opens = kind != records->kind || records->nr > RUN_MOST - nr;
	size_t need = (opens ? RECORD_HEAD : 0) + (leaf ? leaf_bytes : 0);
	if (need > records->room - records->length)
		return false;
	if (opens) {
		close_record(records);
		records->head = records->length;
		records->bytes[records->length] = records->kind = kind;
		records->length += RECORD_HEAD;
		records->nr = 0;
	}
	records->nr += (uint32_t)nr;
	if (leaf) {
		memcpy(records->bytes + records->length, leaf, leaf_bytes);
		records->length += leaf_bytes;
	}
	return true;
}

static uint8_t kind_of(const struct holding *what)
{
	unsigned kind = what->kind == SUMS_DATA   ? REPOSITORY_HOLDS_DATA
			: what->kind == SUMS_ZERO ? REPOSITORY_HOLDS_ZERO
						  : REPOSITORY_HOLDS_UNKNOWN;
	return (uint8_t)(kind | (what->sent ? REPOSITORY_HOLDS_SENT : 0));
}

int repository_backup_digests(struct repository_backup *backup, size_t index, uint64_t first,
	uint64_t most, uint8_t *bytes, size_t room, size_t *length, uint64_t *nr, struct err *err)
{
	assert(index < backup->nr_disks && backup->state == BACKUP_MAKING && room >= 256);
	struct backup_disk *disk = &backup->disks[index];
	uint64_t nr_chunks = div_round_up(disk->size_bytes, DIGEST_CHUNK_BYTES);
	struct records records = {.bytes = bytes, .room = room, .kind = 0xff};
	struct holding what;
	if (first >= nr_chunks || most == 0)
		return err_set(err, ERR_RANGE,
			"disk %s has %" PRIu64 " chunks: there are no digests of %" PRIu64
			" from %" PRIu64 " on",
			disk->key, nr_chunks, most, first);
	most = min_u64(most, nr_chunks - first);
	for (*nr = 0; *nr < most; *nr += what.nr) {
		uint64_t left = min_u64(most - *nr, RUN_MOST / 2);
		if (holds(disk, first + *nr, left, true, &what, err) < 0)
			return -1;
		if (!put(&records, kind_of(&what), what.kind == SUMS_DATA ? what.leaf : NULL,
			    digest_leaf_bytes(backup->repo->key.algorithm), what.nr))
			break;
	}
	close_record(&records);
	*length = records.length;
	return 0;
}

/* --- for the record -------------------------------------------------------------- */

void repository_backup_checked(struct repository_backup *backup, size_t index, const char *how)
{
	assert(index < backup->nr_disks);
	backup->disks[index].checked = how;
}

void repository_backup_audited(struct repository_backup *backup, size_t index, uint64_t bytes)
{
	assert(index < backup->nr_disks);
	backup->disks[index].audited_bytes = bytes;
}
