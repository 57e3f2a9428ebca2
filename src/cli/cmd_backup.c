/*
 * sendense backup: the disks of one VM, as one restore point.
 *
 *   arguments ─► sources opened, keys and sources distinct ─► each disk full or incremental
 *     ─► begin (lock, clean-up or going on, plan, images) ─► audit ─► copy ─► commit
 *
 * Whatever fails before the commit point leaves no restore point.  What was
 * made is deleted, except when a connection was lost or this process was told to end
 * (SIGTERM, SIGHUP): that job is kept for the time that the repository's settings
 * say, and the next backup of the same disks goes on with it.
 *
 * A source of which nothing shows that it is the same after its connection was lost may be in
 * another state then: this run leaves the job in the same way, and begins again with
 * it, which reads and compares all of the source.
 */
#include "backup.h"
#include "commands.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <string.h>

#define WAIT_S 600u
/* How often it is begun again after a source was lost, and how long its server may take. */
#define AGAIN_MOST 3u
#define AGAIN_WAIT_MS 60000u
#define AGAIN_PAUSE_FIRST_MS 100u
#define AGAIN_PAUSE_MOST_MS 5000u

static const char *const modes[] = {"auto", "full", "incremental", NULL};

static const struct option_spec option_table[] = {
	STORE_OPTION_ROWS(struct backup_values),
	{.name = "vm",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct backup_values, vm),
		.argument = "NAME",
		.help = "the virtual machine's name in the repository (required, save for a "
			"machine of a vCenter)"},
	BACKUP_SOURCE_ROWS,
	{.name = "mode",
		.kind = OPTION_CHOICE,
		.offset = offsetof(struct backup_values, mode),
		.argument = "auto|full|incremental",
		.choices = modes,
		.help = "auto: incremental where that is possible, for each disk by itself; "
			"incremental: fail where it is not (default: auto)"},
	{.name = "source-id",
		.kind = OPTION_LIST,
		.offset = offsetof(struct backup_values, source_ids),
		.argument = "[KEY=]ID",
		.help = "promises that a source of this id always holds the same bytes (a "
			"snapshot's name), so that an interrupted backup need not read them again"},
	{.name = "audit",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct backup_values, audit),
		.argument = "PERCENT",
		.help = "read so much of each disk where it is reported as unchanged, and compare; "
			"0.1% to 100%"},
	{.name = "resume",
		.kind = OPTION_FLAG,
		.offset = offsetof(struct backup_values, resume),
		.help = "fail when there is no interrupted backup of these disks to go on with "
			"(default: go on with it if there is one)"},
	{.name = "no-resume",
		.kind = OPTION_FLAG,
		.offset = offsetof(struct backup_values, no_resume),
		.help = "remove what an interrupted backup left, and begin anew"},
	{.name = "wait",
		.kind = OPTION_DURATION,
		.offset = offsetof(struct backup_values, wait),
		.argument = "TIME",
		.maximum = 604800,
		.help = "wait so long for a prune of this machine to end, at a hub for the commit "
			"of an earlier backup and for a place too (default: 10m)"},
	BACKUP_MACHINE_ROWS("state-dir"),
};

/* --- what changes are asked since ---------------------------------------------------------- */

/* What the latest restore point recorded of a machine's disk.  A point that is damaged cannot be a
 * parent, so what it recorded is of no more use; any other error is one. */
static int find_since(struct backup *b, struct backup_disk *disk, struct err *err)
{
	struct err why = ERR_INIT;
	const struct repository_disk_info *parent;
	struct repository_point *latest = store_latest(b->store, b->vm, disk->key, &parent, &why);
	if (!latest && why.code != ERR_NONE && why.code != ERR_CORRUPT)
		return err_copy(err, &why);
	const char *since = !latest ? NULL : b->qemu ? parent->bitmap : parent->change_id;
	disk->since = since ? strdup(since) : NULL;
	repository_point_free(latest);
	return since && !disk->since ? err_errno(err, ENOMEM, "cannot plan the backup") : 0;
}

