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

enum nbd_tls {
	NBD_TLS_OFF, /* STARTTLS is refused, saying so */
	NBD_TLS_ALLOWED, /* for clients who want it, and for exports with a tls_identity */
	NBD_TLS_REQUIRED, /* without it no option is answered, but with a text */
};

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
	enum nbd_tls tls;
	struct tls_server *tls_server; /* unless tls is off; borrowed until the server is freed */
};

struct nbd_export {
	const char *name; /* UTF-8, at most 4096 bytes; "" is the default export */
	const char *description; /* may be NULL */
	struct block *block; /* borrowed until the server is freed or the export removed */
	bool read_only; /* also when the block is writable */
	bool hidden; /* not shown by LIST, and its name is not shown in the log */
	/* Only for the client that stream_tls_identity() calls so ("psk:NAME",
	 * "x509:FINGERPRINT"); for all others there is no such export.  NULL: for any.
	 * Copied. */
	const char *tls_identity;
};

struct nbd_server;

struct nbd_server *nbd_server_new(const struct nbd_server_options *options, struct err *err);

/* Copies names.  ERR_EXISTS for a name that is there.  Any time, any thread.
 * What clients ask for is compared in a time that tells nothing of the names. */
int nbd_server_add_export(
	struct nbd_server *server, const struct nbd_export *export, struct err *err);

/* Ends the export's connections and forgets it; returns when none is left.
 * ERR_TIMEOUT names a request that the disk did not give back within
 * stop_timeout_ms: the block is still in use then.  Nobody else gets the export,
 * and the call may be repeated. */
int nbd_server_remove_export(struct nbd_server *server, const char *name, struct err *err);

/* What was done with an export since it was added. */
struct nbd_export_state {
	unsigned nr_connections; /* that use it now */
	uint64_t nr_connected; /* that ever did */
	int64_t active_ns; /* clock_now_ns() of the last request or connection or end of
			      one; at first of its adding */
	uint64_t nr_requests, read_bytes, written_bytes;
};

/* ERR_NOT_FOUND.  Any time, any thread. */
int nbd_server_export_state(struct nbd_server *server, const char *name,
	struct nbd_export_state *state, struct err *err);

struct nbd_server_state {
	unsigned nr_connections; /* all, also in the handshake */
	unsigned nr_active; /* those that use an export: these count against the limit */
	unsigned max_connections;
};

void nbd_server_state(struct nbd_server *server, struct nbd_server_state *state);

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

	/* Instead of the URI in messages, for one whose export name is a secret:
	 * "VM web disk sda".  NULL: the URI.  All copied from here on. */
	const char *label;
	/* For nbds:// and nbds+unix://; without any of these they are ERR_USAGE.
	 * tls_certificates: a folder with ca-cert.pem and perhaps client-cert.pem and
	 * client-key.pem; the server's certificate must be by that CA and name the URI's
	 * host, which a Unix socket has not: those take keys only.
	 * tls_psk_file: lines IDENTITY:HEXKEY; tls_username picks one (NULL: the first).
	 * tls_psk_hex: the key of tls_username itself, not to be in a file. */
	const char *tls_certificates, *tls_psk_file, *tls_username, *tls_psk_hex;
};

/*
 * Opens nbd://HOST[:PORT]/NAME or nbd+unix:///NAME?socket=PATH as a disk
 * (libnbd), or the same with nbds for TLS, which then is demanded.  A refusal
 * carries the server's own words.  Lanes have a connection
 * each; a lost one is made again with back-off until the reconnect deadline,
 * after checking that size and flags are the same, and its requests are sent
 * again.  A server without multi-conn gets one lane for writing.
 *
 * The URI is the label in messages; one with a user name or password is refused
 * (ERR_USAGE), as are parameters that name local files: those of TLS are options
 * only, so that a URI that came from elsewhere opens no file.  Borrows cancel
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

/* Proves that a server answers: a handshake up to INFO and a clean end.  With nbds:// no
 * credentials are used: it answers, and demands TLS. */
int nbd_probe(const char *uri, struct deadline until, struct err *err);

#endif
