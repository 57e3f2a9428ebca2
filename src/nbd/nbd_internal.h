/*
 * Inside the NBD server.
 *
 *   nbd_server.c   exports, connections and their limit, listening, stopping
 *   handshake.c    from the greeting to GO
 *   connection.c   one connection: its threads, who receives, who ends it
 *   request.c      which requests are allowed, and what errors are called
 *   serve.c        doing them
 *   reply.c        the bytes of answers
 *   pool.c         the byte budget
 *   watch.c        who is busy with what, and for how long
 *   nbd_wire.c     the format
 *
 * Locks, in the order in which they may be nested:
 *   connection.receive_mutex  one thread receives at a time
 *   connection.send_mutex     one reply at a time
 *   server.mutex              exports, the list of connections, who uses what
 *   pool.mutex                buffers
 */
#ifndef SENDENSE_NBD_INTERNAL_H
#define SENDENSE_NBD_INTERNAL_H

#include "nbd.h"
#include "nbd_wire.h"

/* --- the byte budget (pool.c) ------------------------------------------------ */

/*
 * Buffers of one size, piece_bytes.  A connection always gets its first one, so
 * none starves; the others come from what is left, of which one connection
 * gets at most a half.  A thread holds at most one, and while it waits for one
 * it holds none: whoever holds one can finish without another.
 */
struct pool {
	pthread_mutex_t mutex;
	pthread_cond_t returned;
	size_t piece_bytes; /* a power of two */
	unsigned nr_shared; /* pieces beyond each connection's first */
	unsigned nr_shared_out;
	unsigned most_shared_each;
	unsigned nr_waiting;
	struct free_piece *free;
};

/* A connection's part. */
struct pool_share {
	unsigned nr_held;
};

void pool_init(struct pool *pool, size_t budget_bytes, unsigned max_connections);
/* All pieces are back. */
void pool_destroy(struct pool *pool);
/* Waits for others to give back where need be.  NULL: out of memory. */
void *pool_get(struct pool *pool, struct pool_share *share);
void pool_put(struct pool *pool, struct pool_share *share, void *piece);

/* --- server --------------------------------------------------------------------- */

struct export
{
	struct export *next;
	char *name;
	char *description; /* or NULL */
	struct block *block;
	bool read_only, hidden;
	char *tls_identity; /* or NULL */
	struct nbd_export_state past; /* of connections that ended; active_ns of all */
	unsigned nr_users; /* connections past GO */
	bool is_leaving; /* to be removed: nobody gets it any more */
	bool is_ending; /* somebody waits for its connections to end */
};

struct nbd_server {
	struct nbd_server_options options; /* defaults filled in */
	struct cancel *stop;
	struct pool pool;
	pthread_t guard;
	bool is_unguarded; /* it has been joined */
	atomic_uint nr_helpers; /* threads beyond each connection's first */

	pthread_mutex_t mutex;
	pthread_cond_t changed; /* a connection ended */
	struct export *exports;
	struct connection *connections; /* all that live */
	struct connection *finished; /* to be joined and freed */
	unsigned nr_connections;
	unsigned nr_active; /* past GO: these count against max_connections */
	bool is_abandoned; /* requests did not come back from the disk in time ... */
	struct err abandoned_err; /* ... these */
};

/* What an export is, for the answer to the client. */
struct export_info {
	uint64_t size_bytes;
	uint16_t flags; /* transmission flags */
	uint32_t preferred_bytes;
	char *description; /* the caller frees; NULL when there is none */
};

/*
 * Fills info, and with take, gives the connection a place and that very export:
 * 0; or the option error that tells why not, with its text in err.
 */
uint32_t nbd_server_attach(struct connection *connection, const char *name, bool take,
	struct export_info *info, struct err *err);

/* Whether an export of that name exists for this client, full or not. */
bool nbd_server_has_export(struct connection *connection, const char *name);

/* That there is none, without its name where names are secrets. */
void nbd_server_no_export(const struct nbd_server *server, const char *name, struct err *err);

/* 0, or NBD_REP_ERR_POLICY with the text that says who is in the way. */
uint32_t nbd_server_check_place(struct connection *c, struct err *err);

