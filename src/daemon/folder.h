/* folder: folders that are one daemon's alone. */
#ifndef SENDENSE_DAEMON_FOLDER_H
#define SENDENSE_DAEMON_FOLDER_H

#include "base.h"

/* ERR_DENIED where others could put there what the daemon then takes for its own. */
int folder_own(const char *path, bool make, struct err *err);

/* Keeps a second daemon of that kind ("hub") out, by FOLDER/KIND.lock, which holds the pid.  A
 * descriptor that holds it until it is closed; ERR_BUSY names the other one's pid. */
int folder_lock(const char *path, const char *kind, struct err *err);

/* A daemon's folders: its own, locked; state (that "sendense KIND init" made) at [0], runtime (made
 * when it is not there) at [1], both -1 before. */
int folder_take(const char *state_dir, const char *runtime_dir, const char *kind, int locks[2],
	struct err *err);
void folder_give(int locks[2]);

#endif
