/*
 * vmware: a virtual machine of a vCenter (or an ESXi host) as a source: one snapshot, all its
 * disks as they were at that moment, with what changed since an earlier one.
 *
 *   open:    log in, find the machine, look whether it can be backed up; from now on no other
 *            session of this host has it; snapshots that dead sessions left are removed
 *   plan:    each disk: the change id that the parent's record has
 *   begin:   change tracking is switched on, where that is possible and wished ─► the snapshot
 *            is written down as a debt ─► it is taken ─► its disks, their change ids, what
 *            changed ─► each disk opened through VMware's library, in a process of its own
 *   check:   the snapshot is still there (just before the restore point is committed)
 *   commit:  the restore point exists
 *   end:     disks closed, snapshot removed, debt dropped, logged out
 *
 * A snapshot that could not be removed, or whose session was killed, stays as a debt: a small
 * file in the state folder that names it exactly.  The next open of the same machine removes it;
 * vmware_debts() lists them.  Nothing is ever removed by a pattern of its name.
 *
 * Thread rule: one thread for a session; the disks' blocks as all blocks.  docs/vmware.md tells
 * what vCenter must allow, and what was tried against what.
 */
#ifndef SENDENSE_VMWARE_H
#define SENDENSE_VMWARE_H

#include "block.h"
#include "vddk.h"
#include "vsphere.h"

#define VMWARE_KEY_BYTES 12 /* of a disk: the device key in decimal */

struct vmware_options {
	/* Where and who; all is copied.  Its cancel is borrowed until end, which does not heed it.
	 */
	struct vsphere_options server;
	struct cancel *cancel; /* of reading disks: the same one, as a rule; may be NULL */
	const char *what; /* the machine; see vsphere_find_vm() */
	const char *state_folder; /* NULL: vmware_state_folder() */
	const char *purpose; /* for people who find the snapshot: who makes it and what for; no
				secrets; NULL: nothing is said */

	const char *const *skip; /* keys of disks that are left out */
	size_t nr_skip;
	bool skip_unsupported; /* disks that no snapshot covers are left out; else they are an
				  error */
	bool no_quiesce;
	bool no_cbt; /* change tracking is not switched on; otherwise it is, of a machine without
			snapshots */

	/* See vddk_options; NULL: its default.  Borrowed until begin. */
	const char *vddk_folder, *vddk_helper, *vddk_modes, *vddk_compression;
	/* The disks are read through this program and its vddk plugin instead of our helper: a path
	 * or a name in PATH.  NULL: by the helper.  Borrowed until begin. */
	const char *nbdkit;

	unsigned snapshot_timeout_ms; /* to take it; 0: 15 min */
	unsigned remove_timeout_ms; /* to remove it, with all merging; 0: 30 min */
};

/* All lent until end. */
struct vmware_disk {
	char key[VMWARE_KEY_BYTES]; /* "2000": the hypervisor's device key */
	const char *label; /* "Hard disk 1" */
	const char *uuid; /* of its backing; "" when it has none */
	const char *name; /* vmware://HOST/PATH/KEY, for messages and records */
	uint64_t size_bytes;
	/* After begin: */
	const char *since; /* the change id that was planned; NULL: none */
	const char *unusable; /* why nothing is known of what changed since; NULL: it is, and block
				 tells it (has_changes) */
	const char *change_id; /* of the state that is read; NULL: changes are not tracked */
	struct block *block; /* what is not allocated is told as a hole, where that is known */
};

/* A disk that is left out. */
struct vmware_skipped {
	char key[VMWARE_KEY_BYTES];
	const char *label, *why;
};

struct vmware_session;

/*
 * ERR_BUSY: another session has the machine (its pid is named), or it is being moved.  ERR_REFUSED:
 * a template, a machine that cannot be reached, disks that no snapshot covers (each is named).
 * ERR_USAGE: a disk to be left out that is not there.  A snapshot of a dead session that cannot be
 * removed is an error, too.  Others as of vsphere_open(), vsphere_find_vm() and vddk_probe().
 */
struct vmware_session *vmware_open(const struct vmware_options *options, struct err *err);
size_t vmware_nr_disks(const struct vmware_session *session);
const struct vmware_disk *vmware_disk(const struct vmware_session *session, size_t i);
size_t vmware_nr_skipped(const struct vmware_session *session);
const struct vmware_skipped *vmware_skipped(const struct vmware_session *session, size_t i);

/* Lent until end.  The machine's instance uuid and name; the vCenter's uuid, "" of a host. */
const char *vmware_vm_uuid(const struct vmware_session *session);
const char *vmware_vm_name(const struct vmware_session *session);
const char *vmware_vcenter_uuid(const struct vmware_session *session);
/* Whether the machine is switched off now (one that is suspended is not); asks the server. */
int vmware_is_off(struct vmware_session *session, bool *off, struct err *err);

