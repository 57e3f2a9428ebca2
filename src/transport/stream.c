/*
 * Streams; see transport.h.
 *
 * Sockets stay in blocking mode with time-outs of the kernel: a receive or send
 * that need not wait costs one system call and no poll.  Whoever wants to end a
 * wait shuts the socket down.
 */
#include "transport_internal.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

#define KEEPALIVE_IDLE_S 30
#define KEEPALIVE_INTERVAL_S 10
#define KEEPALIVE_PROBES 3
#define UNACKNOWLEDGED_MS 60000
/* Unix sockets do not grow by themselves: with the default a reply of 256 KiB
 * needs two turns of sender and receiver. */
#define UNIX_SEND_BYTES (1 << 20)
/* More than sockets hold; a peer that sends without end does not keep us. */
#define MOST_DROPPED_BYTES (16 << 20)

static void set_option(int fd, int level, int name, int value)
{
	/* All of these only make things better; a kernel without one still works. */
	(void)setsockopt(fd, level, name, &value, sizeof value);
}

static void set_timeout(int fd, int name, unsigned timeout_ms)
{
	struct timeval tv = {
		.tv_sec = timeout_ms / 1000, .tv_usec = (suseconds_t)(timeout_ms % 1000) * 1000};
	(void)setsockopt(fd, SOL_SOCKET, name, &tv, sizeof tv);
}

void transport_prepare_socket(int fd)
{
	int domain = AF_UNSPEC;
	socklen_t length = sizeof domain;
	(void)getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length);
	if (domain == AF_UNIX) {
		set_option(fd, SOL_SOCKET, SO_SNDBUF, UNIX_SEND_BYTES);
		return;
	}
	set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
	set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE_S);
	set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S);
	set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES);
	/* Keepalive is silent while data waits to be acknowledged. */
	set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS);
}

void stream_init(struct stream *stream, int fd, unsigned send_timeout_ms)
{
	*stream = (struct stream){.fd = fd};
	stream_set_send_timeout(stream, send_timeout_ms);
	transport_prepare_socket(fd);
}

void stream_set_send_timeout(struct stream *stream, unsigned send_timeout_ms)
{
	set_timeout(stream->fd, SO_SNDTIMEO, send_timeout_ms);
	stream->send_timeout_ms = send_timeout_ms;
}

void stream_close(struct stream *stream)
{
	if (stream->tls)
		stream_tls_close(stream);
	if (stream->fd >= 0)
		close(stream->fd);
	stream->fd = -1;
}

void stream_finish(struct stream *stream)
{
	uint8_t bytes[16384];
	if (stream->tls)
		stream_tls_finish(stream);
	(void)shutdown(stream->fd, SHUT_WR);
	for (unsigned i = 0; i < MOST_DROPPED_BYTES / sizeof bytes; i++)
		if (recv(stream->fd, bytes, sizeof bytes, MSG_DONTWAIT) <= 0)
			break;
}

void stream_shut(struct stream *stream, bool both)
{
	/* Fails only when the peer was faster. */
	(void)shutdown(stream->fd, both ? SHUT_RDWR : SHUT_RD);
}

static bool would_wait(int errnum)
{
	return errnum == EAGAIN || errnum == EWOULDBLOCK;
}

static int failed(int errnum, const char *what, struct err *err)
{
	/* The kernel's own time-outs end a connection; for us the peer is gone. */
	if (errnum == ETIMEDOUT) {
		err_set(err, ERR_DISCONNECTED, "%s: the peer does not answer any more", what);
		if (err)
			err->sys_errno = errnum;
		return -1;
	}
	return err_errno(err, errnum, "%s", what);
}

void stream_set_receive_timeout(struct stream *stream, unsigned timeout_ms)
{
	if (stream->receive_timeout_ms == timeout_ms)
		return;
	set_timeout(stream->fd, SO_RCVTIMEO, timeout_ms);
	stream->receive_timeout_ms = timeout_ms;
}

ssize_t stream_raw_receive(struct stream *stream, const struct iovec *iov, size_t nr_iov,
	const char *what, struct err *err)
{
	struct msghdr message = {.msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = nr_iov};
	for (;;) {
		ssize_t n = recvmsg(stream->fd, &message, 0);
		if (n > 0)
			return n;
		if (n == 0)
			return err_set(
				err, ERR_DISCONNECTED, "%s: the peer closed the connection", what);
		if (would_wait(errno))
			return err_set(err, ERR_TIMEOUT, "%s: nothing came for %u ms", what,
				stream->receive_timeout_ms);
		if (errno != EINTR)
			return failed(errno, what, err);
	}
}

ssize_t stream_receive(struct stream *stream, const struct iovec *iov, size_t nr_iov,
	unsigned timeout_ms, const char *what, struct err *err)
{
	stream_set_receive_timeout(stream, timeout_ms);
	if (stream->tls)
		return stream_tls_receive(stream, iov, nr_iov, what, err);
	return stream_raw_receive(stream, iov, nr_iov, what, err);
}

/* Moves the start of the list of buffers behind n sent bytes. */
static void advance(struct iovec **iov, size_t *nr_iov, size_t n)
{
	while (*nr_iov > 0 && n >= (*iov)->iov_len) {
		n -= (*iov)->iov_len;
		(*iov)++;
		(*nr_iov)--;
	}
	if (*nr_iov > 0) {
		(*iov)->iov_base = (uint8_t *)(*iov)->iov_base + n;
		(*iov)->iov_len -= n;
	}
}

int stream_raw_send(
	struct stream *stream, struct iovec *iov, size_t nr_iov, const char *what, struct err *err)
{
	advance(&iov, &nr_iov, 0);
	while (nr_iov > 0) {
		struct msghdr message = {.msg_iov = iov, .msg_iovlen = nr_iov};
		ssize_t n = sendmsg(stream->fd, &message, MSG_NOSIGNAL);
		if (n >= 0) {
			advance(&iov, &nr_iov, (size_t)n);
			continue;
		}
		if (would_wait(errno))
			return err_set(err, ERR_TIMEOUT, "%s: the peer took nothing for %u ms",
				what, stream->send_timeout_ms);
		if (errno != EINTR)
			return failed(errno, what, err);
	}
	return 0;
}

int stream_send(
	struct stream *stream, struct iovec *iov, size_t nr_iov, const char *what, struct err *err)
{
	if (stream->tls)
		return stream_tls_send(stream, iov, nr_iov, what, err);
	return stream_raw_send(stream, iov, nr_iov, what, err);
}
