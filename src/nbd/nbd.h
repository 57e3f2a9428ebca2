/*
 * nbd: the wire format, a server of any block, a client as a block, URIs.
 *
 * Source: doc/proto.md of the NBD project.
 */
#ifndef SENDENSE_NBD_H
#define SENDENSE_NBD_H

#include "block.h"
#include "transport.h"

/* --- server ----------------------------------------------------------------- */

struct nbd_server_options {
	unsigned max_connections; /* 0: 16.  One more gets ERR_POLICY with a text */
	size_t budget_bytes; /* request data in memory, whole server; 0: 32 MiB */
	unsigned handshake_timeout_ms; /* 0: 10,000 */
	unsigned send_timeout_ms; /* a client that takes nothing for so long; 0: 60,000 */
	unsigned idle_timeout_ms; /* no request for so long; 0: never by itself (TCP
				     keepalive finds vanished peers within some 60 s) */
	unsigned slow_ms; /* a request that takes so long is named in the log, and
			     again after as long; 0: 30,000 */
	unsigned stop_timeout_ms; /* how long stopping waits for the disk; 0: 60,000 */
	bool once; /* stop when the last connection of the first clients ended */
};

struct nbd_export {
	const char *name; /* UTF-8, at most 4096 bytes; "" is the default export */
	const char *description; /* may be NULL */
	struct block *block; /* borrowed until the server is freed or the export removed */
	bool read_only; /* also when the block is writable */
	bool hidden; /* not shown by LIST */
};

struct nbd_server;

struct nbd_server *nbd_server_new(const struct nbd_server_options *options, struct err *err);

/* Copies names.  ERR_EXISTS for a name that is there.  Any time, any thread. */
int nbd_server_add_export(
	struct nbd_server *server, const struct nbd_export *export, struct err *err);

/* Ends the export's connections and forgets it; returns when none is left.
 * ERR_TIMEOUT names a request that the disk did not give back within
 * stop_timeout_ms: the block is still in use then.  Nobody else gets the export,
 * and the call may be repeated. */
int nbd_server_remove_export(struct nbd_server *server, const char *name, struct err *err);

/*
 * Serves until nbd_server_stop() (or `once` is fulfilled), on the listener that
 * transport_listen_*() made: takes it.  Blocks; run it on a thread of its own
 * where that is in the way.  May be called for several listeners at once.
 */
int nbd_server_run(struct nbd_server *server, struct listener *listener, struct err *err);

/* Serves one connected socket (takes fd) the same way; returns at its end. */
int nbd_server_serve_fd(struct nbd_server *server, int fd, const char *peer, struct err *err);

/* Safe in a signal handler.  Requests in progress are answered, then the
 * connections are closed (at most 5 s), run() returns; with ERR_TIMEOUT when the
 * disk kept a request for stop_timeout_ms longer, which the text names. */
void nbd_server_stop(struct nbd_server *server);

/*
 * After all run() calls returned.  Does not close the blocks.  False: requests
 * are still at the disk; server and blocks stay as they are and the blocks
 * must not be closed: call it again later, or end the process.
 */
bool nbd_server_free(struct nbd_server *server);

/* --- client ------------------------------------------------------------------ */

struct nbd_client_options {
	bool read_only;
	unsigned connect_timeout_ms; /* 0: 10,000 */
	unsigned reconnect_timeout_ms; /* after a lost connection, also for a request's
					  answer from its first loss on; 0: 60,000 */
	unsigned io_timeout_ms; /* one request without an answer; 0: 60,000 */
	/* For a disk that may be another one, or in another state, on the far side of a
	 * restart: a lost connection is not made again, but everything on it fails at once with
	 * ERR_DISCONNECTED.  Further connections (of lanes) are only taken into use while an
	 * earlier one still stands, which shows that it is the same server; else they fail
	 * in the same way. */
	bool no_reconnect;
	/* A QEMU dirty bitmap (the metadata context qemu:dirty-bitmap:NAME): what it does
	 * not call dirty is BLOCK_UNCHANGED.  info.has_changes tells whether the server
	 * has it: without it the disk opens all the same, and all of it counts as changed.
	 * A server that loses it between two connections is not the same any more
	 * (ERR_RANGE).  1..1023 bytes without control characters, else ERR_USAGE.  NULL:
	 * none.  Copied. */
	const char *bitmap;
};

/*
 * Opens nbd://HOST[:PORT]/NAME or nbd+unix:///NAME?socket=PATH as a disk
 * (libnbd).  A refusal carries the server's own words.  Lanes have a connection
 * each; a lost one is made again with back-off until the reconnect deadline,
 * after checking that size and flags are the same, and its requests are sent
 * again.  A server without multi-conn gets one lane for writing.
 *
 * The URI is the label in messages; one with a user name or password is refused
 * (ERR_USAGE), as is nbds:// (ERR_UNSUPPORTED) until TLS exists.  Borrows cancel
 * until the block is closed.  Nobody listening is an error at once; a refusal is
 * ERR_REFUSED or ERR_NOT_FOUND, a silent server ERR_TIMEOUT, a read-only export
 * that was to be written ERR_DENIED.  When size or features differ after a
 * reconnection, everything fails with ERR_RANGE.
 * io_timeout counts from when anything last moved on the connection.
 * Blocking calls share one connection; if it was lost after writes, the next
 * block_flush() says so (ERR_DISCONNECTED).  On a server with a minimum block
 * size, reads of any range work, but writes must be of whole blocks.
 */
struct block *nbd_client_open(const char *uri, const struct nbd_client_options *options,
	struct cancel *cancel, struct err *err);

/* --- probing ------------------------------------------------------------------ */

/* Proves that a server answers: a handshake up to GO (or INFO) and a clean end. */
int nbd_probe(const char *uri, struct deadline until, struct err *err);

#endif
