/* folder: folders that are one daemon's alone. */
#ifndef SENDENSE_DAEMON_FOLDER_H
#define SENDENSE_DAEMON_FOLDER_H

#include "base.h"

/* ERR_DENIED where others could put there what the daemon then takes for its own. */
int folder_own(const char *path, bool make, struct err *err);

/* Keeps a second daemon of that kind ("hub") out, by FOLDER/KIND.lock, which holds the pid.  A
 * descriptor that holds it until it is closed; ERR_BUSY names the other one's pid. */
int folder_lock(const char *path, const char *kind, struct err *err);

#endif
