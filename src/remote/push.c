/*
 * One disk of a push.
 *
 *   source ─► (what the hub holds already of an interrupted backup is called unchanged) ─► lanes
 *        told  ◄─ digests of what is sent      │ compared with what the hub holds (ranges)
 *     at the commit: root or sent digest       ▼
 *                                         the export, as many connections as there are lanes
 *
 *   the hub's word of a chunk   read from the source              written, if it is not
 *   sent (kept)                 not when its state is the same,   what was sent
 *                               or it did not change since
 *   unknown                     always                            (always)
 *   as the parent, zeros        what a first try would read       that
 *
 * Both sides must end with the same set of chunks: what was kept is told at the beginning, and
 * what is sent is told whole, so data and zeros are never told apart in units above a chunk.
 */
#include "session_internal.h"

#include "nbd.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* Zeros are asked for in runs; so many chunks of data at most are passed over in one. */
#define DATA_RUN_MOST 4096u
#define LEAVES_AT_ONCE 64u
/* An NBD service that was started again has other exports: a new session goes on sooner. */
#define RECONNECT_MS 10000u

/* --- what is there already -------------------------------------------------------------- */

static int same_chunks(void *context, uint64_t first, unsigned nr, const uint8_t *leaves,
	uint64_t zero_mask, uint64_t *same, struct err *err)
{
	const struct session_disk *disk = context;
	size_t leaf_bytes = digest_leaf_bytes(disk->session->key.algorithm);
	*same = disk->ranges ? 0 : zero_mask;
	for (unsigned i = 0; disk->ranges && i < nr; i++) {
		enum ranges_kind kind;
		bool sent, is_zero = zero_mask >> i & 1;
		uint64_t run;
		uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
		if (ranges_look(disk->ranges, first + i, 1, &kind, &sent, &run, leaf, err) < 0)
			return -1;
		if (kind == RANGES_ZERO
				? is_zero
				: kind == RANGES_DATA && !is_zero &&
					  memcmp(leaf, leaves + (size_t)i * DIGEST_LEAF_BYTES_MAX,
						  leaf_bytes) == 0)
			*same |= (uint64_t)1 << i;
	}
	return 0;
}

static int same_zeros(
	void *context, uint64_t first, uint64_t nr, uint64_t *nr_alike, bool *same, struct err *err)
{
	const struct session_disk *disk = context;
	*nr_alike = disk->ranges ? 0 : nr;
	*same = true;
	while (*nr_alike < nr && *nr_alike < DATA_RUN_MOST) {
		enum ranges_kind kind;
		bool sent;
		uint64_t run;
		uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
		if (ranges_look(disk->ranges, first + *nr_alike, nr - *nr_alike, &kind, &sent, &run,
			    leaf, err) < 0)
			return -1;
		if (*nr_alike > 0 && *same != (kind == RANGES_ZERO))
			break;
		*same = kind == RANGES_ZERO;
		*nr_alike += run;
	}
	return 0;
}

/* --- going on with an interrupted backup ---------------------------------------------------- */

/* What was kept counts as sent, on both sides. */
static int tell_kept(void *context, uint64_t first, uint64_t nr, enum ranges_kind kind, bool sent,
	const uint8_t *leaves, struct err *err)
{
	struct session_disk *disk = context;
	size_t leaf_bytes = digest_leaf_bytes(disk->session->key.algorithm);
	uint8_t wide[LEAVES_AT_ONCE * DIGEST_LEAF_BYTES_MAX];
	if (!sent || kind == RANGES_UNKNOWN)
		return cancel_check(disk->session->store->cancel, err);
	if (kind == RANGES_ZERO)
		return told_zeros(disk->told, first, nr, err);
	for (uint64_t done = 0; done < nr;) {
		unsigned here = (unsigned)min_u64(nr - done, LEAVES_AT_ONCE);
		for (unsigned i = 0; i < here; i++)
			memcpy(wide + (size_t)i * DIGEST_LEAF_BYTES_MAX,
				leaves + (done + i) * leaf_bytes, leaf_bytes);
		if (told_chunks(disk->told, first + done, here, wide, 0, err) < 0)
			return -1;
		done += here;
	}
	return 0;
}

