/*
 * Whether two targets, or a target and a source, are one disk under two names.
 *
 *   journal (where, what was there, what mark) synced ─► each target gets a mark of its own, at
 *     a place of its own ─► all others are read there: whoever shows the mark is that
 *     target ─► what was there is written back ─► journal removed
 *
 *   {"sendense-proof":1, "targets":[{"target":NAME, "offset":N, "saved":HEX, "mark":HEX}]}
 *
 * Disks of different sizes cannot be the same.  Places are random, and nothing else has read
 * them before: two ways to one disk may have caches of their own, which would show what was there.
 * Only the first 32 bytes of a place differ from what is there.  All are saved before the first
 * is marked.  After a crash a place that shows a mark of the journal is written back; one that
 * does not is not ours to touch.
 */
#include "replica_internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>

#define MARK_BYTES 32u
#define UNIT_LEAST 4096u
#define UNIT_MOST 65536u
#define JOURNAL_BYTES_MOST (64u << 20)
#define JOURNAL_DEPTH_MOST 4u

struct place {
	struct block *block;
	const char *name;
	uint64_t offset;
	size_t length;
	uint8_t mark[MARK_BYTES];
	uint8_t *saved;
};

static void free_places(struct place *places, size_t nr)
{
	for (size_t i = 0; places && i < nr; i++)
		free(places[i].saved);
	free(places);
}

/* --- the journal -------------------------------------------------------------------------- */

static json_t *place_json(const struct place *place)
{
	char mark[2 * MARK_BYTES + 1];
	char *AUTO_FREE saved = malloc(2 * place->length + 1);
	if (!saved)
		return NULL;
	digest_hex(place->mark, sizeof place->mark, mark);
	digest_hex(place->saved, place->length, saved);
	return json_pack("{s:s, s:I, s:s, s:s}", "target", place->name, "offset",
		(json_int_t)place->offset, "saved", saved, "mark", mark);
}

static int write_journal(
	const struct replica *r, const struct place *places, size_t nr, struct err *err)
{
	json_t *root = json_pack("{s:i, s:[]}", "sendense-proof", 1, "targets");
	char *AUTO_FREE text = NULL;
	bool good = root != NULL;
	for (size_t i = 0; good && i < nr; i++)
		good = json_array_append_new(
			       json_object_get(root, "targets"), place_json(&places[i])) == 0;
	if (good)
		text = json_dumps(root, JSON_COMPACT);
	json_decref(root);
	if (!text)
		return err_errno(err, ENOMEM, "cannot write the journal %s", r->proof_name);
	return file_replace(r->dir_fd, r->proof_name, text, strlen(text), 0600, err);
}

static int drop_journal(const struct replica *r, struct err *err)
{
	if (unlinkat(r->dir_fd, r->proof_name, 0) < 0)
		return err_errno(err, errno, "cannot remove the journal %s", r->proof_name);
	return file_sync_dir(r->dir_fd, ".", err);
}

/* Takes nothing: texts are of json. */
static bool read_place(json_t *object, struct place *place)
{
	const char *saved, *mark;
	json_int_t offset;
	if (json_unpack(object, "{s:s, s:I, s:s, s:s}", "target", &place->name, "offset", &offset,
		    "saved", &saved, "mark", &mark) < 0)
		return false;
	place->offset = (uint64_t)offset;
	place->length = strlen(saved) / 2;
	if (offset < 0 || place->length < MARK_BYTES || place->length > UNIT_MOST)
		return false;
	place->saved = malloc(place->length);
	return place->saved && digest_unhex(saved, place->saved, place->length) &&
	       digest_unhex(mark, place->mark, sizeof place->mark);
}

/* --- giving back --------------------------------------------------------------------------- */

/* Whether what is there is a mark of this journal. */
static bool shows_mark(const uint8_t *unit, const struct place *places, size_t nr)
{
	for (size_t i = 0; i < nr; i++)
		if (memcmp(unit, places[i].mark, MARK_BYTES) == 0)
			return true;
	return false;
}

static int give_back(struct block *block, const struct place *place, struct err *err)
{
	if (block_write(block, place->saved, place->length, place->offset, 0, err) < 0 ||
		block_flush(block, err) < 0)
		return err_context(err, "what was at offset %" PRIu64 " of %s cannot be put back",
			place->offset, place->name);
	return 0;
}

