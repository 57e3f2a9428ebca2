/*
 * statedir: where a command keeps, on its own machine, what the next run of it must know.
 */
#ifndef SENDENSE_STATEDIR_H
#define SENDENSE_STATEDIR_H

#include "err.h"

#define STATEDIR_BYTES 3072 /* so that files' names behind it fit into a path */

/*
 * given, else $SENDENSE_STATE_DIR, else /var/lib/sendense/WHAT for root, else
 * $XDG_STATE_HOME/sendense/WHAT, else ~/.local/state/sendense/WHAT.  It need not exist.
 * ERR_USAGE: none of them is there, or it is too long.
 */
int statedir_find(const char *given, const char *what, char path[STATEDIR_BYTES], struct err *err);

/* Makes it, with the folders above it, for this user alone; those that are there stay as they
 * are. */
int statedir_make(const char *path, struct err *err);

#endif
