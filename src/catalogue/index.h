/*
 * index: the restore points of all repositories in one place, for questions that would read
 * thousands of manifests (SQLite, index.db).
 *
 * Nothing in it is only here: a damaged index, or one of another version, is removed and
 * filled anew from the repositories (job/reindex.h walks them).  A repository has the name
 * that the hub's configuration gives it (1 to 127 bytes).
 *
 * Errors: ERR_BUSY (another process has it open), ERR_NO_SPACE, ERR_IO, ERR_NOT_FOUND,
 * ERR_USAGE (a cursor that no list gave).  ERR_CORRUPT: it was damaged while it was open:
 * index_renew(), and fill it.
 * Thread rule: any thread.  Callbacks call nothing of the index.
 */
#ifndef SENDENSE_CATALOGUE_INDEX_H
#define SENDENSE_CATALOGUE_INDEX_H

#include "base.h"

#include <jansson.h>

struct index;

/* Opens or makes path; NULL: one in memory, gone when it is closed.  *is_new (may be NULL): it is
 * empty, and wants to be filled. */
struct index *index_open(const char *path, bool *is_new, struct err *err);
void index_close(struct index *index);
/* ERR_CORRUPT when it is damaged. */
int index_check(struct index *index, struct err *err);
/* Empty from now on. */
int index_renew(struct index *index, struct err *err);

/* --- restore points ---------------------------------------------------------------------- */

enum index_verified { INDEX_NEVER_VERIFIED, INDEX_GOOD, INDEX_DAMAGED };

struct index_point {
	const char *repository, *vm, *id;
	const char *mark; /* by which whoever fills the index knows an unchanged one; "": none */
	int64_t time; /* of its id, seconds since 1970 */
	enum index_verified verified;
	int64_t verified_at; /* 0: never */
	bool is_damaged; /* its manifest cannot be used; then what follows is 0 */
	bool is_protected; /* and that has not ended */
	int64_t protected_until; /* 0: without an end */
	uint64_t size_bytes, stored_bytes; /* the sums over its disks */
	/* As an item of "sendense ls --json".  When it is read, "protected" and "protected_until"
	 * are as of now. */
	const json_t *value;
};

/* Where a list goes on behind an item: letters and digits, good for the same order alone. */
#define INDEX_CURSOR_BYTES 1024

enum index_choice { INDEX_ANY, INDEX_NO, INDEX_YES };

struct index_filter {
	const char *repository, *vm; /* NULL: all */
	const char *vm_glob; /* with * and ?; NULL: all */
	int64_t since, before; /* since <= time < before; 0: no limit */
	enum index_choice is_protected;
	enum index_choice is_good; /* was verified good last time; NO: never verified, or
				      damaged */
	enum index_choice is_damaged; /* its manifest or its last verification says so */
	bool newest_only; /* of each VM in each repository */
	bool oldest_first; /* else the newest first, over all VMs */
	bool without_value; /* value is NULL */
	const char *after; /* a cursor; NULL: from the first */
	unsigned limit; /* 0: all */
};

/* Return 0 to go on, 1 to stop. */
typedef int index_point_callback(
	void *context, const struct index_point *point, const char cursor[INDEX_CURSOR_BYTES]);
/* By time, then by repository and VM. */
int index_points(struct index *index, const struct index_filter *filter,
	index_point_callback *callback, void *context, struct err *err);
/* One of them; id NULL: the VM's newest one.  The caller's; ERR_NOT_FOUND. */
json_t *index_point(struct index *index, const char *repository, const char *vm, const char *id,
	struct err *err);

/* --- VMs and repositories ------------------------------------------------------------------ */

struct index_vm {
	const char *repository, *vm;
	unsigned nr_points; /* 0: it has a folder and no restore point yet */
	unsigned nr_damaged; /* as is_damaged above */
	uint64_t stored_bytes; /* over all points */
	uint64_t size_bytes; /* of the newest */
	const char *newest, *newest_usable; /* ids; usable: not damaged in any way; NULL: none */
	const char *newest_good, *oldest; /* good: verified */
	int64_t newest_time, newest_usable_time, newest_good_time, oldest_time; /* 0: none */
};

/* By VM, then by repository.  after: "VM" and "REPOSITORY" of the last one told (NULL: from the
 * first).  vm: NULL or a glob.  limit 0: all. */
struct index_vms_filter {
	const char *repository, *vm_glob;
	const char *after_vm, *after_repository;
	unsigned limit;
};
int index_vms(struct index *index, const struct index_vms_filter *filter,
	int (*callback)(void *context, const struct index_vm *vm), void *context, struct err *err);

struct index_repository {
	const char *name, *id;
	int64_t indexed; /* when it was walked last; 0: not wholly yet */
	unsigned nr_vms, nr_points;
	uint64_t stored_bytes;
};
int index_repositories(struct index *index,
	int (*callback)(void *context, const struct index_repository *repository), void *context,
	struct err *err);

/* --- filling ---------------------------------------------------------------------------------- */

/* When it was walked last from end to end; 0: not yet. */
int64_t index_walked(struct index *index, const char *repository);
/* That name is the repository with that id: what an index holds of another one is forgotten. */
int index_repository_is(struct index *index, const char *name, const char *id, struct err *err);
/* It was walked from end to end. */
int index_repository_walked(struct index *index, const char *name, int64_t now, struct err *err);
/* Each VM that is known, with the mark that it was put with last. */
int index_marks(struct index *index, const char *repository,
	int (*callback)(void *context, const char *vm, const char *mark), void *context,
	struct err *err);
/* Points that are new or changed, and ids of those that are gone (ended by NULL; may be NULL):
 * all or nothing.  repository and vm of the points are not looked at.  The VM is known
 * from then on, with points or without.  mark: by which whoever fills the index knows a VM
 * whose points are the same; "": none. */
int index_put(struct index *index, const char *repository, const char *vm, const char *mark,
	const struct index_point *points, size_t nr_points, const char *const *gone,
	struct err *err);
/* vm NULL: the whole repository. */
int index_forget(struct index *index, const char *repository, const char *vm, struct err *err);

#endif
