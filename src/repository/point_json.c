/* Restore points as JSON; see point_json.h. */
#include "point_json.h"

#include "repository_internal.h"

#include <errno.h>
#include <string.h>

static const char *const verified_names[] = {
	[REPOSITORY_NEVER_VERIFIED] = "never",
	[REPOSITORY_GOOD] = "good",
	[REPOSITORY_DAMAGED] = "damaged",
};

static const char *mode_name(enum repository_disk_mode mode)
{
	return mode == REPOSITORY_FULL ? "full" : "incremental";
}

const char *point_json_mode(const struct repository_point *point)
{
	for (size_t i = 1; i < point->nr_disks; i++)
		if (point->disks[i].mode != point->disks[0].mode)
			return "mixed";
	return point->nr_disks > 0 ? mode_name(point->disks[0].mode) : "-";
}

/* --- telling ------------------------------------------------------------------------ */

static void put_text(json_t *object, const char *name, const char *text)
{
	if (text && text[0])
		json_object_set_new(object, name, json_string(text));
}

static void put_number(json_t *object, const char *name, uint64_t number)
{
	json_object_set_new(object, name, json_integer((json_int_t)number));
}

json_t *point_json_disk(const struct repository_disk_info *disk)
{
	json_t *object = json_object(), *identity = json_object();
	for (size_t i = 0; i < disk->source.nr_identity; i++)
		put_text(identity, disk->source.identity[i].name, disk->source.identity[i].value);
	put_text(object, "key", disk->key);
	put_number(object, "size", disk->size_bytes);
	put_text(object, "root", disk->root_hex);
	put_number(object, "stored", disk->figures.stored_bytes);
	put_text(object, "image", disk->image);
	put_text(object, "source_kind", disk->source.kind);
	put_text(object, "source", disk->source.label);
	json_object_set_new(object, "source_identity", identity);
	put_number(object, "logical", disk->figures.logical_bytes);
	put_number(object, "read", disk->figures.read_bytes);
	put_number(object, "sent", disk->figures.sent_bytes);
	put_number(object, "zeros_skipped", disk->figures.zeros_skipped_bytes);
	put_text(object, "mode", mode_name(disk->mode));
	put_text(object, "reason", disk->reason);
	put_text(object, "parent", disk->parent);
	if (disk->change != REPOSITORY_CHANGE_NONE)
		put_text(object, "changed_by", repository_change_name(disk->change));
	put_text(object, "change_id", disk->change_id);
	put_text(object, "bitmap", disk->bitmap);
	put_text(object, "backing", disk->backing);
	put_number(object, "audited", disk->audited_bytes);
	put_text(object, "checked", disk->checked);
	return object;
}

json_t *point_json(const struct repository_point *point)
{
	json_t *object = json_pack("{s:s, s:s}", "vm", point->vm, "point", point->id);
	if (point->damage) {
		put_text(object, "damage", point->damage);
		return object;
	}
	json_t *disks = json_array();
	for (size_t i = 0; i < point->nr_disks; i++)
		json_array_append_new(disks, point_json_disk(&point->disks[i]));
	put_text(object, "started", point->started);
	put_text(object, "finished", point->finished);
	put_text(object, "mode", point_json_mode(point));
	put_number(object, "stored", point->stored_bytes);
	put_text(object, "verified", verified_names[point->verified]);
	put_text(object, "verified_at", point->verified_at);
	json_object_set_new(object, "protected", json_boolean(point->is_protected));
	put_text(object, "protected_until", point->protected_until);
	put_text(object, "consistency", point->consistency);
	put_text(object, "consistency_reason", point->consistency_reason);
	put_text(object, "software", point->software);
	put_text(object, "client", point->client);
	put_text(object, "client_job", point->client_job);
	put_text(object, "job", point->job);
	json_object_set_new(object, "disks", disks);
	return object;
}

/* --- reading ------------------------------------------------------------------------- */

static int missing(const char *name, struct err *err)
{
	return err_set(err, ERR_PROTOCOL,
		"a restore point as JSON: \"%s\" is missing or of another kind", name);
}

static const char *text_of(const json_t *object, const char *name)
{
	return json_string_value(json_object_get(object, name));
}

static int copy_text(const json_t *object, const char *name, bool required, char *out,
	size_t out_bytes, struct err *err)
{
	const char *text = text_of(object, name);
	if (text ? strlen(text) >= out_bytes : required)
		return missing(name, err);
	snprintf(out, out_bytes, "%s", text ? text : "");
	return 0;
}

/* 0 where it is not told. */
static int number_of(const json_t *object, const char *name, uint64_t *number, struct err *err)
{
	const json_t *value = json_object_get(object, name);
	*number = json_is_integer(value) ? (uint64_t)json_integer_value(value) : 0;
	if (value && (!json_is_integer(value) || json_integer_value(value) < 0))
		return missing(name, err);
	return 0;
}

static int parse_identity(const json_t *object, struct repository_source *source, struct err *err)
{
	json_t *identity = json_object_get(object, "source_identity");
	size_t nr = json_object_size(identity);
	source->kind = text_of(object, "source_kind");
	source->label = text_of(object, "source");
	if (!source->kind || !source->label || nr > 32)
		return missing("source", err);
	struct repository_pair *pairs = calloc(nr ? nr : 1, sizeof *pairs);
	if (!pairs)
		return err_errno(err, ENOMEM, "cannot read a restore point");
	source->identity = pairs;
	const char *key;
	json_t *value;
	json_object_foreach(identity, key, value)
	{
		if (!json_is_string(value))
			return missing("source_identity", err);
		pairs[source->nr_identity++] =
			(struct repository_pair){key, json_string_value(value)};
	}
	return 0;
}

