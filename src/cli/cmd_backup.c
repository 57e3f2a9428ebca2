/*
 * sendense backup: the disks of one VM, as one restore point.
 *
 *   arguments ─► sources opened, sizes known, keys and sources distinct
 *     ─► begin (lock, clean-up, plan, images) ─► copy ─► commit
 *
 * Whatever fails before the commit point leaves no restore point.  What was
 * made is deleted, except when a connection was lost: that job is kept for the
 * time that the repository's settings say.
 */
#include "commands.h"
#include "disks.h"
#include "figures.h"
#include "progress.h"
#include "source.h"
#include "version.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#define ESTIMATE_CALLS_MOST 4096u

struct values {
	const char *repo, *vm, *mode;
	struct option_list disks, allow_backing;
	struct option_number rate, parallel;
};

static const char *const modes[] = {"auto", "full", "incremental", NULL};

static const struct option_spec option_table[] = {
	REPO_OPTION_ROW(struct values, repo),
	{.name = "vm",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct values, vm),
		.argument = "NAME",
		.help = "the virtual machine's name in the repository (required)"},
	{.name = "disk",
		.kind = OPTION_LIST,
		.offset = offsetof(struct values, disks),
		.argument = "KEY=SOURCE",
		.words = WORDS_DISK,
		.help = "a disk and the key it is known by; give it once for each disk"},
	{.name = "mode",
		.kind = OPTION_CHOICE,
		.offset = offsetof(struct values, mode),
		.argument = "auto|full|incremental",
		.choices = modes,
		.help = "what to read (default: auto; this version makes full backups)"},
	{.name = "limit-rate",
		.kind = OPTION_RATE,
		.offset = offsetof(struct values, rate),
		.argument = "RATE",
		.minimum = 1,
		.maximum = UINT64_MAX,
		.help = "read no more bytes a second than that, one disk after the other"},
	{.name = "parallel",
		.kind = OPTION_NUMBER,
		.offset = offsetof(struct values, parallel),
		.argument = "N",
		.minimum = 1,
		.maximum = 16,
		.help = "copy that many disks at once (default: 2)"},
	ALLOW_BACKING_ROW(struct values, allow_backing),
};

struct disk {
	char key[REPOSITORY_KEY_BYTES];
	char label[REPOSITORY_KEY_BYTES + 8];
	const char *name; /* of the source */
	struct block *source;
	char *path; /* of a local source, absolute */
	struct repository_pair identity;
};

struct backup {
	struct cli *cli;
	const struct values *values;
	struct repository *repo;
	struct disk *disks;
	struct repository_disk_spec *specs;
	struct disks_copy *copies;
	size_t nr_disks;
	struct progress *progress;
	char point[REPOSITORY_POINT_BYTES];
};

/* --- arguments ------------------------------------------------------------------- */

static int add_disk(struct backup *b, const char *key, const char *name, struct err *err)
{
	if (repository_name_check_key(key, err) < 0)
		return -1;
	for (size_t i = 0; i < b->nr_disks; i++) {
		if (strcmp(b->disks[i].key, key) == 0)
			return err_set(err, ERR_USAGE, "disk key %s is given twice", key);
		if (locator_same(b->disks[i].name, name))
			return err_set(err, ERR_USAGE, "disks %s and %s are the same source: %s",
				b->disks[i].key, key, name);
	}
	struct disk *disk = &b->disks[b->nr_disks++];
	snprintf(disk->key, sizeof disk->key, "%s", key);
	snprintf(disk->label, sizeof disk->label, "disk %s", key);
	disk->name = name;
	return 0;
}

/* KEY of KEY=SOURCE as it was written, also when it is no good key. */
static int add_keyed_disk(struct backup *b, const char *text, struct err *err)
{
	size_t length = strcspn(text, "=:");
	if (text[length] != '=')
		return err_set(err, ERR_USAGE, "--disk %s: no key (--disk KEY=SOURCE)", text);
	/* One more than a key may have: a longer one is refused, not cut. */
	char key[REPOSITORY_KEY_BYTES + 1];
	snprintf(key, sizeof key, "%.*s", (int)min_size(length, sizeof key - 1), text);
	return add_disk(b, key, text + length + 1, err);
}

