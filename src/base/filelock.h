/* Locks that keep two programs from changing one disk image or device; they are QEMU's. */
#ifndef SENDENSE_FILELOCK_H
#define SENDENSE_FILELOCK_H

#include "err.h"

#include <stdbool.h>

/*
 * Locks the open file against other programs, and against this one by another
 * open(): a reader bears other readers, a writer nobody.  ERR_BUSY when somebody
 * is in the way.  A FILELOCK_MERGE writer bears readers that bear it
 * (FILELOCK_READ_MERGED): both know that it changes nothing that those readers look
 * at.  It bears no others (QEMU's among them), and merged readers bear no other writer.
 * Held until fd is closed; where the file system has no such locks nothing happens.
 * name is for the message.
 */
enum filelock_kind { FILELOCK_READ, FILELOCK_WRITE, FILELOCK_READ_MERGED, FILELOCK_MERGE };
int filelock_take(int fd, const char *name, enum filelock_kind kind, struct err *err);

#endif
