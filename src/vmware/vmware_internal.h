/*
 * Inside of the vmware room.
 *
 *   session    the states: open, begin, check, commit, end
 *   debts      what must be given back, written down; the lock of a machine
 *   pay        debts, paid: by a session, or collected from all that are dead
 *   disks      which disks; whether the snapshot has the same ones
 *   areas      what changed, or what is allocated, as a list; the disk seen through it
 *   nbdkit     a disk through nbdkit's vddk plugin; its process
 *   describe   what a rebuild needs, as files
 */
#ifndef SENDENSE_VMWARE_INTERNAL_H
#define SENDENSE_VMWARE_INTERNAL_H

#include "vmware.h"

#include "changes.h"
#include "debts.h"
#include "nbdkit.h"

enum vmware_state {
	VMWARE_OPENED,
	VMWARE_WANTED, /* the debt is written: from here on a snapshot may be there */
	VMWARE_TAKEN,
	VMWARE_READING,
	VMWARE_COMMITTED,
	VMWARE_REMOVED, /* nothing of the session is there */
	VMWARE_OWED, /* the snapshot, or what may be one, is still there: the debt is kept */
	VMWARE_NR_STATES,
};

struct session_disk {
	struct vmware_disk facts;
	int32_t key;
	char *name, *since, *change_id; /* what facts tells of them */
	char unusable[512];
	struct block *opened; /* through VMware's library */
	struct changes *list; /* of changes, or of what is allocated; NULL: all is data */
	struct changes *since_list; /* of changes since another id; NULL: it was not asked for */
	struct block *nothing, *since_map; /* a disk of zeros, seen through that */
	pthread_t closer;
	bool closes; /* closer is at it */
};

struct vmware_session {
	enum vmware_state state;
	struct vsphere *vsphere;
	struct vsphere_vm *vm; /* as it was at open */
	struct vsphere_config *config; /* the snapshot's; NULL before it is known */
	struct vsphere_taken taken;
	struct session_disk *disks;
	size_t nr_disks;
	struct vmware_skipped *skipped;
	size_t nr_skipped;
	char folder[STATEDIR_BYTES];
	struct debts_place place;
	int lock_fd;
	char snapshot[DEBTS_NAME_BYTES]; /* its name */
	char *untracked; /* why changes are not tracked; NULL: nothing kept them from it */

	/* Of the options: */
	char *host, *user, *password, *purpose;
	unsigned port, snapshot_timeout_ms, remove_timeout_ms;
	bool no_quiesce, no_cbt;
	struct cancel *cancel;
	const char *vddk_folder, *vddk_helper, *vddk_modes, *vddk_compression, *nbdkit;
};

/* For the log. */
static inline double vmware_seconds_since(int64_t began_ns)
{
	return (double)(clock_now_ns() - began_ns) / 1e9;
}

/* --- disks ---------------------------------------------------------------------------------- */

/* Chooses them from the machine's, by the options. */
int disks_choose(
	struct vmware_session *session, const struct vmware_options *options, struct err *err);
/* Whether the snapshot's configuration has just these; takes its change ids. */
int disks_take_snapshot(struct vmware_session *session, struct err *err);
/* Opens each one through VMware's library. */
int disks_open(struct vmware_session *session, struct err *err);
/* The first one last.  May be called again. */
void disks_close(struct vmware_session *session);
void disks_free(struct vmware_session *session);

/* --- areas ---------------------------------------------------------------------------------- */

/* What changed since the planned change id, else what is allocated: disk->list, or NULL with the
 * reason in unusable. */
int areas_load(struct vmware_session *session, struct session_disk *disk, struct err *err);
/* What changed since another change id: disk->since_map.  As vmware_changed_since(). */
int areas_load_since(struct vmware_session *session, struct session_disk *disk,
	const char *change_id, struct err *err);
void areas_drop_since(struct session_disk *disk);

#endif