static int read_arguments(struct backup *b, struct err *err)
{
	const struct values *v = b->values;
	const struct option_list *sources = &b->cli->arguments;
	if (!v->vm)
		return err_set(err, ERR_USAGE, "of which virtual machine? (--vm NAME)");
	if (repository_name_check_vm(v->vm, err) < 0)
		return -1;
	if (v->mode && strcmp(v->mode, "incremental") == 0)
		return err_set(err, ERR_USAGE,
			"--mode incremental: this version makes full backups only (--mode full or "
			"auto)");
	if (v->disks.nr > 0 && sources->nr > 0)
		return err_set(err, ERR_USAGE,
			"%s has no key, but other disks have one (--disk KEY=%s)",
			sources->items[0], sources->items[0]);
	if (v->disks.nr == 0 && sources->nr == 0)
		return err_set(
			err, ERR_USAGE, "which disk? (SOURCE, or --disk KEY=SOURCE for each)");
	size_t nr = v->disks.nr + sources->nr;
	if (nr > REPOSITORY_DISKS_MAX)
		return err_set(err, ERR_USAGE,
			"%zu disks are more than the %d of one restore point", nr,
			REPOSITORY_DISKS_MAX);
	b->disks = calloc(nr, sizeof *b->disks);
	b->specs = calloc(nr, sizeof *b->specs);
	b->copies = calloc(nr, sizeof *b->copies);
	if (!b->disks || !b->specs || !b->copies)
		return err_errno(err, ENOMEM, "cannot back up");
	for (size_t i = 0; i < v->disks.nr; i++)
		if (add_keyed_disk(b, v->disks.items[i], err) < 0)
			return -1;
	return sources->nr > 0 ? add_disk(b, "disk0", sources->items[0], err) : 0;
}

/* --- sources --------------------------------------------------------------------- */

static const char *kind_name(const char *name)
{
	static const char *const names[] = {
		[LOCATOR_RAW] = "raw",
		[LOCATOR_QCOW2] = "qcow2",
		[LOCATOR_NBD] = "nbd",
		[LOCATOR_NULL] = "null",
	};
	enum locator_kind kind;
	const char *rest;
	return locator_parse(name, &kind, &rest, NULL) == 0 ? names[kind] : "raw";
}

static int open_source(struct backup *b, struct disk *disk, struct err *err)
{
	disk->source =
		source_open(disk->name, true, &b->values->allow_backing, b->cli->cancel, err);
	if (!disk->source)
		return err_context(err, "%s", disk->label);
	if (block_info(disk->source)->size_bytes == 0)
		return err_set(err, ERR_RANGE, "%s: %s has no bytes", disk->label, disk->name);
	const char *path = locator_path(disk->name);
	disk->path = path ? realpath(path, NULL) : NULL;
	disk->identity = disk->path ? (struct repository_pair){"path", disk->path}
				    : (struct repository_pair){"uri", block_label(disk->source)};
	return 0;
}

static int stop_at_first(void *context, const struct repository_point *point)
{
	(void)point;
	*(bool *)context = true;
	return 1;
}

/*
 * What a raw file's data can take at most in an image without compression: its data
 * extents, widened to clusters.  0 when that is not known, or too long to find out.
 */
static uint64_t estimate(const struct disk *disk, const struct repository_settings *settings)
{
	struct stat st;
	struct block_extent extents[64];
	uint64_t size_bytes = block_info(disk->source)->size_bytes, offset = 0, sum = 0, end = 0;
	if (settings->compression != REPOSITORY_COMPRESS_NONE ||
		strcmp(kind_name(disk->name), "raw") != 0 || !disk->path ||
		stat(disk->path, &st) < 0 || !S_ISREG(st.st_mode))
		return 0;
	for (unsigned calls = 0; offset < size_bytes; calls++) {
		size_t nr;
		if (calls == ESTIMATE_CALLS_MOST ||
			block_extents(disk->source, offset, size_bytes - offset, extents,
				ARRAY_LENGTH(extents), &nr, NULL) < 0)
			return 0;
		for (size_t i = 0; i < nr; offset += extents[i++].length) {
			if (extents[i].flags & BLOCK_ZERO)
				continue;
			uint64_t start = max_u64(end, round_down(offset, settings->cluster_bytes));
			end = round_up(offset + extents[i].length, settings->cluster_bytes);
			sum += end > start ? end - start : 0;
		}
	}
	return sum;
}

