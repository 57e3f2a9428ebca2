/* What a backup writes down: its plan, and the manifest of what it made. */
#include "backup_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* What people or programs gave us, or null. */
static json_t *text_or_null(const char *text)
{
	return text && text[0] ? record_printable(text) : json_null();
}

const char *backup_record_backing(const struct backup_disk *disk)
{
	return disk->parent[0] && !disk->is_filled ? disk->parent : NULL;
}

/* How a disk was decided on: the same in plan and manifest. */
static void set_decision(json_t *object, const struct backup_disk *disk)
{
	bool incremental = disk->mode == REPOSITORY_INCREMENTAL;
	json_object_set_new(object, "mode", json_string(incremental ? "incremental" : "full"));
	json_object_set_new(object, "reason", record_printable(disk->reason));
	json_object_set_new(object, "parent", text_or_null(disk->parent));
	json_object_set_new(object, "change_id", text_or_null(disk->change_id));
	if (incremental)
		json_object_set_new(
			object, "changed_by", json_string(repository_change_name(disk->change)));
	if (disk->bitmap)
		json_object_set_new(object, "bitmap", text_or_null(disk->bitmap));
}

/* --- the plan ------------------------------------------------------------------- */

static void add_folder(struct repository_backup *backup, json_t *folders, const char *path)
{
	if (!path_exists(backup->repo->dir_fd, path))
		json_array_append_new(folders, json_string(path));
}

static void plan_paths(struct repository_backup *backup, json_t *files, json_t *folders)
{
	static const char *const records[] = {
		"manifest.json.part", "manifest.json.part.new", "state.json", "state.json.new"};
	char path[NAME_PATH_BYTES];
	path_vm(backup->vm, path);
	add_folder(backup, folders, path);
	path_vm_file(backup->vm, "disks", path);
	add_folder(backup, folders, path);
	for (size_t i = 0; i < backup->nr_disks; i++) {
		const struct backup_disk *disk = &backup->disks[i];
		path_disk(backup->vm, disk->key, "", "", path);
		add_folder(backup, folders, path);
		json_array_append_new(files, json_string(disk->image_part));
		json_array_append_new(files, json_string(disk->image_path));
		json_array_append_new(files, json_string(disk->sums_part));
		json_array_append_new(files, json_string(disk->sums_path));
	}
	path_point(backup->vm, "", "", path);
	add_folder(backup, folders, path);
	path_point(backup->vm, backup->point, "", path);
	json_array_append_new(folders, json_string(path));
	for (unsigned i = 0; i < ARRAY_LENGTH(records); i++) {
		path_point(backup->vm, backup->point, records[i], path);
		json_array_append_new(files, json_string(path));
	}
}

static json_t *plan_disk(const struct backup_disk *disk)
{
	json_t *object = json_pack("{s:s, s:I, s:O, s:o, s:o, s:o}", "key", disk->key, "size_bytes",
		(json_int_t)disk->size_bytes, "source", disk->source, "backing",
		text_or_null(backup_record_backing(disk)), "source_state",
		text_or_null(disk->source_state), "stored_since", text_or_null(disk->stored_since));
	if (object)
		set_decision(object, disk);
	return object;
}

json_t *backup_record_plan(struct repository_backup *backup, struct err *err)
{
	struct owner owner;
	if (owner_self(&owner, err) < 0)
		return NULL;
	json_t *files = json_array(), *folders = json_array(), *disks = json_array();
	json_t *who = json_object();
	owner_to_json(&owner, who);
	plan_paths(backup, files, folders);
	for (size_t i = 0; i < backup->nr_disks; i++)
		json_array_append_new(disks, plan_disk(&backup->disks[i]));
	json_t *plan = json_pack("{s:i, s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:o, s:o, s:o, s:o}",
		"format", REPOSITORY_FORMAT, "job", backup->job, "kind", "backup", "vm", backup->vm,
		"point", backup->point, "started", backup->started, "software", backup->software,
		"keep_seconds", (json_int_t)backup->repo->info.settings.keep_unfinished_s, "owner",
		who, "files", files, "folders", folders, "disks", disks);
	if (!plan || json_array_size(disks) != backup->nr_disks) {
		json_decref(plan);
		err_errno(err, ENOMEM, "cannot plan a backup of VM \"%s\"", backup->vm);
		return NULL;
	}
	return plan;
}