/* Copies the n-th export that this client may see; false behind the last.  The caller
 * frees name and description. */
bool nbd_server_nth_export(
	struct connection *connection, unsigned n, char **name, char **description);

/* --- a connection ------------------------------------------------------------------ */

#define CONNECTION_THREADS 8
/* Bytes that are received ahead of need: some 18 requests at once; what of a
 * payload lands here has to be copied. */
#define RECEIVE_AHEAD_BYTES 512

/* What one thread is busy with. */
struct watch {
	_Atomic int64_t since_ns; /* 0: with nothing */
	atomic_uint type;
	atomic_uint_fast64_t offset;
	int64_t told_since_ns; /* the guard's notes */
	unsigned nr_told;
};

struct connection {
	struct nbd_server *server;
	struct connection *previous, *next; /* under server.mutex */
	struct stream stream;
	char peer[TRANSPORT_PEER_BYTES];
	int64_t since_s; /* seconds since 1970 */
	int64_t began_ns;
	_Atomic int64_t heard_ns; /* when something came last in the handshake */
	atomic_bool known; /* it has shown by TLS who it is */

	/* Set by the handshake, constant afterwards. */
	struct export *export; /* under server.mutex as long as it is NULL */
	uint16_t flags; /* transmission flags as told */
	bool read_only;
	enum nbd_headers headers;
	bool has_allocation; /* base:allocation is selected */

	pthread_mutex_t receive_mutex;
	uint8_t ahead[RECEIVE_AHEAD_BYTES];
	size_t ahead_start, ahead_end;
	struct write_job *rest; /* a write whose payload has not all come */
	bool ended; /* nothing more is received */
	pthread_t helpers[CONNECTION_THREADS - 1];
	unsigned nr_helpers;

	pthread_mutex_t send_mutex;
	atomic_bool broken; /* nothing can be sent any more */

	pthread_t thread; /* runs the handshake, then serves with the helpers */
	bool has_thread; /* false: a caller's own */
	atomic_uint nr_idle; /* threads that wait for their turn to receive */
	atomic_uint nr_served; /* requests that are being served */
	struct pool_share share;
	atomic_uint nr_watched; /* slots that threads took */
	atomic_uint nr_sending;
	struct watch watches[CONNECTION_THREADS];

	pthread_mutex_t why_mutex;
	char why[512]; /* why it ended; the first reason stays */
	bool why_is_fault;

	/* How long small reads take at the disk: a running mean. */
	_Atomic int64_t read_ns;

	atomic_uint_fast64_t nr_requests, read_bytes, written_bytes;
	_Atomic int64_t active_ns; /* when the last request came */
	atomic_uint nr_logged_errors;
};

/* Makes one and puts it on the server's list: takes fd.  peer may be NULL. */
struct connection *connection_new(
	struct nbd_server *server, int fd, const char *peer, struct err *err);
/* Handshake and service, to the end.  The connection is off the list then. */
void connection_run(struct connection *connection);
void connection_free(struct connection *connection);

/*
 * Receives exactly length bytes, through the receive-ahead buffer.  until:
 * when the whole must be over; NULL: the peer may take its time but must not
 * stop for the server's send_timeout_ms.
 */
int connection_receive(struct connection *connection, void *buffer, size_t length,
	const struct deadline *until, const char *what, struct err *err);

