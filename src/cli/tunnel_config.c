/* The file of a tunnel, read strictly with libinih. */
#include "tunnel_config.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ini.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct loading {
	struct tunnel_config *config;
	struct err err; /* the first one */
};

/* --- values ---------------------------------------------------------------------------------- */

static int set_text(char **to, const char *value, struct err *err)
{
	if (*to)
		return err_set(err, ERR_USAGE, "it is given twice");
	if (value[0] == '\0')
		return err_set(err, ERR_USAGE, "it is empty");
	*to = strdup(value);
	return *to ? 0 : err_errno(err, ENOMEM, "cannot keep it");
}

static int set_path(char **to, const char *value, struct err *err)
{
	if (value[0] != '/')
		return err_set(err, ERR_USAGE, "\"%s\" is no absolute path", value);
	return set_text(to, value, err);
}

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
static int set_endpoint(struct tunnel_endpoint *to, const char *value, struct err *err)
{
	const char *port;
	if (to->first)
		return err_set(err, ERR_USAGE, "it is given twice");
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
static int set_server(struct tunnel_config *config, const char *value, struct err *err)
{
	char host[256];
	const char *port = NULL;
	const char *colon = strrchr(value, ':');
	if (value[0] == '[') {
		const char *end = strchr(value, ']');
		snprintf(host, sizeof host, "%.*s", end ? (int)(end - value - 1) : 0, value + 1);
		port = end && end[1] == ':' ? end + 2 : NULL;
	} else if (colon) {
		snprintf(host, sizeof host, "%.*s", (int)(colon - value), value);
		port = colon + 1;
	} else {
		snprintf(host, sizeof host, "%s", value);
	}
	config->port = 22;
	if (host[0] == '\0' || (port && (!parse_port(port, &port, &config->port) || *port != '\0')))
		return err_set(err, ERR_USAGE, "\"%s\" is no HOST[:PORT]", value);
	return set_text(&config->host, host, err);
}

static int set_service(enum tunnel_service *to, const char *value, struct err *err)
{
	static const char *const names[] = {"none", "nbd", "nbds", "rest"};
	for (unsigned i = 0; i < ARRAY_LENGTH(names); i++) {
		if (strcmp(value, names[i]) != 0)
			continue;
		*to = (enum tunnel_service)i;
		return 0;
	}
	return err_set(err, ERR_USAGE, "\"%s\" is not one of none, nbd, nbds, rest", value);
}

/* --- sections ----------------------------------------------------------------------------------
 */

static int set_tunnel(
	struct tunnel_config *config, const char *name, const char *value, struct err *err)
{
	if (strcmp(name, "server") == 0)
		return set_server(config, value, err);
	if (strcmp(name, "user") == 0)
		return set_text(&config->user, value, err);
	if (strcmp(name, "identity") == 0)
		return set_path(&config->identity, value, err);
	if (strcmp(name, "known-hosts") == 0)
		return set_path(&config->known_hosts, value, err);
	return err_set(
		err, ERR_USAGE, "there is no such setting (server, user, identity, known-hosts)");
}

static int set_forward(
	struct tunnel_section *section, const char *name, const char *value, struct err *err)
{
	if (strcmp(name, "listen") == 0)
		return set_endpoint(&section->listen, value, err);
	if (strcmp(name, "to") == 0)
		return set_endpoint(&section->to, value, err);
	if (strcmp(name, "service") == 0)
		return set_service(&section->service, value, err);
	if (strcmp(name, "ca-file") == 0)
		return set_path(&section->ca_file, value, err);
	return err_set(err, ERR_USAGE, "there is no such setting (listen, to, service, ca-file)");
}

static struct tunnel_section *find_section(
	struct tunnel_config *config, bool reverse, const char *name, struct err *err)
{
	size_t length =
		strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-");
	if (length == 0 || length > 32 || name[length] != '\0') {
		err_set(err, ERR_USAGE, "\"%s\" is no name (1 to 32 of A-Z a-z 0-9 _ -)", name);
		return NULL;
	}
	for (size_t i = 0; i < config->nr_sections; i++)
		if (config->sections[i].reverse == reverse &&
			strcmp(config->sections[i].name, name) == 0)
			return &config->sections[i];
	if (config->nr_sections == TUNNEL_SECTIONS_MOST) {
		err_set(err, ERR_USAGE, "there are more than %u sections", TUNNEL_SECTIONS_MOST);
		return NULL;
	}
	struct tunnel_section *section = &config->sections[config->nr_sections++];
	section->reverse = reverse;
	snprintf(section->name, sizeof section->name, "%s", name);
	return section;
}

static int set(struct tunnel_config *config, const char *section, const char *name,
	const char *value, struct err *err)
{
	bool reverse = strncmp(section, "reverse ", 8) == 0;
	if (strcmp(section, "tunnel") == 0)
		return set_tunnel(config, name, value, err);
	if (!reverse && strncmp(section, "forward ", 8) != 0)
		return err_set(err, ERR_USAGE,
			"there is no such section ([tunnel], [forward NAME], [reverse NAME])");
	struct tunnel_section *found = find_section(config, reverse, section + 8, err);
	return found ? set_forward(found, name, value, err) : -1;
}

static int on_setting(void *user, const char *section, const char *name, const char *value)
{
	struct loading *l = user;
	if (l->err.code != ERR_NONE)
		return 1;
	if (set(l->config, section, name, value, &l->err) == 0)
		return 1;
	err_context(&l->err, "[%s] %s", section, name);
	return 0;
}

/* --- the whole
 * ------------------------------------------------------------------------------------ */

static int check_section(const struct tunnel_section *s, struct err *err)
{
	const char *kind = s->reverse ? "reverse" : "forward";
	if (!s->listen.first || !s->to.first)
		return err_set(err, ERR_USAGE, "[%s %s] has no \"%s\"", kind, s->name,
			s->listen.first ? "to" : "listen");
	if (s->listen.last - s->listen.first != s->to.last - s->to.first)
		return err_set(err, ERR_USAGE,
			"[%s %s] leads from %u ports to %u: they must be as many", kind, s->name,
			s->listen.last - s->listen.first + 1, s->to.last - s->to.first + 1);
	if (s->service != TUNNEL_NONE && s->listen.first != s->listen.last)
		return err_set(err, ERR_USAGE,
			"[%s %s] has several ports: most of the time nothing answers there "
			"(service = none; another forward tells whether the tunnel works)",
			kind, s->name);
	if (s->ca_file && s->service != TUNNEL_REST)
		return err_set(
			err, ERR_USAGE, "[%s %s] ca-file is for service = rest", kind, s->name);
	return 0;
}

static int check(const struct tunnel_config *config, struct err *err)
{
	const char *const names[] = {"server", "user", "identity", "known-hosts"};
	const char *const values[] = {
		config->host, config->user, config->identity, config->known_hosts};
	bool proven = false;
	for (unsigned i = 0; i < ARRAY_LENGTH(names); i++)
		if (!values[i])
			return err_set(err, ERR_USAGE, "[tunnel] has no \"%s\"", names[i]);
	if (config->nr_sections == 0)
		return err_set(err, ERR_USAGE, "there is no [forward NAME] and no [reverse NAME]");
	for (size_t i = 0; i < config->nr_sections; i++) {
		if (check_section(&config->sections[i], err) < 0)
			return -1;
		proven |= config->sections[i].service != TUNNEL_NONE;
	}
	if (!proven)
		return err_set(err, ERR_USAGE,
			"no forward has a service (nbd, nbds or rest): nothing would show whether "
			"the tunnel works");
	return 0;
}

int tunnel_config_load(struct tunnel_config *config, const char *path, struct err *err)
{
	struct loading l = {.config = config, .err = ERR_INIT};
	char *AUTO_FREE text = NULL;
	size_t length;
	memset(config, 0, sizeof *config);
	if (file_load(AT_FDCWD, path, 65536, &text, &length, err) < 0)
		return err_context(err, "cannot read the tunnel's settings");
	if (strlen(text) != length)
		return err_set(err, ERR_USAGE, "%s: it holds a zero byte", path);
	int line = ini_parse_string(text, on_setting, &l);
	if (line == 0 && l.err.code == ERR_NONE && check(config, &l.err) == 0)
		return 0;
	/* Where both are, the earlier line counts, which is the one that libinih gives. */
	if (l.err.code == ERR_NONE)
		err_set(&l.err, ERR_USAGE, "this is neither a [section] nor \"name = value\"");
	if (line > 0)
		err_context(&l.err, "%s:%d", path, line);
	else
		err_context(&l.err, "%s", path);
	tunnel_config_clear(config);
	return err_copy(err, &l.err);
}

void tunnel_config_clear(struct tunnel_config *config)
{
	free(config->host);
	free(config->user);
	free(config->identity);
	free(config->known_hosts);
	for (size_t i = 0; i < config->nr_sections; i++)
		free(config->sections[i].ca_file);
	memset(config, 0, sizeof *config);
}

void tunnel_endpoint_text(
	const struct tunnel_endpoint *endpoint, unsigned port, char out[TUNNEL_ENDPOINT_BYTES + 16])
{
	bool six = strchr(endpoint->address, ':') != NULL;
	snprintf(out, TUNNEL_ENDPOINT_BYTES + 16, six ? "[%s]:%u" : "%s:%u", endpoint->address,
		port);
}