/* --- the manifest ------------------------------------------------------------------ */

static json_t *disk_facts(const struct backup_disk *disk)
{
	char root[DIGEST_ROOT_HEX_BYTES];
	const struct repository_figures *figures = &disk->figures;
	digest_hex(disk->totals.root, DIGEST_ROOT_BYTES, root);
	json_t *object = json_pack("{s:s, s:I, s:O, s:s, s:{s:I, s:I, s:I, s:I, s:I}}", "key",
		disk->key, "size_bytes", (json_int_t)disk->size_bytes, "source", disk->source,
		"root", root, "figures", "logical_bytes", (json_int_t)figures->logical_bytes,
		"read_bytes", (json_int_t)figures->read_bytes, "sent_bytes",
		(json_int_t)figures->sent_bytes, "zeros_skipped_bytes",
		(json_int_t)figures->zeros_skipped_bytes, "stored_bytes",
		(json_int_t)figures->stored_bytes);
	if (object)
		set_decision(object, disk);
	if (object && disk->checked)
		json_object_set_new(object, "checked", json_string(disk->checked));
	if (object && disk->audited_bytes > 0)
		json_object_set_new(
			object, "audited_bytes", json_integer((json_int_t)disk->audited_bytes));
	return object;
}

json_t *backup_record_facts(struct repository_backup *backup)
{
	char finished[CLOCK_UTC_BYTES];
	const struct repository_settings *settings = &backup->repo->info.settings;
	name_now(finished);
	json_t *disks = json_array();
	for (size_t i = 0; i < backup->nr_disks; i++)
		json_array_append_new(disks, disk_facts(&backup->disks[i]));
	if (json_array_size(disks) != backup->nr_disks) {
		json_decref(disks);
		return NULL;
	}
	json_t *facts = json_pack(
		"{s:s, s:s, s:s, s:s, s:o, s:s, s:s, s:O, s:{s:s, s:i}, s:o, s:O}", "repository",
		backup->repo->info.id, "vm", backup->vm, "point", backup->point, "job", backup->job,
		"software", record_printable(backup->software), "started", backup->started,
		"finished", finished, "source", backup->source, "digest", "algorithm",
		digest_algorithm_name(settings->digest), "chunk_bytes", (int)DIGEST_CHUNK_BYTES,
		"disks", disks, "config", backup->config);
	if (facts && backup->hub_job)
		json_object_set_new(facts, "hub_job", record_printable(backup->hub_job));
	if (facts && backup->client)
		json_object_set_new(facts, "client", record_printable(backup->client));
	if (facts && backup->client_job)
		json_object_set_new(facts, "client_job", record_printable(backup->client_job));
	if (facts && backup->consistency)
		json_object_set_new(facts, "consistency", json_string(backup->consistency));
	if (facts && backup->consistency_reason)
		json_object_set_new(
			facts, "consistency_reason", record_printable(backup->consistency_reason));
	return facts;
}

json_t *backup_record_storage(struct repository_backup *backup)
{
	const struct repository_settings *settings = &backup->repo->info.settings;
	json_t *disks = json_object();
	for (size_t i = 0; i < backup->nr_disks; i++) {
		const struct backup_disk *disk = &backup->disks[i];
		json_object_set_new(disks, disk->key,
			json_pack("{s:s, s:s, s:o, s:I, s:s, s:I, s:I}", "image", disk->image_path,
				"sums", disk->sums_path, "backing",
				text_or_null(backup_record_backing(disk)), "cluster_bytes",
				(json_int_t)settings->cluster_bytes, "compression",
				repository_compression_name(settings->compression), "stored_bytes",
				(json_int_t)disk->figures.stored_bytes, "image_bytes",
				(json_int_t)disk->image_bytes));
	}
	return json_pack("{s:i, s:o}", "generation", 1, "disks", disks);
}
