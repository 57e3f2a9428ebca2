/*
 * sendense restore: disks of a restore point, to files, devices, images, exports.
 *
 * Every chunk is compared with its digest on the way.  All targets are opened
 * and checked before the first byte; when one disk fails, all files that were
 * made are removed.
 */
#include "commands.h"
#include "disks.h"
#include "figures.h"
#include "machine_config.h"
#include "progress.h"
#include "target.h"

#include <errno.h>
#include <string.h>

struct values {
	struct store_values store;
	struct option_list to;
	struct target_options target;
	struct tls_options tls;
	struct option_number rate, parallel;
	struct machine_values machine;
};

static const struct option_spec option_table[] = {
	STORE_OPTION_ROWS(struct values),
	{.name = "to",
		.kind = OPTION_LIST,
		.offset = offsetof(struct values, to),
		.argument = "[KEY=]TARGET",
		.words = WORDS_DISK,
		.help = "where a disk goes; once for each disk that is wanted"},
	TARGET_OPTION_ROWS(struct values),
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
	TLS_OPTION_ROWS(struct values),
	MACHINE_OPTION_ROWS(struct values),
};

struct disk {
	char key[REPOSITORY_KEY_BYTES];
	char label[REPOSITORY_KEY_BYTES + 8];
	const char *name; /* of the target */
	struct store_disk *source;
	struct target target;
};

struct restore {
	struct cli *cli;
	const struct values *values;
	struct store *store;
	char vm[REPOSITORY_VM_BYTES], point[REPOSITORY_POINT_BYTES];
	struct disk *disks;
	struct disks_copy *copies;
	size_t nr_disks;
	struct progress *progress;
	struct machine_config config;
};

static int read_arguments(struct restore *r, struct err *err)
{
	const struct values *v = r->values;
	if (repository_name_split(r->cli->arguments.items[0], r->vm, r->point, err) < 0 ||
		machine_config_check(&v->machine, err) < 0)
		return -1;
	if (v->to.nr == 0)
		return err_set(err, ERR_USAGE,
			"where to? (--to TARGET, or --to KEY=TARGET for each disk)");
	if (v->to.nr > REPOSITORY_DISKS_MAX)
		return err_set(err, ERR_USAGE,
			"%zu targets are more than the %d disks of one restore point", v->to.nr,
			REPOSITORY_DISKS_MAX);
	r->disks = calloc(v->to.nr, sizeof *r->disks);
	r->copies = calloc(v->to.nr, sizeof *r->copies);
	if (!r->disks || !r->copies)
		return err_errno(err, ENOMEM, "cannot restore");
	for (size_t i = 0; i < v->to.nr; i++) {
		struct disk *disk = &r->disks[i];
		disks_split_key(v->to.items[i], disk->key, &disk->name);
		for (size_t k = 0; k < i; k++) {
			if (strcmp(r->disks[k].key, disk->key) == 0)
				return err_set(err, ERR_USAGE, "--to %s: %s%s a target already",
					v->to.items[i],
					disk->key[0] ? "disk " : "the only disk has",
					disk->key[0] ? disk->key : "");
			if (locator_same(r->disks[k].name, disk->name))
				return err_set(err, ERR_USAGE, "--to %s: another disk goes there",
					v->to.items[i]);
		}
		r->nr_disks++;
	}
	return 0;
}

/* Opens the restore point's disks; the first one decides which point is the
 * latest, in case that another is made meanwhile. */
static int open_sources(struct restore *r, struct err *err)
{
	for (size_t i = 0; i < r->nr_disks; i++) {
		struct disk *disk = &r->disks[i];
		/* The comparing sink sees every chunk; once is enough. */
		struct repository_disk_options options = {.verify = false};
		disk->source = store_disk_open(
			r->store, r->vm, r->point, disk->key[0] ? disk->key : NULL, &options, err);
		if (!disk->source)
			return -1;
		const struct repository_disk_info *info = store_disk_info(disk->source);
		snprintf(disk->key, sizeof disk->key, "%s", info->key);
		snprintf(disk->label, sizeof disk->label, "disk %s", info->key);
		snprintf(r->point, sizeof r->point, "%s", store_disk_point(disk->source));
	}
	return 0;
}

static int open_targets(struct restore *r, struct err *err)
{
	for (size_t i = 0; i < r->nr_disks; i++) {
		struct disk *disk = &r->disks[i];
		uint64_t size_bytes = store_disk_info(disk->source)->size_bytes;
		if (target_open(&disk->target, disk->name, &r->values->target, &r->values->tls,
			    size_bytes, r->cli->cancel, err) < 0)
			return err_context(err, "%s", disk->label);
		r->copies[i] = (struct disks_copy){
			.label = disk->label,
			.source = store_disk_block(disk->source),
			.target = disk->target.block,
			.options = {.digest_key = store_disk_digest_key(disk->source),
				.sink = store_disk_sink(disk->source)},
		};
		if (progress_add_disk(
			    r->progress, disk->key, size_bytes, &r->copies[i].figures, err) < 0)
			return -1;
	}
	return 0;
}

static int make_config(struct restore *r, struct err *err)
{
	struct machine_disk *AUTO_FREE disks = calloc(r->nr_disks, sizeof *disks);
	if (!disks)
		return err_errno(err, ENOMEM, "cannot describe the machine");
	for (size_t i = 0; i < r->nr_disks; i++)
		disks[i] = (struct machine_disk){r->disks[i].key, r->disks[i].name,
			store_disk_info(r->disks[i].source)->size_bytes};
	return machine_config_make(&r->config, &r->values->machine, r->store, r->vm, r->point,
		disks, r->nr_disks, r->values->target.force, err);
}

