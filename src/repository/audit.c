/*
 * Audits: is what the source calls unchanged really so?
 *
 *   disk     | unit 0 | unit 1 | ...           (1 MiB each)
 *   order     a permutation of the units that the repository's secret makes: a guest
 *             cannot tell which comes next, and each comes once in a round
 *   position  how far the round is; it goes from point to point in state.json
 *
 * A run takes the next per_mille thousandths of the units, so that any 1000 / per_mille
 * runs in a row see each unit.  Of a unit those chunks are read that the source calls
 * unchanged from end to end; the others are backed up anyway.  What an interrupted backup stored
 * and what is kept unread because it did not change since is held against what that one told.
 *
 * The permutation is a Feistel network over the next even number of bits; what falls
 * beyond the last unit is sent through it again until it does not (cycle walking).
 */
#include "backup_internal.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define UNIT_CHUNKS 16u
#define UNIT_BYTES ((uint64_t)UNIT_CHUNKS * DIGEST_CHUNK_BYTES)
#define BATCH_UNITS 4096u /* read in the order of their offsets */
#define ROUNDS 6u
#define WRONG_MOST 4u /* offsets that are told */

/* --- the order -------------------------------------------------------------------- */

void audit_order_init(struct audit_order *order, const struct digest_key *key, const char *vm,
	const char *disk_key, uint64_t size_bytes)
{
	struct {
		char purpose[16];
		uint8_t secret[DIGEST_SECRET_BYTES];
		char vm[REPOSITORY_VM_BYTES], disk[REPOSITORY_KEY_BYTES];
		uint8_t nr[8];
	} bytes;
	memset(&bytes, 0, sizeof bytes);
	order->nr_units = div_round_up(size_bytes, UNIT_BYTES);
	snprintf(bytes.purpose, sizeof bytes.purpose, "audit");
	memcpy(bytes.secret, key->secret, sizeof bytes.secret);
	snprintf(bytes.vm, sizeof bytes.vm, "%s", vm);
	snprintf(bytes.disk, sizeof bytes.disk, "%s", disk_key);
	be64_put(bytes.nr, order->nr_units);
	digest_sha256(&bytes, sizeof bytes, order->key);
	order->half_bits = 1;
	while (order->half_bits < 31 && (uint64_t)1 << 2 * order->half_bits < order->nr_units)
		order->half_bits++;
}

static uint64_t permute(const struct audit_order *order, uint64_t value)
{
	uint64_t mask = ((uint64_t)1 << order->half_bits) - 1;
	uint64_t left = value >> order->half_bits, right = value & mask;
	for (unsigned round = 0; round < ROUNDS; round++) {
		uint8_t bytes[DIGEST_ROOT_BYTES + 16], digest[DIGEST_ROOT_BYTES];
		memcpy(bytes, order->key, DIGEST_ROOT_BYTES);
		be64_put(bytes + DIGEST_ROOT_BYTES, round);
		be64_put(bytes + DIGEST_ROOT_BYTES + 8, right);
		digest_sha256(bytes, sizeof bytes, digest);
		uint64_t next = (left ^ be64_get(digest)) & mask;
		left = right;
		right = next;
	}
	return left << order->half_bits | right;
}

uint64_t audit_order_at(const struct audit_order *order, uint64_t position)
{
	assert(position < order->nr_units);
	uint64_t unit = permute(order, position);
	while (unit >= order->nr_units)
		unit = permute(order, unit);
	return unit;
}

/* --- one unit ---------------------------------------------------------------------- */

struct audit {
	struct backup_disk *disk;
	struct block *source;
	uint8_t *bytes; /* of a unit */
	uint64_t audited_bytes;
	uint64_t wrong[WRONG_MOST]; /* offsets */
	unsigned nr_wrong; /* more may be */
};

/* What the restore point will have of an unchanged chunk: SUMS_INHERIT: nothing is known of it. */
static int look_expected(struct backup_disk *disk, uint64_t chunk, enum sums_kind *kind,
	uint8_t expect[DIGEST_LEAF_BYTES_MAX], struct err *err)
{
	uint64_t nr;
	*kind = SUMS_INHERIT;
	if (disk->resumed != REPOSITORY_FRESH &&
		sums_writer_look(disk->sums, chunk, 1, kind, &nr, expect, err) < 0)
		return -1;
	if (*kind == SUMS_DATA || *kind == SUMS_ZERO || !disk->chain)
		return 0;
	return sums_reader_run(chain_sums(disk->chain), chunk, 1, kind, &nr, expect, err);
}

