/* The NBD client's URIs, names and sockets. */
#include "client_internal.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdlib.h>

#define DEFAULT_PORT "10809"
#define NAME_BYTES_MAX 4096u
/* How often a look-up that goes on is asked for, and cancel heeded. */
#define LOOKUP_STEP_MS 50

/* --- URIs ------------------------------------------------------------------- */

static int bad_uri(const char *text, const char *why, struct err *err)
{
	return err_set(err, ERR_USAGE,
		"cannot use %.200s: %s (write nbd://HOST[:PORT]/NAME or "
		"nbd+unix:///NAME?socket=PATH, or both with nbds for TLS)",
		text, why);
}

/* Undoes percent-encoding; NULL for bad escapes, NUL bytes, or no memory. */
static char *decode(const char *text, size_t length)
{
	char *out = malloc(length + 1), *to = out;
	if (!out)
		return NULL;
	for (size_t i = 0; i < length; i++) {
		char c = text[i];
		if (c == '%') {
			int value = i + 2 < length ? hex_pair(text + i + 1) : -1;
			if (value <= 0) {
				free(out);
				return NULL;
			}
			c = (char)value;
			i += 2;
		}
		*to++ = c;
	}
	*to = '\0';
	return out;
}

/* "HOST", "HOST:PORT", "[V6]:PORT" */
static int parse_host(
	struct client_uri *uri, const char *text, size_t length, const char *whole, struct err *err)
{
	const char *end = text + length, *host = text, *host_end, *rest;
	if (memchr(text, '@', length))
		return bad_uri("an NBD URI", "user names and passwords in URIs are not taken", err);
	if (length > 0 && *text == '[') {
		host++;
		host_end = memchr(text, ']', length);
		rest = host_end ? host_end + 1 : NULL;
	} else {
		host_end = memchr(text, ':', length);
		if (!host_end)
			host_end = end;
		rest = host_end;
	}
	if (!rest || host_end == host || (rest < end && *rest != ':'))
		return bad_uri(whole, "the host is missing or malformed", err);
	if (rest < end)
		rest++;
	size_t port_length = (size_t)(end - rest);
	char digits[8] = DEFAULT_PORT;
	if (port_length > 0) {
		if (port_length > 5)
			return bad_uri(whole, "the port is not in 1..65535", err);
		memcpy(digits, rest, port_length);
		digits[port_length] = '\0';
		char *tail;
		unsigned long port = strtoul(digits, &tail, 10);
		if (*tail || digits[0] < '0' || digits[0] > '9' || port < 1 || port > 65535)
			return bad_uri(whole, "the port is not in 1..65535", err);
	}
	uri->host = decode(host, (size_t)(host_end - host));
	uri->port = strdup(digits);
	if (!uri->host || !uri->port)
		return bad_uri(whole, "the host is malformed", err);
	return 0;
}

static int parse_socket(
	struct client_uri *uri, const char *query, const char *whole, struct err *err)
{
	static const char key[] = "socket=";
	if (!query || strncmp(query, key, sizeof key - 1) != 0 || strchr(query, '&'))
		return bad_uri(whole, "it must have exactly ?socket=PATH", err);
	query += sizeof key - 1;
	uri->path = decode(query, strlen(query));
	if (!uri->path || !*uri->path)
		return bad_uri(whole, "the socket's path is missing or malformed", err);
	if (strlen(uri->path) >= sizeof((struct sockaddr_un *)0)->sun_path)
		return bad_uri(whole, "the socket's path is longer than 107 bytes", err);
	return 0;
}

static char *make_label(const char *text)
{
	char *label = strdup(text);
	for (char *c = label; c && *c; c++)
		if ((unsigned char)*c < 0x20 || *c == 0x7f)
			*c = '?';
	if (label)
		redact_uris(label);
	return label;
}

