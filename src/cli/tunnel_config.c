/* The file of a tunnel: its table, and what must fit together; see tunnel_config.h. */
#include "tunnel_config.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const services[] = {"none", "nbd", "nbds", "rest", NULL};

#define TUNNEL(member) .offset = offsetof(struct tunnel_config, member)
#define SECTION(member) .offset = offsetof(struct tunnel_section, member)
#define SECTION_ROWS(section)                                                                \
	{section, "listen", SETTING_TEXT, SECTION(listen_text)},                             \
		{section, "to", SETTING_TEXT, SECTION(to_text)},                             \
		{section, "service", SETTING_CHOICE, SECTION(service), .choices = services}, \
	{                                                                                    \
		section, "ca-file", SETTING_PATH, SECTION(ca_file)                           \
	}

/* In the order of docs/tunnel.md. */
static const struct setting table[] = {
	{"tunnel", "server", SETTING_TEXT, TUNNEL(server), .most = 255},
	{"tunnel", "user", SETTING_TEXT, TUNNEL(user)},
	{"tunnel", "identity", SETTING_PATH, TUNNEL(identity)},
	{"tunnel", "known-hosts", SETTING_PATH, TUNNEL(known_hosts)},
	{"tunnel", "look", SETTING_DURATION, TUNNEL(look_s), .least = 1, .most = 3600},
	{"tunnel", "pause-most", SETTING_DURATION, TUNNEL(pause_most_s), .least = 1, .most = 3600},
	SECTION_ROWS("forward"),
	SECTION_ROWS("reverse"),
};

/* --- values ---------------------------------------------------------------------------------- */

static bool parse_port(const char *text, const char **end, unsigned *port)
{
	char *stop;
	if (text[0] < '0' || text[0] > '9')
		return false;
	unsigned long value = strtoul(text, &stop, 10);
	*end = stop;
	*port = (unsigned)value;
	return value >= 1 && value <= 65535;
}

/* Between those brackets, or before the last colon. */
static bool split_address(const char *value, char address[TUNNEL_ENDPOINT_BYTES], const char **port)
{
	const char *from = value, *end;
	if (value[0] == '[') {
		from = value + 1;
		end = strstr(from, "]:");
		*port = end ? end + 2 : NULL;
	} else {
		end = strrchr(value, ':');
		*port = end ? end + 1 : NULL;
	}
	if (!end || end == from || (size_t)(end - from) >= TUNNEL_ENDPOINT_BYTES)
		return false;
	snprintf(address, TUNNEL_ENDPOINT_BYTES, "%.*s", (int)(end - from), from);
	return true;
}

static bool is_loopback(const char *address)
{
	struct in_addr four;
	struct in6_addr six;
	if (inet_pton(AF_INET, address, &four) == 1)
		return ntohl(four.s_addr) >> 24 == 127;
	return inet_pton(AF_INET6, address, &six) == 1 && IN6_IS_ADDR_LOOPBACK(&six);
}

/* "127.0.0.1:10809", "127.0.0.1:10100-10200", "[::1]:10809" */
static int parse_endpoint(struct tunnel_endpoint *to, const char *value, struct err *err)
{
	const char *port;
	if (!split_address(value, to->address, &port) || !parse_port(port, &port, &to->first))
		return err_set(err, ERR_USAGE,
			"\"%s\" is no address and port (127.0.0.1:10809, [::1]:10809, or with "
			"several ports: 127.0.0.1:10100-10200)",
			value);
	to->last = to->first;
	if (*port == '-' && !parse_port(port + 1, &port, &to->last))
		return err_set(err, ERR_USAGE, "\"%s\" has no last port", value);
	if (*port != '\0')
		return err_set(err, ERR_USAGE, "\"%s\" has \"%s\" behind the port", value, port);
	if (!is_loopback(to->address))
		return err_set(err, ERR_USAGE,
			"\"%s\" is not a loopback address: a tunnel's ends are open to their own "
			"machine alone",
			value);
	if (to->last < to->first || to->last - to->first >= TUNNEL_PORTS_MOST)
		return err_set(
			err, ERR_USAGE, "\"%s\" is not 1 to %u ports", value, TUNNEL_PORTS_MOST);
	return 0;
}

/* "hub.example.org", "hub.example.org:443", "[2001:db8::1]:443" */
static int parse_server(
	const char *value, char host[TUNNEL_HOST_BYTES], unsigned *number, struct err *err)
{
	const char *port = NULL;
	const char *colon = strrchr(value, ':');
	if (value[0] == '[') {
		const char *end = strchr(value, ']');
		snprintf(host, TUNNEL_HOST_BYTES, "%.*s", end ? (int)(end - value - 1) : 0,
			value + 1);
		port = end && end[1] == ':' ? end + 2 : NULL;
	} else if (colon) {
		snprintf(host, TUNNEL_HOST_BYTES, "%.*s", (int)(colon - value), value);
		port = colon + 1;
	} else {
		snprintf(host, TUNNEL_HOST_BYTES, "%s", value);
	}
	*number = 22;
	if (host[0] == '\0' || host[0] == '-' ||
		host[strspn(host, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
				  "0123456789._:-")] != '\0' ||
		(port && (!parse_port(port, &port, number) || *port != '\0')))
		return err_set(err, ERR_USAGE, "\"%s\" is no HOST[:PORT]", value);
	return 0;
}