static int compare_chunk(
	struct audit *audit, uint64_t offset, const uint8_t *bytes, size_t length, struct err *err)
{
	const struct digest_key *key = &audit->disk->backup->repo->key;
	enum sums_kind kind;
	uint8_t leaf[DIGEST_LEAF_BYTES_MAX], expect[DIGEST_LEAF_BYTES_MAX];
	bool is_zero = digest_is_zero(bytes, length);
	if (look_expected(audit->disk, offset / DIGEST_CHUNK_BYTES, &kind, expect, err) < 0)
		return -1;
	if (kind == SUMS_INHERIT)
		return 0;
	bool same = is_zero == (kind == SUMS_ZERO);
	if (same && !is_zero) {
		digest_leaf(key, bytes, length, leaf);
		same = memcmp(leaf, expect, digest_leaf_bytes(key->algorithm)) == 0;
	}
	if (!same && audit->nr_wrong++ < WRONG_MOST)
		audit->wrong[audit->nr_wrong - 1] = offset;
	audit->audited_bytes += length;
	return 0;
}

static int audit_unit(struct audit *audit, uint64_t unit, struct err *err)
{
	uint64_t start = unit * UNIT_BYTES;
	uint64_t length = min_u64(UNIT_BYTES, audit->disk->size_bytes - start);
	uint32_t unchanged;
	if (block_unchanged(audit->source, start, length, DIGEST_CHUNK_BYTES, &unchanged, err) < 0)
		return -1;
	for (unsigned first = 0, end; first < UNIT_CHUNKS; first = end) {
		end = first + 1;
		if (!(unchanged >> first & 1))
			continue;
		while (end < UNIT_CHUNKS && unchanged >> end & 1)
			end++;
		uint64_t at = (uint64_t)first * DIGEST_CHUNK_BYTES;
		uint64_t to = min_u64((uint64_t)end * DIGEST_CHUNK_BYTES, length);
		if (block_read(audit->source, audit->bytes + at, to - at, start + at, err) < 0)
			return -1;
		for (; at < to; at += DIGEST_CHUNK_BYTES)
			if (compare_chunk(audit, start + at, audit->bytes + at,
				    (size_t)min_u64(DIGEST_CHUNK_BYTES, to - at), err) < 0)
				return -1;
	}
	return 0;
}

/* --- a run ---------------------------------------------------------------------------- */

static int by_number(const void *a, const void *b)
{
	uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
	return left < right ? -1 : left > right;
}

static int audit_units(struct audit *audit, uint64_t nr_units, struct err *err)
{
	struct backup_disk *disk = audit->disk;
	struct audit_order order;
	uint64_t *AUTO_FREE units = malloc(BATCH_UNITS * sizeof *units);
	if (!units)
		return err_errno(err, ENOMEM, "cannot audit disk %s", disk->key);
	audit_order_init(
		&order, &disk->backup->repo->key, disk->backup->vm, disk->key, disk->size_bytes);
	uint64_t position = disk->audit_position % order.nr_units;
	while (nr_units > 0) {
		size_t nr = (size_t)min_u64(nr_units, BATCH_UNITS);
		for (size_t i = 0; i < nr; i++, position = (position + 1) % order.nr_units)
			units[i] = audit_order_at(&order, position);
		qsort(units, nr, sizeof *units, by_number);
		for (size_t i = 0; i < nr; i++)
			if (cancel_check(disk->backup->cancel, err) < 0 ||
				audit_unit(audit, units[i], err) < 0)
				return -1;
		nr_units -= nr;
	}
	disk->audit_position = position;
	return 0;
}

/* Durable before anybody hears of it: the parent counts for nothing from here on. */
static int distrust(const struct backup_disk *disk, const char *reason, struct err *err)
{
	char now[CLOCK_UTC_BYTES];
	struct repository *repo = disk->backup->repo;
	struct repository_point *parent = manifest_load(repo, disk->backup->vm, disk->parent, err);
	if (!parent)
		return -1;
	name_now(now);
	const json_t *before = json_object_get(manifest_state(parent), "distrusted");
	json_t *all = json_is_object(before) ? json_deep_copy(before) : json_object();
	repository_point_free(parent);
	json_object_set_new(all, disk->key, json_pack("{s:s, s:s}", "at", now, "reason", reason));
	return manifest_update_state(
		repo, disk->backup->vm, disk->parent, json_pack("{s:o}", "distrusted", all), err);
}

#define REASON_BYTES (WRONG_MOST * 24 + 200)