static int plan(struct backup *b, struct err *err)
{
	bool full = b->values->mode && strcmp(b->values->mode, "full") == 0;
	/* Bitmaps of QEMU are put in order for a full, too. */
	for (size_t i = 0; (b->qemu || (b->vmware && !full)) && i < b->nr_disks; i++)
		if (find_since(b, &b->disks[i], err) < 0)
			return -1;
	return 0;
}

/* --- beginning --------------------------------------------------------------------- */

static void tell_stage(void *context, const char *stage)
{
	const struct backup *b = context;
	progress_stage(b->progress, stage);
}

/* Of a machine's own identity, which stands first among that of its disks. */
static size_t nr_machine_identity(const struct backup *b)
{
	if (b->vmware)
		return vmware_vcenter_uuid(b->vmware)[0] ? 2 : 1;
	return b->qemu && qemu_source_uuid(b->qemu)[0] ? 1 : 0;
}

static struct store_backup *begin(struct backup *b, struct err *err)
{
	const struct backup_values *v = b->values;
	struct store_backup_options options = {
		.vm = b->vm,
		.wish = v->mode ? v->mode : "auto",
		.source = {.kind = b->offers[0].offer.source.kind, .label = b->vm},
		.disks = b->offers,
		.nr_disks = b->nr_disks,
		/* What is said of earlier runs' jobs is not said of this one's own. */
		.resume = b->nr_losses > 0 ? REPOSITORY_RESUME_AUTO
			  : v->resume      ? REPOSITORY_RESUME_MUST
			  : v->no_resume   ? REPOSITORY_RESUME_NEVER
					   : REPOSITORY_RESUME_AUTO,
		.wait_ms = (v->wait.given ? (unsigned)v->wait.value : WAIT_S) * 1000,
		.job = cli_hooks() ? cli_hooks()->job : NULL,
		.stage = tell_stage,
		.estimate = backup_sources_estimate,
		.changed_since = backup_sources_changed_since,
		.context = b,
	};
	options.consistency = backup_sources_consistency(b, &options.consistency_reason);
	options.source.identity = b->disks[0].identity;
	options.source.nr_identity = nr_machine_identity(b);
	return store_backup_begin(b->store, &options, b->decisions, err);
}

/* --- copying ------------------------------------------------------------------------ */

static int prepare(struct backup *b, struct store_backup *backup, struct err *err)
{
	for (size_t i = 0; i < b->nr_disks; i++) {
		struct backup_disk *disk = &b->disks[i];
		struct disks_copy *one = &b->copies[i];
		one->label = disk->label;
		disk->resumed = store_backup_resumed(backup, i, &disk->kept_bytes);
		if (store_backup_copy(backup, i, disk->source, &one->options, &one->source,
			    &one->target, err) < 0)
			return err_context(err, "%s", disk->label);
		if (progress_add_disk(b->progress, disk->key, b->offers[i].offer.size_bytes,
			    &one->figures, err) < 0)
			return -1;
	}
	return 0;
}

/* Before the copy: what an audit finds makes all of it worthless. */
static int audit(struct backup *b, struct store_backup *backup, struct err *err)
{
	if (b->audit_per_mille == 0)
		return 0;
	store_backup_stage(backup, REPOSITORY_STAGE_AUDIT);
	for (size_t i = 0; i < b->nr_disks; i++)
		if (store_backup_audit(
			    backup, i, b->copies[i].source, b->audit_per_mille, NULL, err) < 0)
			return -1;
	return 0;
}

static int copy(struct backup *b, struct store_backup *backup, struct err *err)
{
	store_backup_stage(backup, REPOSITORY_STAGE_COPY);
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
		store_backup_figures(backup, i, &figures);
	}
	return cancel_check(b->cli->cancel, err);
}

/* --- the restore point -------------------------------------------------------------- */

/* The machine goes down, the session ended, the network broke: what was stored is worth
 * keeping.  Ctrl-C is somebody who does not want it. */
