/*
 * The record of a machine's replica.
 *
 *   {"sendense-replica":1, "vm":NAME, "seed":HEX, "generation":N, "updated":UTC, "software":...,
 *    "cut_over":UTC?, "aliasing":"proven"|"not proven", "running":{"boot":ID}?,
 *    "disks":[{"key", "size", "source_id", "target_id", "target", "change_id"?, "bitmap"?,
 *              "root"?, "full"?}], "left_out":[{"key", "why"}]?}
 *
 * A disk without a root never came to a commit; "full" is of the run that is at it.  What was left
 * out is for people.
 */
#include "replica_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#define RECORD_BYTES_MOST (4u << 20)
#define RECORD_DEPTH_MOST 8u

int ledger_text(char **text, const char *now, struct err *err)
{
	char *copy = now ? strdup(now) : NULL;
	if (now && !copy)
		return err_errno(err, ENOMEM, "cannot keep the record");
	free(*text);
	*text = copy;
	return 0;
}

void ledger_disk_free(struct ledger_disk *disk)
{
	free(disk->source_id);
	free(disk->target_id);
	free(disk->target);
	free(disk->change_id);
	free(disk->bitmap);
	memset(disk, 0, sizeof *disk);
}

void ledger_free(struct ledger *record)
{
	for (size_t i = 0; i < record->nr_disks; i++)
		ledger_disk_free(&record->disks[i]);
	free(record->disks);
	json_decref(record->left_out);
	memset(record, 0, sizeof *record);
}

struct ledger_disk *ledger_disk(const struct ledger *record, const char *key)
{
	for (size_t i = 0; i < record->nr_disks; i++)
		if (strcmp(record->disks[i].key, key) == 0)
			return &record->disks[i];
	return NULL;
}

/* --- reading ------------------------------------------------------------------------- */

static bool is_root(const char *text)
{
	uint8_t bytes[DIGEST_ROOT_BYTES];
	return digest_unhex(text, bytes, sizeof bytes);
}

static bool read_disk(json_t *object, struct ledger_disk *disk, struct err *err)
{
	const char *key, *source_id, *target_id, *target, *root = "", *change_id = NULL,
							  *bitmap = NULL;
	json_int_t size;
	int full = 0;
	if (json_unpack(object, "{s:s, s:I, s:s, s:s, s:s, s?s, s?s, s?s, s?b}", "key", &key,
		    "size", &size, "source_id", &source_id, "target_id", &target_id, "target",
		    &target, "root", &root, "change_id", &change_id, "bitmap", &bitmap, "full",
		    &full) < 0)
		return false;
	if (repository_name_check_key(key, NULL) < 0 || size <= 0 || (root[0] && !is_root(root)))
		return false;
	snprintf(disk->key, sizeof disk->key, "%s", key);
	snprintf(disk->root_hex, sizeof disk->root_hex, "%s", root);
	disk->size_bytes = (uint64_t)size;
	disk->full = full;
	return ledger_text(&disk->source_id, source_id, err) == 0 &&
	       ledger_text(&disk->target_id, target_id, err) == 0 &&
	       ledger_text(&disk->target, target, err) == 0 &&
	       ledger_text(&disk->change_id, change_id, err) == 0 &&
	       ledger_text(&disk->bitmap, bitmap, err) == 0;
}

static bool read_disks(json_t *disks, struct ledger *record, struct err *err)
{
	size_t nr = json_array_size(disks);
	if (!json_is_array(disks) || nr > REPOSITORY_DISKS_MAX)
		return false;
	record->disks = calloc(nr + 1, sizeof *record->disks);
	if (!record->disks)
		return false;
	for (size_t i = 0; i < nr; i++) {
		struct ledger_disk *disk = &record->disks[i];
		bool good = read_disk(json_array_get(disks, i), disk, err);
		bool twice = good && ledger_disk(record, disk->key);
		record->nr_disks++;
		if (!good || twice)
			return false;
	}
	return true;
}

