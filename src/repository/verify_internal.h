/* verify: its parts. */
#ifndef SENDENSE_VERIFY_INTERNAL_H
#define SENDENSE_VERIFY_INTERNAL_H

#include "disk_internal.h"

#define VERIFY_WRONG_MOST 4096u

/* --- verify_done.c ---------------------------------------------------------------- */

/* A disk of a point that was verified from end to end in this run. */
struct verify_done {
	char vm[REPOSITORY_VM_BYTES];
	char point[REPOSITORY_POINT_BYTES];
	char key[REPOSITORY_KEY_BYTES];
	uint64_t *wrong; /* all chunks that were found damaged, in order */
	size_t nr_wrong;
};

struct verify_dones {
	struct verify_done *items;
	size_t nr, room;
};

/* Copies wrong.  Without memory it is forgotten: then more is read, no more. */
void verify_done_add(struct verify_dones *dones, const struct repository_point *point,
	const char *key, const uint64_t *wrong, size_t nr_wrong);
/* NULL: not verified in this run. */
const struct verify_done *verify_done_find(
	const struct verify_dones *dones, const char *vm, const char *point, const char *key);
void verify_done_forget(struct verify_dones *dones);

/* --- verify_layer.c --------------------------------------------------------------- */

/*
 * What a point's disk stores itself, as a block: its extents call BLOCK_UNCHANGED what neither its
 * image holds nor its sums tell, and what is not in beneath->wrong: that was verified with the
 * point beneath.  It reads as the whole disk does.  Borrows both; disk was opened with
 * disk_open_layer().
 */
struct block *verify_layer_open(
	struct repository_disk *disk, const struct verify_done *beneath, struct err *err);

#endif