static int open_sources(struct backup *b, struct err *err)
{
	struct repository_info info;
	if (repository_info(b->repo, &info, err) < 0)
		return -1;
	bool has_points = false;
	struct err list_err = ERR_INIT;
	if (repository_list_points(b->repo, b->values->vm, stop_at_first, &has_points, &list_err) <
			0 &&
		list_err.code != ERR_NOT_FOUND)
		return err_copy(err, &list_err);
	const char *reason = "this version makes full backups only";
	if (b->values->mode && strcmp(b->values->mode, "full") == 0)
		reason = "--mode full";
	else if (!has_points)
		reason = "first backup";
	for (size_t i = 0; i < b->nr_disks; i++) {
		struct disk *disk = &b->disks[i];
		if (open_source(b, disk, err) < 0)
			return -1;
		b->specs[i] = (struct repository_disk_spec){
			.key = disk->key,
			.size_bytes = block_info(disk->source)->size_bytes,
			.reason = reason,
			.estimate_bytes = estimate(disk, &info.settings),
			.source =
				{
					.kind = kind_name(disk->name),
					.label = block_label(disk->source),
					.identity = &disk->identity,
					.nr_identity = 1,
				},
		};
	}
	return 0;
}

/* --- copying ---------------------------------------------------------------------- */

static int copy(struct backup *b, struct repository_backup *backup, struct err *err)
{
	for (size_t i = 0; i < b->nr_disks; i++) {
		struct disks_copy *one = &b->copies[i];
		one->label = b->disks[i].label;
		one->source = b->disks[i].source;
		if (repository_backup_copy(backup, i, one->source, &one->options, &one->source,
			    &one->target, err) < 0)
			return -1;
		if (progress_add_disk(b->progress, b->disks[i].key, b->specs[i].size_bytes,
			    &one->figures, err) < 0)
			return -1;
	}
	repository_backup_stage(backup, REPOSITORY_STAGE_COPY);
	unsigned parallel =
		b->values->parallel.given ? (unsigned)b->values->parallel.value : DISKS_PARALLEL;
	if (disks_copy(b->copies, b->nr_disks, parallel, b->values->rate.value, b->cli->cancel,
		    err) < 0)
		return -1;
	for (size_t i = 0; i < b->nr_disks; i++) {
		const struct copy_progress *f = &b->copies[i].figures;
		struct repository_figures figures = {
			.logical_bytes = atomic_load(&f->logical),
			.read_bytes = atomic_load(&f->read),
			.sent_bytes = atomic_load(&f->sent),
			.zeros_skipped_bytes = atomic_load(&f->zeros_skipped),
			.stored_bytes = atomic_load(&f->stored),
		};
		repository_backup_figures(backup, i, &figures);
	}
	return cancel_check(b->cli->cancel, err);
}

static bool is_lost_connection(const struct err *err)
{
	return err->code == ERR_DISCONNECTED || err->code == ERR_TIMEOUT;
}

static void tell_stage(void *context, const char *stage)
{
	progress_stage(context, stage);
}

static int make_point(struct backup *b, struct err *err)
{
	char software[128];
	assert(b->specs && b->nr_disks > 0);
	snprintf(software, sizeof software, "sendense %s", version_text());
	struct repository_backup_options begin = {
		.vm = b->values->vm,
		.source =
			{
				.kind = b->specs[0].source.kind,
				.label = b->values->vm,
			},
		.disks = b->specs,
		.nr_disks = b->nr_disks,
		.software = software,
		.cancel = b->cli->cancel,
		.stage = tell_stage,
		.stage_context = b->progress,
	};
	progress_stage(b->progress, REPOSITORY_STAGE_BEGIN);
	struct repository_backup *backup = repository_backup_begin(b->repo, &begin, err);
	if (!backup)
		return -1;
	snprintf(b->point, sizeof b->point, "%s", repository_backup_point(backup));
	int rc = copy(b, backup, err);
	if (rc == 0)
		rc = repository_backup_commit(backup, err);
	if (rc == 0)
		return 0;
	if (repository_backup_is_committed(backup)) {
		repository_backup_abort(backup); /* removes nothing */
		return err_hint(err, "sendense verify %s@%s tells whether it is good",
			b->values->vm, b->point);
	}
	if (is_lost_connection(err)) {
		repository_backup_leave(backup);
		return err_hint(err,
			"no restore point was made; the unfinished job is kept for a while: "
			"sendense repo info");
	}
	repository_backup_abort(backup);
	return err_hint(err, "no restore point was made, what was written is deleted");
}

