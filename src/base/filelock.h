/* Locks that keep two programs from changing one disk image or device; they are QEMU's. */
#ifndef SENDENSE_FILELOCK_H
#define SENDENSE_FILELOCK_H

#include "err.h"

#include <stdbool.h>

/*
 * Locks the open file against other programs, and against this one by another
 * open(): a reader bears other readers, a writer nobody.  ERR_BUSY when somebody
 * is in the way.  Held until fd is closed; where the file system has no such
 * locks nothing happens.  name is for the message.
 */
int filelock_take(int fd, const char *name, bool write, struct err *err);

#endif