/* A name of Debian's for a user: it becomes a pattern of sshd's, and a file's name. */
static int check_user(const char *value, struct err *err)
{
	size_t length = strspn(value, "abcdefghijklmnopqrstuvwxyz0123456789_-");
	if (value[length] != '\0' || length > 32 || value[0] == '-')
		return err_set(err, ERR_USAGE,
			"\"%s\" is no user (1 to 32 of a-z 0-9 _ -, not beginning with -)", value);
	return 0;
}

/* Of each value by itself, so that the error has its line. */
static int check_value(const struct setting *setting, const char *text, struct err *err)
{
	struct tunnel_endpoint endpoint;
	char host[TUNNEL_HOST_BYTES];
	unsigned port;
	if (strcmp(setting->name, "server") == 0)
		return parse_server(text, host, &port, err);
	if (strcmp(setting->name, "user") == 0)
		return check_user(text, err);
	if (strcmp(setting->name, "listen") == 0 || strcmp(setting->name, "to") == 0)
		return parse_endpoint(&endpoint, text, err);
	return 0;
}

/* --- what must fit together ------------------------------------------------------------------ */

/* They were looked at one by one; what could not be is not there. */
static void settle_section(struct tunnel_section *s)
{
	if (s->listen_text)
		parse_endpoint(&s->listen, s->listen_text, NULL);
	if (s->to_text)
		parse_endpoint(&s->to, s->to_text, NULL);
}

static const char *find_fault(const struct tunnel_section *s)
{
	if (!s->listen_text)
		return "it has no \"listen\"";
	if (!s->to_text)
		return "it has no \"to\"";
	if (s->listen.last - s->listen.first != s->to.last - s->to.first)
		return "it must lead to as many ports as it has";
	if (s->service != TUNNEL_NONE && s->listen.first != s->listen.last)
		return "it has several ports: most of the time nothing answers there (service = "
		       "none; another section tells whether the tunnel works)";
	if (s->ca_file && s->service != TUNNEL_REST)
		return "its ca-file is for service = rest";
	return NULL;
}

/* Two that want one port: ssh would end each time. */
static const struct tunnel_section *find_overlap(
	const struct tunnel_section *sections, const struct tunnel_section *s)
{
	for (const struct tunnel_section *other = sections; other < s; other++)
		if (strcmp(other->listen.address, s->listen.address) == 0 &&
			other->listen.first <= s->listen.last &&
			s->listen.first <= other->listen.last)
			return other;
	return NULL;
}

/* Whether one of them shows that the tunnel works. */
static bool check_sections(
	struct settings_reading *r, const char *kind, struct tunnel_section *sections, size_t nr)
{
	bool proven = false;
	for (size_t i = 0; i < nr; i++) {
		struct tunnel_section *s = &sections[i];
		unsigned line = settings_named_line(r, kind, i);
		settle_section(s);
		const char *fault = find_fault(s);
		const struct tunnel_section *other = find_overlap(sections, s);
		if (fault)
			settings_wrong(r, line, "[%s %s]: %s", kind, s->name, fault);
		else if (other)
			settings_wrong(r, line, "[%s %s] listens where the section in line %u does",
				kind, s->name,
				settings_named_line(r, kind, (size_t)(other - sections)));
		proven |= s->service != TUNNEL_NONE;
	}
	return proven;
}

static int derive(struct settings_reading *r, void *values, struct err *err)
{
	struct tunnel_config *c = values;
	const char *const names[] = {"server", "user", "identity", "known-hosts"};
	const char *const given[] = {c->server, c->user, c->identity, c->known_hosts};
	(void)err;
	for (unsigned i = 0; i < ARRAY_LENGTH(names); i++)
		if (!given[i])
			settings_wrong(r, 0, "[tunnel] has no \"%s\"", names[i]);
	if (c->server)
		parse_server(c->server, c->host, &c->port, NULL);
	for (size_t i = 0; i < c->nr_reverses; i++)
		c->reverses[i].reverse = true;
	bool proven = check_sections(r, "forward", c->forwards, c->nr_forwards);
	proven |= check_sections(r, "reverse", c->reverses, c->nr_reverses);
	if (!proven)
		settings_wrong(r, 0,
			"no [forward NAME] or [reverse NAME] has a service (nbd, nbds or rest): "
			"nothing would show whether the tunnel works");
	return 0;
}

static const struct settings_named named[] = {
	{"forward", offsetof(struct tunnel_config, forwards),
		offsetof(struct tunnel_config, nr_forwards), sizeof(struct tunnel_section),
		offsetof(struct tunnel_section, name)},
	{"reverse", offsetof(struct tunnel_config, reverses),
		offsetof(struct tunnel_config, nr_reverses), sizeof(struct tunnel_section),
		offsetof(struct tunnel_section, name)},
	{0},
};

static const struct settings settings = {
	.owner = "tunnel",
	.bytes = sizeof(struct tunnel_config),
	.path = offsetof(struct tunnel_config, path),
	.table = table,
	.nr_table = ARRAY_LENGTH(table),
	.named = named,
	.check = check_value,
	.derive = derive,
};

/* --- the whole -------------------------------------------------------------------------------- */

struct tunnel_config *tunnel_config_load(const char *path, struct err *err)
{
	return settings_load(&settings, path, NULL, NULL, err);
}

void tunnel_config_free(struct tunnel_config *config)
{
	settings_free(&settings, config);
}

void tunnel_endpoint_text(
	const struct tunnel_endpoint *endpoint, unsigned port, char out[TUNNEL_ENDPOINT_BYTES + 16])
{
	bool six = strchr(endpoint->address, ':') != NULL;
	snprintf(out, TUNNEL_ENDPOINT_BYTES + 16, six ? "[%s]:%u" : "%s:%u", endpoint->address,
		port);
}
