/* recovery: takes what a session made out of QEMU: our own at its end, or a dead one's. */
#ifndef SENDENSE_QEMU_RECOVERY_H
#define SENDENSE_QEMU_RECOVERY_H

#include "qemu_internal.h"

/*
 * Removes all that begins with id: exports, jobs, nodes, descriptors; with listens, the NBD
 * server too (it is the session's).  Goes on after an error and tells the first one.
 * Bitmaps stay: they are brought in order by bitmaps_*.
 */
int recovery_clean(struct qmp *qmp, const char *id, bool listens, struct err *err);

/* Before the connection: ERR_BUSY when a live session has that QMP socket.  Removes the
 * folders of dead ones whose QEMU is gone. */
int recovery_check(const char *base, const char *qmp_socket, struct err *err);

/* Cleans after all dead sessions of this QEMU.  ERR_BUSY: one of them lives. */
int recovery_run(
	struct qemu_session *session, const char *base, const char *qmp_socket, struct err *err);

#endif
