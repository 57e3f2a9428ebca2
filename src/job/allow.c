/* What jobs from outside may name; see allow.h. */
#include "allow.h"

#include "allow_internal.h"
#include "repository.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#define USES_DISKS (1u << ALLOW_SOURCE | 1u << ALLOW_TARGET)

/* Longer ones before those that they begin with. */
static const struct {
	const char *prefix;
	enum allow_shape shape;
	unsigned port; /* where none is named */
	unsigned uses;
} schemes[] = {
	{"nbd://", ALLOW_NET, 10809, USES_DISKS},
	{"nbds://", ALLOW_NET, 10809, USES_DISKS},
	{"nbd+unix:", ALLOW_SOCKET, 0, USES_DISKS},
	{"nbds+unix:", ALLOW_SOCKET, 0, USES_DISKS},
	{"raw:", ALLOW_FILE, 0, USES_DISKS},
	{"qcow2:", ALLOW_FILE, 0, USES_DISKS},
	{"extents:", ALLOW_FILE, 0, 1u << ALLOW_SOURCE},
	{"qemu:", ALLOW_MACHINE, 0, 1u << ALLOW_SOURCE},
	{"null:", ALLOW_NULL, 0, USES_DISKS},
	{"https://", ALLOW_NET, 443, 1u << ALLOW_WEBHOOK},
	{"http://", ALLOW_NET, 80, 1u << ALLOW_WEBHOOK},
};

static const char *use_name(enum allow_use use)
{
	static const char *const names[] = {"source", "target", "webhook"};
	return names[use];
}

/* --- parsing ----------------------------------------------------------------------- */

/* Undoes percent-encoding; false for a bad one, a control character, or too long a text. */
static bool decode(const char *text, size_t length, char *out, size_t bytes)
{
	size_t used = 0;
	for (size_t i = 0; i < length; i++) {
		char c = text[i];
		if (c == '%') {
			int value = i + 2 < length ? hex_pair(text + i + 1) : -1;
			if (value < 0)
				return false;
			c = (char)value;
			i += 2;
		}
		if ((unsigned char)c < 0x20 || c == 0x7f || used + 1 >= bytes)
			return false;
		out[used++] = c;
	}
	out[used] = '\0';
	return true;
}

/* Whether ".." is one of the path's parts. */
static bool climbs(const char *path)
{
	for (const char *at = path; *at; at += strspn(at, "/")) {
		size_t length = strcspn(at, "/");
		if (length == 2 && at[0] == '.' && at[1] == '.')
			return true;
		at += length;
	}
	return false;
}

