/*
 * bitmaps: which of the bitmaps on a disk counts.
 *
 *   between backups     B1 records
 *   during one          B1 stands still since the moment that is backed up, B2 records
 *   it failed           B1 takes in B2 and records on, B2 goes
 *   it was committed    B1 goes
 *
 * A crash may leave B1 and B2.  The parent's record says which one its point began with: B1,
 * then the backup was not committed and B1 takes in B2; or B2, then B1 goes.
 *
 * Bitmaps whose names begin with session->bitmaps are ours; others are not touched.
 */
#ifndef SENDENSE_QEMU_BITMAPS_H
#define SENDENSE_QEMU_BITMAPS_H

#include "qemu_internal.h"

/*
 * Brings the disk's bitmaps in order: afterwards there is the wanted one, recording, or
 * none of ours.  Sets the disk's old, has_bitmap and no_bitmap.  wanted may be NULL.
 */
int bitmaps_settle(
	struct qemu_session *session, struct disk *disk, const char *wanted, struct err *err);

/* The actions of the transaction that begins session->bitmap; appends to actions. */
void bitmaps_begin(const struct qemu_session *session, const struct disk *disk, json_t *actions);

/* After the exports are gone: the old ones take in the new ones, or are dropped when the
 * session was committed.  All disks in one transaction.  Asks QEMU what there is first. */
int bitmaps_end(struct qemu_session *session, struct err *err);

#endif
