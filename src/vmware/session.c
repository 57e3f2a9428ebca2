/*
 * The session; see vmware.h.
 *
 *   state       what there is                        next
 *   OPENED      logged in, the machine is locked     WANTED, REMOVED
 *   WANTED      the debt; perhaps a snapshot         TAKEN, REMOVED, OWED
 *   TAKEN       the debt, the snapshot               READING, REMOVED, OWED
 *   READING     these, a helper for each disk        COMMITTED, REMOVED, OWED
 *   COMMITTED   these, the restore point             REMOVED, OWED
 *   REMOVED     nothing
 *   OWED        the debt: the next open pays it
 *
 * One function changes the state: advance().
 */
#include "vmware_internal.h"

#include "pay.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define SNAPSHOT_MS (15u * 60 * 1000)
#define NAMES_MOST 3

#define MAY(state) (1u << (state))
static const unsigned may_follow[VMWARE_NR_STATES] = {
	[VMWARE_OPENED] = MAY(VMWARE_WANTED) | MAY(VMWARE_REMOVED),
	[VMWARE_WANTED] = MAY(VMWARE_TAKEN) | MAY(VMWARE_REMOVED) | MAY(VMWARE_OWED),
	[VMWARE_TAKEN] = MAY(VMWARE_READING) | MAY(VMWARE_REMOVED) | MAY(VMWARE_OWED),
	[VMWARE_READING] = MAY(VMWARE_COMMITTED) | MAY(VMWARE_REMOVED) | MAY(VMWARE_OWED),
	[VMWARE_COMMITTED] = MAY(VMWARE_REMOVED) | MAY(VMWARE_OWED),
};

static void advance(struct vmware_session *session, enum vmware_state state)
{
	static const char *const names[VMWARE_NR_STATES] = {
		"opened", "wanted", "taken", "reading", "committed", "removed", "owed"};
	assert(may_follow[session->state] & MAY(state));
	log_debug("snapshot %s: %s", session->snapshot, names[state]);
	session->state = state;
}

/* --- paying debts -------------------------------------------------------------------------------
 */

static int pay(struct vmware_session *session, const char *snapshot, struct err *err)
{
	return pay_snapshot(session->vsphere, &session->place, snapshot,
		deadline_after_ms(session->remove_timeout_ms), err);
}

static int pay_old(void *context, const struct vmware_debt *debt, struct err *err)
{
	struct vmware_session *session = context;
	const struct debts_place *place = &session->place;
	if (strcmp(debt->vm_uuid, place->vm_uuid) != 0 || !pay_is_at(debt, place))
		return 0;
	/* The machine is locked by this session: whoever wrote it is dead, or has given up. */
	log_warning("%s: the snapshot %s, which an earlier backup left (%s), is removed",
		session->vm->path, debt->snapshot, debt->created);
	return pay(session, debt->snapshot, err) == 0 ? 0 : pay_hint(place, debt->snapshot, err);
}

/* --- open ---------------------------------------------------------------------------------------
 */

static char *copy(const char *text)
{
	return strdup(text ? text : "");
}

static int take_options(
	struct vmware_session *session, const struct vmware_options *options, struct err *err)
{
	const struct vsphere_options *server = &options->server;
	session->host = copy(server->host);
	session->user = copy(server->user);
	session->password = copy(server->password);
	session->purpose = copy(options->purpose);
	if (!session->host || !session->user || !session->password || !session->purpose)
		return err_errno(err, ENOMEM, "cannot connect to %s", server->host);
	session->port = server->port ? server->port : VSPHERE_PORT;
	session->no_quiesce = options->no_quiesce;
	session->no_cbt = options->no_cbt;
	session->cancel = options->cancel;
	session->vddk_folder = options->vddk_folder;
	session->vddk_helper = options->vddk_helper;
	session->vddk_modes = options->vddk_modes;
	session->vddk_compression = options->vddk_compression;
	session->nbdkit = options->nbdkit;
	session->snapshot_timeout_ms =
		options->snapshot_timeout_ms ? options->snapshot_timeout_ms : SNAPSHOT_MS;
	session->remove_timeout_ms =
		options->remove_timeout_ms ? options->remove_timeout_ms : PAY_MOST_MS;
	if (vmware_state_folder(options->state_folder, session->folder, err) < 0)
		return -1;
	return statedir_make(session->folder, err);
}

static int take_vm(struct vmware_session *session, struct vsphere_vm *vm)
{
	vsphere_vm_free(session->vm);
	session->vm = vm;
	if (!vm)
		return -1;
	session->place = (struct debts_place){
		.folder = session->folder,
		.vcenter_uuid = vsphere_about(session->vsphere)->instance_uuid,
		.host = session->host,
		.vm_uuid = vm->config->instance_uuid,
		.vm = vm->moref,
		.path = vm->path,
	};
	return 0;
}

