/* Settings: their table, and what a text means for each kind. */
#include "config_internal.h"

#include "locator.h"
#include "log.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

static const char *const stops[] = {"hand-over", "cancel", NULL};
static const char *const logs[] = {"auto", "journal", "json", "text", NULL};
static const char *const levels[] = {"error", "warning", "info", "debug", NULL};
static const char *const clients[] = {"optional", "required", NULL};
static const char *const nbd_modes[] = {"single", "range", NULL};
static const char *const nbd_tls[] = {"off", "required", NULL};

#define HUB(member) .offset = offsetof(struct hub_config, member)
#define REPOSITORY(member) .offset = offsetof(struct job_repository, member)
#define YEAR UINT64_C(31536000)

/* In the order of docs/hub.md. */
const struct config_setting config_settings[] = {
	{"hub", "state-dir", CONFIG_PATH, HUB(state_dir), .otherwise = "/var/lib/sendense"},
	{"hub", "runtime-dir", CONFIG_PATH, HUB(runtime_dir), .otherwise = "/run/sendense"},
	{"hub", "listen", CONFIG_ADDRESS, HUB(listen), .otherwise = "127.0.0.1:8080"},
	{"hub", "name", CONFIG_TEXT, HUB(name), .most = 255},
	{"hub", "stop", CONFIG_CHOICE, HUB(stop), .otherwise = "hand-over", .choices = stops,
		.live = true},
	{"hub", "stop-timeout", CONFIG_DURATION, HUB(stop_timeout_s), .otherwise = "30s",
		.most = 3600, .live = true},
	{"hub", "log", CONFIG_CHOICE, HUB(log), .otherwise = "auto", .choices = logs, .live = true},
	{"hub", "log-level", CONFIG_CHOICE, HUB(log_level), .otherwise = "info", .choices = levels,
		.live = true},
	{"hub", "time-zone", CONFIG_TEXT, HUB(time_zone), .most = 255},
	{"hub", "keep-jobs", CONFIG_DURATION, HUB(keep_jobs_s), .otherwise = "90d", .least = 3600,
		.most = 100 * YEAR, .live = true},
	{"hub", "keep-events", CONFIG_DURATION, HUB(keep_events_s), .otherwise = "1y",
		.least = 3600, .most = 100 * YEAR, .live = true},

	{"tls", "certificate", CONFIG_PATH, HUB(certificate)},
	{"tls", "key", CONFIG_PATH, HUB(key)},
	{"tls", "ca", CONFIG_PATH, HUB(ca)},
	{"tls", "clients", CONFIG_CHOICE, HUB(clients), .otherwise = "optional",
		.choices = clients},

	{"nbd", "listen", CONFIG_ADDRESS, HUB(nbd_listen), .otherwise = "127.0.0.1:10809"},
	{"nbd", "mode", CONFIG_CHOICE, HUB(nbd_mode), .otherwise = "single", .choices = nbd_modes},
	{"nbd", "port-range", CONFIG_PORTS, HUB(nbd_port_first), .otherwise = "10100-10200"},
	{"nbd", "max-connections", CONFIG_NUMBER, HUB(nbd_most_connections), .otherwise = "256",
		.least = 1, .most = 65536},
	{"nbd", "tls", CONFIG_CHOICE, HUB(nbd_tls), .choices = nbd_tls},
	{"nbd", "address-for-clients", CONFIG_TEXT, HUB(nbd_address_for_clients), .most = 255},

	{"repository", "path", CONFIG_PATH, REPOSITORY(path)},
	{"repository", "id", CONFIG_TEXT, REPOSITORY(id), .least = 32, .most = 32},
	{"repository", "require-mount", CONFIG_BOOL, REPOSITORY(require_mount), .otherwise = "no"},
	{"repository", "warn-free", CONFIG_SIZE, REPOSITORY(warn_free_bytes)},
	{"repository", "stop-free", CONFIG_SIZE, REPOSITORY(stop_free_bytes)},

	{"limits", "jobs", CONFIG_NUMBER, HUB(most_jobs), .otherwise = "4", .least = 1,
		.most = 1000},
	{"limits", "jobs-per-source", CONFIG_NUMBER, HUB(most_jobs_per_source), .otherwise = "2",
		.least = 1, .most = 1000},
	{"limits", "memory-per-job", CONFIG_SIZE, HUB(memory_per_job_bytes), .otherwise = "0",
		.least = 0, .most = UINT64_MAX},
	{"limits", "connections", CONFIG_NUMBER, HUB(most_connections), .otherwise = "256",
		.least = 4, .most = 65536},
	{"limits", "connections-per-address", CONFIG_NUMBER, HUB(most_connections_per_address),
		.otherwise = "64", .least = 1, .most = 65536},

	{"allow", "source", CONFIG_LIST, HUB(allow_sources)},
	{"allow", "target", CONFIG_LIST, HUB(allow_targets)},
	{"allow", "webhook", CONFIG_LIST, HUB(allow_webhooks), .live = true},
	{"allow", "credentials", CONFIG_LIST, HUB(credentials)},

	{"notify", "webhook", CONFIG_TEXT, HUB(webhook), .most = 2048, .live = true},
	{"notify", "webhook-secret-file", CONFIG_PATH, HUB(webhook_secret_file), .live = true},
	{"notify", "mail-to", CONFIG_TEXT, HUB(mail_to), .most = 1024, .live = true},
	{"notify", "mail-from", CONFIG_TEXT, HUB(mail_from), .most = 255, .live = true},
	{"notify", "sendmail", CONFIG_PATH, HUB(sendmail), .otherwise = "/usr/sbin/sendmail",
		.live = true},

	{"builds", "warn", CONFIG_LIST, HUB(builds_warn), .live = true},
	{"builds", "allow", CONFIG_LIST, HUB(builds_allow), .live = true},
};
const size_t config_nr_settings = ARRAY_LENGTH(config_settings);

