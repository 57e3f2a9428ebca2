/*
 * sendense replicate: the disks of one VM, each into the raw target that was named for it.
 *
 * What a run needs to know of the one before it lies in a record beside the targets, see
 * replica.h.  Sources are those of "sendense backup", opened by the same code.
 */
#include "commands.h"
#include "figures.h"
#include "replicate.h"

#include "version.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

static const char *const verifications[] = {"sample", "read-back", NULL};

/* Rows that others share know where a backup has its values. */
_Static_assert(offsetof(struct replicate_values, source) == 0, "backup's values come first");

static const struct option_spec option_table[] = {
	{.name = "vm",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct replicate_values, source.vm),
		.argument = "NAME",
		.help = "the virtual machine's name: its record is kept by it (required)"},
	BACKUP_SOURCE_ROWS,
	{.name = "target",
		.kind = OPTION_LIST,
		.offset = offsetof(struct replicate_values, targets),
		.argument = "KEY=TARGET",
		.words = WORDS_DISK,
		.help = "where the disk of that key goes: raw:PATH of a file or device, or an NBD "
			"export, of the disk's size; once for each disk"},
	{.name = "nbd-targets",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct replicate_values, nbd_targets),
		.argument = "KEY:URI,...",
		.help = "the same of several NBD exports in one word"},
	{.name = "disk-id",
		.kind = OPTION_LIST,
		.offset = offsetof(struct replicate_values, disk_ids),
		.argument = "KEY=ID",
		.help = "what the disk is known by where its source has another name each time "
			"(default: that name)"},
	{.name = "cutover",
		.kind = OPTION_FLAG,
		.offset = offsetof(struct replicate_values, cutover),
		.help = "the last run, of a machine that is switched off: all of the targets is "
			"read again, and no later run writes to them"},
	{.name = "verify",
		.kind = OPTION_CHOICE,
		.offset = offsetof(struct replicate_values, verify),
		.argument = "sample|read-back",
		.choices = verifications,
		.help = "how much of the targets is compared with its digests, before and after: "
			"a sample, or all of it (default: sample)"},
	{.name = "force",
		.kind = OPTION_FLAG,
		.offset = offsetof(struct replicate_values, force),
		.help = "take disks and targets that are not as the record says, and write all of "
			"them; go on after a cutover"},
	{.name = "no-alias-proof",
		.kind = OPTION_FLAG,
		.offset = offsetof(struct replicate_values, no_alias_proof),
		.help = "do not write and take back a mark in each target to prove that they are "
			"distinct: the record says so"},
	{.name = "state-dir",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct replicate_values, state_dir),
		.argument = "DIR",
		.words = WORDS_FOLDER,
		.help = "where the records are (default: $SENDENSE_STATE_DIR, "
			"/var/lib/sendense/replica, or ~/.local/state/sendense/replica)"},
};

/* --- the disks --------------------------------------------------------------------------- */

/* "path=/srv/a.img", or what --disk-id says. */
static char *source_id(const struct replicate *r, size_t i)
{
	const struct option_list *ids = &r->values->disk_ids;
	const struct repository_source *source = &r->sources.offers[i].offer.source;
	char *id = NULL;
	for (size_t k = 0; k < ids->nr; k++) {
		char key[REPOSITORY_KEY_BYTES];
		const char *value;
		disks_split_key(ids->items[k], key, &value);
		if (strcmp(key, r->sources.disks[i].key) == 0)
			return asprintf(&id, "id=%s", value) < 0 ? NULL : id;
	}
	id = strdup("");
	for (size_t k = 0; id && k < source->nr_identity; k++) {
		char *joined = NULL;
		if (asprintf(&joined, "%s%s%s=%s", id, id[0] ? ", " : "", source->identity[k].name,
			    source->identity[k].value) < 0)
			joined = NULL;
		free(id);
		id = joined;
	}
	return id;
}

static int check_disk_ids(const struct replicate *r, struct err *err)
{
	const struct option_list *ids = &r->values->disk_ids;
	for (size_t k = 0; k < ids->nr; k++) {
		char key[REPOSITORY_KEY_BYTES];
		const char *value;
		bool found = false;
		disks_split_key(ids->items[k], key, &value);
		for (size_t i = 0; i < r->sources.nr_disks; i++)
			found = found || strcmp(key, r->sources.disks[i].key) == 0;
		if (!found || !value[0])
			return err_set(err, ERR_USAGE, "--disk-id %s: it is no KEY=ID of a disk",
				ids->items[k]);
	}
	return 0;
}

