/* inventory: what the machine has: disks and their keys, the guest agent's channel. */
#ifndef SENDENSE_QEMU_INVENTORY_H
#define SENDENSE_QEMU_INVENTORY_H

#include "qemu_internal.h"

/* Fills session->disks, nodes, name and uuid.  node: one disk only, NULL: all. */
int inventory_load(struct qemu_session *session, const char *node, struct err *err);
void inventory_free(struct qemu_session *session);

/*
 * The key of a disk from what query-block calls qdev and device (either may be NULL or ""),
 * else from its node's name: [A-Za-z0-9_-]{1,64}.  Public for its test.
 */
void inventory_key(
	const char *qdev, const char *device, const char *node, char key[QEMU_KEY_BYTES]);

/* The agent's socket, allocated; NULL: there is none, reason says why. */
char *inventory_agent(struct qmp *qmp, char reason[AGENT_REASON_BYTES]);

#endif
