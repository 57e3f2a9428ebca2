/*
 * wire: JSON lines over a Unix socket, as QEMU's monitor and its guest agent speak them.
 *
 * One thread.  What arrives is bounded: a longer line than the limit is ERR_PROTOCOL.
 */
#ifndef SENDENSE_QEMU_WIRE_H
#define SENDENSE_QEMU_WIRE_H

#include "base.h"

#include <jansson.h>

struct wire {
	int fd;
	char peer[256]; /* for messages: "QMP socket /run/web01.qmp" */
	char *buffer;
	size_t used, start, room;
	size_t line_most;
	bool broken; /* the peer is gone, or spoke nonsense: nothing more will come of it */
};

/* Connects.  ERR_NOT_FOUND: no such socket; ERR_REFUSED: nobody listens.  what: "QMP socket". */
int wire_open(struct wire *wire, const char *what, const char *path, size_t line_most,
	const struct cancel *cancel, struct deadline until, struct err *err);
/* Harmless on a wire that is closed or zeroed with fd -1. */
void wire_close(struct wire *wire);

/* Sends bytes; fd (or -1) goes along as a right. */
int wire_send(struct wire *wire, const char *bytes, size_t length, int fd,
	const struct cancel *cancel, struct deadline until, const char *what, struct err *err);

/*
 * The next line as a JSON object that the caller owns.  NULL: ERR_TIMEOUT (what names the
 * wait), ERR_CANCELLED, ERR_DISCONNECTED, ERR_PROTOCOL.  lenient: what is not JSON is
 * passed over (the agent's channel may hold remains of another conversation), as is all
 * up to a byte 0xff in a line (the agent's mark of a new conversation).
 */
json_t *wire_receive(struct wire *wire, bool lenient, const struct cancel *cancel,
	struct deadline until, const char *what, struct err *err);

#endif
