/*
 * capacity: whether the repositories are there, and their free space.
 *
 * A file system of a network may not answer for hours, so each repository is looked at by a
 * thread of its own, which nobody waits for; who asks gets the last answer, and how old it is.
 *
 * Thread rule: any thread.
 */
#ifndef SENDENSE_HUB_CAPACITY_H
#define SENDENSE_HUB_CAPACITY_H

#include "job.h"

struct capacity;

enum capacity_state {
	CAPACITY_UNKNOWN, /* just started */
	CAPACITY_GOOD,
	CAPACITY_LITTLE, /* less than warn_free_bytes */
	CAPACITY_FULL, /* less than stop_free_bytes: no backups */
	CAPACITY_GONE, /* it is not there */
	CAPACITY_SILENT, /* its file system does not answer */
};
const char *capacity_state_name(enum capacity_state state);

struct capacity_report {
	const char *name;
	enum capacity_state state;
	uint64_t free_bytes, total_bytes; /* of the last answer */
	const char *text; /* of those that are not good */
};

/* Begins to look. */
struct capacity *capacity_start(
	const struct job_repository *repositories, size_t nr_repositories, struct err *err);
/* Does not wait for a thread that hangs.  NULL is harmless. */
void capacity_stop(struct capacity *capacity);

/* In the order of the configuration. */
void capacity_look(struct capacity *capacity,
	void (*callback)(void *context, const struct capacity_report *report), void *context);

#endif
