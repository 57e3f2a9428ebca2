/*
 * push: a session, what a client pushes, inside the NBD service.
 *
 *   state       left by
 *   OPENING     exported ─► OPEN; an error: forgotten at once, who opens it is told
 *   OPEN        commit ─► SETTLING; abort, let go, lease, stop ─► ENDING
 *   SETTLING    read back ─► COMPARING; abort, an error ─► an end
 *   COMPARING   digests as the client says ─► COMMITTING; else ─► REFUSED
 *   COMMITTING  manifest renamed ─► COMMITTED; abort before it, an error ─► an end
 *   ENDING      exports gone ─► LEFT, EXPIRED, ABORTED; FAILED where a write had failed
 *
 * From SETTLING and ENDING on a thread of its own works for the session, and it alone changes
 * the state.  Before, whoever changes the state to one of the two starts that thread.
 */
#ifndef SENDENSE_JOB_PUSH_H
#define SENDENSE_JOB_PUSH_H

#include "host_internal.h"

enum push_state {
	PUSH_OPENING,
	PUSH_OPEN,
	PUSH_SETTLING,
	PUSH_COMPARING,
	PUSH_COMMITTING,
	PUSH_ENDING,
	/* Ends: */
	PUSH_COMMITTED,
	PUSH_REFUSED,
	PUSH_FAILED,
	PUSH_LEFT,
	PUSH_EXPIRED,
	PUSH_ABORTED,
};

enum push_check { PUSH_CHECK_NONE, PUSH_CHECK_ROOT, PUSH_CHECK_SENT };

struct push_disk {
	char key[REPOSITORY_KEY_BYTES];
	uint64_t size_bytes;
	struct repository_decision decision;
	struct block *block; /* the backup's */
	struct export_one *export;
	/* Of the commit: */
	enum push_check check;
	uint8_t digest[DIGEST_ROOT_BYTES];
	struct repository_figures figures;
	bool has_figures, named;
	uint64_t audited_bytes;
	struct export_figures last; /* when its export was removed */
	bool removed;
};

struct push {
	struct push *next;
	struct host_service *service;
	char id[HOST_ID_BYTES], vm[REPOSITORY_VM_BYTES];
	char job[REPOSITORY_JOB_BYTES], point[REPOSITORY_POINT_BYTES]; /* "" before they are */
	char *path, *asker; /* of its repository; who opened it, may be NULL */
	int64_t opened_s;
	int lease_s;
	bool digest_required;
	struct cancel *cancel;
	struct host_repository *repository;
	struct export_group *group;
	struct push_disk *disks;
	size_t nr_disks;

	pthread_mutex_t work;
	struct repository_backup *backup; /* under work; NULL before and behind it */
	/* Under work: the first write that failed. */
	struct err failure;
	char failed_disk[REPOSITORY_KEY_BYTES];

	/* Under service.mutex: */
	unsigned nr_refs; /* the list's included */
	enum push_state state, end; /* end: that ENDING leads to */
	bool keep; /* cancelled: what is there can be gone on with */
	bool listed;
	bool has_figures; /* the disks' figures are the restore point's */
	uint64_t changes;
	char stage[REPOSITORY_STAGE_BYTES];
	int64_t stage_s, renewed_ns, ended_ns;
	struct err err;
	char err_disk[REPOSITORY_KEY_BYTES];
};

/* "opening", ... */
const char *push_state_name(enum push_state state);
bool push_is_end(enum push_state state);

/* Under service.mutex.  Asserts that the table above has it. */
void push_set(struct push *session, enum push_state state);
/* Any thread, no locks. */
void push_stage(void *session, const char *stage);

/* Under service.mutex: NULL with ERR_NOT_FOUND; else one more reference. */
struct push *push_get(struct host_service *service, const char *id, struct err *err);
/* Under service.mutex: takes an ended one from the list, whose reference is the caller's then. */
void push_drop(struct push *session);
/* Under service.mutex: how long ago it was renewed, or its clients did anything. */
int64_t push_idle_ns(const struct push *session);
/* One that nobody else knows and that has given back all. */
void push_free(struct push *session);
/* Not under it.  NULL is harmless. */
void push_put(struct push *session);

/* Under service.mutex: of a session that is OPEN, to SETTLING or to ENDING and then end, on a
 * thread of its own. */
int push_start_end(struct push *session, enum push_state to, enum push_state end, struct err *err);

/* One that never was OPEN, or has ended: gives back what it has.  work is held, or nobody else
 * knows it. */
void push_give_back(struct push *session);

#endif
