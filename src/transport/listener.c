/* Listening sockets; see transport.h. */
#include "transport.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/un.h>

#define BACKLOG 1024
#define FIRST_PASSED_FD 3

union any_address {
	struct sockaddr any;
	struct sockaddr_in in;
	struct sockaddr_in6 in6;
	struct sockaddr_un un;
	struct sockaddr_storage storage;
};

/* --- Unix sockets --------------------------------------------------------------- */

static int fill_unix_address(struct sockaddr_un *address, const char *path, struct err *err)
{
	size_t length = strlen(path);
	*address = (struct sockaddr_un){.sun_family = AF_UNIX};
	if (length == 0 || length >= sizeof address->sun_path)
		return err_set(err, ERR_USAGE,
			"cannot listen on '%s': a socket's path has 1 to %zu bytes (use a shorter "
			"one)",
			path, sizeof address->sun_path - 1);
	memcpy(address->sun_path, path, length + 1);
	return 0;
}

/* Looks at what stands in the way; 0 when it was a dead socket and is gone. */
static int remove_stale(const struct sockaddr_un *address, const char *path, struct err *err)
{
	struct stat st;
	if (lstat(path, &st) < 0)
		return errno == ENOENT ? 0 : err_errno(err, errno, "cannot look at %s", path);
	if (!S_ISSOCK(st.st_mode))
		return err_set(err, ERR_EXISTS,
			"cannot listen on %s: a file is there that is no socket", path);
	int AUTO_CLOSE fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return err_errno(err, errno, "cannot make a socket");
	if (connect(fd, (const struct sockaddr *)address, sizeof *address) == 0 || errno == EAGAIN)
		return err_set(err, ERR_BUSY,
			"cannot listen on %s: another server answers there (choose another path)",
			path);
	if (errno != ECONNREFUSED)
		return err_errno(err, errno, "cannot tell whether somebody listens on %s", path);
	if (unlink(path) < 0 && errno != ENOENT)
		return err_errno(err, errno, "cannot remove the stale socket %s", path);
	return 0;
}

static int bind_unix(int fd, const struct sockaddr_un *address, const char *path, struct err *err)
{
	/* On Linux the file gets the mode that the socket has before bind(), so at
	 * no moment can anybody else connect. */
	if (fchmod(fd, 0600) < 0)
		return err_errno(err, errno, "cannot set the mode of a socket");
	if (bind(fd, (const struct sockaddr *)address, sizeof *address) == 0)
		return 0;
	if (errno != EADDRINUSE)
		return err_errno(err, errno, "cannot listen on %s", path);
	if (remove_stale(address, path, err) < 0)
		return -1;
	if (bind(fd, (const struct sockaddr *)address, sizeof *address) < 0)
		return err_errno(err, errno, "cannot listen on %s", path);
	return 0;
}

int transport_listen_unix(struct listener *listener, const char *path, struct err *err)
{
	struct sockaddr_un address;
	struct stat st;
	*listener = (struct listener){.fd = -1};
	if (fill_unix_address(&address, path, err) < 0)
		return -1;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return err_errno(err, errno, "cannot make a socket");
	if (bind_unix(fd, &address, path, err) < 0)
		goto fail;
	if (listen(fd, BACKLOG) < 0 || lstat(path, &st) < 0) {
		err_errno(err, errno, "cannot listen on %s", path);
		goto fail_bound;
	}
	listener->unix_path = strdup(path);
	if (!listener->unix_path) {
		err_errno(err, ENOMEM, "cannot listen on %s", path);
		goto fail_bound;
	}
	listener->unix_dev = st.st_dev;
	listener->unix_ino = st.st_ino;
	snprintf(listener->address, sizeof listener->address, "%s", path);
	listener->fd = fd;
	return 0;
fail_bound:
	unlink(path);
fail:
	close(fd);
	return -1;
}

/* --- TCP -------------------------------------------------------------------------- */

