/*
 * sendense replicate: the disks of one VM, each into the raw target that was named for it.
 *
 * What a run needs to know of the one before it lies in a record beside the targets, see
 * replica.h.  Sources are those of "sendense backup", opened by the same code.
 */
#include "commands.h"
#include "figures.h"
#include "locator.h"
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
		.help = "the virtual machine's name: its record is kept by it (default: that of a "
			"machine of a vCenter; otherwise it is required)"},
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
	BACKUP_MACHINE_ROWS("vmware-state-dir"),
};

/* --- the disks --------------------------------------------------------------------------- */

/* "path=/srv/a.img", or what --disk-id says. */
static char *source_id(const struct replicate *r, size_t i)
{
	const struct option_list *ids = &r->values->disk_ids;
	const struct backup_disk *disk = &r->sources.disks[i];
	char *id = NULL;
	for (size_t k = 0; k < ids->nr; k++) {
		char key[REPOSITORY_KEY_BYTES];
		const char *value;
		disks_split_key(ids->items[k], key, &value);
		if (strcmp(key, disk->key) == 0)
			return asprintf(&id, "id=%s", value) < 0 ? NULL : id;
	}
	id = strdup("");
	for (size_t k = 0; id && k < disk->nr_identity; k++) {
		char *joined = NULL;
		if (asprintf(&joined, "%s%s%s=%s", id, id[0] ? ", " : "", disk->identity[k].name,
			    disk->identity[k].value) < 0)
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

/* A machine's disks need not be open for it. */
static uint64_t size_of(const struct backup_disk *disk)
{
	return disk->vmware ? disk->vmware->size_bytes
	       : disk->qemu ? disk->qemu->size_bytes
			    : block_info(disk->source)->size_bytes;
}

static int gather(struct replicate *r, struct err *err)
{
	size_t nr = r->sources.nr_disks;
	r->disks = calloc(nr, sizeof *r->disks);
	r->names = calloc(nr, sizeof *r->names);
	if (!r->disks || !r->names)
		return err_errno(err, ENOMEM, "cannot replicate");
	for (size_t i = 0; i < nr; i++) {
		const struct backup_disk *source = &r->sources.disks[i];
		r->names[i] = (struct replicate_source){strdup(source->name), source_id(r, i)};
		if (!r->names[i].name || !r->names[i].id)
			return err_errno(err, ENOMEM, "cannot replicate");
		r->disks[i] = (struct replica_disk){
			.key = source->key,
			.source_id = r->names[i].id,
			.target_id = r->targets[i].id,
			.may_move = !locator_path(r->targets[i].name),
			.target = r->targets[i].name,
			.size_bytes = size_of(source),
			.target_block = r->targets[i].block,
		};
	}
	return 0;
}

static void take_sources(struct replicate *r)
{
	for (size_t i = 0; i < r->sources.nr_disks; i++) {
		const struct store_backup_disk *offer = &r->sources.offers[i];
		r->disks[i].source = r->sources.disks[i].source;
		r->disks[i].offer = &offer->offer;
		r->disks[i].change_id = offer->change_id;
		r->disks[i].bitmap = offer->bitmap;
	}
}

/* --- machines ------------------------------------------------------------------------------- */

static bool is_machine(const struct replicate *r)
{
	return r->sources.qemu || r->sources.vmware;
}

/* Those that were to be left out, for the record. */
static int find_left_out(struct replicate *r, size_t *nr, struct err *err)
{
	const struct vmware_session *session = r->sources.vmware;
	*nr = session ? vmware_nr_skipped(session) : 0;
	r->left_out = calloc(*nr + 1, sizeof *r->left_out);
	if (!r->left_out)
		return err_errno(err, ENOMEM, "cannot replicate");
	for (size_t i = 0; i < *nr; i++) {
		const struct vmware_skipped *skipped = vmware_skipped(session, i);
		r->left_out[i] = (struct replica_left_out){skipped->key, skipped->why};
	}
	return 0;
}

static int find_name(struct replicate *r, struct err *err)
{
	struct backup *sources = &r->sources;
	return sources->vm[0] ? 0 : vmware_source_own_name(sources->vmware, sources->vm, err);
}

/* What a machine writes behind the last run would be lost. */
static int check_cutover(const struct replicate *r, struct err *err)
{
	const struct backup *sources = &r->sources;
	bool off = true, running = false;
	if (!r->values->cutover)
		return 0;
	if ((sources->vmware && vmware_is_off(sources->vmware, &off, err) < 0) ||
		(sources->qemu && qemu_source_is_running(sources->qemu, &running, err) < 0))
		return -1;
	if (off && !running)
		return 0;
	return err_set(err, ERR_REFUSED,
		"--cutover: %s is not switched off, and what it writes would be lost (switch it "
		"off first)",
		sources->vm);
}

/* All that was read was there, and is the last that there is. */
static int check_machine(struct replicate *r, int rc, struct err *err)
{
	rc = backup_sources_check(&r->sources, rc, err);
	return rc == 0 ? check_cutover(r, err) : -1;
}

/* The record says since what its changes are asked. */
static int plan(struct replicate *r, struct err *err)
{
	for (size_t i = 0; i < r->sources.nr_disks; i++) {
		struct backup_disk *disk = &r->sources.disks[i];
		const char *change_id, *bitmap;
		replica_since(r->replica, i, &change_id, &bitmap);
		const char *since = r->sources.qemu ? bitmap : change_id;
		disk->since = since ? strdup(since) : NULL;
		if (since && !disk->since)
			return err_errno(err, ENOMEM, "cannot replicate");
	}
	return 0;
}

static int open_machine(struct replicate *r, struct err *err)
{
	const char *reason;
	if (plan(r, err) < 0 || backup_sources_open(&r->sources, err) < 0)
		return -1;
	r->consistency = backup_sources_consistency(&r->sources, &reason);
	r->consistency_reason = reason ? strdup(reason) : NULL;
	return reason && !r->consistency_reason ? err_errno(err, ENOMEM, "cannot replicate") : 0;
}

/* --- the flow -------------------------------------------------------------------------------- */

static int open_replica(struct replicate *r, char folder[STATEDIR_BYTES], struct err *err)
{
	const struct replicate_values *v = r->values;
	size_t nr_left_out;
	if (replica_folder(v->state_dir, folder, err) < 0 ||
		find_left_out(r, &nr_left_out, err) < 0)
		return -1;
	struct replica_options options = {
		.folder = folder,
		.vm = r->sources.vm,
		.software = version_text(),
		.force = v->force,
		.no_alias_proof = v->no_alias_proof,
		.read_back = v->verify && strcmp(v->verify, "read-back") == 0,
		.cutover = v->cutover,
		.left_out = r->left_out,
		.nr_left_out = nr_left_out,
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
	if (!is_machine(r) && backup_sources_open(&r->sources, err) < 0)
		return -1;
	backup_sources_identify(&r->sources);
	if (replicate_targets_open(r, err) < 0 || gather(r, err) < 0)
		return -1;
	if (!is_machine(r))
		take_sources(r);
	progress_stage(r->progress, "match");
	if (replica_match(r->replica, r->disks, r->sources.nr_disks, err) < 0)
		return -1;
	progress_stage(r->progress, "prove");
	if (replica_prove(r->replica, err) < 0)
		return -1;
	progress_stage(r->progress, "resume");
	if (replica_look(r->replica, err) < 0)
		return -1;
	/* Whatever could be refused without it was. */
	if (is_machine(r) && open_machine(r, err) < 0)
		return -1;
	take_sources(r);
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
			progress_add_disk(r->progress, r->disks[i].key, r->disks[i].size_bytes,
				&one->figures, err) < 0)
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
	int rc = copy(r, err) < 0 ? -1 : verify(r, err);
	if (check_machine(r, rc, err) < 0)
		return err_hint(err, "the targets hold parts of two generations now; the next run "
				     "goes on");
	progress_stage(r->progress, "commit");
	if (replica_commit(r->replica, err) < 0)
		return -1;
	backup_sources_commit(&r->sources);
	return 0;
}

/* --- telling ------------------------------------------------------------------------------------
 */

static json_t *disk_json(const struct replicate *r, size_t i)
{
	struct replica_outcome outcome;
	replica_outcome(r->replica, i, &outcome);
	json_t *disk = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:b, s:s, s:s}", "key",
		r->disks[i].key, "source", r->names[i].name, "target", r->targets[i].name, "mode",
		outcome.full ? "full" : "delta", "reason", outcome.reason, "changed_by",
		repository_change_name(outcome.change), "resumed", outcome.resumed, "verified",
		outcome.verified, "root", outcome.root_hex);
	if (disk)
		cli_json_figures(disk, r->disks[i].size_bytes, &r->sources.copies[i].figures);
	return disk;
}