/* --- kinds ------------------------------------------------------------------------------ */

static int parse_number(const char *text, uint64_t *number, struct err *err)
{
	char *end;
	errno = 0;
	unsigned long long value = strtoull(text, &end, 10);
	if (!isdigit((unsigned char)text[0]) || *end || errno)
		return err_set(err, ERR_USAGE, "\"%s\" is not a number", text);
	*number = value;
	return 0;
}

static int parse_port(const char *text, unsigned *port, struct err *err)
{
	uint64_t number = 0;
	if (parse_number(text, &number, NULL) < 0 || number > 65535)
		return err_set(err, ERR_USAGE, "\"%s\" is not a port (0..65535)", text);
	*port = (unsigned)number;
	return 0;
}

static bool is_loopback(const char *host)
{
	struct in_addr v4;
	struct in6_addr v6;
	if (inet_pton(AF_INET, host, &v4) == 1)
		return ntohl(v4.s_addr) >> 24 == 127;
	return inet_pton(AF_INET6, host, &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

/* "127.0.0.1:8080", "[::1]:8080"; numeric, so that a name service has no say in it. */
static int parse_address(const char *text, struct hub_address *address, struct err *err)
{
	const char *colon = strrchr(text, ':');
	size_t length = colon ? (size_t)(colon - text) : 0;
	const char *host = text;
	bool bracketed = length > 2 && text[0] == '[' && text[length - 1] == ']';
	if (bracketed) {
		host++;
		length -= 2;
	}
	struct hub_address found = {0};
	unsigned char number[16];
	if (colon && length < sizeof found.host)
		memcpy(found.host, host, length);
	if (inet_pton(bracketed ? AF_INET6 : AF_INET, found.host, number) != 1)
		return err_set(err, ERR_USAGE,
			"\"%s\" is not a numeric address with a port (like 127.0.0.1:8080 or "
			"[::1]:8080)",
			text);
	if (!colon || parse_port(colon + 1, &found.port, err) < 0)
		return -1;
	found.loopback = is_loopback(found.host);
	*address = found;
	return 0;
}

static int parse_ports(const char *text, unsigned ports[2], struct err *err)
{
	char first[16];
	const char *dash = strchr(text, '-');
	size_t length = dash ? (size_t)(dash - text) : sizeof first;
	unsigned found[2] = {0};
	if (length >= sizeof first)
		return err_set(
			err, ERR_USAGE, "\"%s\" is not a range of ports (like 10100-10200)", text);
	memcpy(first, text, length);
	first[length] = '\0';
	if (parse_port(first, &found[0], err) < 0 || parse_port(dash + 1, &found[1], err) < 0)
		return -1;
	if (found[0] == 0 || found[0] > found[1])
		return err_set(err, ERR_USAGE, "\"%s\" holds no port", text);
	ports[0] = found[0];
	ports[1] = found[1];
	return 0;
}

static int parse_choice(
	const char *const *choices, const char *text, unsigned *choice, struct err *err)
{
	char all[256] = "";
	for (unsigned i = 0; choices[i]; i++) {
		if (strcmp(text, choices[i]) == 0) {
			*choice = i;
			return 0;
		}
		size_t used = strlen(all);
		snprintf(all + used, sizeof all - used, "%s%s", i ? ", " : "", choices[i]);
	}
	return err_set(err, ERR_USAGE, "\"%s\" is not one of: %s", text, all);
}

static int parse_bool(const char *text, bool *value, struct err *err)
{
	static const char *const words[] = {"no", "yes", "false", "true", "off", "on", NULL};
	unsigned choice;
	if (parse_choice(words, text, &choice, err) < 0)
		return -1;
	*value = choice % 2 == 1;
	return 0;
}

static int check_path(const char *text, struct err *err)
{
	if (text[0] != '/')
		return err_set(err, ERR_USAGE, "\"%s\" is not an absolute path", text);
	if (strlen(text) >= 4096)
		return err_set(err, ERR_USAGE, "the path is longer than 4095 bytes");
	return 0;
}

static int copy_text(const char *text, char **copy, struct err *err)
{
	char *made = strdup(text);
	if (!made)
		return err_errno(err, ENOMEM, "cannot keep it");
	free(*copy);
	*copy = made;
	return 0;
}

static int append_text(char ***list, const char *text, struct err *err)
{
	size_t nr = 0;
	while (*list && (*list)[nr])
		nr++;
	char **longer = reallocarray(*list, nr + 2, sizeof *longer);
	if (!longer)
		return err_errno(err, ENOMEM, "cannot keep it");
	*list = longer;
	longer[nr] = strdup(text);
	longer[nr + 1] = NULL;
	return longer[nr] ? 0 : err_errno(err, ENOMEM, "cannot keep it");
}

static int check_bounds(
	const struct config_setting *setting, const char *text, uint64_t value, struct err *err)
{
	if ((setting->least == 0 && setting->most == 0) ||
		(value >= setting->least && value <= setting->most))
		return 0;
	if (setting->kind == CONFIG_TEXT)
		return err_set(err, ERR_USAGE,
			"\"%s\" has %" PRIu64 " bytes, not %" PRIu64 " to %" PRIu64, text, value,
			setting->least, setting->most);
	return err_set(err, ERR_USAGE, "%s is not within %" PRIu64 " to %" PRIu64 "%s", text,
		setting->least, setting->most, setting->kind == CONFIG_DURATION ? " seconds" : "");
}

static int set_number(
	const struct config_setting *setting, void *value, const char *text, struct err *err)
{
	uint64_t number = 0;
	int rc = setting->kind == CONFIG_SIZE       ? locator_parse_size(text, &number, err)
		 : setting->kind == CONFIG_DURATION ? clock_parse_duration(text, &number, err)
						    : parse_number(text, &number, err);
	if (rc < 0 || check_bounds(setting, text, number, err) < 0)
		return -1;
	if (setting->kind == CONFIG_NUMBER)
		*(unsigned *)value = (unsigned)number;
	else
		*(uint64_t *)value = number;
	return 0;
}

int config_set(const struct config_setting *setting, void *base, const char *text, struct err *err)
{
	void *value = (char *)base + setting->offset;
	switch (setting->kind) {
	case CONFIG_TEXT:
		return check_bounds(setting, text, strlen(text), err) < 0
			       ? -1
			       : copy_text(text, value, err);
	case CONFIG_PATH:
		return check_path(text, err) < 0 ? -1 : copy_text(text, value, err);
	case CONFIG_LIST:
		return append_text(value, text, err);
	case CONFIG_ADDRESS:
		return parse_address(text, value, err);
	case CONFIG_CHOICE:
		return parse_choice(setting->choices, text, value, err);
	case CONFIG_BOOL:
		return parse_bool(text, value, err);
	case CONFIG_PORTS:
		return parse_ports(text, value, err);
	default:
		return set_number(setting, value, text, err);
	}
}

void config_clear(const struct config_setting *setting, void *base)
{
	void *value = (char *)base + setting->offset;
	if (setting->kind == CONFIG_TEXT || setting->kind == CONFIG_PATH) {
		free(*(char **)value);
		*(char **)value = NULL;
	} else if (setting->kind == CONFIG_LIST) {
		char **list = *(char ***)value;
		for (size_t i = 0; list && list[i]; i++)
			free(list[i]);
		free(list);
		*(char ***)value = NULL;
	}
}

static size_t bytes_of(enum config_kind kind)
{
	switch (kind) {
	case CONFIG_ADDRESS:
		return sizeof(struct hub_address);
	case CONFIG_PORTS:
		return 2 * sizeof(unsigned);
	case CONFIG_BOOL:
		return sizeof(bool);
	case CONFIG_SIZE:
	case CONFIG_DURATION:
		return sizeof(uint64_t);
	default:
		return sizeof(unsigned);
	}
}

int config_copy(const struct config_setting *setting, void *to, const void *from, struct err *err)
{
	void *out = (char *)to + setting->offset;
	const void *in = (const char *)from + setting->offset;
	int rc = 0;
	if (setting->kind == CONFIG_TEXT || setting->kind == CONFIG_PATH) {
		const char *text = *(char *const *)in;
		rc = text ? copy_text(text, out, err) : 0;
	} else if (setting->kind == CONFIG_LIST) {
		char *const *list = *(char **const *)in;
		for (size_t i = 0; rc == 0 && list && list[i]; i++)
			rc = append_text(out, list[i], err);
	} else {
		memcpy(out, in, bytes_of(setting->kind));
	}
	return rc;
}

static bool equal_texts(const char *a, const char *b)
{
	return a && b ? strcmp(a, b) == 0 : a == b;
}

static bool equal_lists(char *const *a, char *const *b)
{
	if (!a || !b)
		return a == b;
	size_t i = 0;
	while (a[i] && equal_texts(a[i], b[i]))
		i++;
	return !a[i] && !b[i];
}

bool config_equal(const struct config_setting *setting, const void *a, const void *b)
{
	const void *x = (const char *)a + setting->offset, *y = (const char *)b + setting->offset;
	switch (setting->kind) {
	case CONFIG_TEXT:
	case CONFIG_PATH:
		return equal_texts(*(char *const *)x, *(char *const *)y);
	case CONFIG_LIST:
		return equal_lists(*(char **const *)x, *(char **const *)y);
	case CONFIG_ADDRESS: {
		const struct hub_address *p = x, *q = y;
		return p->port == q->port && strcmp(p->host, q->host) == 0;
	}
	case CONFIG_PORTS:
		return memcmp(x, y, 2 * sizeof(unsigned)) == 0;
	case CONFIG_BOOL:
		return *(const bool *)x == *(const bool *)y;
	case CONFIG_SIZE:
	case CONFIG_DURATION:
		return *(const uint64_t *)x == *(const uint64_t *)y;
	default:
		return *(const unsigned *)x == *(const unsigned *)y;
	}
}
