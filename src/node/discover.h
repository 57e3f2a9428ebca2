/*
 * discover: what machines there are: each vCenter is looked at again and again by a thread of its
 * own, so that one that is slow or dead holds up nobody.
 *
 *   log in (once) ─► list ─► each machine's facts ─► a whole look replaces what is kept
 *
 * Thread rule: any thread, once it is started.
 */
#ifndef SENDENSE_NODE_DISCOVER_H
#define SENDENSE_NODE_DISCOVER_H

#include "config.h"

#include <jansson.h>

#define DISCOVER_MACHINES_MOST 10000u /* of one vCenter that are kept */

struct discover;

/* vcenters: nr, lent until the stop. */
struct discover *discover_start(const struct node_vcenter *vcenters, size_t nr, struct err *err);
/* Calls in progress are cancelled.  NULL is harmless. */
void discover_stop(struct discover *discover);

/* A look begins now, or as soon as the one in progress ended; name NULL: at all of them.
 * ERR_NOT_FOUND: there is no such vCenter. */
int discover_wake(struct discover *discover, const char *name, struct err *err);

/* As GET /vcenters shows them; new. */
json_t *discover_vcenters(struct discover *discover);

struct discover_filter {
	const char *vcenter; /* NULL: all */
	const char *name; /* of machines, with * and ?; NULL: all */
	const char *after; /* "VCENTER/PATH" of the last one that is known; NULL: none */
	unsigned limit;
};
/* A page of machines; new.  *next: the next page's `after`, NULL: that was the last; the caller's.
 * *version counts on when any machine changed.  ERR_NOT_FOUND: there is no such vCenter. */
json_t *discover_machines(struct discover *discover, const struct discover_filter *filter,
	char **next, uint64_t *version, struct err *err);

/* One call for each vCenter, for metrics; lent to the call. */
struct discover_figures {
	const char *name;
	bool failed; /* the last look did */
	int64_t looked; /* when the last good one ended, seconds since 1970; 0: none was */
	size_t nr_machines;
};
void discover_each(struct discover *discover,
	void (*take)(void *context, const struct discover_figures *figures), void *context);

#endif