static int recover_place(const struct replica *r, const struct place *place,
	const struct place *places, size_t nr, struct err *err)
{
	uint8_t unit[UNIT_MOST];
	struct err why = ERR_INIT;
	struct block *block = r->options.open_target(r->options.context, place->name, &why);
	if (!block && r->options.force) {
		log_warning(
			"what a proof overwrote of %s is not put back: %s", place->name, why.text);
		return 0;
	}
	if (!block) {
		err_copy(err, &why);
		return err_hint(
			err, "--force goes on without it, if that target is of no more use");
	}
	int rc = -1;
	if (!range_fits(place->offset, place->length, block_info(block)->size_bytes)) {
		log_warning(
			"%s is not the disk any more that a proof was interrupted at", place->name);
		rc = 0;
	} else if (block_read(block, unit, place->length, place->offset, err) == 0) {
		rc = shows_mark(unit, places, nr) ? give_back(block, place, err) : 0;
	}
	struct err *close_err = rc == 0 ? err : NULL;
	return block_close(block, close_err) < 0 ? -1 : rc;
}

static int recover_places(const struct replica *r, json_t *targets, struct err *err)
{
	size_t nr = json_array_size(targets);
	struct place *places = calloc(nr + 1, sizeof *places);
	int rc = places ? 0 : err_errno(err, ENOMEM, "cannot read the journal");
	for (size_t i = 0; rc == 0 && i < nr; i++)
		if (!read_place(json_array_get(targets, i), &places[i]))
			rc = err_set(err, ERR_CORRUPT, "the journal %s is damaged", r->proof_name);
	for (size_t i = 0; rc == 0 && i < nr; i++)
		rc = recover_place(r, &places[i], places, nr, err);
	free_places(places, nr);
	return rc;
}

int proof_recover(struct replica *r, struct err *err)
{
	struct err why = ERR_INIT;
	char *AUTO_FREE bytes = NULL;
	size_t length;
	if (file_load(r->dir_fd, r->proof_name, JOURNAL_BYTES_MOST, &bytes, &length, &why) < 0)
		return why.code == ERR_NOT_FOUND ? 0 : err_copy(err, &why);
	json_t *root = jsontext_shape(bytes, length).depth <= JOURNAL_DEPTH_MOST
			       ? json_loadb(bytes, length, JSON_REJECT_DUPLICATES, NULL)
			       : NULL;
	json_t *targets = json_object_get(root, "targets");
	int rc = json_is_array(targets)
			 ? recover_places(r, targets, err)
			 : err_set(err, ERR_CORRUPT, "the journal %s is damaged", r->proof_name);
	json_decref(root);
	if (rc < 0)
		return err_context(err, "an earlier run was interrupted while one sector of each "
					"target held a mark");
	return drop_journal(r, err);
}

/* --- the proof ------------------------------------------------------------------------------ */

static size_t unit_of(const struct replica *r)
{
	uint32_t unit = UNIT_LEAST;
	for (size_t i = 0; i < r->nr_disks; i++) {
		uint32_t granule = block_info(r->disks[i].given->target_block)->granule_bytes;
		if (granule > unit && granule <= UNIT_MOST)
			unit = granule;
	}
	return unit;
}

/* How many targets are of the size of target i, and how many of those stand before it. */
static uint64_t nr_alike(const struct replica *r, size_t i, uint64_t *before)
{
	uint64_t size_bytes = block_info(r->disks[i].given->target_block)->size_bytes, nr = 0;
	for (size_t k = 0; k < r->nr_disks; k++) {
		if (k == i)
			*before = nr;
		nr += block_info(r->disks[k].given->target_block)->size_bytes == size_bytes;
	}
	return nr;
}

/* A random place in the part of the disk that is this target's. */
static int choose_place(const struct replica *r, size_t i, struct place *place, struct err *err)
{
	size_t unit = unit_of(r);
	uint64_t before = 0, random, alike = nr_alike(r, i, &before);
	assert(alike > 0); /* itself */
	uint64_t part = block_info(place->block)->size_bytes / unit / alike;
	if (file_random(&random, sizeof random, err) < 0)
		return -1;
	/* Not at its end: a cache that reads ahead would read into the next one's. */
	place->offset = (before * part + random % max_u64(part / 2, 1)) * unit;
	place->length = unit;
	place->saved = malloc(unit);
	return place->saved ? 0 : err_errno(err, ENOMEM, "cannot prove that targets are distinct");
}