/* offsets: as many of them as are told. */
static void say_wrong(const struct backup_disk *disk, const uint64_t *offsets, size_t nr_wrong,
	char reason[REASON_BYTES])
{
	bool is_updated = disk->resumed == REPOSITORY_UPDATED;
	size_t used = (size_t)snprintf(reason, REASON_BYTES,
		"%zu of its chunks of 64 KiB that were called unchanged had changed since %s%s%s, "
		"at offset ",
		nr_wrong, disk->parent, disk->parent[0] && is_updated ? " or " : "",
		is_updated ? "an interrupted backup stored them" : "");
	for (size_t i = 0; i < nr_wrong && i < WRONG_MOST; i++)
		used += (size_t)snprintf(reason + used, REASON_BYTES - used, "%s%" PRIu64,
			i ? ", " : "", offsets[i]);
	if (nr_wrong > WRONG_MOST)
		snprintf(
			reason + used, REASON_BYTES - used, " and %zu more", nr_wrong - WRONG_MOST);
}

int repository_backup_distrust(struct repository_backup *backup, size_t index,
	const uint64_t *offsets, size_t nr_offsets, struct err *err)
{
	assert(index < backup->nr_disks && nr_offsets > 0);
	const struct backup_disk *disk = &backup->disks[index];
	char reason[REASON_BYTES];
	if (!disk->parent[0])
		return err_set(err, ERR_USAGE,
			"disk %s is a full: nothing told of its changes that could be wrong",
			disk->key);
	say_wrong(disk, offsets, nr_offsets, reason);
	return distrust(disk, reason, err);
}

static int tell_wrong(const struct audit *audit, struct err *err)
{
	const struct backup_disk *disk = audit->disk;
	char reason[REASON_BYTES];
	say_wrong(disk, audit->wrong, audit->nr_wrong, reason);
	struct err why = ERR_INIT;
	if (disk->parent[0] && distrust(disk, reason, &why) < 0)
		log_error("it could not be recorded that the changes of disk %s are not to be "
			  "trusted "
			  "(make the next backup with --mode full): %s",
			disk->key, why.text);
	err_set(err, ERR_CORRUPT,
		"the audit of disk %s found what tells of its changes to be wrong: %s", disk->key,
		reason);
	return err_hint(err, disk->parent[0] ? "the next backup of this disk is a full; restore "
					       "points since the last full may lack changes"
					     : "the next backup begins anew");
}

int repository_backup_audit(struct repository_backup *backup, size_t index, struct block *source,
	unsigned per_mille, uint64_t *audited_bytes, struct err *err)
{
	assert(index < backup->nr_disks && backup->state == BACKUP_MAKING && per_mille <= 1000);
	struct backup_disk *disk = &backup->disks[index];
	struct audit audit = {.disk = disk, .source = source};
	if (audited_bytes)
		*audited_bytes = 0;
	if (per_mille == 0 || disk->change == REPOSITORY_CHANGE_COMPARE ||
		(!disk->chain && disk->resumed != REPOSITORY_UPDATED))
		return 0;
	audit.bytes = malloc(UNIT_BYTES);
	if (!audit.bytes)
		return err_errno(err, ENOMEM, "cannot audit disk %s", disk->key);
	uint64_t all = div_round_up(disk->size_bytes, UNIT_BYTES);
	int rc = audit_units(&audit, min_u64(all, div_round_up(all * per_mille, 1000)), err);
	free(audit.bytes);
	if (rc < 0)
		return err_context(err, "cannot audit disk %s", disk->key);
	disk->audited_bytes += audit.audited_bytes;
	if (audited_bytes)
		*audited_bytes = audit.audited_bytes;
	return audit.nr_wrong ? tell_wrong(&audit, err) : 0;
}

int audit_store_positions(struct repository_backup *backup, struct err *err)
{
	json_t *positions = json_object();
	for (size_t i = 0; i < backup->nr_disks; i++)
		if (backup->disks[i].audit_position > 0)
			json_object_set_new(positions, backup->disks[i].key,
				json_integer((json_int_t)backup->disks[i].audit_position));
	if (json_object_size(positions) == 0) {
		json_decref(positions);
		return 0;
	}
	/* Nobody else writes to it before the point is listed. */
	char path[NAME_PATH_BYTES];
	path_point(backup->vm, backup->point, "state.json", path);
	json_t *state = json_pack("{s:i, s:o}", "format", REPOSITORY_FORMAT, "audit", positions);
	if (!state)
		return err_errno(err, ENOMEM, "cannot write %s", path);
	int rc = record_store(backup->repo->dir_fd, path, state, err);
	json_decref(state);
	return rc;
}

void audit_load_position(struct backup_disk *disk, const struct repository_point *parent)
{
	json_int_t position = json_integer_value(
		json_object_get(json_object_get(manifest_state(parent), "audit"), disk->key));
	disk->audit_position = position > 0 ? (uint64_t)position : 0;
}