static int parse_figures(const json_t *object, struct repository_figures *figures, struct err *err)
{
	if (number_of(object, "logical", &figures->logical_bytes, err) < 0 ||
		number_of(object, "read", &figures->read_bytes, err) < 0 ||
		number_of(object, "sent", &figures->sent_bytes, err) < 0 ||
		number_of(object, "zeros_skipped", &figures->zeros_skipped_bytes, err) < 0 ||
		number_of(object, "stored", &figures->stored_bytes, err) < 0)
		return -1;
	return 0;
}

static int parse_disk(const json_t *object, struct repository_disk_info *disk, struct err *err)
{
	const char *mode = text_of(object, "mode");
	if (copy_text(object, "key", true, disk->key, sizeof disk->key, err) < 0 ||
		number_of(object, "size", &disk->size_bytes, err) < 0 ||
		copy_text(object, "root", true, disk->root_hex, sizeof disk->root_hex, err) < 0 ||
		number_of(object, "audited", &disk->audited_bytes, err) < 0 ||
		parse_figures(object, &disk->figures, err) < 0)
		return -1;
	if (repository_name_check_key(disk->key, NULL) < 0)
		return missing("key", err);
	if (disk->size_bytes == 0)
		return missing("size", err);
	if (!mode || (strcmp(mode, "full") != 0 && strcmp(mode, "incremental") != 0))
		return missing("mode", err);
	disk->mode = mode[0] == 'f' ? REPOSITORY_FULL : REPOSITORY_INCREMENTAL;
	disk->reason = text_of(object, "reason") ? text_of(object, "reason") : "";
	disk->parent = text_of(object, "parent");
	disk->change_id = text_of(object, "change_id");
	/* One that is not known (a newer hub's) is told as none. */
	repository_change_parse(text_of(object, "changed_by"), &disk->change);
	disk->bitmap = text_of(object, "bitmap");
	disk->backing = text_of(object, "backing");
	disk->checked = text_of(object, "checked");
	disk->image = text_of(object, "image") ? text_of(object, "image") : "";
	return parse_identity(object, &disk->source, err);
}

static int parse_disks(const json_t *disks, struct repository_point *point, struct err *err)
{
	size_t nr = json_array_size(disks);
	if (nr == 0 || nr > REPOSITORY_DISKS_MAX)
		return missing("disks", err);
	point->disks = calloc(nr, sizeof *point->disks);
	if (!point->disks)
		return err_errno(err, ENOMEM, "cannot read a restore point");
	point->nr_disks = nr;
	for (size_t i = 0; i < nr; i++)
		if (parse_disk(json_array_get(disks, i), &point->disks[i], err) < 0)
			return -1;
	point->source = point->disks[0].source;
	point->source.identity = NULL;
	point->source.nr_identity = 0;
	return 0;
}

static int parse_point(const json_t *object, struct repository_point *point, struct err *err)
{
	if (copy_text(object, "vm", true, point->vm, sizeof point->vm, err) < 0 ||
		copy_text(object, "point", true, point->id, sizeof point->id, err) < 0)
		return -1;
	if (!repository_name_is_point(point->id) || repository_name_check_vm(point->vm, NULL) < 0)
		return missing("point", err);
	point->damage = text_of(object, "damage");
	if (point->damage)
		return 0;
	if (copy_text(object, "started", true, point->started, sizeof point->started, err) < 0 ||
		copy_text(object, "finished", true, point->finished, sizeof point->finished, err) <
			0 ||
		copy_text(object, "verified_at", false, point->verified_at,
			sizeof point->verified_at, err) < 0 ||
		copy_text(object, "protected_until", false, point->protected_until,
			sizeof point->protected_until, err) < 0 ||
		number_of(object, "stored", &point->stored_bytes, err) < 0)
		return -1;
	const char *verified = text_of(object, "verified");
	for (unsigned i = 0; verified && i < ARRAY_LENGTH(verified_names); i++)
		if (strcmp(verified, verified_names[i]) == 0)
			point->verified = i;
	point->is_protected = json_is_true(json_object_get(object, "protected"));
	point->consistency = text_of(object, "consistency");
	point->consistency_reason = text_of(object, "consistency_reason");
	point->client = text_of(object, "client");
	point->client_job = text_of(object, "client_job");
	point->software = text_of(object, "software") ? text_of(object, "software") : "";
	point->job = text_of(object, "job") ? text_of(object, "job") : "";
	return parse_disks(json_object_get(object, "disks"), point, err);
}

struct repository_point *point_json_parse(const json_t *object, struct err *err)
{
	struct repository_point *point = calloc(1, sizeof *point);
	if (point)
		point->internal = calloc(1, sizeof *point->internal);
	if (!point || !point->internal) {
		err_errno(err, ENOMEM, "cannot read a restore point");
		repository_point_free(point);
		return NULL;
	}
	/* Its texts are the point's, as those of a manifest. */
	point->internal->manifest = json_incref((json_t *)object);
	if (parse_point(object, point, err) < 0) {
		repository_point_free(point);
		return NULL;
	}
	return point;
}
