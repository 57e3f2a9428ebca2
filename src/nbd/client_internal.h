/*
 * Inside of the NBD client.
 *
 *   client_address   URIs, names to addresses, sockets
 *   client_tls       certificates and keys
 *   client_identity  what an export is, the same on each connection
 *   client_lane      one connection: connecting, requests in flight, reconnecting
 *   client_map       questions for the map: extents, and what changed
 *   client           the block: opens lanes, and lends one to blocking calls
 */
#ifndef SENDENSE_NBD_CLIENT_INTERNAL_H
#define SENDENSE_NBD_CLIENT_INTERNAL_H

#include "nbd.h"

#include <libnbd.h>
#include <sys/socket.h>
#include <sys/un.h>

#define CLIENT_ADDRESSES_MAX 8u

/* What a URI says. */
struct client_uri {
	char *label; /* the URI, fit for messages */
	char *name; /* the export's */
	char *host; /* NULL for a Unix socket */
	char *port;
	char *path; /* of the Unix socket, NULL for TCP */
	bool is_tls;
};

/* What TLS takes (client_tls.c); all NULL and -1 without it. */
struct client_tls {
	char *certificates; /* the folder */
	char *psk_file, *username;
	int psk_fd; /* of the memory file that psk_file names */
};

struct client_address {
	struct sockaddr_storage address;
	socklen_t length;
};

/* Fills uri; ERR_USAGE for what is wrong.  label: NULL, or instead of the URI. */
int client_uri_parse(struct client_uri *uri, const char *text, const char *label, struct err *err);
void client_uri_free(struct client_uri *uri);

/* Finds the addresses (at most CLIENT_ADDRESSES_MAX) before the deadline. */
int client_address_find(const struct client_uri *uri, struct client_address *addresses,
	unsigned *nr, struct deadline until, struct cancel *cancel, struct err *err);

/*
 * Begins to connect: a non-blocking socket, with *connected, or to be polled for
 * POLLOUT and asked by client_address_connected().  -1: EAGAIN in err->sys_errno
 * says that a Unix socket's queue is full now.
 */
int client_address_connect(const struct client_address *address, bool *connected, struct err *err);
int client_address_connected(int fd, struct err *err);

/* Takes what the URI needs out of the options; ERR_USAGE when they do not fit it, ERR_DENIED
 * for a file of keys that others may read. */
int client_tls_init(struct client_tls *tls, const struct client_uri *uri,
	const struct nbd_client_options *options, struct err *err);
void client_tls_fini(struct client_tls *tls);

/* Prepares a handle that has not been connected. */
bool client_tls_prepare(const struct client_tls *tls, struct nbd_handle *handle);

/* Whether what libnbd said of a handshake (error: its errno) is about TLS, or about
 * connecting, which it does itself for TLS: then fills why. */
bool client_tls_explain(const struct client_uri *uri, const char *said, int error, struct err *why);

/* libnbd compares the certificate with the host that it connected to itself: with a
 * socket from elsewhere it would take any. */
bool client_tls_needs_host(const struct client_tls *tls);

/* What must be the same on each connection. */
struct client_identity {
	uint64_t size_bytes;
	bool read_only, can_flush, can_fua, can_trim, can_zero, can_fast_zero, can_multi_conn;
	bool has_allocation, has_changes; /* the metadata contexts */
	uint32_t block_min, block_preferred, payload_max; /* never 0 */
};

struct client_lane;
struct client;

/* Learns the identity from the first connection, compares it on later ones
 * (ERR_RANGE names what differs). */
int client_identity_check(struct client *client, struct nbd_handle *handle, struct err *err);

/* A lane is in the client's list while its connection is in use.  Leaving may be repeated. */
void client_identity_join(struct client_lane *lane);
void client_identity_leave(struct client_lane *lane);

/*
 * Whether a connection that was just made (or just failed) is to the server that all before
 * went to: it has ended when none of those stands any more.  Only asked with no_reconnect.
 */
bool client_identity_is_same_server(struct client *client);

