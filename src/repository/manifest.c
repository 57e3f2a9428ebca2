/*
 * Manifests and states: restore points as records.
 *
 * A struct repository_point borrows its texts from the parsed manifest, which it
 * keeps until it is freed.
 */
#include "repository_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

json_t *manifest_source_to_json(const struct repository_source *source)
{
	json_t *identity = json_object();
	for (size_t i = 0; i < source->nr_identity; i++)
		json_object_set_new(identity, source->identity[i].name,
			record_printable(source->identity[i].value));
	return json_pack("{s:s, s:o, s:o}", "kind", source->kind, "label",
		record_printable(source->label), "identity", identity);
}

static int parse_source(
	const json_t *object, struct repository_source *source, const char *name, struct err *err)
{
	source->kind = record_string(object, "kind", name, err);
	source->label = source->kind ? record_string(object, "label", name, err) : NULL;
	json_t *identity = source->label ? record_object(object, "identity", name, err) : NULL;
	if (!identity)
		return -1;
	size_t nr = json_object_size(identity);
	if (nr > 32)
		return err_set(err, ERR_FORMAT, "%s: an identity has more than 32 parts", name);
	struct repository_pair *pairs = calloc(nr ? nr : 1, sizeof *pairs);
	if (!pairs)
		return err_errno(err, ENOMEM, "cannot read %s", name);
	source->identity = pairs;
	const char *key;
	json_t *value;
	json_object_foreach(identity, key, value)
	{
		pairs[source->nr_identity].name = key;
		pairs[source->nr_identity].value = json_string_value(value);
		if (!pairs[source->nr_identity++].value)
			return err_set(err, ERR_FORMAT, "%s: an identity is no text", name);
	}
	return 0;
}

/* A text or null. */
static int parse_nullable(const json_t *object, const char *field, const char **out,
	const char *name, struct err *err)
{
	const json_t *value = json_object_get(object, field);
	*out = json_string_value(value);
	if (*out || json_is_null(value))
		return 0;
	return err_set(err, ERR_FORMAT, "%s: \"%s\" is missing or no text", name, field);
}

static int parse_figures(
	const json_t *object, struct repository_figures *figures, const char *name, struct err *err)
{
	if (!object ||
		record_u64(object, "logical_bytes", &figures->logical_bytes, name, err) < 0 ||
		record_u64(object, "read_bytes", &figures->read_bytes, name, err) < 0 ||
		record_u64(object, "sent_bytes", &figures->sent_bytes, name, err) < 0 ||
		record_u64(object, "zeros_skipped_bytes", &figures->zeros_skipped_bytes, name,
			err) < 0 ||
		record_u64(object, "stored_bytes", &figures->stored_bytes, name, err) < 0)
		return -1;
	return 0;
}

/* Files lie in the disk's own folder and nowhere else. */
static bool is_own_file(const char *vm, const char *key, const char *path, const char *ending)
{
	char folder[NAME_PATH_BYTES], point[REPOSITORY_POINT_BYTES];
	path_disk(vm, key, "", "", folder);
	size_t length = strlen(folder);
	if (strncmp(path, folder, length) != 0 || path[length] != '/' ||
		strlen(path) != length + REPOSITORY_POINT_BYTES + strlen(ending))
		return false;
	memcpy(point, path + length + 1, REPOSITORY_POINT_BYTES - 1);
	point[REPOSITORY_POINT_BYTES - 1] = '\0';
	return repository_name_is_point(point) && path_has_suffix(path, ending);
}

/* A text, null, or not there at all. */
static int parse_optional(const json_t *object, const char *field, const char **out,
	const char *name, struct err *err)
{
	*out = NULL;
	return json_object_get(object, field) ? parse_nullable(object, field, out, name, err) : 0;
}

static const char *const change_names[] = {
	[REPOSITORY_CHANGE_NONE] = "none",
	[REPOSITORY_CHANGE_COMPARE] = "compare",
	[REPOSITORY_CHANGE_BITMAP] = "bitmap",
	[REPOSITORY_CHANGE_EXTENTS] = "extents",
};

