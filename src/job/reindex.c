/*
 * One VM at a time: marks of what the repository has against marks of what the index has; then
 * manifests of those that differ, the lengths of the chains that run through them, and one
 * transaction.
 */
#include "reindex.h"

#include "repository.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* A restore point, in the repository, in the index or in both. */
struct item {
	char id[REPOSITORY_POINT_BYTES];
	char mark[REPOSITORY_MARK_BYTES]; /* as the repository has it now */
	char known_mark[REPOSITORY_MARK_BYTES]; /* as the index has it */
	bool is_known, is_there;
	bool is_changed; /* the index is to be told */
	json_t *value; /* NULL: not needed */
	struct index_point point;
};

struct items {
	char mark[REPOSITORY_MARK_BYTES]; /* of the VM, before it was looked at */
	struct item *item; /* by id, which is by time */
	size_t nr, room;
	const char *vm; /* for messages */
	struct err err;
};

static void items_free(struct items *items)
{
	for (size_t i = 0; i < items->nr; i++)
		json_decref(items->item[i].value);
	free(items->item);
}

static struct item *items_add(struct items *items, const char *id)
{
	if (items->nr == items->room) {
		size_t room = items->room ? 2 * items->room : 64;
		struct item *more = reallocarray(items->item, room, sizeof *more);
		if (!more) {
			err_errno(&items->err, ENOMEM, "cannot index VM \"%s\"", items->vm);
			return NULL;
		}
		items->item = more;
		items->room = room;
	}
	struct item *item = &items->item[items->nr++];
	memset(item, 0, sizeof *item);
	snprintf(item->id, sizeof item->id, "%s", id);
	return item;
}

static int by_id(const void *a, const void *b)
{
	return strcmp(((const struct item *)a)->id, ((const struct item *)b)->id);
}

/* Among the first nr, which are sorted. */
static struct item *items_find(const struct items *items, size_t nr, const char *id)
{
	struct item key = {0};
	snprintf(key.id, sizeof key.id, "%s", id);
	return nr ? bsearch(&key, items->item, nr, sizeof key, by_id) : NULL;
}

/* --- what is known, what is there ------------------------------------------------------ */

static int note_known(
	void *context, const struct index_point *point, const char cursor[INDEX_CURSOR_BYTES])
{
	(void)cursor;
	struct item *item = items_add(context, point->id);
	if (!item)
		return 1;
	item->is_known = true;
	item->point = *point;
	item->point.value = NULL;
	snprintf(item->known_mark, sizeof item->known_mark, "%s", point->mark);
	return 0;
}

struct listing {
	struct items *items;
	size_t nr_known;
};

static int note_there(void *context, const char *id, const char *mark)
{
	struct listing *listing = context;
	struct item *item = items_find(listing->items, listing->nr_known, id);
	if (!item)
		item = items_add(listing->items, id);
	if (!item)
		return 1;
	item->is_there = true;
	snprintf(item->mark, sizeof item->mark, "%s", mark);
	return 0;
}

static int look(const struct reindex_options *options, struct items *items, struct err *err)
{
	const struct index_filter filter = {.repository = options->name,
		.vm = items->vm,
		.oldest_first = true,
		.without_value = true};
	if (index_points(options->index, &filter, note_known, items, err) < 0)
		return -1;
	if (items->nr)
		qsort(items->item, items->nr, sizeof *items->item, by_id);
	struct listing listing = {items, items->nr};
	if (items->err.code == ERR_NONE && repository_list_marks(options->repository, items->vm,
						   note_there, &listing, err) < 0)
		return -1;
	if (items->err.code != ERR_NONE)
		return err_copy(err, &items->err);
	if (items->nr)
		qsort(items->item, items->nr, sizeof *items->item, by_id);
	return 0;
}

/* --- what changed ------------------------------------------------------------------------- */

/* "20261121T200000Z..." or "2026-11-21T20:00:00Z"; 0: it is neither. */
static int64_t seconds_of(const char *text, const char *format)
{
	struct tm tm = {0};
	return strptime(text, format, &tm) ? (int64_t)timegm(&tm) : 0;
}

static void describe(const struct repository_point *from, struct index_point *point)
{
	static const char utc[] = "%Y-%m-%dT%H:%M:%SZ";
	point->verified = from->verified == REPOSITORY_GOOD      ? INDEX_GOOD
			  : from->verified == REPOSITORY_DAMAGED ? INDEX_DAMAGED
								 : INDEX_NEVER_VERIFIED;
	point->verified_at = seconds_of(from->verified_at, utc);
	point->is_protected = from->is_protected;
	point->protected_until = seconds_of(from->protected_until, utc);
	point->stored_bytes = from->stored_bytes;
	for (size_t i = 0; i < from->nr_disks; i++)
		if (!add_u64(point->size_bytes, from->disks[i].size_bytes, &point->size_bytes))
			point->size_bytes = UINT64_MAX;
}

