/* What "sendense backup" tells when it is done; see backup.h. */
#include "backup.h"

#include "figures.h"

#include <string.h>

/* The restore point's disks are sorted by key, ours are as they were given. */
static size_t index_of(const struct backup *b, const char *key)
{
	size_t i = 0;
	while (i + 1 < b->nr_disks && strcmp(b->disks[i].key, key) != 0)
		i++;
	return i;
}

static const char *resumed_name(enum repository_resumed resumed)
{
	static const char *const names[] = {
		[REPOSITORY_FRESH] = "no",
		[REPOSITORY_RESUMED] = "resumed",
		[REPOSITORY_UPDATED] = "updated",
		[REPOSITORY_COMPARED] = "compared",
	};
	return names[resumed];
}

static json_t *disk_json(const struct backup *b, const struct repository_disk_info *disk)
{
	size_t i = index_of(b, disk->key);
	json_t *object = json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:b, s:s, s:I}",
		"key", disk->key, "root", disk->root_hex, "image", disk->image, "size",
		(json_int_t)disk->size_bytes, "logical", (json_int_t)disk->figures.logical_bytes,
		"read", (json_int_t)disk->figures.read_bytes, "sent",
		(json_int_t)disk->figures.sent_bytes, "stored",
		(json_int_t)disk->figures.stored_bytes, "zeros_skipped",
		(json_int_t)disk->figures.zeros_skipped_bytes, "fallback",
		(int)b->decisions[i].fallback, "resumed", resumed_name(b->disks[i].resumed), "kept",
		(json_int_t)b->disks[i].kept_bytes);
	disks_json_history(object, disk);
	return object;
}

static bool has_disk(const struct backup *b, const char *key)
{
	for (size_t i = 0; i < b->nr_disks; i++)
		if (strcmp(b->disks[i].key, key) == 0)
			return true;
	return false;
}

void backup_report_missing(struct backup *b)
{
	struct repository_point *latest =
		b->missing_disks ? NULL : store_point_load(b->store, b->vm, NULL, NULL);
	for (size_t i = 0; latest && i < latest->nr_disks; i++) {
		const char *key = latest->disks[i].key;
		if (has_disk(b, key))
			continue;
		log_warning("disk %s of restore point %s is not in this backup", key, latest->id);
		if (!b->missing_disks)
			b->missing_disks = json_array();
		json_array_append_new(b->missing_disks, json_string(key));
		memcpy(b->missing_of, latest->id, sizeof b->missing_of);
	}
	repository_point_free(latest);
}

static int print_json(const struct backup *b, const struct repository_point *point, int64_t took_ns,
	struct err *err)
{
	json_t *disks = json_array();
	for (size_t i = 0; i < point->nr_disks; i++)
		json_array_append_new(disks, disk_json(b, &point->disks[i]));
	json_t *object = json_pack("{s:s, s:s, s:s, s:f, s:o}", "repo", b->values->store.repo, "vm",
		point->vm, "point", point->id, "seconds", (double)took_ns / 1e9, "disks", disks);
	if (b->missing_disks)
		json_object_set(object, "missing_disks", b->missing_disks);
	if (point->consistency)
		json_object_set_new(object, "consistency", json_string(point->consistency));
	if (point->consistency_reason)
		json_object_set_new(
			object, "consistency_reason", json_string(point->consistency_reason));
	return cli_print_json(object, err);
}

static void print_disk(const struct backup *b, const struct repository_disk_info *disk)
{
	const size_t i = index_of(b, disk->key);
	char size[SIZE_TEXT_BYTES];
	printf("%s: %s%s (%s), digest %s\n", disk->key, disks_mode_name(disk->mode),
		b->decisions[i].fallback ? ", an incremental one was not possible" : "",
		disk->reason, disk->root_hex);
	if (disk->audited_bytes > 0)
		printf("  audited: %s of what was reported as unchanged, and it is\n",
			cli_size_text(disk->audited_bytes, size));
	if (b->disks[i].resumed != REPOSITORY_FRESH)
		printf("  went on with an interrupted backup, of which %s were good%s\n",
			cli_size_text(b->disks[i].kept_bytes, size),
			b->disks[i].resumed == REPOSITORY_COMPARED
				? "; all was read again, as the source may have changed"
			: b->disks[i].resumed == REPOSITORY_UPDATED
				? "; what changed since then was read again"
				: "");
}

static int print_text(const struct backup *b, const struct repository_point *point, int64_t took_ns,
	struct err *err)
{
	char took[SIZE_TEXT_BYTES];
	printf("Restore point %s@%s made in %s.\n", point->vm, point->id,
		cli_duration_text(took_ns, took));
	struct figures_row *rows = calloc(point->nr_disks, sizeof *rows);
	struct copy_progress *figures = calloc(point->nr_disks, sizeof *figures);
	for (size_t i = 0; rows && figures && i < point->nr_disks; i++) {
		const struct repository_figures *f = &point->disks[i].figures;
		atomic_store(&figures[i].logical, f->logical_bytes);
		atomic_store(&figures[i].read, f->read_bytes);
		atomic_store(&figures[i].sent, f->sent_bytes);
		atomic_store(&figures[i].stored, f->stored_bytes);
		atomic_store(&figures[i].zeros_skipped, f->zeros_skipped_bytes);
		rows[i] = (struct figures_row){
			point->disks[i].key, point->disks[i].size_bytes, &figures[i]};
	}
	if (rows && figures)
		figures_print(rows, point->nr_disks);
	for (size_t i = 0; i < point->nr_disks; i++)
		print_disk(b, &point->disks[i]);
	size_t i;
	const json_t *key;
	json_array_foreach(b->missing_disks, i, key)
		printf("%s: not in this backup, but in restore point %s\n", json_string_value(key),
			b->missing_of);
	free(rows);
	free(figures);
	return cli_flush(err);
}

int backup_report_print(const struct backup *b, int64_t took_ns, struct err *err)
{
	if (b->cli->common.quiet && !b->cli->common.json)
		return 0;
	struct repository_point *point = store_point_load(b->store, b->vm, b->point, err);
	if (!point)
		return err_context(err, "the restore point %s was made, but", b->point);
	int rc = b->cli->common.json ? print_json(b, point, took_ns, err)
				     : print_text(b, point, took_ns, err);
	repository_point_free(point);
	return rc;
}