/* Behind the scheme; NULL for another one. */
static const char *take_scheme(const char *text, bool *is_tcp, bool *is_tls)
{
	static const struct {
		const char *text;
		bool is_tcp, is_tls;
	} schemes[] = {{"nbd://", true, false}, {"nbd+unix://", false, false},
		{"nbds://", true, true}, {"nbds+unix://", false, true}};
	for (size_t i = 0; i < ARRAY_LENGTH(schemes); i++) {
		size_t length = strlen(schemes[i].text);
		if (strncmp(text, schemes[i].text, length) != 0)
			continue;
		*is_tcp = schemes[i].is_tcp;
		*is_tls = schemes[i].is_tls;
		return text + length;
	}
	return NULL;
}

static int parse(struct client_uri *uri, const char *text, const char *label, struct err *err)
{
	bool is_tcp = false;
	uri->label = make_label(label ? label : text);
	if (!uri->label)
		return err_errno(err, ENOMEM, "cannot open an NBD disk");
	const char *host = take_scheme(text, &is_tcp, &uri->is_tls);
	if (!host)
		return bad_uri(uri->label, "it is not an NBD URI", err);
	size_t host_length = strcspn(host, "/?#");
	const char *at = host + host_length;
	const char *name = *at == '/' ? at + 1 : at;
	size_t name_length = strcspn(name, "?#");
	const char *query = name[name_length] == '?' ? name + name_length + 1 : NULL;
	if (strchr(name + name_length, '#'))
		return bad_uri(uri->label, "it has a #fragment", err);
	uri->name = decode(name, name_length);
	if (!uri->name || strlen(uri->name) > NAME_BYTES_MAX)
		return bad_uri(uri->label, "the export's name is malformed or too long", err);
	if (is_tcp && query)
		return bad_uri(uri->label,
			"a TCP URI takes no ?parameters (what TLS needs is given by options)", err);
	if (is_tcp)
		return parse_host(uri, host, host_length, uri->label, err);
	if (host_length > 0)
		return bad_uri(uri->label, "a Unix socket has no host", err);
	return parse_socket(uri, query, uri->label, err);
}

int client_uri_parse(struct client_uri *uri, const char *text, const char *label, struct err *err)
{
	memset(uri, 0, sizeof *uri);
	if (parse(uri, text, label, err) == 0)
		return 0;
	client_uri_free(uri);
	return -1;
}

void client_uri_free(struct client_uri *uri)
{
	free(uri->label);
	free(uri->name);
	free(uri->host);
	free(uri->port);
	free(uri->path);
	memset(uri, 0, sizeof *uri);
}

/* --- addresses -------------------------------------------------------------- */

/* What getaddrinfo_a() works on; it outlives a look-up that is given up. */
struct lookup {
	struct gaicb request;
	struct addrinfo hints;
	char *host, *port;
};

static void lookup_free(struct lookup *lookup)
{
	if (lookup->request.ar_result)
		freeaddrinfo(lookup->request.ar_result);
	free(lookup->host);
	free(lookup->port);
	free(lookup);
}

