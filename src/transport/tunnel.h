/*
 * tunnel: OpenSSH's ssh, started and looked after.
 *
 *   ports free? ─► ssh runs ─► its forwards are proven ─► up ─► proven again every look_ms
 *        ▲                          │ none, by the deadline      │ twice none, or ssh ended
 *        └──── pause, doubling ◄────┴────────────────────────────┘
 *
 * ssh authenticates with a key file alone, knows the server by the keys in a file of
 * our own (never by asking, never by trusting the first), ends when one of its forwards cannot
 * be made, and notices a dead peer by itself.  What goes through a forward is proven by its
 * owner: that ssh runs proves nothing.  Where one forward answers and another does not, the
 * service behind that one is at fault: that is told, and ssh is left alone, because a new one
 * would mend nothing and cut what goes through the others.
 *
 * Thread rule: one thread runs it, and must outlive it; tunnel_run() ends by its cancel.
 */
#ifndef SENDENSE_TUNNEL_H
#define SENDENSE_TUNNEL_H

#include "base.h"

/* "[ADDRESS:]PORT" on both sides; numeric addresses. */
struct tunnel_forward {
	const char *name; /* for messages: "nbd", "rest" */
	bool reverse; /* listens at the server, and leads back here */
	const char *listen; /* where ssh listens: "127.0.0.1:10809" */
	const char *to; /* where the other end connects to */
	/* Proves that what should answer at `listen` does, from this side; for a reverse forward:
	 * at `to`, or through the server.  NULL: nothing is proven.  Blocking, within the deadline.
	 */
	int (*prove)(void *context, const struct tunnel_forward *forward, struct deadline until,
		struct err *err);
	void *context;
};

struct tunnel_options {
	const char *program; /* NULL: "ssh" */
	const char *host, *user;
	unsigned port; /* 0: 22 */
	const char *identity_file; /* of the private key, 0600 (ERR_DENIED) */
	const char *known_hosts_file; /* with the server's keys, and no others' */
	const struct tunnel_forward *forwards;
	size_t nr_forwards; /* 1..256 */
	unsigned connect_timeout_ms; /* until everything is proven; 0: 30,000 */
	/* Between two looks; 0: 30,000.  ssh asks its peer for a sign of life twice as often, and
	 * ends without one after one and a half of it (whole seconds). */
	unsigned look_ms;
	unsigned pause_first_ms, pause_most_ms; /* between two attempts; 0: 1,000 and 60,000 */
	/* What has changed, told from the running thread.  up: all forwards are proven; else
	 * text says why not.  May be NULL. */
	void (*changed)(void *context, bool up, const char *text);
	void *context;
	struct cancel *cancel;
};

/* Until cancelled (ERR_CANCELLED): ssh has ended and is reaped when it returns. */
int tunnel_run(const struct tunnel_options *options, struct err *err);

#endif