static int restore(struct restore *r, struct err *err)
{
	progress_stage(r->progress, "open");
	if (open_sources(r, err) < 0 || make_config(r, err) < 0)
		return -1;
	if (r->values->machine.only)
		return 0;
	if (open_targets(r, err) < 0)
		return -1;
	progress_stage(r->progress, "copy");
	unsigned parallel =
		r->values->parallel.given ? (unsigned)r->values->parallel.value : DISKS_PARALLEL;
	if (disks_copy(r->copies, r->nr_disks, parallel, r->values->rate.value, r->cli->cancel,
		    err) < 0) {
		for (size_t i = 0; i < r->nr_disks; i++)
			store_disk_explain(r->disks[i].source, err);
		return -1;
	}
	for (size_t i = 0; i < r->nr_disks; i++)
		if (store_disk_check(r->disks[i].source, err) < 0)
			return err_context(err, "%s", r->disks[i].label);
	progress_stage(r->progress, "close");
	/* Closed one by one, but kept until all are: created stays set till then. */
	bool created[REPOSITORY_DISKS_MAX];
	for (size_t i = 0; i < r->nr_disks; i++) {
		uint64_t stored = 0;
		created[i] = r->disks[i].target.created;
		if (target_finish(&r->disks[i].target, &stored, err) < 0) {
			for (size_t k = 0; k < i; k++)
				r->disks[k].target.created = created[k];
			return err_context(err, "%s", r->disks[i].label);
		}
		atomic_store(&r->copies[i].figures.stored, stored);
	}
	return 0;
}

static int print_report(const struct restore *r, int64_t took_ns, struct err *err)
{
	bool only = r->values->machine.only;
	if (r->cli->common.json) {
		json_t *disks = json_array();
		for (size_t i = 0; i < r->nr_disks && !only; i++) {
			const struct repository_disk_info *info =
				store_disk_info(r->disks[i].source);
			json_t *disk = json_pack("{s:s, s:s, s:s, s:b}", "key", info->key, "target",
				r->disks[i].name, "root", info->root_hex, "verified", 1);
			cli_json_figures(disk, info->size_bytes, &r->copies[i].figures);
			json_array_append_new(disks, disk);
		}
		return cli_print_json(json_pack("{s:s, s:s, s:f, s:o, s:s?}", "vm", r->vm, "point",
					      r->point, "seconds", (double)took_ns / 1e9, "disks",
					      disks, "config", r->config.path),
			err);
	}
	if (r->cli->common.quiet)
		return 0;
	if (r->config.path)
		printf("The machine's configuration is in %s.\n", r->config.path);
	if (only)
		return cli_flush(err);
	char took[SIZE_TEXT_BYTES];
	printf("Restored %s@%s in %s; every chunk has the digest it had when it was backed up.\n",
		r->vm, r->point, cli_duration_text(took_ns, took));
	struct figures_row *rows = calloc(r->nr_disks, sizeof *rows);
	for (size_t i = 0; rows && i < r->nr_disks; i++)
		rows[i] = (struct figures_row){r->disks[i].key,
			store_disk_info(r->disks[i].source)->size_bytes, &r->copies[i].figures};
	if (rows)
		figures_print(rows, r->nr_disks);
	free(rows);
	return cli_flush(err);
}

static int run_restore(struct restore *r, struct err *err)
{
	if (read_arguments(r, err) < 0)
		return -1;
	int64_t began_ns = clock_now_ns();
	r->store = disks_open_store(r->cli, &r->values->store, REPOSITORY_READ, err);
	if (!r->store)
		return -1;
	r->progress = progress_start(&r->cli->common, err);
	if (!r->progress)
		return -1;
	int rc = restore(r, err);
	if (rc < 0) {
		err_context(err, "cannot restore %s", r->cli->arguments.items[0]);
		for (size_t i = 0; i < r->nr_disks; i++)
			target_discard(&r->disks[i].target, err);
	}
	progress_end(r->progress, err);
	/* Behind the disks, which stay if it fails. */
	if (rc == 0)
		rc = machine_config_write(&r->config, err);
	return rc == 0 ? print_report(r, clock_now_ns() - began_ns, err) : -1;
}

static int run(struct cli *cli, const void *values, struct err *err)
{
	struct restore r = {.cli = cli, .values = values};
	int rc = run_restore(&r, err);
	for (size_t i = 0; i < r.nr_disks; i++)
		store_disk_close(r.disks[i].source);
	store_close(r.store);
	machine_config_free(&r.config);
	free(r.copies);
	free(r.disks);
	if (rc < 0 && err->code == ERR_CORRUPT) {
		cli_report_error(cli->common.json, command_restore.name, err);
		return EXIT_DAMAGE;
	}
	return rc;
}

const struct command command_restore = {
	.name = "restore",
	.arguments = "VM[@POINT]",
	.summary = "Restore disks of a restore point, verifying every chunk",
	.details =
		"Without @POINT the latest restore point is taken. A target is a raw file, a "
		"device,\n"
		"a QCOW2 image (qcow2:PATH) or an NBD export; devices and exports must have the\n"
		"disk's size, and an export is overwritten without --force. Holes stay holes. A "
		"chunk\n"
		"whose digest is wrong fails the restore, and the files that were made are "
		"removed,\n"
		"those too that --force overwrote. New files can be read by their owner alone.\n"
		"Option --config writes a machine of the kept configuration and the restored "
		"disks; "
		"points\n"
		"of other sources than VMware have none, and need --cpus, --memory and "
		"--firmware.",
	COMMAND_OPTIONS(option_table),
	.common = COMMON_JSON | COMMON_PROGRESS,
	.min_arguments = 1,
	.max_arguments = 1,
	.values_bytes = sizeof(struct values),
	.run = run,
};