/* --- the report --------------------------------------------------------------------- */

static const char *mode_name(enum repository_disk_mode mode)
{
	return mode == REPOSITORY_FULL ? "full" : "incremental";
}

static int print_json(const struct backup *b, const struct repository_point *point, int64_t took_ns,
	struct err *err)
{
	json_t *disks = json_array();
	for (size_t i = 0; i < point->nr_disks; i++) {
		const struct repository_disk_info *disk = &point->disks[i];
		json_array_append_new(
			disks, json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I}",
				       "key", disk->key, "mode", mode_name(disk->mode), "reason",
				       disk->reason, "root", disk->root_hex, "image", disk->image,
				       "size", (json_int_t)disk->size_bytes, "logical",
				       (json_int_t)disk->figures.logical_bytes, "read",
				       (json_int_t)disk->figures.read_bytes, "sent",
				       (json_int_t)disk->figures.sent_bytes, "stored",
				       (json_int_t)disk->figures.stored_bytes, "zeros_skipped",
				       (json_int_t)disk->figures.zeros_skipped_bytes));
	}
	return cli_print_json(
		json_pack("{s:s, s:s, s:s, s:f, s:o}", "repo", b->values->repo, "vm", point->vm,
			"point", point->id, "seconds", (double)took_ns / 1e9, "disks", disks),
		err);
}

static int print_text(const struct repository_point *point, int64_t took_ns, struct err *err)
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
		printf("%s: %s (%s), digest %s\n", point->disks[i].key,
			mode_name(point->disks[i].mode), point->disks[i].reason,
			point->disks[i].root_hex);
	free(rows);
	free(figures);
	return cli_flush(err);
}

static int print_report(const struct backup *b, int64_t took_ns, struct err *err)
{
	if (b->cli->common.quiet && !b->cli->common.json)
		return 0;
	struct repository_point *point =
		repository_point_load(b->repo, b->values->vm, b->point, err);
	if (!point)
		return err_context(err, "the restore point %s was made, but", b->point);
	int rc = b->cli->common.json ? print_json(b, point, took_ns, err)
				     : print_text(point, took_ns, err);
	repository_point_free(point);
	return rc;
}

static int back_up(struct backup *b, struct err *err)
{
	if (read_arguments(b, err) < 0)
		return -1;
	int64_t began_ns = clock_now_ns();
	b->repo = disks_open_repository(b->values->repo, REPOSITORY_WRITE, err);
	if (!b->repo)
		return -1;
	b->progress = progress_start(&b->cli->common, err);
	if (!b->progress)
		return -1;
	int rc = open_sources(b, err);
	if (rc == 0)
		rc = make_point(b, err);
	if (rc < 0)
		err_context(err, "cannot back up %s", b->values->vm);
	progress_end(b->progress, err);
	return rc == 0 ? print_report(b, clock_now_ns() - began_ns, err) : -1;
}

static int run(struct cli *cli, const void *values, struct err *err)
{
	struct backup b = {.cli = cli, .values = values};
	int rc = back_up(&b, err);
	for (size_t i = 0; i < b.nr_disks; i++) {
		block_close(b.disks[i].source, NULL);
		free(b.disks[i].path);
	}
	repository_close(b.repo);
	free(b.copies);
	free(b.specs);
	free(b.disks);
	return rc;
}

const struct command command_backup = {
	.name = "backup",
	.arguments = "[SOURCE]",
	.summary = "Back up the disks of a virtual machine as one restore point",
	.details =
		"All disks of the machine make one restore point: give --disk KEY=SOURCE for "
		"each,\n"
		"or, for a machine of one disk, SOURCE alone (its key is disk0 then). A restore\n"
		"point appears when all of it is safely stored, and not before.",
	COMMAND_OPTIONS(option_table),
	.common = COMMON_JSON | COMMON_PROGRESS,
	.max_arguments = 1,
	.words = WORDS_DISK,
	.values_bytes = sizeof(struct values),
	.run = run,
};