static bool is_loopback(const union any_address *address)
{
	if (address->any.sa_family == AF_INET)
		return ntohl(address->in.sin_addr.s_addr) >> 24 == 127;
	return address->any.sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&address->in6.sin6_addr);
}

static int refuse_address(const char *address, struct err *err)
{
	return err_set(err, ERR_DENIED,
		"cannot listen on %s: without TLS only loopback addresses are served "
		"(use 127.0.0.1, ::1 or a Unix socket)",
		address);
}

static int parse_address(union any_address *out, socklen_t *length, const char *address,
	unsigned port, struct err *err)
{
	memset(out, 0, sizeof *out);
	if (port > UINT16_MAX)
		return err_set(
			err, ERR_USAGE, "cannot listen on port %u: ports are 0 to 65535", port);
	if (strcmp(address, "localhost") == 0)
		address = "127.0.0.1";
	if (inet_pton(AF_INET, address, &out->in.sin_addr) == 1) {
		out->in.sin_family = AF_INET;
		out->in.sin_port = htons((uint16_t)port);
		*length = sizeof out->in;
	} else if (inet_pton(AF_INET6, address, &out->in6.sin6_addr) == 1) {
		out->in6.sin6_family = AF_INET6;
		out->in6.sin6_port = htons((uint16_t)port);
		*length = sizeof out->in6;
	} else {
		return err_set(err, ERR_USAGE,
			"cannot listen on '%s': not a numeric IPv4 or IPv6 address", address);
	}
	return 0;
}

bool transport_is_loopback(const char *address)
{
	union any_address any;
	socklen_t length = 0;
	return parse_address(&any, &length, address, 0, NULL) == 0 && is_loopback(&any);
}

/* Notes where a bound socket listens; loopback_only: others are refused. */
static int note_address(struct listener *listener, int fd, bool loopback_only, struct err *err)
{
	union any_address address;
	socklen_t length = sizeof address;
	memset(&address, 0, sizeof address);
	if (getsockname(fd, &address.any, &length) < 0)
		return err_errno(err, errno, "cannot get a socket's own address");
	if (address.any.sa_family == AF_UNIX) {
		snprintf(listener->address, sizeof listener->address, "%.*s",
			(int)sizeof address.un.sun_path, address.un.sun_path);
		return 0;
	}
	if (address.any.sa_family != AF_INET && address.any.sa_family != AF_INET6)
		return err_set(err, ERR_UNSUPPORTED, "the socket is neither TCP nor a Unix socket");
	bool is_v4 = address.any.sa_family == AF_INET;
	const void *host =
		is_v4 ? (const void *)&address.in.sin_addr : (const void *)&address.in6.sin6_addr;
	listener->is_tcp = true;
	listener->port = ntohs(is_v4 ? address.in.sin_port : address.in6.sin6_port);
	inet_ntop(address.any.sa_family, host, listener->address, sizeof listener->address);
	if (loopback_only && !is_loopback(&address))
		return refuse_address(listener->address, err);
	return 0;
}