struct client {
	struct block block;
	struct client_uri uri;
	struct client_address addresses[CLIENT_ADDRESSES_MAX];
	unsigned nr_addresses;
	struct nbd_client_options options; /* no zeros left in it; its texts are not kept */
	struct client_tls tls;
	char *changes_context; /* the bitmap's metadata context, or NULL */
	struct cancel *cancel;
	struct client_identity identity; /* of the first connection; then constant */
	bool known; /* identity is filled */

	pthread_mutex_t lanes_mutex; /* over the next two; taken last */
	struct client_lane *lanes; /* those that are ready */
	bool had_lane; /* at any time */

	pthread_mutex_t mutex; /* spare and what blocking calls use */
	struct client_lane *spare; /* open, nothing in flight; or NULL */
	bool dirty; /* blocking writes since the last flush */
	unsigned losses; /* the spare's, as seen */
	bool lost; /* dirty writes may be gone */
};

/* One request: parts of it go out one after the other. */
struct client_request {
	struct client_lane *lane;
	struct block_io *io;
	struct client_request *previous, *next;
	struct client_request *next_answered;
	uint64_t done; /* bytes of the parts that were answered */
	uint64_t part; /* bytes of the one that is out */
	bool out; /* libnbd has it */
	bool answered;
	int error; /* of the answer */
	int64_t lost_ns; /* when its connection was lost first; 0: never */
	uint8_t *bounce; /* for a read that must be widened */
	uint64_t bounce_offset;
	struct client_map *map; /* for EXTENTS: what was answered */
};

enum client_lane_state {
	CLIENT_PAUSE, /* before the next attempt */
	CLIENT_CONNECT, /* the socket is connecting */
	CLIENT_HANDSHAKE, /* libnbd is negotiating */
	CLIENT_READY,
	CLIENT_FAILED, /* for good; err says why */
	CLIENT_NR_STATES,
};

struct client_lane {
	struct block_lane head;
	struct client *client;
	enum client_lane_state state;
	struct client_lane *next; /* in the client's list while ready */
	int ready_fd; /* the connection's, for others to look at; -1: not in the list */
	struct nbd_handle *handle; /* HANDSHAKE, READY */
	int fd; /* CONNECT */
	unsigned next_address;
	struct deadline attempt_until; /* CONNECT, HANDSHAKE */
	struct deadline pause_until; /* PAUSE */
	struct deadline give_up; /* when it reconnects */
	unsigned pause_ms; /* the last one */
	bool reconnecting;
	bool shutting_down; /* the server said so */
	bool has_answered; /* something, on this connection */
	int64_t active_ns; /* when something last moved */
	char words[256]; /* the server's, in the handshake */
	struct err err;
	struct client_request *first, *last; /* in flight, by submission */
	struct client_request *answered; /* as libnbd told, not dealt with */
	struct client_request *unused;
};

/* Begins to connect and returns at once; NULL only without memory. */
struct client_lane *client_lane_new(struct client *client, struct err *err);

/* Waits until the first attempt has ended: 0 when the lane is ready.  Connects
 * once; it fails at once when nobody listens. */
int client_lane_wait_open(struct client_lane *lane, struct cancel *cancel, struct err *err);

/* Forgets what is in flight. */
void client_lane_free(struct client_lane *lane);

/* Ready and nothing in flight: fit for the next user. */
bool client_lane_idle(const struct client_lane *lane);

/* Whether a change goes to the server in several requests. */
bool client_lane_has_parts(const struct client *client, const struct block_io *io);

/* --- questions for the map (client_map.c) ------------------------------------- */

/* "qemu:dirty-bitmap:NAME", allocated.  ERR_USAGE for what cannot be a name. */
char *client_map_context(const char *bitmap, struct err *err);

/* Sends the question, as libnbd's calls: -1 when it did not go out. */
int64_t client_map_send(
	struct client_lane *lane, struct client_request *request, nbd_completion_callback done);

/* Fills the request's io from the answer; ERR_PROTOCOL in io->err. */
void client_map_take(struct client_lane *lane, struct client_request *request);

void client_lane_submit(struct block_lane *head, struct block_io *io);
struct pollfd client_lane_pollfd(struct block_lane *head);
struct deadline client_lane_wake(struct block_lane *head);
void client_lane_dispatch(struct block_lane *head, short revents);

#endif