/* Notes why the connection is ended, for the log; a fault is a warning. */
void connection_note_end(struct connection *connection, bool is_fault, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* Nothing can be sent any more: ends the connection from any of its threads. */
void connection_break(struct connection *connection, const struct err *why);

/* --- who is busy with what (watch.c) ---------------------------------------------- */

/* A thread takes its slot, once. */
unsigned watch_enter(struct connection *connection);
void watch_begin(struct connection *connection, unsigned slot, const struct nbd_request *request);
void watch_end(struct connection *connection, unsigned slot);
/* A request that is to be told of: each is, once every each_ns; with 0 any that
 * is under way.  One thread at a time. */
bool watch_tell(struct connection *connection, int64_t each_ns, char *text, size_t size);

/* --- handshake ------------------------------------------------------------------------ */

/* 1: go on with requests; 0: ended in order; -1: ended for the reason in err. */
int handshake_run(struct connection *connection, struct err *err);

/* --- the rules for requests -------------------------------------------------------------- */

/* The transmission flags of an export for a client with these headers. */
uint16_t request_export_flags(
	const struct block_info *info, bool read_only, enum nbd_headers headers);

/* 0, or the NBD error for a request that is not allowed, with the reason in err.
 * What passes here needs no further check. */
uint32_t request_check(
	const struct connection *connection, const struct nbd_request *request, struct err *err);

/* Whether bytes follow the request. */
bool request_has_payload(const struct connection *connection, const struct nbd_request *request);

/* What an error of the disk is called on the wire. */
uint32_t request_error(const struct err *err);

/* --- doing them ----------------------------------------------------------------------------- */

/*
 * A write, whose payload comes in pieces that several threads may be busy with.
 * It is answered by the thread that finishes the last of them.
 */
struct write_job {
	struct nbd_request request;
	uint64_t received_bytes;
	bool is_whole; /* came in one piece */
	bool is_abandoned; /* the payload will not come: no answer */
	bool is_refused; /* by the rules: the payload is received and dropped */
	bool is_answered; /* refused at once, before its payload came */
	atomic_uint nr_holders; /* pieces at work, and the receiver */
	atomic_uint error; /* NBD error; who sets it first also sets err */
	struct err err;
};

struct write_job *serve_write_new(const struct nbd_request *request);
void serve_write_fail(struct write_job *job, uint32_t error, const struct err *err);
/* Writes one piece and gives it back to the pool; then as serve_write_drop(). */
void serve_write_piece(struct connection *connection, struct write_job *job, void *piece,
	size_t length, uint64_t offset);
/* Lets go of the job; the last one answers. */
void serve_write_drop(struct connection *connection, struct write_job *job);

/* Any other request, checked before. */
void serve_request(struct connection *connection, const struct nbd_request *request);

/*
 * Small reads that came together are done by one thread and answered together
 * while the disk is quick: passing the turn on costs more than such a read.  As
 * soon as the disk is not quick, every read gets a thread of its own.
 */
#define SERVE_TOGETHER 8
#define SERVE_READ_NS_AT_FIRST 200000 /* not quick until it has shown that it is */
bool serve_may_be_together(const struct connection *connection, const struct nbd_request *request);
void serve_together(
	struct connection *connection, const struct nbd_request *requests, unsigned nr_requests);

/* --- answers ---------------------------------------------------------------------------------- */

/* All of these end the connection when they cannot send. */
void reply_done(struct connection *connection, const struct nbd_request *request);
void reply_error(struct connection *connection, const struct nbd_request *request, uint32_t error,
	const char *text);

/* A part of a read in a chunk of its own: data, or zeros when data is NULL. */
struct reply_part {
	const void *data;
	uint64_t offset;
	uint32_t length;
};
#define REPLY_PARTS 8
/* is_last: the read is complete with these. */
void reply_parts(struct connection *connection, const struct nbd_request *request,
	const struct reply_part *parts, size_t nr_parts, bool is_last);

/* Whole answers to several reads, in one go. */
struct reply_read {
	const struct nbd_request *request;
	const void *data;
};
void reply_reads(struct connection *connection, const struct reply_read *reads, size_t nr_reads);

/*
 * A read as one stretch: reply_whole_begin() sends the header with the first
 * data and holds the send lock until reply_whole_end().  From the header on an
 * error can only be told by ending the connection.
 */
void reply_whole_begin(struct connection *connection, const struct nbd_request *request,
	const void *data, size_t length);
void reply_whole_more(struct connection *connection, const void *data, size_t length);
void reply_whole_end(struct connection *connection);

/* Compact headers: each length fits 32 bits. */
#define REPLY_EXTENTS 1024
void reply_extents(struct connection *connection, const struct nbd_request *request,
	const struct block_extent *extents, size_t nr_extents);

/* The context id of base:allocation. */
#define ALLOCATION_CONTEXT 1u

#endif