static int check_vm(const struct vsphere_vm *vm, struct err *err)
{
	if (vm->config->template)
		return err_set(err, ERR_REFUSED,
			"%s is a template: it has no snapshots (make a VM of it)", vm->path);
	if (vm->migration[0])
		return err_set(err, ERR_BUSY, "%s is being moved: %s (wait until it has arrived)",
			vm->path, vm->migration);
	if (vm->connection[0] && strcmp(vm->connection, "connected") != 0)
		return err_set(err, ERR_REFUSED,
			"%s cannot be reached by the server: it is %s (look at its host)", vm->path,
			vm->connection);
	if (!vm->config->instance_uuid[0])
		return err_set(err, ERR_REFUSED,
			"the server tells no instance uuid of %s, by which it would be known again",
			vm->path);
	return 0;
}

static void warn_of_snapshots(const struct vsphere_vm *vm)
{
	char names[512] = "";
	size_t length = 0;
	for (size_t i = 0; i < vm->nr_snapshots && i < NAMES_MOST && length < sizeof names; i++) {
		int n = snprintf(names + length, sizeof names - length, "%s\"%s\"", i ? ", " : "",
			vm->snapshots[i].name);
		length += n > 0 ? (size_t)n : 0;
	}
	if (vm->nr_snapshots > 0)
		log_warning("%s has %zu snapshot%s of others (%s%s), which slow it down, and are "
			    "left alone",
			vm->path, vm->nr_snapshots, vm->nr_snapshots == 1 ? "" : "s", names,
			vm->nr_snapshots > NAMES_MOST ? ", ..." : "");
}

/* Before anything is asked of the machine. */
static int probe_library(struct vmware_session *session, struct err *err)
{
	struct vddk_facts facts;
	char loaded[VDDK_PATH_BYTES];
	if (session->nbdkit)
		return vddk_find_folder(session->vddk_folder, loaded, err) < 0
			       ? -1
			       : nbdkit_probe(session->nbdkit, session->cancel, err);
	if (vddk_probe(session->vddk_folder, session->vddk_helper, &facts, loaded, session->cancel,
		    err) < 0)
		return -1;
	log_info("VMware's library %s is used", loaded);
	return 0;
}

int vmware_probe_nbdkit(const char *program, struct cancel *cancel, struct err *err)
{
	return nbdkit_probe(program, cancel, err);
}

/* Logged in, the machine found and locked, what dead sessions left of it removed. */
static int open_machine(
	struct vmware_session *session, const struct vmware_options *options, struct err *err)
{
	if (take_options(session, options, err) < 0)
		return -1;
	session->vsphere = vsphere_open(&options->server, err);
	if (!session->vsphere)
		return -1;
	const struct vsphere_about *about = vsphere_about(session->vsphere);
	log_info("%s: %s, API %s", session->host, about->full_name, about->api_version);
	if (take_vm(session, vsphere_find_vm(session->vsphere, options->what, err)) < 0)
		return -1;
	if (!session->vm->config->instance_uuid[0])
		return check_vm(session->vm, err);
	session->lock_fd = debts_lock(&session->place, err);
	return session->lock_fd < 0 ? -1 : vmware_debts(session->folder, pay_old, session, err);
}

static int open_session(
	struct vmware_session *session, const struct vmware_options *options, struct err *err)
{
	if (open_machine(session, options, err) < 0)
		return -1;
	char moref[VSPHERE_MOREF_BYTES];
	snprintf(moref, sizeof moref, "%s", session->vm->moref);
	if (take_vm(session, vsphere_vm(session->vsphere, moref, err)) < 0 ||
		check_vm(session->vm, err) < 0)
		return -1;
	warn_of_snapshots(session->vm);
	if (disks_choose(session, options, err) < 0)
		return -1;
	return probe_library(session, err);
}

static struct vmware_session *new_session(const struct vmware_options *options, struct err *err)
{
	struct vmware_session *session = calloc(1, sizeof *session);
	if (!session)
		err_errno(err, ENOMEM, "cannot connect to %s", options->server.host);
	else
		session->lock_fd = -1;
	return session;
}

struct vmware_session *vmware_open(const struct vmware_options *options, struct err *err)
{
	struct vmware_session *session = new_session(options, err);
	if (!session || open_session(session, options, err) == 0)
		return session;
	vmware_end(session, NULL);
	return NULL;
}

size_t vmware_nr_disks(const struct vmware_session *session)
{
	return session->nr_disks;
}

const struct vmware_disk *vmware_disk(const struct vmware_session *session, size_t i)
{
	assert(i < session->nr_disks);
	return &session->disks[i].facts;
}