/* HOST, HOST:PORT, [V6]:PORT; port "*" in rules. */
static bool parse_host(struct allow_name *n, const char *text, size_t length, bool is_rule)
{
	static const char good[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
				   "0123456789.-_";
	const char *end = text + length, *host = text;
	size_t host_length;
	if (length > 0 && *text == '[') {
		host++;
		const char *close = memchr(text, ']', length);
		host_length = close ? (size_t)(close - host) : 0;
		text = close ? close + 1 : end;
	} else {
		host_length = strspn(text, good);
		if (host_length > length)
			host_length = length;
		text += host_length;
	}
	if (host_length == 0 || host_length >= sizeof n->host || (text < end && *text != ':'))
		return false;
	memcpy(n->host, host, host_length);
	n->host[host_length] = '\0';
	struct in6_addr v6;
	if (host[-1] == '[' && inet_pton(AF_INET6, n->host, &v6) != 1)
		return false;
	if (text == end)
		return true;
	text++;
	n->any_port = is_rule && end - text == 1 && *text == '*';
	if (n->any_port)
		return true;
	n->port = 0;
	for (; text < end && *text >= '0' && *text <= '9' && n->port <= 65535; text++)
		n->port = n->port * 10 + (unsigned)(*text - '0');
	return text == end && n->port > 0 && n->port <= 65535;
}

/* What follows "scheme://": HOST/NAME?QUERY. */
static const char *parse_net(struct allow_name *n, const char *rest, bool is_rule)
{
	size_t length = strcspn(rest, "/?#");
	if (memchr(rest, '@', length))
		return "user names and passwords in it are not taken";
	if (!parse_host(n, rest, length, is_rule))
		return "its host or port is malformed";
	rest += length;
	rest += *rest == '/';
	length = strcspn(rest, "?#");
	if (!decode(rest, length, n->name, sizeof n->name))
		return "its name is malformed or too long";
	if (climbs(n->name))
		return "\"..\" is not taken";
	rest += length;
	if (*rest == '#' || strchr(rest, '#'))
		return "it has a #fragment";
	if (*rest == '?' && !is_rule)
		return "parameters are not taken";
	n->query = *rest == '?' ? rest : "";
	return NULL;
}

/* Absolute, without "." and empty parts. */
static const char *parse_path(struct allow_name *n, const char *text, size_t length)
{
	char path[PATH_MAX];
	if (!decode(text, length, path, sizeof path))
		return "its path is malformed or too long";
	if (path[0] != '/')
		return "its path does not begin at /";
	if (climbs(path))
		return "\"..\" is not taken";
	size_t used = 0;
	for (const char *at = path + strspn(path, "/"); *at; at += strspn(at, "/")) {
		size_t part = strcspn(at, "/");
		if (part != 1 || *at != '.')
			used += (size_t)snprintf(
				n->path + used, sizeof n->path - used, "/%.*s", (int)part, at);
		at += part;
	}
	if (used == 0)
		snprintf(n->path, sizeof n->path, "/");
	return NULL;
}

/* Rules: "nbd+unix:/FOLDER/"; names: "nbd+unix:///NAME?socket=PATH". */
static const char *parse_socket(struct allow_name *n, const char *rest, bool is_rule)
{
	static const char key[] = "?socket=";
	if (is_rule && strncmp(rest, "//", 2) != 0)
		return parse_path(n, rest, strlen(rest));
	if (is_rule)
		return "a rule is written nbd+unix:/FOLDER/";
	if (strncmp(rest, "///", 3) != 0)
		return "it is not written nbd+unix:///NAME?socket=PATH";
	size_t length = strcspn(rest, "?#");
	n->query = rest; /* "///NAME", as it was written */
	n->query_length = length;
	if (!decode(rest + 3, length - 3, n->name, sizeof n->name))
		return "its name is malformed or too long";
	rest += length;
	if (strncmp(rest, key, sizeof key - 1) != 0 || strpbrk(rest + 1, "?#&"))
		return "it must have exactly ?socket=PATH";
	rest += sizeof key - 1;
	return parse_path(n, rest, strlen(rest));
}

/* A file's name is no URI: '%' stands for itself. */
static const char *parse_file(struct allow_name *n, const char *rest)
{
	char escaped[3 * PATH_MAX];
	size_t used = 0;
	for (; *rest && used + 4 < sizeof escaped; rest++)
		used += (size_t)snprintf(
			escaped + used, sizeof escaped - used, *rest == '%' ? "%%25" : "%c", *rest);
	return *rest ? "its path is too long" : parse_path(n, escaped, used);
}

static const char *parse_rest(struct allow_name *n, const char *rest, bool is_rule)
{
	switch (n->shape) {
	case ALLOW_NET:
		return parse_net(n, rest, is_rule);
	case ALLOW_SOCKET:
		return parse_socket(n, rest, is_rule);
	case ALLOW_NULL:
		return is_rule && *rest ? "nothing follows it" : NULL;
	default:
		return parse_file(n, rest);
	}
}

int allow_parse(
	struct allow_name *n, const char *text, bool is_rule, enum allow_use use, struct err *err)
{
	memset(n, 0, sizeof *n);
	n->query = "";
	const char *what = is_rule ? "the rule" : use_name(use);
	for (size_t i = 0; i < ARRAY_LENGTH(schemes); i++) {
		size_t length = strlen(schemes[i].prefix);
		if (strncmp(text, schemes[i].prefix, length) != 0 || !(schemes[i].uses & 1u << use))
			continue;
		n->scheme = schemes[i].prefix;
		n->shape = schemes[i].shape;
		n->port = schemes[i].port;
		const char *why = parse_rest(n, text + length, is_rule);
		if (!why)
			return 0;
		return err_set(err, ERR_USAGE, "%s %.200s: %s", what, text, why);
	}
	return err_set(err, ERR_USAGE, "%s %.200s: it begins with no scheme that a %s may have",
		what, text, use_name(use));
}

int allow_check_rule(const char *rule, enum allow_use use, struct err *err)
{
	struct allow_name n;
	if (rule[0] == '!' && use != ALLOW_WEBHOOK)
		return rule[1] == '/'
			       ? 0
			       : err_set(err, ERR_USAGE,
					 "the rule %.200s: its path does not begin at /", rule);
	return allow_parse(&n, rule, true, use, err);
}

/* --- comparing --------------------------------------------------------------------- */

static bool same_host(const char *a, const char *b)
{
	struct in6_addr va, vb;
	if (inet_pton(AF_INET6, a, &va) == 1 && inet_pton(AF_INET6, b, &vb) == 1)
		return memcmp(&va, &vb, sizeof va) == 0;
	return strcasecmp(a, b) == 0;
}

/* The same, below it, or, with '*', beginning so. */
static bool covers(const char *rule, const char *name)
{
	size_t length = strlen(rule);
	if (length == 0)
		return true;
	if (rule[length - 1] == '*')
		return strncmp(rule, name, length - 1) == 0;
	if (strncmp(rule, name, length) != 0)
		return false;
	return name[length] == '\0' || name[length] == '/' || rule[length - 1] == '/';
}

static bool net_allows(const struct allow_name *rule, const struct allow_name *name)
{
	return (rule->any_port || rule->port == name->port) && same_host(rule->host, name->host) &&
	       covers(rule->name, name->name);
}

/* *checked is made where the rule matches; 0 no match, 1 allowed, -1 error. */
static int try_rule(const char *const *rules, const struct allow_name *rule,
	const struct allow_name *name, const char *text, enum allow_use use,
	char checked[ALLOW_NAME_BYTES], struct err *err)
{
	if (strcmp(rule->scheme, name->scheme) != 0)
		return 0;
	switch (name->shape) {
	case ALLOW_NULL:
		snprintf(checked, ALLOW_NAME_BYTES, "%s", text);
		return 1;
	case ALLOW_NET:
		if (!net_allows(rule, name))
			return 0;
		snprintf(checked, ALLOW_NAME_BYTES, "%s%s", text, rule->query);
		return 1;
	default:
		return allow_local(rules, rule, name, use, checked, err);
	}
}

int allow_check(const char *const *rules, enum allow_use use, const char *name,
	char checked[ALLOW_NAME_BYTES], struct err *err)
{
	struct allow_name n, rule;
	char own[ALLOW_NAME_BYTES];
	struct err denied = ERR_INIT;
	if (strlen(name) > PATH_MAX)
		return err_set(err, ERR_USAGE, "%s %.64s...: it is too long", use_name(use), name);
	if (allow_parse(&n, name, false, use, err) < 0)
		return -1;
	for (size_t i = 0; rules && rules[i]; i++) {
		if (rules[i][0] == '!')
			continue;
		if (allow_parse(&rule, rules[i], true, use, err) < 0)
			return -1;
		struct err why = ERR_INIT;
		int rc = try_rule(rules, &rule, &n, name, use, checked ? checked : own, &why);
		if (rc > 0)
			return 0;
		if (rc < 0)
			denied = why;
	}
	if (denied.code != ERR_NONE)
		return err_copy(err, &denied);
	err_set(err, ERR_DENIED, "%s %.200s is not allowed here", use_name(use), name);
	return err_hint(err, "whoever runs the daemon can allow it: [allow] %s = ...%s",
		use_name(use), use == ALLOW_WEBHOOK ? "" : ", and a restart");
}

void allow_host(const char *name, char host[256])
{
	struct allow_name n;
	host[0] = '\0';
	if (allow_parse(&n, name, false, ALLOW_SOURCE, NULL) == 0 && n.shape == ALLOW_NET)
		snprintf(host, 256, "%s", n.host);
}
