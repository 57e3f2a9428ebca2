/* Addresses: who is at the other end, and where the server listens. */
#include "rest_internal.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>

static void of_v4(const struct sockaddr_in *in, struct rest_address *out)
{
	char text[INET_ADDRSTRLEN] = "";
	memset(out->key + 10, 0xff, 2);
	memcpy(out->key + 12, &in->sin_addr, 4);
	out->loopback = out->key[12] == 127;
	inet_ntop(AF_INET, &in->sin_addr, text, sizeof text);
	snprintf(out->text, sizeof out->text, "%s:%u", text, ntohs(in->sin_port));
}

static void of_v6(const struct sockaddr_in6 *in, struct rest_address *out)
{
	char text[INET6_ADDRSTRLEN] = "";
	memcpy(out->key, &in->sin6_addr, 8);
	out->loopback = IN6_IS_ADDR_LOOPBACK(&in->sin6_addr);
	inet_ntop(AF_INET6, &in->sin6_addr, text, sizeof text);
	snprintf(out->text, sizeof out->text, "[%s]:%u", text, ntohs(in->sin6_port));
}

void rest_address_of(const struct sockaddr *address, struct rest_address *out)
{
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
	*out = (struct rest_address){.text = "unknown"};
	if (address->sa_family == AF_INET) {
		memcpy(&v4, address, sizeof v4);
		of_v4(&v4, out);
	} else if (address->sa_family == AF_INET6) {
		memcpy(&v6, address, sizeof v6);
		of_v6(&v6, out);
	}
}

static int bind_and_listen(int fd, const struct addrinfo *info)
{
	int one = 1;
	if (info->ai_family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	return bind(fd, info->ai_addr, info->ai_addrlen) || listen(fd, 512) ? -1 : 0;
}

static unsigned bound_port(int fd)
{
	struct sockaddr_in6 bound = {0};
	socklen_t length = sizeof bound;
	/* The port stands at the same place in both families. */
	return getsockname(fd, (struct sockaddr *)&bound, &length) ? 0 : ntohs(bound.sin6_port);
}

int rest_address_listen(const char *address, unsigned *port, bool *loopback, struct err *err)
{
	struct addrinfo hints = {.ai_family = AF_UNSPEC,
		.ai_socktype = SOCK_STREAM,
		.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE};
	struct addrinfo *info = NULL;
	struct rest_address parsed;
	char service[16];
	snprintf(service, sizeof service, "%u", *port);
	if (*port > 65535 || getaddrinfo(address, service, &hints, &info))
		return err_set(err, ERR_USAGE,
			"listening at %s port %u: not a numeric IPv4 or IPv6 address and a port",
			address, *port);
	rest_address_of(info->ai_addr, &parsed);
	*loopback = parsed.loopback;
	int fd = socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0 || bind_and_listen(fd, info)) {
		err_errno(err, errno, "listening at %s port %u", address, *port);
		if (fd >= 0)
			close(fd);
		fd = -1;
	} else {
		*port = bound_port(fd);
	}
	freeaddrinfo(info);
	return fd;
}
