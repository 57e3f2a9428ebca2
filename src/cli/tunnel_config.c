/*
 * The file of a tunnel, read line by line with libinih, which passes over sections without
 * settings, cuts what is too long, and does not say which line it is at: so the reader
 * that hands it the lines looks at them first, and counts them.
 */
#include "tunnel_config.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ini.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LINE_MOST 4400 /* a path of 4,095 bytes, and its name */
#define NAME_MOST 48 /* libinih's own limit for sections and names */

struct loading {
	struct tunnel_config *config;
	struct tunnel_section *section; /* that the lines belong to; NULL: [tunnel], or none yet */
	const char *at; /* the next line */
	unsigned line; /* of the one before; of the error, when there is one */
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

/* A name of Debian's for a user: it becomes a pattern of sshd's, and a file's name. */
static int set_user(char **to, const char *value, struct err *err)
{
	size_t length = strspn(value, "abcdefghijklmnopqrstuvwxyz0123456789_-");
	if (value[length] != '\0' || length > 32 || value[0] == '-')
		return err_set(err, ERR_USAGE,
			"\"%s\" is no user (1 to 32 of a-z 0-9 _ -, not beginning with -)", value);
	return set_text(to, value, err);
}

static int set_seconds(unsigned *to, const char *value, struct err *err)
{
	char *end;
	unsigned long number = value[0] >= '0' && value[0] <= '9' ? strtoul(value, &end, 10) : 0;
	if (*to)
		return err_set(err, ERR_USAGE, "it is given twice");
	if (number == 0 || number > 3600 || strcmp(end, "s") != 0)
		return err_set(
			err, ERR_USAGE, "\"%s\" is no time from 1s to 3600s (like 30s)", value);
	*to = (unsigned)number;
	return 0;
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
	if (host[0] == '\0' || host[0] == '-' ||
		host[strspn(host, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
				  "0123456789._:-")] != '\0' ||
		(port && (!parse_port(port, &port, &config->port) || *port != '\0')))
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

/* --- sections -------------------------------------------------------------------------------- */

static int set_tunnel(
	struct tunnel_config *config, const char *name, const char *value, struct err *err)
{
	if (strcmp(name, "server") == 0)
		return set_server(config, value, err);
	if (strcmp(name, "user") == 0)
		return set_user(&config->user, value, err);
	if (strcmp(name, "identity") == 0)
		return set_path(&config->identity, value, err);
	if (strcmp(name, "known-hosts") == 0)
		return set_path(&config->known_hosts, value, err);
	if (strcmp(name, "look") == 0)
		return set_seconds(&config->look_s, value, err);
	if (strcmp(name, "pause-most") == 0)
		return set_seconds(&config->pause_most_s, value, err);
	return err_set(err, ERR_USAGE,
		"there is no such setting (server, user, identity, known-hosts, look, pause-most)");
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

static int add_section(struct loading *l, bool reverse, const char *name, struct err *err)
{
	struct tunnel_config *config = l->config;
	size_t length =
		strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-");
	if (length == 0 || length > 32 || name[length] != '\0')
		return err_set(
			err, ERR_USAGE, "\"%s\" is no name (1 to 32 of A-Z a-z 0-9 _ -)", name);
	for (size_t i = 0; i < config->nr_sections; i++)
		if (config->sections[i].reverse == reverse &&
			strcmp(config->sections[i].name, name) == 0)
			return err_set(err, ERR_USAGE, "this section is there already, in line %u",
				config->sections[i].line);
	if (config->nr_sections == TUNNEL_SECTIONS_MOST)
		return err_set(
			err, ERR_USAGE, "there are more than %u sections", TUNNEL_SECTIONS_MOST);
	l->section = &config->sections[config->nr_sections++];
	l->section->reverse = reverse;
	l->section->line = l->line;
	memcpy(l->section->name, name, length + 1);
	return 0;
}

static int begin_section(struct loading *l, const char *section, struct err *err)
{
	bool reverse = strncmp(section, "reverse ", 8) == 0;
	if (reverse || strncmp(section, "forward ", 8) == 0)
		return add_section(l, reverse, section + 8, err);
	if (strcmp(section, "tunnel") != 0)
		return err_set(err, ERR_USAGE,
			"there is no section \"%s\" ([tunnel], [forward NAME], [reverse NAME])",
			section);
	if (l->config->line)
		return err_set(err, ERR_USAGE, "this section is there already, in line %u",
			l->config->line);
	l->config->line = l->line;
	l->section = NULL;
	return 0;
}

static int on_setting(void *user, const char *section, const char *name, const char *value)
{
	struct loading *l = user;
	if (l->err.code != ERR_NONE)
		return 1;
	int rc = section[0] == '\0' ? err_set(&l->err, ERR_USAGE, "it stands before [tunnel]")
		 : l->section       ? set_forward(l->section, name, value, &l->err)
				    : set_tunnel(l->config, name, value, &l->err);
	if (rc < 0)
		err_context(&l->err, "%s", name);
	return 1;
}

/* --- lines ------------------------------------------------------------------------------------ */

static bool is_space(char c)
{
	return c == ' ' || c == '\t' || c == '\r';
}

/* 1: it is for libinih; 0: there is nothing in it. */
static int look_at(struct loading *l, const char *line, size_t length, struct err *err)
{
	while (length > 0 && is_space(line[length - 1]))
		length--;
	while (length > 0 && is_space(*line)) {
		line++;
		length--;
	}
	if (length == 0 || *line == '#' || *line == ';')
		return 0;
	if (length >= LINE_MOST - 4)
		return err_set(err, ERR_USAGE, "the line is longer than %d bytes", LINE_MOST - 4);
	const char *equals = memchr(line, '=', length);
	size_t name = equals ? (size_t)(equals - line) : 0;
	if (*line != '[')
		return name > 0 && name <= NAME_MOST && !memchr(line, ':', name)
			       ? 1
			       : err_set(err, ERR_USAGE,
					 "this is no setting (like user = sendense-web)");
	char section[NAME_MOST + 1];
	if (line[length - 1] != ']' || length - 2 > NAME_MOST)
		return err_set(err, ERR_USAGE, "this is no section (like [tunnel])");
	snprintf(section, sizeof section, "%.*s", (int)length - 2, line + 1);
	return begin_section(l, section, err) < 0 ? -1 : 1;
}

/* An ini_reader: one line after the other, until the first error. */
static char *next_line(char *out, int bytes, void *context)
{
	struct loading *l = context;
	if (!*l->at || l->err.code != ERR_NONE)
		return NULL;
	size_t length = strcspn(l->at, "\n");
	const char *line = l->at;
	l->at += length + (line[length] == '\n');
	l->line++;
	if (look_at(l, line, length, &l->err) <= 0 || length + 2 > (size_t)bytes)
		length = 0;
	memcpy(out, line, length);
	out[length] = '\n';
	out[length + 1] = '\0';
	return out;
}

/* --- the whole -------------------------------------------------------------------------------- */

static int check_section(const struct tunnel_section *s, struct err *err)
{
	if (!s->listen.first || !s->to.first)
		return err_set(
			err, ERR_USAGE, "it has no \"%s\"", s->listen.first ? "to" : "listen");
	if (s->listen.last - s->listen.first != s->to.last - s->to.first)
		return err_set(err, ERR_USAGE, "it leads from %u ports to %u: they must be as many",
			s->listen.last - s->listen.first + 1, s->to.last - s->to.first + 1);
	if (s->service != TUNNEL_NONE && s->listen.first != s->listen.last)
		return err_set(err, ERR_USAGE,
			"it has several ports: most of the time nothing answers there "
			"(service = none; another forward tells whether the tunnel works)");
	if (s->ca_file && s->service != TUNNEL_REST)
		return err_set(err, ERR_USAGE, "its ca-file is for service = rest");
	return 0;
}

/* Two sections that want one port: ssh would end each time. */
static const struct tunnel_section *find_overlap(
	const struct tunnel_config *config, const struct tunnel_section *s)
{
	for (const struct tunnel_section *other = config->sections; other < s; other++)
		if (other->reverse == s->reverse &&
			strcmp(other->listen.address, s->listen.address) == 0 &&
			other->listen.first <= s->listen.last &&
			s->listen.first <= other->listen.last)
			return other;
	return NULL;
}

static int check_sections(struct loading *l)
{
	const struct tunnel_config *config = l->config;
	for (size_t i = 0; i < config->nr_sections; i++) {
		const struct tunnel_section *s = &config->sections[i];
		l->line = s->line;
		if (check_section(s, &l->err) < 0)
			return err_context(
				&l->err, "[%s %s]", s->reverse ? "reverse" : "forward", s->name);
		const struct tunnel_section *other = find_overlap(config, s);
		if (other)
			return err_set(&l->err, ERR_USAGE,
				"[%s %s] listens where the section in line %u does",
				s->reverse ? "reverse" : "forward", s->name, other->line);
	}
	return 0;
}

static int check(struct loading *l)
{
	const struct tunnel_config *config = l->config;
	const char *const names[] = {"server", "user", "identity", "known-hosts"};
	const char *const values[] = {
		config->host, config->user, config->identity, config->known_hosts};
	bool proven = false;
	if (check_sections(l) < 0)
		return -1;
	l->line = config->line;
	for (unsigned i = 0; i < ARRAY_LENGTH(names); i++)
		if (!values[i])
			return err_set(&l->err, ERR_USAGE, "[tunnel] has no \"%s\"", names[i]);
	for (size_t i = 0; i < config->nr_sections; i++)
		proven |= config->sections[i].service != TUNNEL_NONE;
	if (!proven)
		return err_set(&l->err, ERR_USAGE,
			"no [forward NAME] or [reverse NAME] has a service (nbd, nbds or rest): "
			"nothing would show whether the tunnel works");
	return 0;
}

static void parse(struct loading *l)
{
	/* libinih's settings are the process's; nobody else uses it meanwhile. */
	ini_use_stack = false;
	ini_max_line = LINE_MOST + 4;
	ini_initial_alloc = LINE_MOST + 4;
	ini_allow_multiline = false;
	ini_allow_inline_comments = false;
	if (ini_parse_stream(next_line, l, on_setting, l) != 0 && l->err.code == ERR_NONE)
		err_set(&l->err, ERR_USAGE, "this cannot be read");
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
	l.at = text;
	parse(&l);
	if (l.err.code == ERR_NONE && check(&l) == 0)
		return 0;
	if (l.line > 0)
		err_context(&l.err, "%s:%u", path, l.line);
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
