/* vmware://USER@HOST[:PORT][/PATH] */
#include "vsphere.h"

#define SCHEME "vmware://"

static int wrong(const char *text, const char *why, struct err *err)
{
	/* A password in it is what must not be repeated. */
	const char *at = strrchr(text, '@');
	return err_set(err, ERR_USAGE,
		"vmware://%s%s: %s (like vmware://user@vcenter.example/web01)", at ? "...@" : "",
		at ? at + 1 : text, why);
}

/* Allocated; NULL: no memory, or a zero byte, a control character or half a percent code in it. */
static char *decode(const char *text, size_t length)
{
	char *out = malloc(length + 1), *to = out;
	if (!out)
		return NULL;
	for (size_t i = 0; i < length; i++) {
		int c = (unsigned char)text[i];
		if (c == '%') {
			c = length - i > 2 ? hex_pair(text + i + 1) : -1;
			i += 2;
		}
		if (c < 0x20 || c == 0x7f) {
			free(out);
			return NULL;
		}
		*to++ = (char)c;
	}
	*to = 0;
	return out;
}

static bool take_port(const char *text, size_t length, unsigned *port)
{
	*port = 0;
	for (size_t i = 0; i < length; i++) {
		if (text[i] < '0' || text[i] > '9' || *port > 65535)
			return false;
		*port = *port * 10 + (unsigned)(text[i] - '0');
	}
	return length && *port && *port <= 65535;
}

/* HOST, HOST:PORT, [::1], [::1]:PORT */
static int take_host(struct vsphere_url *url, const char *whole, const char *at, const char *end,
	struct err *err)
{
	const char *host = at, *host_end, *port;
	if (*at == '[') {
		host = at + 1;
		host_end = memchr(host, ']', (size_t)(end - host));
		if (!host_end)
			return wrong(whole, "its '[' has no ']'", err);
		port = host_end + 1;
	} else {
		host_end = memchr(host, ':', (size_t)(end - host));
		if (!host_end)
			host_end = end;
		port = host_end;
	}
	if (host == host_end)
		return wrong(whole, "it names no server", err);
	url->port = VSPHERE_PORT;
	if (port != end &&
		(*port != ':' || !take_port(port + 1, (size_t)(end - port - 1), &url->port)))
		return wrong(whole, "its port is none", err);
	url->host = decode(host, (size_t)(host_end - host));
	return url->host ? 0 : wrong(whole, "its server's name is none", err);
}

static int take_parts(struct vsphere_url *url, const char *whole, struct err *err)
{
	const char *end = whole + strcspn(whole, "/"), *at = NULL;
	for (const char *c = whole; c < end; c++)
		if (*c == '@')
			at = c;
	if (!at || at == whole)
		return wrong(whole, "it names no user", err);
	if (memchr(whole, ':', (size_t)(at - whole)))
		return wrong(whole, "it holds a password, which comes from a file", err);
	if (take_host(url, whole, at + 1, end, err))
		return -1;
	url->user = decode(whole, (size_t)(at - whole));
	if (!url->user)
		return wrong(whole, "its user's name is none", err);
	url->path = decode(end, strlen(end));
	return url->path ? 0 : wrong(whole, "its path is none", err);
}

int vsphere_url_parse(const char *text, struct vsphere_url *url, struct err *err)
{
	*url = (struct vsphere_url){.port = 0};
	if (strncmp(text, SCHEME, strlen(SCHEME)) != 0)
		return err_set(err, ERR_USAGE,
			"%s: not a URL of a vCenter (like vmware://user@vcenter.example/web01)",
			text);
	if (!take_parts(url, text + strlen(SCHEME), err))
		return 0;
	vsphere_url_free(url);
	return -1;
}

void vsphere_url_free(struct vsphere_url *url)
{
	free(url->user);
	free(url->host);
	free(url->path);
	*url = (struct vsphere_url){.port = 0};
}