static int listen_tcp(struct listener *listener, const char *address, unsigned port,
	bool loopback_only, struct err *err)
{
	union any_address any;
	socklen_t length = 0;
	*listener = (struct listener){.fd = -1};
	if (parse_address(&any, &length, address, port, err) < 0)
		return -1;
	if (loopback_only && !is_loopback(&any))
		return refuse_address(address, err);
	int fd = socket(any.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return err_errno(err, errno, "cannot make a socket for %s", address);
	int one = 1;
	(void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(fd, &any.any, length) < 0 || listen(fd, BACKLOG) < 0) {
		err_errno(err, errno, "cannot listen on %s port %u", address, port);
		goto fail;
	}
	if (note_address(listener, fd, loopback_only, err) < 0)
		goto fail;
	listener->fd = fd;
	return 0;
fail:
	close(fd);
	return -1;
}

int transport_listen_tcp(
	struct listener *listener, const char *address, unsigned port, struct err *err)
{
	return listen_tcp(listener, address, port, true, err);
}

int transport_listen_tcp_public(
	struct listener *listener, const char *address, unsigned port, struct err *err)
{
	return listen_tcp(listener, address, port, false, err);
}

/* --- sockets that a parent passed ---------------------------------------------------- */

static bool number_from_env(const char *name, long *value)
{
	const char *text = getenv(name);
	char *end;
	if (!text || *text == '\0')
		return false;
	errno = 0;
	*value = strtol(text, &end, 10);
	return errno == 0 && *end == '\0';
}

static int check_passed(int fd, struct err *err)
{
	int type = 0, listening = 0;
	socklen_t length = sizeof type;
	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) < 0)
		return err_errno(err, errno, "cannot use the passed descriptor %d as a socket", fd);
	length = sizeof listening;
	if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) < 0)
		return err_errno(err, errno, "cannot use the passed descriptor %d", fd);
	if (type != SOCK_STREAM || !listening)
		return err_set(err, ERR_USAGE,
			"cannot use the passed descriptor %d: not a listening stream socket", fd);
	return 0;
}

int transport_listen_inherited(struct listener *listener, struct err *err)
{
	long nr_fds = 0, pid = 0;
	*listener = (struct listener){.fd = -1};
	bool has_fds = number_from_env("LISTEN_FDS", &nr_fds);
	bool is_ours = number_from_env("LISTEN_PID", &pid) && pid == (long)getpid();
	if (!has_fds || !is_ours || nr_fds <= 0)
		return 0;
	unsetenv("LISTEN_FDS");
	unsetenv("LISTEN_PID");
	unsetenv("LISTEN_FDNAMES");
	if (nr_fds != 1)
		return err_set(err, ERR_USAGE,
			"cannot take over %ld passed sockets: one is served (pass a single one)",
			nr_fds);
	int fd = FIRST_PASSED_FD;
	if (check_passed(fd, err) < 0 || note_address(listener, fd, true, err) < 0)
		return -1;
	(void)fcntl(fd, F_SETFD, FD_CLOEXEC);
	listener->fd = fd;
	return 1;
}

void listener_close(struct listener *listener)
{
	struct stat st;
	if (listener->fd >= 0)
		close(listener->fd);
	listener->fd = -1;
	if (!listener->unix_path)
		return;
	if (lstat(listener->unix_path, &st) == 0 && st.st_dev == listener->unix_dev &&
		st.st_ino == listener->unix_ino)
		unlink(listener->unix_path);
	free(listener->unix_path);
	listener->unix_path = NULL;
}

/* --- peers ---------------------------------------------------------------------------- */

void transport_peer_text(int fd, char text[TRANSPORT_PEER_BYTES])
{
	union any_address address;
	socklen_t length = sizeof address;
	char host[INET6_ADDRSTRLEN] = "?";
	memset(&address, 0, sizeof address);
	snprintf(text, TRANSPORT_PEER_BYTES, "an unknown peer");
	if (getpeername(fd, &address.any, &length) < 0)
		return;
	if (address.any.sa_family == AF_INET) {
		inet_ntop(AF_INET, &address.in.sin_addr, host, sizeof host);
		snprintf(text, TRANSPORT_PEER_BYTES, "%s:%u", host, ntohs(address.in.sin_port));
	} else if (address.any.sa_family == AF_INET6) {
		inet_ntop(AF_INET6, &address.in6.sin6_addr, host, sizeof host);
		snprintf(text, TRANSPORT_PEER_BYTES, "[%s]:%u", host, ntohs(address.in6.sin6_port));
	} else if (address.any.sa_family == AF_UNIX) {
		struct ucred who;
		socklen_t who_length = sizeof who;
		if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &who_length) == 0)
			snprintf(text, TRANSPORT_PEER_BYTES, "unix:PID %ld (uid %lu)",
				(long)who.pid, (unsigned long)who.uid);
	}
}
