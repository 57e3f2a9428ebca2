/*
 * Cancel: a request to stop that wakes sleepers.  Set once, never cleared.
 * cancel_request() is safe in a signal handler and from any thread.
 * Functions that take a struct cancel accept NULL: never cancelled.
 */
#ifndef SENDENSE_CANCEL_H
#define SENDENSE_CANCEL_H

#include "clock.h"
#include "err.h"

struct cancel;

/* Gives a new one, or NULL (err). */
struct cancel *cancel_new(struct err *err);
/*
 * One that is requested with its parent, and can be requested by itself too, which
 * the parent does not see: for a part of the work that is given up alone.  The
 * parent (NULL: none) must live longer.
 */
struct cancel *cancel_new_part(const struct cancel *parent, struct err *err);
void cancel_free(struct cancel *cancel);

void cancel_request(struct cancel *cancel);
bool cancel_requested(const struct cancel *cancel);

/* Readable once cancel was requested; for poll().  -1 for NULL. */
int cancel_fd(const struct cancel *cancel);

/* -1 with ERR_CANCELLED when cancel was requested, else 0. */
int cancel_check(const struct cancel *cancel, struct err *err);

/* Sleeps until the deadline: 0, or -1 with ERR_CANCELLED at once when cancelled. */
int cancel_sleep(const struct cancel *cancel, struct deadline until, struct err *err);

/*
 * Waits until fd is ready for events (POLLIN, POLLOUT).  Returns the revents,
 * or -1: ERR_TIMEOUT naming what ("reading the handshake"), or ERR_CANCELLED.
 */
int cancel_poll(const struct cancel *cancel, int fd, short events, struct deadline until,
	const char *what, struct err *err);

#endif