const char *repository_change_name(enum repository_change change)
{
	return change_names[change];
}

bool repository_change_parse(const char *name, enum repository_change *change)
{
	for (unsigned i = 0; name && i < ARRAY_LENGTH(change_names); i++)
		if (strcmp(change_names[i], name) == 0) {
			*change = (enum repository_change)i;
			return true;
		}
	return false;
}

/* What makes increments; older records have none of it. */
static int parse_change(
	struct repository_disk_info *disk, const json_t *object, const char *name, struct err *err)
{
	const char *changed_by;
	if (parse_optional(object, "changed_by", &changed_by, name, err) < 0 ||
		parse_optional(object, "bitmap", &disk->bitmap, name, err) < 0 ||
		parse_optional(object, "checked", &disk->checked, name, err) < 0 ||
		(json_object_get(object, "audited_bytes") &&
			record_u64(object, "audited_bytes", &disk->audited_bytes, name, err) < 0))
		return -1;
	disk->change = REPOSITORY_CHANGE_NONE;
	if (changed_by && (!repository_change_parse(changed_by, &disk->change) ||
				  disk->change == REPOSITORY_CHANGE_NONE))
		return err_set(err, ERR_UNSUPPORTED,
			"%s: changes known by \"%s\" are unknown to this program", name,
			changed_by);
	return 0;
}

static int parse_storage(struct repository_point *point, struct repository_disk_info *disk,
	const json_t *storage, const char *name, struct err *err)
{
	uint64_t stored_bytes;
	const json_t *where = record_object(storage, disk->key, name, err);
	if (!where)
		return -1;
	disk->image = record_string(where, "image", name, err);
	disk->sums = disk->image ? record_string(where, "sums", name, err) : NULL;
	if (!disk->sums || parse_nullable(where, "backing", &disk->backing, name, err) < 0 ||
		record_u64(where, "stored_bytes", &stored_bytes, name, err) < 0 ||
		(json_object_get(where, "image_bytes") &&
			record_u64(where, "image_bytes", &disk->image_bytes, name, err) < 0))
		return -1;
	if (!is_own_file(point->vm, disk->key, disk->image, ".qcow2") ||
		!is_own_file(point->vm, disk->key, disk->sums, ".sums") ||
		(disk->backing && !repository_name_is_point(disk->backing)))
		return err_set(err, ERR_FORMAT,
			"%s: the files of disk %s lie where they must not be", name, disk->key);
	if (!add_u64(point->stored_bytes, stored_bytes, &point->stored_bytes))
		point->stored_bytes = UINT64_MAX;
	return 0;
}

static int parse_disk(struct repository_point *point, struct repository_disk_info *disk,
	const json_t *object, const json_t *storage, const char *name, struct err *err)
{
	if (record_text_into(object, "key", disk->key, sizeof disk->key, name, err) < 0 ||
		repository_name_check_key(disk->key, err) < 0 ||
		record_u64(object, "size_bytes", &disk->size_bytes, name, err) < 0)
		return -1;
	const char *mode = record_string(object, "mode", name, err);
	disk->reason = mode ? record_string(object, "reason", name, err) : NULL;
	if (!disk->reason || parse_nullable(object, "parent", &disk->parent, name, err) < 0 ||
		parse_nullable(object, "change_id", &disk->change_id, name, err) < 0 ||
		record_text_into(object, "root", disk->root_hex, sizeof disk->root_hex, name, err) <
			0 ||
		parse_figures(
			record_object(object, "figures", name, err), &disk->figures, name, err) < 0)
		return -1;
	if (strcmp(mode, "full") != 0 && strcmp(mode, "incremental") != 0)
		return err_set(err, ERR_UNSUPPORTED, "%s: mode \"%s\" is unknown to this program",
			name, mode);
	if (disk->size_bytes == 0)
		return err_set(err, ERR_FORMAT, "%s: disk %s has no size", name, disk->key);
	if (parse_change(disk, object, name, err) < 0)
		return -1;
	disk->mode = mode[0] == 'f' ? REPOSITORY_FULL : REPOSITORY_INCREMENTAL;
	const json_t *source = record_object(object, "source", name, err);
	if (!source || parse_source(source, &disk->source, name, err) < 0)
		return -1;
	return parse_storage(point, disk, storage, name, err);
}

