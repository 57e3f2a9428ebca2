/*
 * scratch: a session's folder, and who lives.
 *
 *   SCRATCH/sendense-1a2b3c4d/owner     {"qmp": PATH, "pid": N}; locked (flock) while the
 *                                       session's process lives
 *                            /nbd.sock  where QEMU's NBD server listens
 *                            /frozen    the agent's socket, while the guest may be frozen
 *
 * The folder's name is the session's id, with which all begins that it makes in QEMU.
 * Scratch files have no name: they are given to QEMU as open files, which also works where
 * QEMU may not open files here, and are gone with the last who has them open.
 */
#ifndef SENDENSE_QEMU_SCRATCH_H
#define SENDENSE_QEMU_SCRATCH_H

#include "base.h"

#include <limits.h>

#define SCRATCH_ID_BYTES 18 /* "sendense-1a2b3c4d" */
#define SCRATCH_SOCKET "nbd.sock"

struct scratch {
	char id[SCRATCH_ID_BYTES];
	char folder[PATH_MAX];
	int dir_fd, owner_fd; /* -1: none */
};

/* Makes the folder in base (NULL: /var/tmp, or TMPDIR) and locks it. */
int scratch_open(
	struct scratch *scratch, const char *base, const char *qmp_socket, struct err *err);
/* Removes it.  Harmless when it is closed. */
void scratch_close(struct scratch *scratch);

/* An open file of no name in it. */
int scratch_file(const struct scratch *scratch, struct err *err);

/* Notes that the guest may be frozen through that agent; NULL: it is no more. */
int scratch_mark_frozen(const struct scratch *scratch, const char *agent, struct err *err);

/* Whether text is a session's id, and nothing more. */
bool scratch_is_id(const char *text);

enum scratch_state {
	SCRATCH_GONE, /* no such folder, or another user's */
	SCRATCH_DEAD,
	SCRATCH_ALIVE,
};

struct scratch_other {
	enum scratch_state state;
	char folder[PATH_MAX];
	char qmp[PATH_MAX]; /* "" when not known */
	long pid;
	char agent[256]; /* the guest may be frozen through it; "": no */
};

/* Looks at another session's folder. */
void scratch_look(const char *folder, struct scratch_other *other);
/* Removes a dead one's. */
void scratch_remove(const struct scratch_other *other);

/* All sessions' folders in base.  Returning -1 ends it with err. */
typedef int scratch_callback(void *context, const struct scratch_other *other, struct err *err);
int scratch_scan(const char *base, scratch_callback *callback, void *context, struct err *err);

#endif
