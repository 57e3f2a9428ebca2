/* JSON lines; see wire.h. */
#include "wire.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#define ROOM_FIRST 65536u

/* --- connecting ------------------------------------------------------------------ */

/* A Unix socket connects at once, or waits while the listener's queue is full. */
static int connect_unix(int fd, const struct sockaddr_un *address, const char *peer,
	const struct cancel *cancel, struct deadline until, struct err *err)
{
	while (connect(fd, (const struct sockaddr *)address, sizeof *address) < 0) {
		if (errno == EINTR)
			continue;
		if (errno == ECONNREFUSED)
			return err_set(err, ERR_REFUSED,
				"cannot connect to %s: nobody listens (its QEMU has ended)", peer);
		if (errno != EAGAIN)
			return err_errno(err, errno, "cannot connect to %s", peer);
		if (deadline_passed(until))
			return err_set(err, ERR_TIMEOUT,
				"cannot connect to %s: it takes no more connections", peer);
		if (cancel_sleep(cancel, deadline_min(until, deadline_after_ms(50)), err) < 0)
			return -1;
	}
	return 0;
}

int wire_open(struct wire *wire, const char *what, const char *path, size_t line_most,
	const struct cancel *cancel, struct deadline until, struct err *err)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	*wire = (struct wire){.fd = -1, .line_most = line_most};
	snprintf(wire->peer, sizeof wire->peer, "%s %s", what, path);
	if (strlen(path) >= sizeof address.sun_path)
		return err_set(err, ERR_USAGE,
			"%s: the path is longer than the %zu bytes of a socket's", wire->peer,
			sizeof address.sun_path - 1);
	snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
	wire->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (wire->fd < 0)
		return err_errno(err, errno, "cannot make a socket");
	wire->buffer = malloc(ROOM_FIRST);
	wire->room = ROOM_FIRST;
	if (!wire->buffer)
		err_errno(err, ENOMEM, "cannot connect to %s", wire->peer);
	if (!wire->buffer || connect_unix(wire->fd, &address, wire->peer, cancel, until, err) < 0) {
		wire_close(wire);
		return -1;
	}
	return 0;
}

void wire_close(struct wire *wire)
{
	if (wire->fd >= 0)
		close(wire->fd);
	wire->fd = -1;
	free(wire->buffer);
	wire->buffer = NULL;
}

/* --- sending ----------------------------------------------------------------------- */

static int broken(struct wire *wire, struct err *err)
{
	wire->broken = true;
	return err_set(
		err, ERR_DISCONNECTED, "%s: QEMU has ended: it closed the connection", wire->peer);
}

static ssize_t send_some(int fd, const char *bytes, size_t length, int right)
{
	struct iovec iov = {.iov_base = (char *)(uintptr_t)bytes, .iov_len = length};
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {.bytes = {0}};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
	if (right >= 0) {
		message.msg_control = control.bytes;
		message.msg_controllen = sizeof control.bytes;
		struct cmsghdr *head = CMSG_FIRSTHDR(&message);
		head->cmsg_level = SOL_SOCKET;
		head->cmsg_type = SCM_RIGHTS;
		head->cmsg_len = CMSG_LEN(sizeof right);
		memcpy(CMSG_DATA(head), &right, sizeof right);
	}
	return sendmsg(fd, &message, MSG_NOSIGNAL);
}

int wire_send(struct wire *wire, const char *bytes, size_t length, int fd,
	const struct cancel *cancel, struct deadline until, const char *what, struct err *err)
{
	size_t whole = length;
	while (length > 0) {
		ssize_t n = send_some(wire->fd, bytes, length, fd);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno != EAGAIN)
			return broken(wire, err);
		if (n < 0) {
			if (cancel_poll(cancel, wire->fd, POLLOUT, until, what, err) >= 0)
				continue;
			wire->broken = length < whole; /* half a message */
			return err_context(err, "%s", wire->peer);
		}
		fd = -1; /* went with the first byte */
		bytes += n;
		length -= (size_t)n;
	}
	return 0;
}

/* --- receiving --------------------------------------------------------------------- */

static int make_room(struct wire *wire, struct err *err)
{
	if (wire->start > 0) {
		memmove(wire->buffer, wire->buffer + wire->start, wire->used - wire->start);
		wire->used -= wire->start;
		wire->start = 0;
	}
	if (wire->used < wire->room)
		return 0;
	if (wire->room >= wire->line_most) {
		wire->broken = true;
		return err_set(err, ERR_PROTOCOL, "%s sent a line of more than %zu bytes",
			wire->peer, wire->line_most);
	}
	size_t room = min_size(wire->room * 2, wire->line_most);
	char *buffer = realloc(wire->buffer, room);
	if (!buffer)
		return err_errno(err, ENOMEM, "cannot hold a line of %s", wire->peer);
	wire->buffer = buffer;
	wire->room = room;
	return 0;
}

/* Until a newline is there; *length is the line's, without it. */
static int fill_line(struct wire *wire, const struct cancel *cancel, struct deadline until,
	const char *what, size_t *length, struct err *err)
{
	size_t searched = wire->start;
	for (;;) {
		const char *end = memchr(wire->buffer + searched, '\n', wire->used - searched);
		if (end) {
			*length = (size_t)(end - wire->buffer) - wire->start;
			return 0;
		}
		searched = wire->used - wire->start;
		if (make_room(wire, err) < 0)
			return -1;
		/* Cancelled or late is checked first: a peer that never stops talking is no
		 * reason to wait for ever. */
		ssize_t n = -1;
		if (cancel_poll(cancel, wire->fd, POLLIN, until, what, err) < 0)
			return err_context(err, "%s", wire->peer);
		n = recv(wire->fd, wire->buffer + wire->used, wire->room - wire->used, 0);
		if (n < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		if (n <= 0)
			return broken(wire, err);
		wire->used += (size_t)n;
	}
}

json_t *wire_receive(struct wire *wire, bool lenient, const struct cancel *cancel,
	struct deadline until, const char *what, struct err *err)
{
	for (;;) {
		size_t length = 0;
		if (fill_line(wire, cancel, until, what, &length, err) < 0)
			return NULL;
		const char *line = wire->buffer + wire->start;
		wire->start += length + 1;
		const char *mark = lenient && length ? memrchr(line, 0xff, length) : NULL;
		if (mark) {
			length -= (size_t)(mark + 1 - line);
			line = mark + 1;
		}
		json_error_t json_err;
		json_t *value = json_loadb(line, length, JSON_ALLOW_NUL, &json_err);
		if (json_is_object(value))
			return value;
		json_decref(value);
		if (lenient)
			continue;
		wire->broken = true;
		err_set(err, ERR_PROTOCOL, "%s sent what is no JSON object: %s", wire->peer,
			value ? "another value" : json_err.text);
		return NULL;
	}
}
