/*
 * feed: what happens, for those who listen now: the last events, in a ring.
 *
 * Who comes late or too slowly misses some (the audit log and the jobs have them all), and
 * goes on with the oldest that there is.
 *
 * Thread rule: any thread.
 */
#ifndef SENDENSE_DAEMON_FEED_H
#define SENDENSE_DAEMON_FEED_H

#include "base.h"

#include <jansson.h>

#define FEED_EVENTS 1024

struct feed;

struct feed *feed_new(struct err *err);
/* Nobody listens any more.  NULL is harmless. */
void feed_free(struct feed *feed);

/* name: a constant.  vm: whom it is about, NULL: nobody.  Takes data (NULL: nothing happens). */
void feed_put(struct feed *feed, const char *name, const char *vm, json_t *data);
/* Listeners are told that it is over. */
void feed_end(struct feed *feed);

/* The number of the newest; a listener begins behind it. */
uint64_t feed_newest(struct feed *feed);

struct feed_event {
	uint64_t id;
	const char *name;
	char vm[256]; /* "": nobody */
	json_t *data; /* the caller's */
};
/* The first one behind `after`: 1; 2: nothing until the deadline; 0: it is over. */
int feed_next(struct feed *feed, uint64_t after, struct deadline until, struct feed_event *event);

#endif
