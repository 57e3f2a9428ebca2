/*
 * space: a watch over the scratch space.
 *
 * When a scratch file cannot grow, QEMU lets the guest's own writes fail rather than the
 * backup.  So the backup goes first: below the reserve its exports and jobs are removed,
 * and the session is broken.
 */
#ifndef SENDENSE_QEMU_SPACE_H
#define SENDENSE_QEMU_SPACE_H

#include "qemu_internal.h"

struct space;

/* ERR_NO_SPACE when there is less than twice the reserve to begin with. */
int space_check(const struct qemu_session *session, struct err *err);
/* A thread that takes the session's mutex. */
struct space *space_watch(struct qemu_session *session, struct err *err);
/* Ends it.  NULL is harmless. */
void space_stop(struct space *space);

#endif