size_t vmware_nr_skipped(const struct vmware_session *session)
{
	return session->nr_skipped;
}

const struct vmware_skipped *vmware_skipped(const struct vmware_session *session, size_t i)
{
	assert(i < session->nr_skipped);
	return &session->skipped[i];
}

const char *vmware_vm_uuid(const struct vmware_session *session)
{
	return session->vm->config->instance_uuid;
}

const char *vmware_vm_name(const struct vmware_session *session)
{
	return session->vm->config->name;
}

const char *vmware_vcenter_uuid(const struct vmware_session *session)
{
	return vsphere_about(session->vsphere)->instance_uuid;
}

int vmware_is_off(struct vmware_session *session, bool *off, struct err *err)
{
	struct vsphere_vm *now = vsphere_vm(session->vsphere, session->vm->moref, err);
	*off = now && now->power == VSPHERE_POWER_OFF;
	vsphere_vm_free(now);
	return now ? 0 : -1;
}

int vmware_plan(struct vmware_session *session, size_t disk, const char *change_id, struct err *err)
{
	assert(disk < session->nr_disks && session->state == VMWARE_OPENED);
	struct session_disk *d = &session->disks[disk];
	free(d->since);
	d->since = change_id ? strdup(change_id) : NULL;
	d->facts.since = d->since;
	return change_id && !d->since ? err_errno(err, ENOMEM, "cannot plan the backup") : 0;
}

/* --- begin: change tracking ---------------------------------------------------------------------
 */

__attribute__((format(printf, 2, 3))) static int say_untracked(
	struct vmware_session *session, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	int rc = vasprintf(&session->untracked, format, args);
	va_end(args);
	if (rc < 0)
		session->untracked = NULL;
	else
		log_warning(
			"%s: changes are not tracked: %s", session->vm->path, session->untracked);
	return 0;
}

static bool is_tracked(const struct vmware_session *session)
{
	const struct vsphere_config *config = session->vm->config;
	bool running = session->vm->power == VSPHERE_POWER_ON;
	for (size_t i = 0; i < session->nr_disks && running; i++)
		if (!vsphere_config_disk(config, session->disks[i].key)->change_id[0])
			return false;
	return config->cbt_enabled;
}

/* Makes a snapshot and removes it on a running machine, whose debt is ours.  why: of tracking,
 * which is not on then; -1: there is another error. */
static int switch_tracking_on(
	struct vmware_session *session, struct vsphere_cbt *found, struct err *why, struct err *err)
{
	char name[DEBTS_NAME_BYTES];
	if (debts_name(name, err) < 0 || debts_write(&session->place, name, "", err) < 0)
		return -1;
	log_info("%s: change tracking is switched on", session->vm->path);
	int rc = vsphere_cbt_enable(session->vsphere, session->vm->moref, name,
		deadline_after_ms(session->snapshot_timeout_ms), found, why);
	vsphere_set_cancel(session->vsphere, NULL);
	if (pay(session, name, rc < 0 ? NULL : err) < 0) {
		if (rc == 0)
			return pay_hint(&session->place, name, err);
		log_warning("the snapshot %s of %s may be left; the next backup removes it", name,
			session->vm->path);
	}
	vsphere_set_cancel(session->vsphere, session->cancel);
	return 0;
}

static int try_tracking(struct vmware_session *session, struct err *err)
{
	struct vsphere_cbt found;
	struct err why = ERR_INIT;
	if (switch_tracking_on(session, &found, &why, err) < 0)
		return -1;
	if (why.code == ERR_NONE)
		return 0;
	if (why.code != ERR_REFUSED && why.code != ERR_DENIED && why.code != ERR_UNSUPPORTED)
		return err_copy(err, &why);
	return say_untracked(session, "%s", why.text);
}

static int enable_tracking(struct vmware_session *session, struct err *err)
{
	if (is_tracked(session))
		return 0;
	if (session->no_cbt)
		return say_untracked(
			session, "it is not to be switched on (sendense vmware cbt --enable does)");
	if (session->vm->nr_snapshots > 0)
		return say_untracked(session,
			"it can be switched on only while there is no snapshot (remove those that "
			"it has)");
	return try_tracking(session, err);
}

int vmware_track(const struct vmware_options *options, struct vsphere_cbt *found, struct err *err)
{
	struct err why = ERR_INIT;
	struct vmware_session *session = new_session(options, err);
	int rc = session ? open_machine(session, options, err) : -1;
	if (rc == 0)
		rc = switch_tracking_on(session, found, &why, err);
	if (rc == 0 && why.code != ERR_NONE)
		rc = err_copy(err, &why);
	vmware_end(session, NULL);
	return rc;
}

/* --- begin
 * ----------------------------------------------------------------------------------------
 */