static int by_key(const void *a, const void *b)
{
	const struct repository_disk_info *left = a, *right = b;
	return strcmp(left->key, right->key);
}

static int parse_disks(struct repository_point *point, const json_t *facts, const json_t *storage,
	const char *name, struct err *err)
{
	const json_t *disks = json_object_get(facts, "disks");
	size_t nr = json_array_size(disks);
	const json_t *where = record_object(storage, "disks", name, err);
	if (!where)
		return -1;
	if (nr == 0 || nr > REPOSITORY_DISKS_MAX)
		return err_set(err, ERR_FORMAT, "%s: it has %zu disks", name, nr);
	point->disks = calloc(nr, sizeof *point->disks);
	if (!point->disks)
		return err_errno(err, ENOMEM, "cannot read %s", name);
	point->nr_disks = nr;
	for (size_t i = 0; i < nr; i++)
		if (parse_disk(point, &point->disks[i], json_array_get(disks, i), where, name,
			    err) < 0)
			return -1;
	qsort(point->disks, nr, sizeof *point->disks, by_key);
	for (size_t i = 1; i < nr; i++)
		if (strcmp(point->disks[i - 1].key, point->disks[i].key) == 0)
			return err_set(err, ERR_FORMAT, "%s: disk %s stands in it twice", name,
				point->disks[i].key);
	return 0;
}

static int parse_facts(struct repository *repo, struct repository_point *point, const json_t *facts,
	const char *name, struct err *err)
{
	const char *id = record_string(facts, "point", name, err);
	const char *vm = id ? record_string(facts, "vm", name, err) : NULL;
	const char *repository = vm ? record_string(facts, "repository", name, err) : NULL;
	point->job = repository ? record_string(facts, "job", name, err) : NULL;
	point->software = point->job ? record_string(facts, "software", name, err) : NULL;
	if (!point->software ||
		record_text_into(
			facts, "started", point->started, sizeof point->started, name, err) < 0 ||
		record_text_into(
			facts, "finished", point->finished, sizeof point->finished, name, err) < 0)
		return -1;
	if (strcmp(id, point->id) != 0 || strcmp(vm, point->vm) != 0 ||
		strcmp(repository, repo->info.id) != 0)
		return err_set(err, ERR_CORRUPT,
			"%s belongs to another VM, restore point or repository", name);
	if (parse_optional(facts, "hub_job", &point->hub_job, name, err) < 0 ||
		parse_optional(facts, "client", &point->client, name, err) < 0 ||
		parse_optional(facts, "client_job", &point->client_job, name, err) < 0 ||
		parse_optional(facts, "consistency", &point->consistency, name, err) < 0 ||
		parse_optional(facts, "consistency_reason", &point->consistency_reason, name, err) <
			0)
		return -1;
	const json_t *source = record_object(facts, "source", name, err);
	return source ? parse_source(source, &point->source, name, err) : -1;
}

static int load_manifest(
	struct repository *repo, struct repository_point *point, const char *file, struct err *err)
{
	char name[NAME_PATH_BYTES];
	path_point(point->vm, point->id, file, name);
	json_t *manifest = record_load(repo->dir_fd, name, err);
	if (!manifest)
		return -1;
	point->internal->manifest = manifest;
	if (record_check_format(manifest, name, err) < 0)
		return -1;
	const json_t *facts = record_object(manifest, "facts", name, err);
	const json_t *storage = facts ? record_object(manifest, "storage", name, err) : NULL;
	if (!storage || record_check_digest(facts, manifest, "facts_sha256", NULL, name, err) < 0 ||
		record_check_digest(storage, manifest, "storage_sha256", NULL, name, err) < 0 ||
		parse_facts(repo, point, facts, name, err) < 0)
		return -1;
	return parse_disks(point, facts, storage, name, err);
}

