/*
 * qemu: a running QEMU as a source, over QMP: one state of all its disks at one
 * moment, with what changed since an earlier one.
 *
 *   open:    connect, clean what a dead session left, learn the disks
 *   plan:    each disk's bitmaps are brought in order: which one counts?
 *   begin:   scratch nodes and NBD server are made ─► freeze the guest ─► one transaction
 *            for all disks: a point-in-time copy into the scratch node (fleecing), a new
 *            bitmap, the older bitmap stands still ─► thaw ─► each disk exported
 *            read-only over NBD on a private Unix socket
 *   check:   it is still that moment's state (just before the restore point is committed)
 *   commit:  from now on the new bitmaps count
 *   end:     exports, jobs, nodes and scratch files go; after commit the older bitmaps are
 *            dropped, without it they take in what the new ones saw, and those are dropped
 *
 * All that is made in QEMU, bitmaps aside, has a name that begins with the session's id
 * ("sendense-1a2b3c4d"): what a session that was killed left is recognised by the next open of
 * the same machine and cleaned the same way.  A bitmap belongs to one user (backups, a replica),
 * who is told by how its name begins.
 * When QEMU itself dies, bitmaps on raw disks are gone, and those in QCOW2 images are
 * inconsistent (then removed): the next backup is a full.  An orderly end of
 * QEMU keeps those in QCOW2 images.
 *
 * Thread rule: one thread.  docs/qemu.md tells what QEMU must have.
 */
#ifndef SENDENSE_QEMU_H
#define SENDENSE_QEMU_H

#include "base.h"

#define QEMU_DISKS_MAX 256u

struct qemu_options {
	const char *socket; /* of QMP: a Unix socket */
	const char *node; /* one disk by key, node name, device or qdev; NULL: all writable disks */
	const char *agent; /* the guest agent's socket; NULL: looked for in QEMU */
	/* How the names of this user's bitmaps begin: no others are touched.  Borrowed until end;
	 * NULL: "sendense-", those of backups. */
	const char *bitmaps;
	bool no_freeze;
	const char *scratch; /* folder for what the guest overwrites; NULL: /var/tmp.  QEMU need not
				be able to open files there: it is given open ones */
	uint64_t reserve_bytes; /* stay free there: with less left the backup is given up,
				   before the guest's writes fail.  0: 256 MiB */
	unsigned timeout_ms; /* of one command; 0: 30,000 */
	unsigned freeze_timeout_ms; /* the guest is thawed after that at the latest; 0: 10,000 */
	struct cancel *cancel; /* borrowed until end, which does not heed it; may be NULL */
};

struct qemu_disk {
	const char *key; /* from the device's id, as [A-Za-z0-9_-]{1,64}, distinct; the same in
			    every run of the same machine */
	const char *node; /* node name in QEMU; those that begin with '#' change from run to run */
	uint64_t size_bytes;
	const char *identity; /* for people: qdev path and file */
	bool has_bitmap; /* the one that was planned is there, recording and consistent */
	const char *no_bitmap; /* else why: "bitmap sendense-... is gone (...)" */
	const char *uri; /* after begin: its export; NULL before */
};

struct qemu_session;

/* ERR_BUSY when a live session of another process has the machine, or another program the QMP
 * socket.  ERR_REFUSED carries QEMU's own words; ERR_DISCONNECTED: QEMU has ended. */
struct qemu_session *qemu_open(const struct qemu_options *options, struct err *err);
size_t qemu_nr_disks(const struct qemu_session *session);
/* Lent until end, as all its strings. */
const struct qemu_disk *qemu_disk(const struct qemu_session *session, size_t i);
/* The machine's uuid and name, "" when it has none. */
const char *qemu_vm_uuid(const struct qemu_session *session);
const char *qemu_vm_name(const struct qemu_session *session);
/* Whether the guest's processors run now (not paused, and not switched off). */
int qemu_is_running(struct qemu_session *session, bool *running, struct err *err);

/*
 * Before begin, for each disk: the bitmap that the parent's record names, NULL when there is none.
 * All other bitmaps of this user on that disk are merged into it (what a backup that was never
 * committed left) or removed (those that were before it).  has_bitmap tells whether it
 * can be used; an increment's export then has it as the metadata context
 * qemu:dirty-bitmap:NAME.  A disk that is not planned has no parent.
 */
int qemu_plan_bitmap(
	struct qemu_session *session, size_t disk, const char *bitmap, struct err *err);

/*
 * bitmap: the name for those that begin now, as qemu_options.bitmaps has it and never used
 * before, the same for all disks.  Scratch space is a file without a name for each disk, which
 * grows by what the guest overwrites while the session lasts.  ERR_NO_SPACE when there is too
 * little to begin with; ERR_BUSY when QEMU's one NBD server is taken.  After a failure: qemu_end().
 */
int qemu_begin(struct qemu_session *session, const char *bitmap, struct err *err);
/* "application": the guest's file systems were frozen; "crash": they were not, and why. */
const char *qemu_consistency(const struct qemu_session *session);
const char *qemu_no_freeze_reason(const struct qemu_session *session); /* NULL: was frozen */

/*
 * Whether what the exports show is still the state of begin: call it after the last read and
 * before the restore point is committed, and for the reason of a read that failed.
 * ERR_NO_SPACE: given up for want of scratch space; ERR_DISCONNECTED: QEMU has ended;
 * ERR_BUSY: another program took away what belongs to the session.
 */
int qemu_check(struct qemu_session *session, struct err *err);

/* The restore point exists: from now on the new bitmaps count.  (The older ones go with end; after
 * a crash before that, with the next plan.) */
void qemu_commit(struct qemu_session *session);
/* Gives everything back; the session is gone whatever the answer.  NULL is harmless. */
int qemu_end(struct qemu_session *session, struct err *err);

#endif
