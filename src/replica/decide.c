/*
 * Whether a disk is written whole or what changed, and what an interrupted run left.
 *
 *   not in the record, or forced    whole; nothing is known of the target
 *   in the record, no run           what differs from the leaves
 *   an interrupted run, same boot   what it told is read from the target; then as before it
 *   an interrupted run, other boot  its marks may be lost: all of the target is read
 */
#include "replica_internal.h"

#include <stdio.h>
#include <string.h>

/* --- looking at the target --------------------------------------------------------------- */

static int looked_chunks(void *context, uint64_t first, unsigned nr, const uint8_t *of,
	uint64_t zero_mask, struct err *err)
{
	return leaves_tell(context, first, nr, of, zero_mask, MARK_LOOKED, err);
}

static int looked_zeros(void *context, uint64_t first, uint64_t nr, struct err *err)
{
	return leaves_tell_zeros(context, first, nr, MARK_LOOKED, err);
}

/* Puts into the leaves what the target holds: where a mark is, or everywhere. */
static int look(struct replica *r, struct one_disk *disk, bool everywhere, struct err *err)
{
	struct leaves_map map = {&disk->leaves, true};
	struct copy_chunk_sink sink = {&disk->leaves, looked_chunks, looked_zeros};
	struct copy_options options = {
		.digest_key = &r->key,
		.sink = &sink,
		.changed_only = !everywhere,
		.cancel = r->options.cancel,
	};
	struct block *target = disk->given->target_block;
	if (everywhere)
		return copy_scan(target, &options, err);
	struct block *view = block_remap_open(target, leaves_remap, &map, err);
	if (!view)
		return -1;
	int rc = copy_scan(view, &options, err);
	block_close(view, NULL);
	return rc;
}

int decide_look(struct replica *r, struct one_disk *disk, bool everywhere, struct err *err)
{
	if (look(r, disk, everywhere, err) < 0 ||
		(everywhere && leaves_sync(&disk->leaves, err) < 0))
		return err_context(err, "disk %s: what an interrupted run left in %s",
			disk->given->key, disk->given->target);
	return 0;
}

/* --- what tells of the changes -------------------------------------------------------------- */

static bool same_text(const char *a, const char *b)
{
	return a && b && strcmp(a, b) == 0;
}

#define SAY(disk, ...) snprintf((disk)->reason, sizeof(disk)->reason, __VA_ARGS__)

/* Whether what was offered tells of the changes since the record's generation. */
static bool changes_hold(struct one_disk *disk, const struct ledger_disk *record)
{
	const struct repository_offer *offer = disk->given->offer;
	bool is_list = offer->change == REPOSITORY_CHANGE_EXTENTS;
	const char *then = is_list ? record->change_id : record->bitmap;
	const char *since = is_list ? offer->from : offer->bitmap;
	const char *what = is_list ? "change id" : "dirty bitmap";
	if (!is_list && offer->change != REPOSITORY_CHANGE_BITMAP)
		return false;
	if (!record->root_hex[0])
		SAY(disk, "compared: no generation is complete yet");
	else if (offer->unusable)
		SAY(disk, "compared: %s", offer->unusable);
	else if (!then)
		SAY(disk, "compared: the latest generation recorded no %s, and %.60s is given",
			what, since);
	else if (!same_text(then, since))
		SAY(disk, "compared: the latest generation recorded %s %.60s, not %.60s", what,
			then, since);
	else {
		SAY(disk, "changed since %s %.100s", what, since);
		return true;
	}
	log_warning("disk %s is %s", disk->given->key, disk->reason);
	return false;
}

void decide_disk(struct one_disk *disk, const struct ledger_disk *record)
{
	disk->changed_only = false;
	if (disk->full) {
		disk->change = REPOSITORY_CHANGE_NONE;
		if (!disk->reason[0])
			SAY(disk, "first run");
		return;
	}
	SAY(disk, "compared with the latest generation");
	disk->changed_only = changes_hold(disk, record);
	disk->change = disk->changed_only ? disk->given->offer->change : REPOSITORY_CHANGE_COMPARE;
}