/* A state that cannot be read costs itself alone; but it may have protected the point. */
static void load_state(struct repository *repo, struct repository_point *point)
{
	char name[NAME_PATH_BYTES];
	struct err err = ERR_INIT;
	path_point(point->vm, point->id, "state.json", name);
	json_t *state = record_load(repo->dir_fd, name, &err);
	if (!state) {
		point->is_protected = err.code != ERR_NOT_FOUND;
		if (point->is_protected)
			log_warning("%s: the restore point counts as protected", err.text);
		return;
	}
	const json_t *protection = json_object_get(state, "protected");
	const json_t *verified = json_object_get(state, "verified");
	const char *until = json_string_value(json_object_get(protection, "until"));
	const char *at = json_string_value(json_object_get(verified, "at"));
	const char *result = json_string_value(json_object_get(verified, "result"));
	int64_t until_s = until ? name_seconds_utc(until) : 0;
	/* A time that cannot be read is no end. */
	point->is_protected = json_is_object(protection) && (until_s <= 0 || until_s > time(NULL));
	if (until && point->is_protected)
		snprintf(point->protected_until, sizeof point->protected_until, "%s", until);
	if (at && result) {
		snprintf(point->verified_at, sizeof point->verified_at, "%s", at);
		point->verified =
			strcmp(result, "good") == 0 ? REPOSITORY_GOOD : REPOSITORY_DAMAGED;
	}
	point->internal->state = state;
}

static struct repository_point *load_point(
	struct repository *repo, const char *vm, const char *id, const char *file, struct err *err)
{
	struct repository_point *point = calloc(1, sizeof *point);
	if (point)
		point->internal = calloc(1, sizeof *point->internal);
	if (!point || !point->internal) {
		err_errno(err, ENOMEM, "cannot read a manifest");
		repository_point_free(point);
		return NULL;
	}
	snprintf(point->vm, sizeof point->vm, "%s", vm);
	snprintf(point->id, sizeof point->id, "%s", id);
	struct err why = ERR_INIT;
	if (load_manifest(repo, point, file, &why) < 0) {
		point->internal->damage = strdup(why.text);
		point->damage = point->internal->damage ? point->internal->damage : "out of memory";
		err_copy(err, &why);
	}
	load_state(repo, point);
	return point;
}

struct repository_point *manifest_load(
	struct repository *repo, const char *vm, const char *id, struct err *err)
{
	return load_point(repo, vm, id, "manifest.json", err);
}

struct repository_point *manifest_load_link(
	struct repository *repo, const char *vm, const char *id, bool *listed, struct err *err)
{
	/* A prune that gives up renames it back. */
	static const char *const files[] = {"manifest.json", "merging.json", "manifest.json"};
	for (unsigned i = 0; i < ARRAY_LENGTH(files); i++) {
		struct err why = ERR_INIT;
		struct repository_point *point = load_point(repo, vm, id, files[i], &why);
		*listed = i != 1;
		if (point && !point->damage)
			return point;
		repository_point_free(point);
		if (why.code == ERR_NOT_FOUND && i + 1 < ARRAY_LENGTH(files))
			continue;
		err_copy(err, &why);
		break;
	}
	return NULL;
}

const struct repository_disk_info *repository_point_disk(
	const struct repository_point *point, const char *key)
{
	for (size_t i = 0; point && i < point->nr_disks; i++)
		if (strcmp(point->disks[i].key, key) == 0)
			return &point->disks[i];
	return NULL;
}

