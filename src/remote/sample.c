/*
 * The audit of a push: are the chunks that the source calls unchanged what the hub's parent holds,
 * or what the hub has kept of an interrupted backup?
 *
 * A run takes so many thousandths of the disk's units of 1 MiB as are asked for, drawn at random
 * each time, so that no guest can tell which; where the last run ended
 * only the repository knows, so runs through a hub do not go round.  What is found wrong is
 * told to the hub, which makes the disk's next backup a full.
 */
#include "session_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define UNIT_CHUNKS 16u
#define UNIT_BYTES ((uint64_t)UNIT_CHUNKS * DIGEST_CHUNK_BYTES)
#define WRONG_MOST 16u

struct sample {
	struct session_disk *disk;
	struct block *source;
	uint8_t *bytes; /* of a unit */
	uint64_t audited_bytes;
	uint64_t wrong[WRONG_MOST]; /* offsets */
	unsigned nr_wrong; /* more may be */
};

static int compare_chunk(struct sample *sample, uint64_t offset, size_t length, struct err *err)
{
	const struct digest_key *key = &sample->disk->session->key;
	const uint8_t *bytes = sample->bytes + offset % UNIT_BYTES;
	enum ranges_kind kind;
	bool sent;
	uint64_t nr;
	uint8_t leaf[DIGEST_LEAF_BYTES_MAX], expect[DIGEST_LEAF_BYTES_MAX];
	bool is_zero = digest_is_zero(bytes, length);
	if (ranges_look(sample->disk->ranges, offset / DIGEST_CHUNK_BYTES, 1, &kind, &sent, &nr,
		    expect, err) < 0)
		return -1;
	if (kind == RANGES_UNKNOWN)
		return 0;
	bool same = is_zero == (kind == RANGES_ZERO);
	if (same && !is_zero) {
		digest_leaf(key, bytes, length, leaf);
		same = memcmp(leaf, expect, digest_leaf_bytes(key->algorithm)) == 0;
	}
	if (!same && sample->nr_wrong++ < WRONG_MOST)
		sample->wrong[sample->nr_wrong - 1] = offset;
	sample->audited_bytes += length;
	return 0;
}

static int audit_unit(struct sample *sample, uint64_t unit, struct err *err)
{
	uint64_t start = unit * UNIT_BYTES;
	uint64_t length = min_u64(UNIT_BYTES, sample->disk->size_bytes - start);
	uint32_t unchanged;
	if (block_unchanged(sample->source, start, length, DIGEST_CHUNK_BYTES, &unchanged, err) < 0)
		return -1;
	for (unsigned i = 0; i < UNIT_CHUNKS; i++) {
		uint64_t at = (uint64_t)i * DIGEST_CHUNK_BYTES;
		if (!(unchanged >> i & 1))
			continue;
		size_t here = (size_t)min_u64(DIGEST_CHUNK_BYTES, length - at);
		if (block_read(sample->source, sample->bytes + at, here, start + at, err) < 0 ||
			compare_chunk(sample, start + at, here, err) < 0)
			return -1;
	}
	return 0;
}

/* A number below most that nobody can foresee. */
static int random_below(uint64_t most, uint64_t *number, struct err *err)
{
	uint64_t bits;
	if (file_random(&bits, sizeof bits, err) < 0)
		return -1;
	*number = (uint64_t)(((unsigned __int128)bits * most) >> 64);
	return 0;
}

/* Selection sampling: of all units in order each is taken with the chance that is left. */
static int audit_units(struct sample *sample, uint64_t nr_units, uint64_t wanted, struct err *err)
{
	for (uint64_t unit = 0; unit < nr_units && wanted > 0; unit++) {
		uint64_t number;
		if (random_below(nr_units - unit, &number, err) < 0)
			return -1;
		if (number >= wanted)
			continue;
		wanted--;
		if (cancel_check(sample->disk->session->store->cancel, err) < 0 ||
			audit_unit(sample, unit, err) < 0)
			return -1;
	}
	return 0;
}

/* The hub keeps it before anybody hears of it. */
static void distrust(const struct sample *sample)
{
	const struct session *session = sample->disk->session;
	char path[REMOTE_PATH_BYTES];
	json_t *offsets = json_array();
	struct err why = ERR_INIT;
	for (unsigned i = 0; i < sample->nr_wrong && i < WRONG_MOST; i++)
		json_array_append_new(offsets, json_integer((json_int_t)sample->wrong[i]));
	json_t *body = json_pack("{s:s, s:o}", "key", sample->disk->key, "offsets", offsets);
	if (HUB_PATH(path, &why, "/api/v1/sessions/", session->id, "/distrust") < 0 ||
		rest_call(session->store->client, "POST", path, body, NULL, &why) < 0)
		log_error("it could not be recorded that the changes of disk %s are not to be "
			  "trusted (make the next backup with --mode full): %s",
			sample->disk->key, why.text);
	json_decref(body);
}

static int tell_wrong(const struct sample *sample, struct err *err)
{
	char offsets[WRONG_MOST * 24 + 32] = "";
	size_t used = 0;
	for (unsigned i = 0; i < sample->nr_wrong && i < WRONG_MOST; i++)
		used += (size_t)snprintf(offsets + used, sizeof offsets - used, "%s%" PRIu64,
			i ? ", " : "", sample->wrong[i]);
	if (sample->nr_wrong > WRONG_MOST)
		snprintf(offsets + used, sizeof offsets - used, " and %u more",
			sample->nr_wrong - WRONG_MOST);
	bool has_parent = sample->disk->mode == REPOSITORY_INCREMENTAL;
	if (has_parent)
		distrust(sample);
	err_set(err, ERR_CORRUPT,
		"the audit of disk %s found what tells of its changes to be wrong: %u of its "
		"chunks "
		"of 64 KiB that were called unchanged had changed, at offset %s",
		sample->disk->key, sample->nr_wrong, offsets);
	return err_hint(err, has_parent ? "the next backup of this disk is a full; restore points "
					  "since the last full may lack changes"
					: "the next backup begins anew");
}

int session_audit(struct session *session, size_t index, struct block *source, unsigned per_mille,
	uint64_t *audited_bytes, struct err *err)
{
	struct session_disk *disk = &session->disks[index];
	struct sample sample = {.disk = disk, .source = source};
	uint64_t nr_units = div_round_up(disk->size_bytes, UNIT_BYTES);
	if (audited_bytes)
		*audited_bytes = 0;
	if (per_mille == 0 || !disk->ranges ||
		(!session_disk_has_changes(disk) && disk->resumed != REPOSITORY_UPDATED))
		return 0;
	sample.bytes = malloc(UNIT_BYTES);
	if (!sample.bytes)
		return err_errno(err, ENOMEM, "cannot audit disk %s", disk->key);
	int rc = audit_units(&sample, nr_units,
		min_u64(nr_units, div_round_up(nr_units * per_mille, 1000)), err);
	free(sample.bytes);
	if (rc < 0)
		return err_context(err, "cannot audit disk %s", disk->key);
	disk->audited_bytes += sample.audited_bytes;
	if (audited_bytes)
		*audited_bytes = sample.audited_bytes;
	return sample.nr_wrong ? tell_wrong(&sample, err) : 0;
}