static int print_json(const struct replicate *r, int64_t took_ns, struct err *err)
{
	json_t *disks = json_array();
	for (size_t i = 0; i < r->sources.nr_disks; i++)
		json_array_append_new(disks, disk_json(r, i));
	return cli_print_json(
		json_pack("{s:s, s:I, s:b, s:s, s:s*, s:s*, s:f, s:o}", "vm", r->sources.vm,
			"generation", (json_int_t)replica_generation(r->replica), "cut_over",
			r->values->cutover, "aliasing", replica_aliasing(r->replica), "consistency",
			r->consistency, "consistency_reason", r->consistency_reason, "seconds",
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
	printf("Replicated %s in %s: generation %" PRIu64 "%s; aliasing %s.\n", r->sources.vm,
		cli_duration_text(took_ns, took), replica_generation(r->replica),
		r->values->cutover ? ", cut over" : "", replica_aliasing(r->replica));
	for (size_t i = 0; i < nr; i++) {
		struct replica_outcome outcome;
		replica_outcome(r->replica, i, &outcome);
		printf("  disk %s to %s: %s (%s), verified by %s\n", r->disks[i].key,
			r->targets[i].name, outcome.full ? "full" : "delta", outcome.reason,
			outcome.verified);
	}
	struct figures_row *rows = calloc(nr, sizeof *rows);
	for (size_t i = 0; rows && i < nr; i++)
		rows[i] = (struct figures_row){
			r->disks[i].key, r->disks[i].size_bytes, &r->sources.copies[i].figures};
	if (rows)
		figures_print(rows, nr);
	free(rows);
	return cli_flush(err);
}

static int run_replicate(struct replicate *r, struct err *err)
{
	char folder[STATEDIR_BYTES];
	if (backup_args_read(&r->sources, err) < 0 || check_disk_ids(r, err) < 0 ||
		replicate_targets_read(r, err) < 0 || find_name(r, err) < 0 ||
		check_cutover(r, err) < 0)
		return -1;
	int64_t began_ns = clock_now_ns();
	r->progress = r->sources.progress = progress_start(&r->cli->common, err);
	if (!r->progress)
		return -1;
	progress_vm(r->progress, r->sources.vm);
	progress_stage(r->progress, "recover");
	int rc = open_replica(r, folder, err);
	if (rc == 0)
		rc = replicate(r, err);
	if (rc < 0)
		err_context(err, "cannot replicate %s", r->sources.vm);
	/* The machine waits for nobody who reads the report. */
	if (r->sources.vmware)
		progress_stage(r->progress, "give-back");
	replica_end_reading(r->replica);
	backup_sources_close(&r->sources);
	progress_end(r->progress, err);
	return rc == 0 ? print_report(r, clock_now_ns() - began_ns, err) : -1;
}

static void free_replicate(struct replicate *r)
{
	replica_close(r->replica);
	replicate_targets_close(r);
	for (size_t i = 0; r->names && i < r->sources.nr_disks; i++) {
		free(r->names[i].name);
		free(r->names[i].id);
	}
	free(r->names);
	free(r->left_out);
	free(r->consistency_reason);
	free(r->disks);
	backup_sources_close(&r->sources);
	backup_args_free(&r->sources);
}

static int run(struct cli *cli, const void *values, struct err *err)
{
	const struct replicate_values *v = values;
	struct replicate r = {
		.cli = cli,
		.values = v,
		.sources = {.cli = cli, .values = &v->source, .is_replica = true},
	};
	int rc = run_replicate(&r, err);
	free_replicate(&r);
	if (rc < 0 && r.found_damage) {
		cli_report_error(cli->common.json, command_replicate.name, err);
		return EXIT_DAMAGE;
	}
	return rc;
}

const struct command command_replicate = {
	.name = "replicate",
	.arguments = "[SOURCE]",
	.summary = "Keep raw targets up to date with the disks of a virtual machine",
	.details =
		"Each disk goes to the one target that --target names by the disk's key: a raw "
		"file,\n"
		"a device or an NBD export, of the same size. Before the first byte the mapping "
		"is\n"
		"proven: one target for each disk, none of them twice or another's under a second\n"
		"name, and from the second run on each must hold what the run before it wrote.\n"
		"\n"
		"A running machine is one SOURCE, as in sendense backup: vmware://USER@HOST/VM of "
		"a\nvCenter (nbdkit-vddk://... by nbdkit), qemu:QMP-SOCKET. The proof comes before "
		"its snapshot.\n"
		"\n"
		"The first run writes all, later ones what differs. All disks go to the next\n"
		"generation together; an interrupted run is gone on with. --cutover is the last "
		"run.",
	COMMAND_OPTIONS(option_table),
	.common = COMMON_JSON | COMMON_PROGRESS,
	.max_arguments = 1,
	.words = WORDS_DISK,
	.values_bytes = sizeof(struct replicate_values),
	.run = run,
};
