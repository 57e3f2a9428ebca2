/* Bitmaps of a disk; see bitmaps.h. */
#include "bitmaps.h"

#include <errno.h>
#include <string.h>

#define GRANULARITY 65536 /* a digest chunk: less would be widened to it anyway */

struct state {
	const char *name; /* borrowed from the list */
	bool recording, busy, inconsistent;
};

/* --- looking ------------------------------------------------------------------------------ */

static const json_t *bitmaps_of(const json_t *nodes, const char *node)
{
	size_t at;
	json_t *item;
	json_array_foreach(nodes, at, item)
	{
		const char *name = json_string_value(json_object_get(item, "node-name"));
		if (name && strcmp(name, node) == 0)
			return json_object_get(item, "dirty-bitmaps");
	}
	return NULL;
}

/* One that is ours; others, and those without a name, are none. */
static bool read_state(
	const struct qemu_session *session, const json_t *bitmap, struct state *state)
{
	state->name = json_string_value(json_object_get(bitmap, "name"));
	state->recording = json_is_true(json_object_get(bitmap, "recording"));
	state->busy = json_is_true(json_object_get(bitmap, "busy"));
	state->inconsistent = json_is_true(json_object_get(bitmap, "inconsistent"));
	return state->name && strncmp(state->name, session->bitmaps, strlen(session->bitmaps)) == 0;
}

/* --- transactions ---------------------------------------------------------------------------- */

static void act(json_t *actions, const char *type, json_t *data)
{
	json_array_append_new(actions, json_pack("{s:s, s:o}", "type", type, "data", data));
}

static json_t *bitmap_args(const struct disk *disk, const char *name)
{
	return json_pack("{s:s, s:s}", "node", disk->node, "name", name);
}

static void act_merge(json_t *actions, const struct disk *disk, const char *into, const char *from)
{
	act(actions, "block-dirty-bitmap-enable", bitmap_args(disk, into));
	act(actions, "block-dirty-bitmap-merge",
		json_pack(
			"{s:s, s:s, s:[s]}", "node", disk->node, "target", into, "bitmaps", from));
}

/* Takes actions; all or none of them happen. */
static int transact(struct qmp *qmp, json_t *actions, struct err *err)
{
	if (json_array_size(actions) == 0) {
		json_decref(actions);
		return 0;
	}
	return qmp_do(qmp, "transaction", json_pack("{s:o}", "actions", actions), err);
}

/* --- before a backup -------------------------------------------------------------------------- */

static const char *judge(const struct state *wanted, const struct state *recorder)
{
	if (!wanted->name)
		return "is gone (QEMU was started anew, or the disk was changed)";
	if (wanted->inconsistent)
		return "is inconsistent (QEMU did not end in order)";
	if (wanted->busy)
		return "is in use by another program";
	if (!wanted->recording && !recorder->name)
		return "was stopped by another program";
	return NULL;
}

/* Removes those of ours that do not count.  Inconsistent ones only go one by one. */
static void act_remove_rest(const struct qemu_session *session, json_t *actions,
	const struct disk *disk, const json_t *list, const char *keep)
{
	size_t at;
	json_t *item;
	json_array_foreach(list, at, item)
	{
		struct state state;
		if (!read_state(session, item, &state) || (keep && strcmp(state.name, keep) == 0))
			continue;
		if (state.busy)
			log_warning("disk %s: bitmap %s is in use by another program and stays",
				disk->key, state.name);
		else
			act(actions, "block-dirty-bitmap-remove", bitmap_args(disk, state.name));
	}
}

int bitmaps_settle(
	struct qemu_session *session, struct disk *disk, const char *wanted, struct err *err)
{
	const json_t *list = bitmaps_of(session->nodes, disk->node);
	struct state found = {0}, recorder = {0};
	size_t at;
	json_t *item;
	json_array_foreach(list, at, item)
	{
		struct state state;
		if (!read_state(session, item, &state))
			continue;
		if (wanted && strcmp(state.name, wanted) == 0)
			found = state;
		else if (state.recording && !state.inconsistent && !state.busy)
			recorder = state;
	}
	const char *why = wanted ? judge(&found, &recorder) : NULL;
	const char *keep = wanted && !why ? wanted : NULL;
	json_t *actions = json_array();
	if (keep && !found.recording)
		act_merge(actions, disk, keep, recorder.name);
	act_remove_rest(session, actions, disk, list, keep);
	if (transact(&session->qmp, actions, err) < 0)
		return err_context(err, "cannot put the bitmaps of disk %s in order", disk->key);
	disk->old = keep ? strdup(keep) : NULL;
	if (keep && !disk->old)
		return err_errno(err, ENOMEM, "cannot note disk %s", disk->key);
	if (why)
		snprintf(disk->no_bitmap, sizeof disk->no_bitmap, "bitmap %s %s", wanted, why);
	disk->facts.has_bitmap = keep != NULL;
	disk->facts.no_bitmap = keep ? NULL : disk->no_bitmap;
	disk->settled = true;
	return 0;
}

/* --- beginning and ending ------------------------------------------------------------------------
 */

void bitmaps_begin(const struct qemu_session *session, const struct disk *disk, json_t *actions)
{
	act(actions, "block-dirty-bitmap-add",
		json_pack("{s:s, s:s, s:i, s:b}", "node", disk->node, "name", session->bitmap,
			"granularity", GRANULARITY, "persistent", disk->persistent));
	if (disk->old)
		act(actions, "block-dirty-bitmap-disable", bitmap_args(disk, disk->old));
}

static bool has_bitmap(const struct qemu_session *session, const json_t *nodes,
	const struct disk *disk, const char *name)
{
	size_t at;
	json_t *item;
	json_array_foreach(bitmaps_of(nodes, disk->node), at, item)
	{
		struct state state;
		if (read_state(session, item, &state) && strcmp(state.name, name) == 0)
			return true;
	}
	return false;
}

static void act_end(const struct qemu_session *session, const struct disk *disk,
	const json_t *nodes, json_t *actions)
{
	bool has_old = disk->old && has_bitmap(session, nodes, disk, disk->old);
	if (!has_bitmap(session, nodes, disk, session->bitmap))
		return; /* the transaction did not happen */
	if (session->committed) {
		if (has_old)
			act(actions, "block-dirty-bitmap-remove", bitmap_args(disk, disk->old));
		return;
	}
	if (has_old)
		act_merge(actions, disk, disk->old, session->bitmap);
	act(actions, "block-dirty-bitmap-remove", bitmap_args(disk, session->bitmap));
}

int bitmaps_end(struct qemu_session *session, struct err *err)
{
	json_t *nodes = qmp_call(
		&session->qmp, "query-named-block-nodes", json_pack("{s:b}", "flat", 1), -1, err);
	if (!nodes)
		return err_context(err, "cannot put the bitmaps in order");
	json_t *actions = json_array();
	for (size_t i = 0; i < session->nr_disks; i++)
		act_end(session, &session->disks[i], nodes, actions);
	json_decref(nodes);
	if (transact(&session->qmp, actions, err) < 0)
		return err_context(err, "cannot put the bitmaps in order");
	return 0;
}
