/*
 * agent: the guest agent (qemu-ga), for one thing: to freeze the guest's file systems for
 * a moment.
 *
 * qemu-ga itself never thaws by itself, however long it takes.  So before it is asked to
 * freeze, a guard is forked: a process that holds the agent's connection and nothing
 * else, and thaws when this process dies (SIGKILL included) or stands still for too long.
 */
#ifndef SENDENSE_QEMU_AGENT_H
#define SENDENSE_QEMU_AGENT_H

#include "wire.h"

#define AGENT_REASON_BYTES ERR_TEXT_BYTES

struct agent {
	struct wire wire;
	int guard_fd; /* the guard thaws when this is closed */
	pid_t guard;
	bool asked; /* to freeze: a thaw is owed, whatever came back */
	json_int_t nr_frozen; /* file systems */
	struct deadline until; /* thawed by then, or it does not count */
	char reason[AGENT_REASON_BYTES]; /* why it was not frozen; "" while it is */
};

/*
 * Connects to the agent's socket, sees that it answers, and freezes: all within
 * timeout_ms.  False: agent->reason says why not.  In either case agent_thaw() follows.
 */
bool agent_freeze(
	struct agent *agent, const char *socket, unsigned timeout_ms, const struct cancel *cancel);

/*
 * Thaws, ends the guard and the connection; does not heed cancel, and does not give up
 * easily: what cannot be thawed is logged as an error.  True: from the freeze until now
 * nothing was written (agent->reason otherwise).
 */
bool agent_thaw(struct agent *agent);

/* For what a dead session left: thaws if the agent says that it is frozen. */
void agent_recover(const char *socket);

#endif