void repository_point_free(struct repository_point *point)
{
	if (!point)
		return;
	for (size_t i = 0; i < point->nr_disks; i++)
		free((void *)point->disks[i].source.identity);
	free((void *)point->source.identity);
	free(point->disks);
	if (point->internal) {
		json_decref(point->internal->manifest);
		json_decref(point->internal->state);
		free(point->internal->damage);
	}
	free(point->internal);
	free(point);
}

const json_t *manifest_json(const struct repository_point *point)
{
	return point->internal->manifest;
}

const char *manifest_facts_sha256(const struct repository_point *point)
{
	return json_string_value(json_object_get(point->internal->manifest, "facts_sha256"));
}

const json_t *manifest_state(const struct repository_point *point)
{
	return point->internal->state;
}

bool manifest_is_damaged(const struct repository_point *point, const char *key)
{
	const json_t *disks =
		json_object_get(json_object_get(point->internal->state, "verified"), "disks");
	size_t i;
	const json_t *disk;
	if (point->verified != REPOSITORY_DAMAGED)
		return false;
	json_array_foreach(disks, i, disk)
	{
		const char *damaged = json_string_value(disk);
		if (damaged && strcmp(damaged, key) == 0)
			return true;
	}
	return !json_is_array(disks);
}

const char *manifest_distrusted(const struct repository_point *point, const char *key)
{
	const json_t *disk =
		json_object_get(json_object_get(point->internal->state, "distrusted"), key);
	const char *reason = json_string_value(json_object_get(disk, "reason"));
	return reason || !json_is_object(disk) ? reason : "the record does not say why";
}

json_t *manifest_seal(
	json_t *facts, json_t *storage, char facts_sha256[DIGEST_ROOT_HEX_BYTES], struct err *err)
{
	char storage_sha256[DIGEST_ROOT_HEX_BYTES];
	json_t *manifest = NULL;
	if (!facts || !storage)
		err_errno(err, ENOMEM, "cannot make a manifest");
	else if (record_digest(facts, NULL, facts_sha256, err) == 0 &&
		 record_digest(storage, NULL, storage_sha256, err) == 0)
		manifest = json_pack("{s:i, s:O, s:s, s:O, s:s}", "format", REPOSITORY_FORMAT,
			"facts", facts, "facts_sha256", facts_sha256, "storage", storage,
			"storage_sha256", storage_sha256);
	json_decref(facts);
	json_decref(storage);
	return manifest;
}

int manifest_update_state(
	struct repository *repo, const char *vm, const char *point, json_t *change, struct err *err)
{
	char name[NAME_PATH_BYTES];
	struct err load_err = ERR_INIT;
	path_point(vm, point, "state.json", name);
	/* Read and written back as one, whoever else records something. */
	char manifest[NAME_PATH_BYTES];
	bool is_there = true;
	int AUTO_CLOSE guard = lock_guard(repo, NULL, err);
	path_point(vm, point, "manifest.json", manifest);
	if (guard < 0 || path_look(repo->dir_fd, manifest, &is_there, err) < 0) {
		json_decref(change);
		return -1;
	}
	if (!is_there) {
		json_decref(change);
		return err_set(err, ERR_NOT_FOUND,
			"restore point %s of VM \"%s\" is not there any more", point, vm);
	}
	json_t *state = record_load(repo->dir_fd, name, &load_err);
	if (!state && load_err.code == ERR_NOT_FOUND) {
		state = json_pack("{s:i}", "format", REPOSITORY_FORMAT);
	} else if (!state) {
		log_warning("%s: begun anew; the restore point counts as protected", load_err.text);
		state = json_pack(
			"{s:i, s:{s:n}}", "format", REPOSITORY_FORMAT, "protected", "until");
	}
	int rc = -1;
	if (!state || !change || json_object_update(state, change) < 0)
		err_errno(err, ENOMEM, "cannot write %s", name);
	else
		rc = record_store(repo->dir_fd, name, state, err);
	json_decref(state);
	json_decref(change);
	return rc;
}
