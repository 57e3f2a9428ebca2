/* task: work that the server does by itself, awaited. */
#ifndef SENDENSE_VSPHERE_TASK_H
#define SENDENSE_VSPHERE_TASK_H

#include "vim.h"

/*
 * Waits until it has ended, asking with growing pauses.  what: for progress and errors
 * ("creating the snapshot").  result (may be NULL): the moref that it gave, "" for none.
 * -1: err, with fault->name set when the task failed by itself; else nobody knows how it will
 * end: ERR_TIMEOUT, ERR_CANCELLED (the server was asked to cancel it, where it can be),
 * ERR_DISCONNECTED.
 */
int task_wait(struct vsphere *vsphere, const char *task, const char *what, struct deadline until,
	char result[VSPHERE_MOREF_BYTES], struct soap_fault *fault, struct err *err);

/* Makes the call, which does no harm when it is repeated, and waits for the task that it gives. */
int task_run(struct vsphere *vsphere, struct soap *soap, const char *what, struct deadline until,
	struct err *err);

#endif
