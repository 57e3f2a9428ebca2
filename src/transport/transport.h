/*
 * transport: listening sockets and byte streams with deadlines.
 * (TLS and the SSH tunnel's supervision will live here as well.)
 */
#ifndef SENDENSE_TRANSPORT_H
#define SENDENSE_TRANSPORT_H

#include "base.h"

#include <sys/socket.h>

struct listener {
	int fd;
	char *unix_path;  /* removed by listener_close(); NULL otherwise */
	bool is_tcp;
	char address[128]; /* "127.0.0.1", "::1", or the socket's path */
	unsigned port;     /* TCP: as bound, also when 0 was asked for */
};

/*
 * Makes a Unix socket with mode 0600.  A stale socket (nobody listens) is
 * replaced; a live one is ERR_BUSY, any other file ERR_EXISTS.
 */
int transport_listen_unix(struct listener *listener, const char *path, struct err *err);

/* address: a numeric IPv4 or IPv6 loopback address or "localhost" (IPv4); others
 * are refused until TLS is configured.  port 0: the kernel picks. */
int transport_listen_tcp(struct listener *listener, const char *address, unsigned port,
	struct err *err);

/* Takes over the first socket of systemd's LISTEN_FDS protocol, after checking
 * LISTEN_PID and that it is a listening stream socket on loopback or AF_UNIX.
 * Returns 1 when there was one, 0 when none was passed, -1 on error. */
int transport_listen_inherited(struct listener *listener, struct err *err);

void listener_close(struct listener *listener);

/* "127.0.0.1:4711", "[::1]:4711", "unix:PID 4711 (uid 0)"; for logs and refusals. */
#define TRANSPORT_PEER_BYTES 96
void transport_peer_text(int fd, char text[TRANSPORT_PEER_BYTES]);

/*
 * A connected stream socket.  Owns the descriptor.  One thread may read while
 * another writes; not two readers or two writers.
 */
struct stream {
	int fd;
};

/* Sets TCP_NODELAY and keepalive (a vanished peer is found within some 60 s). */
void stream_init(struct stream *stream, int fd);
void stream_close(struct stream *stream);

/*
 * All or an error: ERR_DISCONNECTED when the peer closed, ERR_TIMEOUT naming
 * `what`, ERR_CANCELLED.  timeout_ms counts from the last progress, so a slow
 * peer that moves is not cut.  0: wait until cancelled (keepalive still ends it).
 */
int stream_read(struct stream *stream, void *buffer, size_t length, unsigned timeout_ms,
	struct cancel *cancel, const char *what, struct err *err);
int stream_write(struct stream *stream, const void *buffer, size_t length, unsigned timeout_ms,
	struct cancel *cancel, const char *what, struct err *err);
/* header then payload, in one packet where they fit. */
int stream_write2(struct stream *stream, const void *header, size_t header_length,
	const void *payload, size_t payload_length, unsigned timeout_ms, struct cancel *cancel,
	const char *what, struct err *err);

#endif