/* One that cannot be read is indexed as damaged, and read again the next time. */
static int read_item(const struct reindex_options *options, const char *vm, struct item *item,
	struct reindex_result *result, struct err *err)
{
	struct err why = ERR_INIT;
	struct repository_point *point =
		repository_point_load(options->repository, vm, item->id, &why);
	if (!point && why.code == ERR_NOT_FOUND) {
		item->is_there = false; /* pruned while we were walking */
		return 0;
	}
	if (!point && (why.code == ERR_NO_MEMORY || why.code == ERR_CANCELLED))
		return err_copy(err, &why);
	memset(&item->point, 0, sizeof item->point);
	item->point.time = seconds_of(item->id, "%Y%m%dT%H%M%SZ");
	item->is_changed = true;
	result->nr_read++;
	if (point) {
		describe(point, &item->point);
		item->value = point_json(point);
		repository_point_free(point);
	} else {
		item->point.is_damaged = true;
		item->value = json_pack(
			"{s:s, s:s, s:s}", "vm", vm, "point", item->id, "damage", why.text);
		if (why.code == ERR_IO || why.code == ERR_DENIED)
			item->mark[0] = '\0';
	}
	return item->value ? 0 : err_errno(err, ENOMEM, "cannot index VM \"%s\"", vm);
}

static int read_changed(const struct reindex_options *options, struct items *items,
	struct reindex_result *result, struct err *err)
{
	for (size_t i = 0; i < items->nr; i++) {
		struct item *item = &items->item[i];
		bool same = item->is_known && item->mark[0] &&
			    strcmp(item->mark, item->known_mark) == 0 && !options->all;
		if (!item->is_there || same)
			continue;
		if (cancel_check(options->cancel, err) < 0 ||
			read_item(options, items->vm, item, result, err) < 0)
			return -1;
	}
	return 0;
}

/* --- the lengths of chains ---------------------------------------------------------------- */

static int note_value(
	void *context, const struct index_point *point, const char cursor[INDEX_CURSOR_BYTES])
{
	(void)cursor;
	struct items *items = context;
	struct item *item = items_find(items, items->nr, point->id);
	if (item && item->is_there && !item->value)
		item->value = json_deep_copy(point->value);
	return 0;
}

/* From the disks' backing.  chains: key to {"point", "length"} of the point before. */
static void follow_chain(struct item *item, json_t *disk, json_t *chains)
{
	const char *key = json_string_value(json_object_get(disk, "key"));
	const char *backing = json_string_value(json_object_get(disk, "backing"));
	json_int_t length = 1;
	if (!key)
		return;
	if (backing) {
		const json_t *chain = json_object_get(chains, key);
		const char *point = json_string_value(json_object_get(chain, "point"));
		json_int_t beneath = json_integer_value(json_object_get(chain, "length"));
		length = beneath > 0 && point && strcmp(point, backing) == 0 ? beneath + 1 : 0;
	}
	json_object_set_new(
		chains, key, json_pack("{s:s, s:I}", "point", item->id, "length", length));
	if (json_integer_value(json_object_get(disk, "chain_length")) == length)
		return;
	item->is_changed = true;
	if (length > 0)
		json_object_set_new(disk, "chain_length", json_integer(length));
	else
		json_object_del(disk, "chain_length");
}

static int follow_chains(
	const struct reindex_options *options, struct items *items, struct err *err)
{
	const struct index_filter filter = {
		.repository = options->name, .vm = items->vm, .oldest_first = true};
	if (index_points(options->index, &filter, note_value, items, err) < 0)
		return -1;
	json_t *chains = json_object();
	for (size_t i = 0; i < items->nr; i++) {
		size_t k;
		json_t *disk;
		json_array_foreach(json_object_get(items->item[i].value, "disks"), k, disk)
			follow_chain(&items->item[i], disk, chains);
	}
	json_decref(chains);
	return 0;
}

/* --- telling the index ---------------------------------------------------------------------- */

