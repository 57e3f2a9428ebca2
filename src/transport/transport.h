/*
 * transport: listening sockets and byte streams with deadlines.
 *
 * What is spoken over a stream knows nothing of sockets, nor whether it is
 * encrypted (tls.h).
 */
#ifndef SENDENSE_TRANSPORT_H
#define SENDENSE_TRANSPORT_H

#include "base.h"

#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

/* --- listening ---------------------------------------------------------------- */

struct listener {
	int fd;
	char *unix_path; /* removed by listener_close(); NULL otherwise */
	dev_t unix_dev; /* which file that is: another one in its place is let be */
	ino_t unix_ino;
	bool is_tcp;
	char address[128]; /* "127.0.0.1", "::1", or the socket's path */
	unsigned port; /* TCP: as bound, also when 0 was asked for */
};

/*
 * Makes a Unix socket with mode 0600.  A stale socket (nobody listens) is
 * replaced; a live one is ERR_BUSY, any other file ERR_EXISTS.
 */
int transport_listen_unix(struct listener *listener, const char *path, struct err *err);

/* address: a numeric IPv4 or IPv6 loopback address or "localhost" (IPv4); others
 * are ERR_DENIED.  port 0: the kernel picks. */
int transport_listen_tcp(
	struct listener *listener, const char *address, unsigned port, struct err *err);

/* The same on any address ("0.0.0.0", "::" as well), for a server that demands TLS and
 * knows its clients: that is the caller's to see to. */
int transport_listen_tcp_public(
	struct listener *listener, const char *address, unsigned port, struct err *err);

/* Whether a numeric address, or "localhost", is this machine's own and nobody else's. */
bool transport_is_loopback(const char *address);

/* Takes over the one socket of systemd's LISTEN_FDS protocol, after checking
 * LISTEN_PID and that it is a listening stream socket on loopback or AF_UNIX,
 * and removes the variables from the environment (call it while there is one
 * thread).  Returns 1 when there was one, 0 when none was passed, -1 on error.
 * A Unix socket passed this way is not removed by listener_close(). */
int transport_listen_inherited(struct listener *listener, struct err *err);

/* Harmless on a listener that is closed already. */
void listener_close(struct listener *listener);

/* "127.0.0.1:4711", "[::1]:4711", "unix:PID 4711 (uid 0)"; for logs and refusals. */
#define TRANSPORT_PEER_BYTES 96
void transport_peer_text(int fd, char text[TRANSPORT_PEER_BYTES]);

/* --- streams ------------------------------------------------------------------- */

/*
 * A connected stream socket in blocking mode.  Owns the descriptor.  One thread
 * may receive while another sends; not two receivers or two senders.  A third
 * may call stream_shut().
 */
struct stream {
	int fd;
	unsigned receive_timeout_ms, send_timeout_ms; /* as set on the socket */
	struct tls_session *tls; /* NULL: in the clear */
};

/* Sets what every connection of ours has, also one that somebody else runs: small
 * messages leave at once, a vanished peer is found within some 60 s (TCP), and
 * the buffer holds a large reply (Unix). */
void transport_prepare_socket(int fd);

/* Takes fd, prepares it, and sets the longest time that a send waits without
 * progress (> 0). */
void stream_init(struct stream *stream, int fd, unsigned send_timeout_ms);
void stream_close(struct stream *stream);
void stream_set_send_timeout(struct stream *stream, unsigned send_timeout_ms);

/*
 * Receives what is there into the buffers, at least one byte, waiting at most
 * timeout_ms (> 0) for it.  Returns the number of bytes, or -1: ERR_TIMEOUT,
 * ERR_DISCONNECTED when the peer ended the stream or is gone (sys_errno 0 for
 * an orderly end).  what names the wait: "waiting for the handshake".
 * A change of timeout_ms costs a system call.
 */
ssize_t stream_receive(struct stream *stream, const struct iovec *iov, size_t nr_iov,
	unsigned timeout_ms, const char *what, struct err *err);

/*
 * Sends all, or fails: ERR_TIMEOUT when the peer took nothing for
 * send_timeout_ms (it is not cut while it moves), ERR_DISCONNECTED.  Uses iov as
 * its notes: its content is undefined afterwards.  Never raises SIGPIPE.
 */
int stream_send(
	struct stream *stream, struct iovec *iov, size_t nr_iov, const char *what, struct err *err);

/*
 * The last word was said: the peer sees the end of the stream behind what was
 * sent.  What it sent itself and nobody received is thrown away, as far as it
 * is here; the kernel would otherwise tell the peer of a reset, and drop what is
 * still on the way to it.
 */
void stream_finish(struct stream *stream);

/* Ends waiting: receives find the end of the stream (after what has arrived
 * already), and with both, sends fail as well. */
void stream_shut(struct stream *stream, bool both);

/* --- TLS and certificates, in headers of their own ------------------------------- */

#include "pki.h"
#include "tls.h"
#include "tunnel.h"

#endif