static int save(struct replica *r, struct place *places, struct err *err)
{
	for (size_t i = 0; i < r->nr_disks; i++) {
		struct place *place = &places[i];
		place->block = r->disks[i].given->target_block;
		place->name = r->disks[i].given->target;
		if (choose_place(r, i, place, err) < 0 ||
			block_read(place->block, place->saved, place->length, place->offset, err) <
				0 ||
			file_random(place->mark, MARK_BYTES, err) < 0)
			return -1;
	}
	return 0;
}

static int mark(const struct place *place, struct err *err)
{
	uint8_t unit[UNIT_MOST];
	memcpy(unit, place->saved, place->length);
	memcpy(unit, place->mark, MARK_BYTES);
	if (block_write(place->block, unit, place->length, place->offset, 0, err) < 0 ||
		block_flush(place->block, err) < 0)
		return err_context(err, "cannot write a mark to %s", place->name);
	return 0;
}

/* Whether a disk shows the mark at its place. */
static int look(struct block *block, const struct place *place, bool *shows, struct err *err)
{
	uint8_t unit[UNIT_MOST];
	*shows = false;
	if (block_info(block)->size_bytes != block_info(place->block)->size_bytes)
		return 0;
	if (block_read(block, unit, place->length, place->offset, err) < 0)
		return -1;
	*shows = memcmp(unit, place->mark, MARK_BYTES) == 0;
	return 0;
}

/* Every other disk, where target i has its mark. */
static int look_for(struct replica *r, const struct place *places, size_t i, struct err *err)
{
	const struct place *place = &places[i];
	const char *key = r->disks[i].given->key;
	bool shows;
	for (size_t k = 0; k < r->nr_disks; k++) {
		const struct replica_disk *other = r->disks[k].given;
		if (look(places[k].block, place, &shows, err) < 0)
			return -1;
		if (shows && k != i)
			return err_set(err, ERR_CONFLICT,
				"the targets of disks %s and %s are the same disk: %s and %s", key,
				other->key, place->name, places[k].name);
		if (!shows && k == i)
			return err_set(err, ERR_IO, "%s does not hold what was written to it",
				place->name);
		/* What is not open yet is a machine's, which shows no mark: it stands still. */
		shows = false;
		if (other->source && look(other->source, place, &shows, err) < 0)
			return -1;
		if (shows)
			return err_set(err, ERR_CONFLICT,
				"the target of disk %s is the source of disk %s: %s", key,
				other->key, place->name);
	}
	return 0;
}

/* What one writes, all must have given back, whatever fails. */
static int try_marks(struct replica *r, const struct place *places, struct err *err)
{
	struct err why = ERR_INIT;
	size_t nr_marked = 0;
	int rc = 0, back = 0;
	while (rc == 0 && nr_marked < r->nr_disks)
		rc = mark(&places[nr_marked++], &why);
	for (size_t i = 0; rc == 0 && i < r->nr_disks; i++)
		rc = look_for(r, places, i, &why);
	for (size_t i = 0; i < nr_marked; i++) {
		struct err back_err = ERR_INIT;
		if (give_back(places[i].block, &places[i], &back_err) == 0)
			continue;
		back = rc == 0 ? err_copy(err, &back_err) : -1;
		log_error("%s; the next run puts it back first", back_err.text);
	}
	if (back == 0)
		back = drop_journal(r, err);
	return rc < 0 ? err_copy(err, &why) : back;
}

/* Each target needs a place of its own. */
static bool can_prove(const struct replica *r)
{
	for (size_t i = 0; i < r->nr_disks; i++) {
		uint64_t before, units = block_info(r->disks[i].given->target_block)->size_bytes /
					 unit_of(r);
		if (units < nr_alike(r, i, &before))
			return false;
	}
	return true;
}

int proof_run(struct replica *r, struct err *err)
{
	assert(r->nr_disks > 0);
	r->proven = false;
	if (r->options.no_alias_proof)
		return 0;
	if (!can_prove(r)) {
		log_warning("disks that are too small: it is not proven that their targets are "
			    "distinct");
		return 0;
	}
	struct place *places = calloc(r->nr_disks, sizeof *places);
	if (!places)
		return err_errno(err, ENOMEM, "cannot prove that targets are distinct");
	int rc = save(r, places, err);
	if (rc == 0)
		rc = cancel_check(r->options.cancel, err);
	if (rc == 0)
		rc = write_journal(r, places, r->nr_disks, err);
	if (rc == 0)
		rc = try_marks(r, places, err);
	free_places(places, r->nr_disks);
	r->proven = rc == 0;
	return rc;
}