/* Before begin: the change id in the parent's record; NULL (as without a plan): there is none, or
 * all is to be read.  Copied. */
int vmware_plan(
	struct vmware_session *session, size_t disk, const char *change_id, struct err *err);

/*
 * After a failure: vmware_end().  ERR_BUSY: its disks were changed since open.  Change ids that are
 * of no use (another epoch, tracking off, refused by the server) are no error: see unusable.
 */
int vmware_begin(struct vmware_session *session, struct err *err);

/*
 * After begin, instead of what was planned, for what was read of an earlier snapshot: what changed
 * since that change id.  1, 0 (not known; the log says why), -1.  *map: lent until end; what did
 * not change is BLOCK_UNCHANGED in its extents.
 */
int vmware_changed_since(struct vmware_session *session, size_t disk, const char *change_id,
	struct block **map, struct err *err);

/* After begin.  "application": the guest's file systems stood still; "crash": they did not, and
 * why (NULL for the first). */
const char *vmware_consistency(const struct vmware_session *session);
const char *vmware_consistency_reason(const struct vmware_session *session);

/* After begin: the snapshot's name, which no other has or had: what it shows does not change. */
const char *vmware_snapshot(const struct vmware_session *session);

/*
 * After begin: what a rebuild needs, as files: "vsphere.json" (hardware, disks with their slots,
 * networks, disks that were left out), and "nvram" where it can be read.  No secrets, and nothing
 * of what a guest's owner put into its configuration (guestinfo).
 */
typedef int vmware_take_file(
	void *context, const char *name, const void *bytes, size_t length, struct err *err);
int vmware_config(
	struct vmware_session *session, vmware_take_file *take, void *context, struct err *err);

/* After the last read, before the commit.  ERR_BUSY: somebody else removed the snapshot. */
int vmware_check(struct vmware_session *session, struct err *err);
void vmware_commit(struct vmware_session *session);

/*
 * Gives all back; the session is gone whatever the answer.  -1: the snapshot is still there, the
 * error names it and the debt.  Nobody has a lane of its blocks open.  NULL is harmless.
 */
int vmware_end(struct vmware_session *session, struct err *err);

/*
 * Without a backup: switches change tracking on, as vsphere_cbt_enable() does.  Its snapshot is
 * written down as a debt, no other session has the machine meanwhile, and snapshots of dead ones
 * are removed first.  Of the options all that is said of snapshots' disks is not used.  Errors as
 * of vmware_open() and vsphere_cbt_enable().
 */
int vmware_track(const struct vmware_options *options, struct vsphere_cbt *found, struct err *err);

/* Whether that nbdkit and its vddk plugin can be run, without connecting anywhere (for doctor):
 * ERR_NOT_FOUND, or ERR_UNSUPPORTED with its last words, and what to install. */
int vmware_probe_nbdkit(const char *program, struct cancel *cancel, struct err *err);

/* --- debts ------------------------------------------------------------------------------------ */

/* statedir_find() of "vmware". */
int vmware_state_folder(const char *given, char path[STATEDIR_BYTES], struct err *err);

/* A snapshot that may be there, and must not stay.  Lent to the call. */
struct vmware_debt {
	const char *snapshot; /* its name, exactly */
	const char *moref; /* "" when it is not known */
	const char *vcenter_uuid, *host; /* where */
	const char *vm_uuid, *vm, *path; /* of the machine: instance uuid, moref, path */
	const char *created;
	int64_t pid; /* of the session that made it */
	bool alive; /* it still runs */
	const char *file;
};

/* Those in a state folder (NULL: vmware_state_folder()), by name; files that cannot be read are
 * warned of.  take: -1 (err set) ends it. */
typedef int vmware_take_debt(void *context, const struct vmware_debt *debt, struct err *err);
int vmware_debts(const char *state_folder, vmware_take_debt *take, void *context, struct err *err);

/*
 * Removes what dead sessions owe at a server, without a backup: of options counts server, what (the
 * one machine; NULL, "" or "/": all), state_folder and remove_timeout_ms.  Each debt at that server
 * is told with what came of it: why NULL, its snapshot is not there any more.  Where a session has
 * the machine, that one sees to it itself.  -1 when others are left; those that could be removed
 * are gone.  Heeds the server's cancel: what is being removed stays a debt then.
 */
typedef void vmware_tell_debt(void *context, const struct vmware_debt *debt, const struct err *why);
int vmware_collect(const struct vmware_options *options, vmware_tell_debt *tell, void *context,
	struct err *err);
/* As "sendense vmware debts --json" shows it; new, NULL without memory. */
json_t *vmware_debt_json(const struct vmware_debt *debt);

#endif