static int take_snapshot(struct vmware_session *session, struct err *err)
{
	char created[CLOCK_UTC_BYTES];
	char *AUTO_FREE text = NULL;
	clock_utc_text(time(NULL), created);
	if (asprintf(&text,
		    "Made by Sendense at %s to read the disks%s%s. It may be removed when no "
		    "backup or replication of this machine runs.",
		    created, session->purpose[0] ? ": " : "", session->purpose) < 0) {
		text = NULL;
		return err_errno(err, ENOMEM, "cannot take a snapshot");
	}
	if (debts_name(session->snapshot, err) < 0 ||
		debts_write(&session->place, session->snapshot, "", err) < 0)
		return -1;
	advance(session, VMWARE_WANTED);
	int64_t began_ns = clock_now_ns();
	if (vsphere_snapshot_create(session->vsphere, session->vm->moref, session->snapshot, text,
		    !session->no_quiesce, deadline_after_ms(session->snapshot_timeout_ms),
		    &session->taken, err) < 0)
		return -1;
	advance(session, VMWARE_TAKEN);
	log_info("%s: the snapshot %s (%s) was taken in %.1f s, %s", session->vm->path,
		session->snapshot, session->taken.moref, vmware_seconds_since(began_ns),
		session->taken.quiesced ? "quiesced" : "not quiesced");
	return debts_write(&session->place, session->snapshot, session->taken.moref, err);
}

int vmware_begin(struct vmware_session *session, struct err *err)
{
	assert(session->state == VMWARE_OPENED);
	if (enable_tracking(session, err) < 0 || take_snapshot(session, err) < 0)
		return -1;
	session->config = vsphere_snapshot_config(session->vsphere, session->taken.moref, err);
	if (!session->config || disks_take_snapshot(session, err) < 0)
		return -1;
	for (size_t i = 0; i < session->nr_disks; i++)
		if (areas_load(session, &session->disks[i], err) < 0)
			return -1;
	if (disks_open(session, err) < 0)
		return -1;
	advance(session, VMWARE_READING);
	return 0;
}

const char *vmware_consistency(const struct vmware_session *session)
{
	return session->taken.quiesced ? "application" : "crash";
}

const char *vmware_consistency_reason(const struct vmware_session *session)
{
	if (session->taken.quiesced)
		return NULL;
	return session->no_quiesce ? "the guest was not to be quiesced" : session->taken.why_not;
}

const char *vmware_snapshot(const struct vmware_session *session)
{
	return session->snapshot;
}

/* --- check, commit, end --------------------------------------------------------------------------
 */

int vmware_check(struct vmware_session *session, struct err *err)
{
	char moref[VSPHERE_MOREF_BYTES];
	assert(session->state == VMWARE_READING);
	int rc = vsphere_snapshot_find(
		session->vsphere, session->vm->moref, session->snapshot, moref, err);
	if (rc < 0)
		return -1;
	if (rc == 0 || strcmp(moref, session->taken.moref) != 0)
		return err_set(err, ERR_BUSY,
			"the snapshot %s of %s was removed by somebody else while it was read",
			session->snapshot, session->vm->path);
	return 0;
}

void vmware_commit(struct vmware_session *session)
{
	advance(session, VMWARE_COMMITTED);
}

int vmware_changed_since(struct vmware_session *session, size_t disk, const char *change_id,
	struct block **map, struct err *err)
{
	assert(disk < session->nr_disks && session->state == VMWARE_READING);
	int known = areas_load_since(session, &session->disks[disk], change_id, err);
	*map = session->disks[disk].since_map;
	return known;
}

/* A snapshot may be there. */
static int give_back(struct vmware_session *session, struct err *err)
{
	if (pay(session, session->snapshot, err) == 0) {
		advance(session, VMWARE_REMOVED);
		return 0;
	}
	advance(session, VMWARE_OWED);
	return pay_hint(&session->place, session->snapshot, err);
}

static void free_session(struct vmware_session *session)
{
	debts_unlock(&session->place, session->lock_fd);
	disks_free(session);
	vsphere_config_free(session->config);
	vsphere_vm_free(session->vm);
	vsphere_close(session->vsphere);
	if (session->password)
		explicit_bzero(session->password, strlen(session->password));
	free(session->password);
	free(session->user);
	free(session->host);
	free(session->purpose);
	free(session->untracked);
	free(session);
}

int vmware_end(struct vmware_session *session, struct err *err)
{
	int rc = 0;
	if (!session)
		return 0;
	disks_close(session);
	if (session->vsphere)
		vsphere_set_cancel(session->vsphere, NULL);
	if (session->state == VMWARE_OPENED)
		advance(session, VMWARE_REMOVED);
	else
		rc = give_back(session, err);
	free_session(session);
	return rc;
}
