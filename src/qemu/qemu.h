/*
 * qemu: a running QEMU as a source, over QMP: one state of all its disks at one
 * moment, with what changed since an earlier one.
 *
 *   begin:   freeze the guest ─► one transaction for all disks: a new bitmap, a
 *            point-in-time scratch node (fleecing), the older bitmap stands still
 *            ─► thaw ─► each disk exported read-only over NBD on a Unix socket
 *   commit:  the older bitmaps are dropped: the new ones count from now on
 *   end:     exports, jobs, nodes and scratch files go; without commit the older
 *            bitmaps take in what the new ones saw, and the new ones are dropped
 *
 * All that is made in QEMU has names that begin with "sendense-" and hold the job: a
 * session that was killed is recognised by the next begin of the same VM and cleaned
 * the same way.  Bitmaps are named "sendense-POINT".  After QEMU itself was killed its
 * bitmaps are gone (or marked inconsistent, which is removed), and the next backup is a full.
 */
#ifndef SENDENSE_QEMU_H
#define SENDENSE_QEMU_H

#include "base.h"

#define QEMU_DISKS_MAX 256u

struct qemu_options {
	const char *socket; /* of QMP */
	const char *node; /* one disk by node name, device or qdev id; NULL: all writable disks */
	const char *agent; /* the guest agent's socket; NULL: looked for in QEMU */
	bool no_freeze;
	const char *scratch; /* folder that QEMU can write to; NULL: the QMP socket's */
	unsigned timeout_ms; /* of one command; 0: 30,000 */
	unsigned freeze_timeout_ms; /* the guest is thawed after that at the latest; 0: 10,000 */
	struct cancel *cancel; /* borrowed until end; may be NULL */
};

struct qemu_disk {
	const char *key; /* from the device's id, as [A-Za-z0-9_-]{1,64}, distinct */
	const char *node; /* node name in QEMU */
	uint64_t size_bytes;
	const char
		*identity; /* what stays the same from backup to backup: file name and qdev path */
	bool has_bitmap; /* qemu_plan_bitmap()'s is there, recording and consistent */
	const char *no_bitmap; /* else why: "bitmap sendense-... is gone" */
	const char *uri; /* after begin: its export */
};

struct qemu_session;

/* Connects, learns the disks, and cleans what a dead session left.  ERR_BUSY when a live
 * session of another process has the VM.  ERR_REFUSED carries QEMU's own words. */
struct qemu_session *qemu_open(const struct qemu_options *options, struct err *err);
size_t qemu_nr_disks(const struct qemu_session *session);
const struct qemu_disk *qemu_disk(const struct qemu_session *session, size_t i);
/* The machine's uuid and name, "" when it has none. */
const char *qemu_vm_uuid(const struct qemu_session *session);
const char *qemu_vm_name(const struct qemu_session *session);

/* Before begin: the bitmap that began at the parent point of that disk; looks whether it
 * can be used (has_bitmap).  An increment's export then has it as a metadata context. */
int qemu_plan_bitmap(
	struct qemu_session *session, size_t disk, const char *bitmap, struct err *err);

/* bitmap: the name for those that begin now ("sendense-POINT"), the same for all disks.
 * Scratch space is a sparse file a disk, of what the guest overwrites while it lasts. */
int qemu_begin(struct qemu_session *session, const char *bitmap, struct err *err);
/* "application": the guest's file systems were frozen; "crash": they were not, and why. */
const char *qemu_consistency(const struct qemu_session *session);
const char *qemu_no_freeze_reason(const struct qemu_session *session); /* NULL: was frozen */

/* The restore point exists: from now on the new bitmaps count. */
int qemu_commit(struct qemu_session *session, struct err *err);
/* Gives everything back; the session is gone whatever the answer.  NULL is harmless. */
int qemu_end(struct qemu_session *session, struct err *err);

#endif