/* Of what was sent: whether it need not be read, up to *end; both as they were found before, as far
 * as that goes. */
static int look_valid(struct session_disk *disk, uint64_t at, uint64_t stop, uint64_t *end,
	bool *valid, struct err *err)
{
	struct block_extent extent;
	size_t nr;
	if (at < *end)
		return 0;
	*end = stop;
	*valid = disk->resumed == REPOSITORY_RESUMED;
	if (disk->resumed != REPOSITORY_UPDATED)
		return 0;
	if (block_extents(disk->changed, at, stop - at, &extent, 1, &nr, err) < 0)
		return -1;
	*end = at + extent.length;
	*valid = extent.flags & BLOCK_UNCHANGED;
	return 0;
}

static uint32_t flags_of(const struct session_disk *disk, enum ranges_kind kind, bool sent,
	bool valid, uint32_t flags)
{
	if (kind != RANGES_UNKNOWN && sent && valid)
		return flags | BLOCK_UNCHANGED;
	if (kind == RANGES_UNKNOWN || sent || !session_disk_has_changes(disk))
		return flags & ~BLOCK_UNCHANGED;
	return flags;
}

static int remap(void *context, uint64_t offset, const struct block_extent *from, size_t nr_from,
	struct block_extent *out, size_t max, size_t *nr, struct err *err)
{
	struct session_disk *disk = context;
	uint64_t at = offset, end = 0, valid_end = 0;
	bool valid = false;
	enum ranges_kind kind = RANGES_UNKNOWN;
	bool sent = false;
	*nr = 0;
	for (size_t i = 0; i < nr_from; i++) {
		uint64_t stop = at + from[i].length;
		while (at < stop) {
			if (at >= end) {
				uint64_t chunk = at / DIGEST_CHUNK_BYTES, run;
				uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
				if (ranges_look(disk->ranges, chunk,
					    div_round_up(stop, DIGEST_CHUNK_BYTES) - chunk, &kind,
					    &sent, &run, leaf, err) < 0)
					return -1;
				end = (chunk + run) * DIGEST_CHUNK_BYTES;
			}
			uint64_t length = min_u64(stop, end) - at;
			bool is_there = kind != RANGES_UNKNOWN && sent;
			if (is_there && look_valid(disk, at, stop, &valid_end, &valid, err) < 0)
				return -1;
			if (is_there)
				length = min_u64(length, valid_end - at);
			if (!block_remap_put(out, max, nr, length,
				    flags_of(disk, kind, sent, valid, from[i].flags)))
				return 0;
			at += length;
		}
	}
	return 0;
}

/* --- the copy ------------------------------------------------------------------------------- */

static int open_ranges(struct session_disk *disk, struct err *err)
{
	struct session *session = disk->session;
	char path[REMOTE_PATH_BYTES];
	bool fresh = disk->resumed == REPOSITORY_FRESH;
	if (disk->mode == REPOSITORY_FULL && fresh)
		return 0;
	bool all = !session_disk_has_changes(disk) || !fresh;
	if (HUB_PATH(path, err, "/api/v1/sessions/", session->id, "/disks/", disk->key,
		    "/digests") < 0)
		return -1;
	disk->ranges = ranges_new(session->store->client, path, session->key.algorithm,
		div_round_up(disk->size_bytes, DIGEST_CHUNK_BYTES), all, err);
	return disk->ranges ? 0 : -1;
}