static struct lookup *lookup_start(const struct client_uri *uri)
{
	struct lookup *lookup = calloc(1, sizeof *lookup);
	if (!lookup)
		return NULL;
	lookup->host = strdup(uri->host);
	lookup->port = strdup(uri->port);
	lookup->hints = (struct addrinfo){.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
	lookup->request = (struct gaicb){
		.ar_name = lookup->host, .ar_service = lookup->port, .ar_request = &lookup->hints};
	struct gaicb *list[1] = {&lookup->request};
	if (!lookup->host || !lookup->port || getaddrinfo_a(GAI_NOWAIT, list, 1, NULL) != 0) {
		lookup_free(lookup);
		return NULL;
	}
	return lookup;
}

/* 0: ended.  A look-up that cannot be called back is left to the C library. */
static int lookup_wait(struct lookup *lookup, const char *host, struct deadline until,
	struct cancel *cancel, struct err *err)
{
	const struct gaicb *list[1] = {&lookup->request};
	while (gai_error(&lookup->request) == EAI_INPROGRESS) {
		struct timespec step = {.tv_nsec = LOOKUP_STEP_MS * 1000000L};
		int rc = 0;
		if (cancel_check(cancel, err) < 0)
			rc = -1;
		else if (deadline_passed(until))
			rc = err_set(err, ERR_TIMEOUT, "no address for host %s in time", host);
		if (rc < 0) {
			if (gai_cancel(&lookup->request) != EAI_NOTCANCELED)
				lookup_free(lookup);
			return -1;
		}
		gai_suspend(list, 1, &step);
	}
	return 0;
}

static unsigned take_addresses(const struct addrinfo *ai, struct client_address *addresses)
{
	unsigned nr = 0;
	for (; ai && nr < CLIENT_ADDRESSES_MAX; ai = ai->ai_next) {
		if (ai->ai_addrlen > sizeof addresses[0].address)
			break;
		memcpy(&addresses[nr].address, ai->ai_addr, ai->ai_addrlen);
		addresses[nr++].length = ai->ai_addrlen;
	}
	return nr;
}

/* A numeric address needs no look-up, and not the thread that it runs on. */
static unsigned find_numeric(const struct client_uri *uri, struct client_address *addresses)
{
	struct addrinfo hints = {
		.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV};
	struct addrinfo *found = NULL;
	if (getaddrinfo(uri->host, uri->port, &hints, &found) != 0)
		return 0;
	unsigned nr = take_addresses(found, addresses);
	freeaddrinfo(found);
	return nr;
}

static int find_tcp(const struct client_uri *uri, struct client_address *addresses, unsigned *nr,
	struct deadline until, struct cancel *cancel, struct err *err)
{
	*nr = find_numeric(uri, addresses);
	if (*nr > 0)
		return 0;
	struct lookup *lookup = lookup_start(uri);
	if (!lookup)
		return err_errno(err, ENOMEM, "cannot look up host %s", uri->host);
	if (lookup_wait(lookup, uri->host, until, cancel, err) < 0)
		return -1;
	int rc = gai_error(&lookup->request);
	*nr = rc == 0 ? take_addresses(lookup->request.ar_result, addresses) : 0;
	lookup_free(lookup);
	if (rc != 0)
		return err_set(
			err, ERR_NOT_FOUND, "cannot find host %s: %s", uri->host, gai_strerror(rc));
	if (*nr == 0)
		return err_set(err, ERR_NOT_FOUND, "host %s has no address", uri->host);
	return 0;
}

int client_address_find(const struct client_uri *uri, struct client_address *addresses,
	unsigned *nr, struct deadline until, struct cancel *cancel, struct err *err)
{
	if (uri->host)
		return find_tcp(uri, addresses, nr, until, cancel, err);
	struct sockaddr_un *local = (struct sockaddr_un *)&addresses[0].address;
	memset(local, 0, sizeof *local);
	local->sun_family = AF_UNIX;
	memcpy(local->sun_path, uri->path, strlen(uri->path) + 1);
	addresses[0].length = sizeof *local;
	*nr = 1;
	return 0;
}

/* --- sockets ---------------------------------------------------------------- */

int client_address_connect(const struct client_address *address, bool *connected, struct err *err)
{
	int fd = socket(address->address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return err_errno(err, errno, "cannot make a socket");
	transport_prepare_socket(fd);
	int rc = connect(fd, (const struct sockaddr *)&address->address, address->length);
	*connected = rc == 0;
	if (rc == 0 || errno == EINPROGRESS)
		return fd;
	err_errno(err, errno, "cannot connect");
	close(fd);
	return -1;
}

int client_address_connected(int fd, struct err *err)
{
	int error = 0;
	socklen_t length = sizeof error;
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) < 0)
		error = errno;
	if (error != 0)
		return err_errno(err, error, "cannot connect");
	return 0;
}