static bool is_interruption(const struct err *err)
{
	int number = cli_stop_signal();
	return err->code == ERR_DISCONNECTED || err->code == ERR_TIMEOUT ||
	       (err->code == ERR_CANCELLED && (number == SIGTERM || number == SIGHUP));
}

static int hint_kept(const struct backup *b, struct err *err)
{
	err_hint(err, "no restore point was made; the unfinished job is kept for a while, and "
		      "the next backup of these disks goes on with it");
	if (b->nr_losses > 0)
		err_hint(err, "--source-id says that a source is a snapshot, which is the same "
			      "when its server was started again, and is gone on with then");
	return -1;
}

/* After a failure: the backup is gone when it returns -1. */
static int give_up(struct backup *b, struct store_backup *backup, struct err *err)
{
	if (store_backup_is_committed(backup)) {
		store_backup_abort(backup); /* removes nothing */
		return err_hint(
			err, "sendense verify %s@%s tells whether it is good", b->vm, b->point);
	}
	if (is_interruption(err)) {
		store_backup_leave(backup);
		return hint_kept(b, err);
	}
	store_backup_abort(backup);
	return err_hint(err, "no restore point was made, what was written is deleted");
}

/* What was lost on the way, so that this is tried anew. */
enum loss { LOSS_NONE, LOSS_SOURCE, LOSS_HUB };

static enum loss find_loss(
	const struct backup *b, const struct store_backup *backup, const struct err *err)
{
	if (b->nr_losses == AGAIN_MOST)
		return LOSS_NONE;
	if (store_backup_is_lost(backup, err))
		return LOSS_HUB;
	/* A snapshot goes with its session: the next backup takes another one. */
	if (err->code != ERR_DISCONNECTED || b->vmware)
		return LOSS_NONE;
	/* Files do not disconnect: the way to the hub did, for too long, and is there again. */
	return backup_sources_may_change(b) ? LOSS_SOURCE : LOSS_HUB;
}

static int made_all_the_same(const struct backup *b, struct store_backup *backup, struct err *err)
{
	log_warning("the restore point was made, although: %s", err->text);
	err_clear(err);
	store_backup_abort(backup); /* removes nothing */
	backup_sources_commit(b);
	return 0;
}

/* Copies and commits; -1 with *loss: the backup was left, to be gone on with. */
static int try_point(struct backup *b, enum loss *loss, struct err *err)
{
	assert(b->offers && b->nr_disks > 0);
	struct store_backup *backup = begin(b, err);
	if (!backup)
		return -1;
	backup_sources_warn(b);
	backup_report_missing(b);
	snprintf(b->point, sizeof b->point, "%s", store_backup_point(backup));
	int rc = b->vmware ? vmware_source_keep(b->vmware, backup, err) : 0;
	if (rc == 0)
		rc = prepare(b, backup, err);
	if (rc == 0)
		rc = audit(b, backup, err);
	if (rc == 0)
		rc = copy(b, backup, err);
	rc = backup_sources_check(b, rc, err);
	*loss = rc < 0 ? find_loss(b, backup, err) : LOSS_NONE;
	if (rc == 0) {
		rc = store_backup_commit(backup, err);
		if (rc < 0 && store_backup_stop_commit(backup, is_interruption(err)))
			return made_all_the_same(b, backup, err);
		if (rc < 0 && store_backup_is_lost(backup, err) && b->nr_losses < AGAIN_MOST)
			*loss = LOSS_HUB;
	}
	if (*loss != LOSS_NONE) {
		store_backup_leave(backup);
		return -1;
	}
	if (rc == 0 || store_backup_is_committed(backup))
		backup_sources_commit(b);
	return rc == 0 ? 0 : give_up(b, backup, err);
}

