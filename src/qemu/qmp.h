/*
 * qmp: a client of QEMU's monitor.  One thread at a time.
 *
 * Every wait has a deadline and heeds cancel.  Answers are told apart by their ids, so that
 * a late one (of a command that was given up) is passed over.  A connection that ended, or
 * a monitor that did not answer a command in time, stays dead: what is called then
 * fails at once with the same reason, and clean-up does not wait command by command.
 */
#ifndef SENDENSE_QEMU_QMP_H
#define SENDENSE_QEMU_QMP_H

#include "wire.h"

#define QMP_LINE_MOST ((size_t)16 << 20)

struct qmp {
	struct wire wire;
	unsigned timeout_ms;
	const struct cancel *cancel; /* borrowed; NULL while cleaning up */
	unsigned next_id;
	unsigned version; /* of QEMU: 70222 is 7.2.22 */
	struct err dead; /* why; ERR_NONE while it lives */
};

/* Greeting and capabilities.  ERR_BUSY when no greeting comes: QEMU serves one client at a time. */
int qmp_open(struct qmp *qmp, const char *socket, unsigned timeout_ms, const struct cancel *cancel,
	struct err *err);
void qmp_close(struct qmp *qmp);

/*
 * Runs a command: takes arguments (may be NULL), gives what it returned.  fd (or -1) goes along.
 * QEMU's own words come as ERR_REFUSED.
 */
json_t *qmp_call(struct qmp *qmp, const char *command, json_t *arguments, int fd, struct err *err);
/* The same where nothing is returned. */
int qmp_do(struct qmp *qmp, const char *command, json_t *arguments, struct err *err);

/* Waits until something happened in QEMU (an event), or a moment passed: then the caller looks
 * again at what it waits for.  ERR_TIMEOUT after the deadline, naming what. */
int qmp_wait_event(struct qmp *qmp, struct deadline until, const char *what, struct err *err);

#endif
