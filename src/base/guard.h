/*
 * What files this process may use as disks.  A worker does what somebody else asked for: the names
 * that he gave are looked at before, but what a name leads to may change, and an image names the
 * next one itself.  So whoever opens a file as a disk asks here, with the open file.  Where
 * nobody has said what counts, everything may be used.
 */
#ifndef SENDENSE_GUARD_H
#define SENDENSE_GUARD_H

#include "err.h"

/* path: as it was given to open().  fd -1: it is not open yet, and path is without links.
 * above: the image that names it as the one that it stands on, or NULL.  0, or ERR_DENIED. */
typedef int guard_check(
	void *context, int fd, const char *path, const char *above, struct err *err);

/* Before there are threads that open disks; NULL: everything again. */
void guard_set(guard_check *check, void *context);

int guard_ask(int fd, const char *path, const char *above, struct err *err);

#endif