static bool read_record(json_t *root, const char *vm, struct ledger *record, struct err *err)
{
	const char *of, *seed, *cut_over = "", *aliasing, *boot = NULL;
	json_int_t version, generation;
	json_t *disks, *left_out = NULL;
	if (json_unpack(root, "{s:I, s:s, s:s, s:I, s:s, s?s, s?{s:s}, s:o, s?o}",
		    "sendense-replica", &version, "vm", &of, "seed", &seed, "generation",
		    &generation, "aliasing", &aliasing, "cut_over", &cut_over, "running", "boot",
		    &boot, "disks", &disks, "left_out", &left_out) < 0)
		return false;
	if (version != 1 || strcmp(of, vm) != 0 || generation < 0 ||
		!digest_unhex(seed, record->seed, sizeof record->seed))
		return false;
	snprintf(record->vm, sizeof record->vm, "%s", vm);
	snprintf(record->cut_over, sizeof record->cut_over, "%s", cut_over);
	record->generation = (uint64_t)generation;
	record->proven = strcmp(aliasing, "proven") == 0;
	record->running = boot != NULL;
	snprintf(record->boot, sizeof record->boot, "%s", boot ? boot : "");
	record->left_out = json_incref(left_out);
	return read_disks(disks, record, err);
}

static int new_record(const char *vm, struct ledger *record, struct err *err)
{
	snprintf(record->vm, sizeof record->vm, "%s", vm);
	return file_random(record->seed, sizeof record->seed, err);
}

int ledger_load(
	int dir_fd, const char *name, const char *vm, struct ledger *record, struct err *err)
{
	struct err why = ERR_INIT;
	char *AUTO_FREE bytes = NULL;
	size_t length;
	memset(record, 0, sizeof *record);
	if (file_load(dir_fd, name, RECORD_BYTES_MOST, &bytes, &length, &why) < 0)
		return why.code == ERR_NOT_FOUND ? new_record(vm, record, err)
						 : err_copy(err, &why);
	json_t *root = jsontext_shape(bytes, length).depth <= RECORD_DEPTH_MOST
			       ? json_loadb(bytes, length, JSON_REJECT_DUPLICATES, NULL)
			       : NULL;
	bool good = root && read_record(root, vm, record, &why);
	json_decref(root);
	if (good)
		return 0;
	ledger_free(record);
	if (why.code != ERR_NONE)
		return err_copy(err, &why);
	err_set(err, ERR_CORRUPT, "the record of the replica, %s, is damaged", name);
	return err_hint(err, "without it the next run writes all of each target");
}

/* --- writing --------------------------------------------------------------------------- */

static void put_text(json_t *object, const char *name, const char *text)
{
	if (text && text[0])
		json_object_set_new(object, name, json_string(text));
}

static json_t *disk_json(const struct ledger_disk *disk)
{
	json_t *object = json_pack("{s:s, s:I, s:s, s:s, s:s}", "key", disk->key, "size",
		(json_int_t)disk->size_bytes, "source_id", disk->source_id, "target_id",
		disk->target_id, "target", disk->target);
	if (!object)
		return NULL;
	put_text(object, "change_id", disk->change_id);
	put_text(object, "bitmap", disk->bitmap);
	put_text(object, "root", disk->root_hex);
	if (disk->full)
		json_object_set_new(object, "full", json_true());
	return object;
}

static json_t *record_json(const struct ledger *record, const char *software)
{
	char now[CLOCK_UTC_BYTES], seed[2 * DIGEST_SEED_BYTES + 1];
	clock_utc_text(time(NULL), now);
	digest_hex(record->seed, sizeof record->seed, seed);
	json_t *root = json_pack("{s:i, s:s, s:s, s:I, s:s, s:s, s:s, s:[]}", "sendense-replica", 1,
		"vm", record->vm, "seed", seed, "generation", (json_int_t)record->generation,
		"updated", now, "software", software, "aliasing",
		record->proven ? "proven" : "not proven", "disks");
	if (!root)
		return NULL;
	put_text(root, "cut_over", record->cut_over);
	if (record->running)
		json_object_set_new(root, "running", json_pack("{s:s}", "boot", record->boot));
	if (json_array_size(record->left_out) > 0)
		json_object_set(root, "left_out", record->left_out);
	json_t *disks = json_object_get(root, "disks");
	for (size_t i = 0; i < record->nr_disks; i++)
		if (json_array_append_new(disks, disk_json(&record->disks[i])) < 0) {
			json_decref(root);
			return NULL;
		}
	return root;
}

int ledger_store(int dir_fd, const char *name, const struct ledger *record, const char *software,
	struct err *err)
{
	json_t *root = record_json(record, software);
	char *AUTO_FREE text = root ? json_dumps(root, JSON_INDENT(1)) : NULL;
	json_decref(root);
	if (!text)
		return err_errno(err, ENOMEM, "cannot write the record %s", name);
	if (file_replace(dir_fd, name, text, strlen(text), 0600, err) < 0)
		return err_context(err, "the record of the replica");
	return 0;
}