static int gather(struct replicate *r, struct err *err)
{
	size_t nr = r->sources.nr_disks;
	r->disks = calloc(nr, sizeof *r->disks);
	r->source_ids = calloc(nr, sizeof *r->source_ids);
	if (!r->disks || !r->source_ids)
		return err_errno(err, ENOMEM, "cannot replicate");
	for (size_t i = 0; i < nr; i++) {
		const struct backup_disk *source = &r->sources.disks[i];
		r->source_ids[i] = source_id(r, i);
		if (!r->source_ids[i])
			return err_errno(err, ENOMEM, "cannot replicate");
		r->disks[i] = (struct replica_disk){
			.key = source->key,
			.source_id = r->source_ids[i],
			.target_id = r->targets[i].id,
			.target = r->targets[i].name,
			.source = source->source,
			.target_block = r->targets[i].block,
			.offer = &r->sources.offers[i].offer,
			.change_id = r->sources.offers[i].change_id,
			.bitmap = r->sources.offers[i].bitmap,
		};
	}
	return 0;
}

/* --- the flow -------------------------------------------------------------------------------- */

static int open_replica(struct replicate *r, char folder[STATEDIR_BYTES], struct err *err)
{
	const struct replicate_values *v = r->values;
	if (replica_folder(v->state_dir, folder, err) < 0)
		return -1;
	struct replica_options options = {
		.folder = folder,
		.vm = v->source.vm,
		.software = version_text(),
		.force = v->force,
		.no_alias_proof = v->no_alias_proof,
		.read_back = v->verify && strcmp(v->verify, "read-back") == 0,
		.cutover = v->cutover,
		.cancel = r->cli->cancel,
		.open_target = replicate_targets_again,
		.context = r,
	};
	r->replica = replica_open(&options, err);
	return r->replica ? 0 : -1;
}

static int prepare(struct replicate *r, struct err *err)
{
	progress_stage(r->progress, "open");
	if (backup_sources_open(&r->sources, err) < 0 || replicate_targets_open(r, err) < 0 ||
		gather(r, err) < 0)
		return -1;
	progress_stage(r->progress, "match");
	if (replica_match(r->replica, r->disks, r->sources.nr_disks, err) < 0)
		return -1;
	progress_stage(r->progress, "prove");
	if (replica_prove(r->replica, err) < 0)
		return -1;
	progress_stage(r->progress, "begin");
	return replica_begin(r->replica, err);
}

static int copy(struct replicate *r, struct err *err)
{
	const struct backup_values *v = &r->values->source;
	unsigned parallel = v->parallel.given ? (unsigned)v->parallel.value : DISKS_PARALLEL;
	for (size_t i = 0; i < r->sources.nr_disks; i++) {
		struct disks_copy *one = &r->sources.copies[i];
		one->label = r->sources.disks[i].label;
		one->target = r->targets[i].block;
		if (replica_copy(r->replica, i, &one->options, &one->source, err) < 0 ||
			progress_add_disk(r->progress, r->disks[i].key,
				block_info(one->source)->size_bytes, &one->figures, err) < 0)
			return -1;
	}
	progress_stage(r->progress, "copy");
	if (disks_copy(r->sources.copies, r->sources.nr_disks, parallel, v->rate.value,
		    r->cli->cancel, err) < 0)
		return -1;
	return cancel_check(r->cli->cancel, err);
}

static int verify(struct replicate *r, struct err *err)
{
	progress_stage(r->progress, "verify");
	for (size_t i = 0; i < r->sources.nr_disks; i++) {
		if (replica_verify(r->replica, i, NULL, err) < 0) {
			r->found_damage = err->code == ERR_CORRUPT;
			return -1;
		}
	}
	return cancel_check(r->cli->cancel, err);
}

static int replicate(struct replicate *r, struct err *err)
{
	if (prepare(r, err) < 0)
		return -1;
	if (copy(r, err) < 0 || verify(r, err) < 0)
		return err_hint(err, "the targets hold parts of two generations now; the next run "
				     "goes on");
	progress_stage(r->progress, "commit");
	return replica_commit(r->replica, err);
}

/* --- telling ------------------------------------------------------------------------------------
 */

static json_t *disk_json(const struct replicate *r, size_t i)
{
	struct replica_outcome outcome;
	replica_outcome(r->replica, i, &outcome);
	json_t *disk = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:b, s:s, s:s}", "key",
		r->disks[i].key, "source", r->sources.disks[i].name, "target", r->targets[i].name,
		"mode", outcome.full ? "full" : "delta", "reason", outcome.reason, "changed_by",
		repository_change_name(outcome.change), "resumed", outcome.resumed, "verified",
		outcome.verified, "root", outcome.root_hex);
	if (disk)
		cli_json_figures(disk, block_info(r->disks[i].source)->size_bytes,
			&r->sources.copies[i].figures);
	return disk;
}

