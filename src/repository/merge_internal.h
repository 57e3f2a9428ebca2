/* merge: what the two files that take a point out of the list share. */
#ifndef SENDENSE_MERGE_INTERNAL_H
#define SENDENSE_MERGE_INTERNAL_H

#include "repository_internal.h"

struct merge_disk {
	char key[REPOSITORY_KEY_BYTES];
	uint64_t size_bytes;
	bool has_child; /* else its files are deleted */
	char backing[REPOSITORY_POINT_BYTES]; /* beneath the point; "": none */
	char image[NAME_PATH_BYTES], sums[NAME_PATH_BYTES];
	/* Of the child, if there is one. */
	char child_image[NAME_PATH_BYTES], child_sums[NAME_PATH_BYTES], child_part[NAME_PATH_BYTES];
};

struct merge {
	struct repository *repo;
	const struct lock *lock; /* NULL: somebody else looks at it */
	char vm[REPOSITORY_VM_BYTES];
	char point[REPOSITORY_POINT_BYTES];
	char child[REPOSITORY_POINT_BYTES]; /* the next point, if a disk of it stands on this one */
	char job[REPOSITORY_JOB_BYTES];
	struct cancel *cancel;
	struct copy_progress *progress; /* may be NULL */
	void (*on_stage)(void *context, const char *vm, const char *point, const char *stage);
	void *context;
	struct merge_disk *disks;
	size_t nr_disks;
	uint64_t nr_stages;
};

/* --- merge_look.c --------------------------------------------------------------- */

/* Fills in the paths of a disk whose key and has_child are known. */
void merge_look_paths(const struct merge *merge, struct merge_disk *disk);

/* The restore point listed behind this one; "" when it is the last. */
int merge_look_next(const struct merge *merge, char next[REPOSITORY_POINT_BYTES], struct err *err);

/* Makes the disks, and finds what is to become of each.  child (the next point) may be NULL.
 * ERR_CORRUPT when something stands on one that no restore point tells of. */
int merge_look_actions(struct merge *merge, const struct repository_point *point,
	const struct repository_point *child, struct err *err);

/* Right before the merge: ERR_CORRUPT when the images' headers do not say what the plan says. */
int merge_look_child(const struct merge *merge, const struct merge_disk *disk, struct err *err);

/* Programs that know no leases (QEMU's) are seen by their locks on the images: ERR_BUSY. */
int merge_look_locks(const struct merge *merge, struct err *err);

/* --- merge_data.c --------------------------------------------------------------- */

/*
 * All that can show that the merge would fail, or do harm: checks the tables of the point's
 * image (with a refcount that is wrong, what is written may go over what is in use), reads what
 * the child's image holds itself and compares it with its sums, and writes the sums of both
 * into child_part, whose root must be the child's.
 */
int merge_data_prepare(const struct merge *merge, const struct merge_disk *disk,
	const struct repository_point *point, const struct repository_point *child,
	struct err *err);

/* Writes what the child's image holds itself into the point's, durably. */
int merge_data_write(const struct merge *merge, const struct merge_disk *disk, struct err *err);

#endif