/* A server that is just being started again is waited for. */
static int open_again(struct backup *b, struct err *err)
{
	struct deadline until = deadline_after_ms(AGAIN_WAIT_MS);
	for (unsigned pause_ms = AGAIN_PAUSE_FIRST_MS;;
		pause_ms = pause_ms * 2 < AGAIN_PAUSE_MOST_MS ? pause_ms * 2
							      : AGAIN_PAUSE_MOST_MS) {
		struct err why = ERR_INIT;
		backup_sources_close(b);
		if (backup_sources_open(b, &why) == 0)
			return 0;
		bool may_come = why.code == ERR_REFUSED || why.code == ERR_NOT_FOUND ||
				why.code == ERR_DISCONNECTED || why.code == ERR_TIMEOUT;
		if (!may_come || deadline_passed(until))
			return err_copy(err, &why);
		if (cancel_sleep(b->cli->cancel, deadline_min(deadline_after_ms(pause_ms), until),
			    err) < 0)
			return -1;
	}
}

static int make_point(struct backup *b, struct err *err)
{
	for (;;) {
		enum loss loss = LOSS_NONE;
		if (try_point(b, &loss, err) == 0)
			return 0;
		if (loss == LOSS_NONE)
			return -1;
		b->nr_losses++;
		log_warning("%s; %s", err->text,
			loss == LOSS_HUB ? "beginning again, with what the hub has stored"
					 : "the source may have changed: it is read again, and "
					   "compared with what is stored");
		err_clear(err);
		progress_begin_again(b->progress);
		memset(b->copies, 0, b->nr_disks * sizeof *b->copies);
		if (loss == LOSS_SOURCE && open_again(b, err) < 0)
			return hint_kept(b, err);
	}
}

static int back_up(struct backup *b, struct err *err)
{
	if (backup_args_read(b, err) < 0)
		return -1;
	int64_t began_ns = clock_now_ns();
	b->store = disks_open_store(b->cli, &b->values->store, REPOSITORY_WRITE, err);
	if (!b->store)
		return -1;
	b->progress = progress_start(&b->cli->common, err);
	if (!b->progress)
		return -1;
	int rc = b->vm[0] ? 0 : vmware_source_name(b->vmware, b->store, b->vm, err);
	progress_vm(b->progress, b->vm);
	if (rc == 0)
		rc = plan(b, err);
	if (rc == 0)
		rc = backup_sources_open(b, err);
	if (rc == 0)
		rc = make_point(b, err);
	if (rc < 0)
		err_context(err, "cannot back up %s", b->vm[0] ? b->vm : vmware_vm_name(b->vmware));
	/* The machine waits for nobody who reads the report. */
	if (b->vmware)
		progress_stage(b->progress, "give-back");
	backup_sources_close(b);
	progress_end(b->progress, err);
	return rc == 0 ? backup_report_print(b, clock_now_ns() - began_ns, err) : -1;
}

static int run(struct cli *cli, const void *values, struct err *err)
{
	struct backup b = {.cli = cli, .values = values};
	int rc = back_up(&b, err);
	backup_sources_close(&b);
	store_close(b.store);
	json_decref(b.missing_disks);
	backup_args_free(&b);
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
		"point appears when all of it is safely stored, and not before.\n"
		"\n"
		"A machine that runs in QEMU is one SOURCE: qemu:QMP-SOCKET, with all disks that "
		"it\n"
		"can write to, as they are at one moment (qemu:QMP-SOCKET/DISK: one of them). So "
		"is\n"
		"a machine of a vCenter or an ESXi host: vmware://USER@HOST[:PORT]/VM, with all "
		"its\n"
		"disks as one snapshot has them, which is removed at the end; nbdkit-vddk://... is "
		"the\nsame, read by nbdkit.\n"
		"\n"
		"The first backup of a disk is full; later ones hold what differs from the latest\n"
		"restore point, whatever told of the changes. Where the changes cannot be known "
		"(a\n"
		"resized disk, a list that begins elsewhere, a bitmap that is gone, a damaged "
		"parent)\n"
		"it is full again, and warns. An interrupted backup is gone on with.",
	COMMAND_OPTIONS(option_table),
	.common = COMMON_JSON | COMMON_PROGRESS,
	.max_arguments = 1,
	.words = WORDS_DISK,
	.values_bytes = sizeof(struct backup_values),
	.run = run,
};
