/* nbdkit_process: one nbdkit, started, watched and ended; see nbdkit.h. */
#ifndef SENDENSE_NBDKIT_PROCESS_H
#define SENDENSE_NBDKIT_PROCESS_H

#include "vddk.h"

#define NBDKIT_URI_BYTES 512

struct nbdkit_process;

/* Starts it, and waits until it listens.  NULL: it is gone, and err has its last words. */
struct nbdkit_process *nbdkit_process_start(const char *program, const struct vddk_options *options,
	struct deadline until, struct err *err);

void nbdkit_process_uri(const struct nbdkit_process *process, char uri[NBDKIT_URI_BYTES]);

/* Adds to an error how it ended, if it has, and what it wrote last, without the password.  Any
 * thread.  Returns -1. */
int nbdkit_process_explain(struct nbdkit_process *process, struct err *err);

/* After its last client it ends by itself; at the deadline it is told to, and killed: nothing of it
 * is left.  NULL is harmless. */
void nbdkit_process_end(struct nbdkit_process *process, struct deadline until);

#endif