static int put(const struct reindex_options *options, struct items *items,
	struct reindex_result *result, struct err *err)
{
	struct index_point *AUTO_FREE points = calloc(items->nr + 1, sizeof *points);
	const char **AUTO_FREE gone = calloc(items->nr + 1, sizeof *gone);
	size_t nr_points = 0, nr_gone = 0;
	if (!points || !gone)
		return err_errno(err, ENOMEM, "cannot index VM \"%s\"", items->vm);
	for (size_t i = 0; i < items->nr; i++) {
		struct item *item = &items->item[i];
		if (!item->is_there && item->is_known)
			gone[nr_gone++] = item->id;
		if (!item->is_there || !item->is_changed || !item->value)
			continue;
		item->point.id = item->id;
		item->point.mark = item->mark;
		item->point.value = item->value;
		points[nr_points++] = item->point;
	}
	result->nr_gone += (unsigned)nr_gone;
	return index_put(options->index, options->name, items->vm, items->mark, points, nr_points,
		gone, err);
}

/* known_mark: of the VM, as the index has it. */
static int reindex_vm(const struct reindex_options *options, const char *vm, const char *known_mark,
	struct reindex_result *result, struct err *err)
{
	struct items items = {.vm = vm};
	int rc = repository_vm_mark(options->repository, vm, items.mark, err);
	if (rc == 0 && options->quick && items.mark[0] && strcmp(items.mark, known_mark) == 0)
		return 0;
	if (rc == 0)
		rc = look(options, &items, err);
	if (rc == 0)
		rc = read_changed(options, &items, result, err);
	/* A VM without restore points is to be known, too. */
	bool changed = items.nr == 0 || strcmp(items.mark, known_mark) != 0;
	bool points_changed = false;
	for (size_t i = 0; i < items.nr; i++)
		points_changed |= items.item[i].is_changed || !items.item[i].is_there;
	if (rc == 0 && points_changed)
		rc = follow_chains(options, &items, err);
	if (rc == 0 && (changed || points_changed))
		rc = put(options, &items, result, err);
	for (size_t i = 0; rc == 0 && i < items.nr; i++) {
		result->nr_points += items.item[i].is_there;
		result->nr_damaged += items.item[i].is_there && items.item[i].point.is_damaged;
	}
	items_free(&items);
	return rc;
}

/* --- all VMs -----------------------------------------------------------------------------------
 */

/* Names of VMs as a JSON object's keys, with their marks: what is left of it is gone. */
static int note_vm_known(void *context, const char *vm, const char *mark)
{
	json_object_set_new(context, vm, json_string(mark));
	return 0;
}

static int note_vm_there(void *context, const char *vm)
{
	json_array_append_new(context, json_string(vm));
	return 0;
}

static int reindex_all(
	const struct reindex_options *options, struct reindex_result *result, struct err *err)
{
	json_t *known = json_object(), *there = json_array(), *name;
	size_t i;
	const char *vm;
	int rc = known && there ? 0 : err_errno(err, ENOMEM, "cannot index a repository");
	if (rc == 0)
		rc = index_marks(options->index, options->name, note_vm_known, known, err);
	if (rc == 0)
		rc = repository_list_vms(options->repository, note_vm_there, there, err);
	unsigned nr_vms = (unsigned)json_array_size(there);
	json_array_foreach(there, i, name)
	{
		vm = json_string_value(name);
		struct err why = ERR_INIT;
		if (rc == 0)
			rc = cancel_check(options->cancel, err);
		const char *mark = json_string_value(json_object_get(known, vm));
		if (rc == 0 && reindex_vm(options, vm, mark ? mark : "", result, &why) < 0) {
			if (why.code == ERR_NOT_FOUND)
				continue; /* it went while we were walking */
			rc = err_copy(err, &why);
		}
		json_object_del(known, vm);
		if (rc == 0 && options->progress)
			options->progress(options->context, vm, (unsigned)i + 1, nr_vms);
	}
	result->nr_vms = nr_vms;
	json_object_foreach(known, vm, name)
	{
		if (rc == 0)
			rc = index_forget(options->index, options->name, vm, err);
	}
	if (rc == 0 && !options->quick)
		rc = index_repository_walked(options->index, options->name, time(NULL), err);
	json_decref(known);
	json_decref(there);
	return rc;
}

int reindex_run(
	const struct reindex_options *options, struct reindex_result *result, struct err *err)
{
	struct repository_info info;
	struct err why = ERR_INIT;
	memset(result, 0, sizeof *result);
	if (repository_info(options->repository, &info, err) < 0 ||
		index_repository_is(options->index, options->name, info.id, err) < 0)
		return -1;
	int rc = 0;
	if (!options->vm) {
		rc = reindex_all(options, result, &why);
	} else {
		rc = reindex_vm(options, options->vm, "", result, &why);
		result->nr_vms = rc == 0;
		if (rc < 0 && why.code == ERR_NOT_FOUND) {
			err_clear(&why);
			rc = index_forget(options->index, options->name, options->vm, &why);
		}
	}
	if (rc == 0)
		return 0;
	err_copy(err, &why);
	return err_context(err, "cannot index repository %s", options->name);
}