static int print_json(const struct replicate *r, int64_t took_ns, struct err *err)
{
	json_t *disks = json_array();
	for (size_t i = 0; i < r->sources.nr_disks; i++)
		json_array_append_new(disks, disk_json(r, i));
	return cli_print_json(
		json_pack("{s:s, s:I, s:b, s:s, s:f, s:o}", "vm", r->values->source.vm,
			"generation", (json_int_t)replica_generation(r->replica), "cut_over",
			r->values->cutover, "aliasing", replica_aliasing(r->replica), "seconds",
			(double)took_ns / 1e9, "disks", disks),
		err);
}

static int print_report(const struct replicate *r, int64_t took_ns, struct err *err)
{
	size_t nr = r->sources.nr_disks;
	if (r->cli->common.json)
		return print_json(r, took_ns, err);
	if (r->cli->common.quiet)
		return 0;
	char took[SIZE_TEXT_BYTES];
	printf("Replicated %s in %s: generation %" PRIu64 "%s; aliasing %s.\n",
		r->values->source.vm, cli_duration_text(took_ns, took),
		replica_generation(r->replica), r->values->cutover ? ", cut over" : "",
		replica_aliasing(r->replica));
	for (size_t i = 0; i < nr; i++) {
		struct replica_outcome outcome;
		replica_outcome(r->replica, i, &outcome);
		printf("  disk %s to %s: %s (%s), verified by %s\n", r->disks[i].key,
			r->targets[i].name, outcome.full ? "full" : "delta", outcome.reason,
			outcome.verified);
	}
	struct figures_row *rows = calloc(nr, sizeof *rows);
	for (size_t i = 0; rows && i < nr; i++)
		rows[i] = (struct figures_row){r->disks[i].key,
			block_info(r->disks[i].source)->size_bytes, &r->sources.copies[i].figures};
	if (rows)
		figures_print(rows, nr);
	free(rows);
	return cli_flush(err);
}

static int run_replicate(struct replicate *r, struct err *err)
{
	char folder[STATEDIR_BYTES];
	if (backup_args_read(&r->sources, err) < 0 || check_disk_ids(r, err) < 0 ||
		replicate_targets_read(r, err) < 0)
		return -1;
	int64_t began_ns = clock_now_ns();
	r->progress = progress_start(&r->cli->common, err);
	if (!r->progress)
		return -1;
	progress_stage(r->progress, "recover");
	int rc = open_replica(r, folder, err);
	if (rc == 0)
		rc = replicate(r, err);
	if (rc < 0)
		err_context(err, "cannot replicate %s", r->values->source.vm);
	progress_end(r->progress, err);
	return rc == 0 ? print_report(r, clock_now_ns() - began_ns, err) : -1;
}

static int run(struct cli *cli, const void *values, struct err *err)
{
	const struct replicate_values *v = values;
	struct replicate r = {
		.cli = cli,
		.values = v,
		.sources = {.cli = cli, .values = &v->source},
	};
	int rc = run_replicate(&r, err);
	replica_close(r.replica);
	replicate_targets_close(&r);
	for (size_t i = 0; r.source_ids && i < r.sources.nr_disks; i++)
		free(r.source_ids[i]);
	free(r.source_ids);
	free(r.disks);
	backup_sources_close(&r.sources);
	backup_args_free(&r.sources);
	if (rc < 0 && r.found_damage) {
		cli_report_error(cli->common.json, command_replicate.name, err);
		return EXIT_DAMAGE;
	}
	return rc;
}

const struct command command_replicate = {
	.name = "replicate",
	.arguments = "",
	.summary = "Keep raw targets up to date with the disks of a virtual machine",
	.details =
		"Each disk goes to the one target that --target names by the disk's key: a raw "
		"file,\n"
		"a device or an NBD export, of the same size. Before the first byte the mapping "
		"is\n"
		"proven: one target for each disk, none of them twice or another's under a second\n"
		"name, and from the second run on each must hold what the run before it wrote.\n"
		"\n"
		"The first run writes all, later ones what differs. All disks go to the next\n"
		"generation together; an interrupted run is gone on with. --cutover is the last "
		"run.",
	COMMAND_OPTIONS(option_table),
	.common = COMMON_JSON | COMMON_PROGRESS,
	.max_arguments = 0,
	.values_bytes = sizeof(struct replicate_values),
	.run = run,
};