static int open_target(struct session_disk *disk, struct err *err)
{
	struct nbd_client_options options = {
		.reconnect_timeout_ms = RECONNECT_MS,
		.label = disk->label,
		.tls_username = disk->tls_identity,
		.tls_psk_hex = disk->tls_psk,
	};
	disk->target = nbd_client_open(disk->uri, &options, disk->session->store->cancel, err);
	if (!disk->target)
		return -1;
	uint64_t size_bytes = block_info(disk->target)->size_bytes;
	if (size_bytes != disk->size_bytes)
		return err_set(err, ERR_RANGE,
			"the hub's export has %" PRIu64 " bytes, and the disk %" PRIu64, size_bytes,
			disk->size_bytes);
	/* What is told and what is sent are the same only by whole chunks. */
	if (disk->target->info.granule_bytes > DIGEST_CHUNK_BYTES)
		disk->target->info.granule_bytes = DIGEST_CHUNK_BYTES;
	return 0;
}

int session_copy(struct session *session, size_t index, struct block *source,
	struct copy_options *options, struct block **from, struct block **to, struct err *err)
{
	struct session_disk *disk = &session->disks[index];
	uint64_t size_bytes = block_info(source)->size_bytes;
	if (size_bytes != disk->size_bytes)
		return err_set(err, ERR_RANGE,
			"disk %s was to be %" PRIu64 " bytes, and %s has %" PRIu64, disk->key,
			disk->size_bytes, block_label(source), size_bytes);
	disk->told = told_new(session->key.algorithm, disk->size_bytes, err);
	if (!disk->told || open_ranges(disk, err) < 0 || open_target(disk, err) < 0)
		return -1;
	disk->sink = (struct copy_chunk_sink){
		.context = disk->told, .chunks = told_chunks, .zeros = told_zeros};
	disk->baseline =
		(struct copy_baseline){.context = disk, .chunks = same_chunks, .zeros = same_zeros};
	options->digest_key = &session->key;
	options->sink = &disk->sink;
	options->baseline = &disk->baseline;
	options->changed_only = session_disk_has_changes(disk);
	*from = source;
	*to = disk->target;
	if (disk->resumed == REPOSITORY_FRESH)
		return 0;
	if (ranges_each(disk->ranges, tell_kept, disk, err) < 0)
		return -1;
	disk->remaining = block_remap_open(source, remap, disk, err);
	if (!disk->remaining)
		return -1;
	options->changed_only |= disk->resumed != REPOSITORY_COMPARED;
	*from = disk->remaining;
	return 0;
}

int push_finish(struct session_disk *disk, struct err *err)
{
	struct block *target = disk->target;
	block_close(disk->remaining, NULL);
	disk->remaining = disk->target = NULL;
	return block_close(target, err);
}

void push_close(struct session_disk *disk)
{
	push_finish(disk, NULL);
	ranges_free(disk->ranges);
	told_free(disk->told);
	free(disk->uri);
	free(disk->tls_identity);
	if (disk->tls_psk)
		explicit_bzero(disk->tls_psk, strlen(disk->tls_psk));
	free(disk->tls_psk);
}

/* --- its digest ------------------------------------------------------------------------------ */

json_t *push_digest(struct session_disk *disk, struct err *err)
{
	uint8_t digest[DIGEST_ROOT_BYTES];
	char hex[DIGEST_ROOT_HEX_BYTES];
	bool is_full = disk->mode == REPOSITORY_FULL;
	const struct repository_figures *f = &disk->figures;
	struct cancel *cancel = disk->session->store->cancel;
	if ((is_full ? told_root(disk->told, cancel, digest, err)
		     : told_sent(disk->told, cancel, digest, err)) < 0)
		return NULL;
	digest_hex(digest, sizeof digest, hex);
	json_t *object = json_pack("{s:s, s:{s:s, s:s}, s:{s:I, s:I, s:I, s:I}, s:I}", "key",
		disk->key, "digest", "kind", is_full ? "root" : "sent", "hex", hex, "figures",
		"logical_bytes", (json_int_t)f->logical_bytes, "read_bytes",
		(json_int_t)f->read_bytes, "sent_bytes", (json_int_t)f->sent_bytes,
		"zeros_skipped_bytes", (json_int_t)f->zeros_skipped_bytes, "audited_bytes",
		(json_int_t)disk->audited_bytes);
	if (!object)
		err_errno(err, ENOMEM, "cannot tell the digest of disk %s", disk->key);
	return object;
}
