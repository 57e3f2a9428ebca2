/* What a text means for each kind of setting. */
#include "settings_internal.h"

#include "locator.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

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
static int parse_address(const char *text, struct settings_address *address, struct err *err)
{
	const char *colon = strrchr(text, ':');
	size_t length = colon ? (size_t)(colon - text) : 0;
	const char *host = text;
	bool bracketed = length > 2 && text[0] == '[' && text[length - 1] == ']';
	if (bracketed) {
		host++;
		length -= 2;
	}
	struct settings_address found = {0};
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
	const struct setting *setting, const char *text, uint64_t value, struct err *err)
{
	if ((setting->least == 0 && setting->most == 0) ||
		(value >= setting->least && value <= setting->most))
		return 0;
	if (setting->kind == SETTING_TEXT)
		return err_set(err, ERR_USAGE,
			"\"%s\" has %" PRIu64 " bytes, not %" PRIu64 " to %" PRIu64, text, value,
			setting->least, setting->most);
	return err_set(err, ERR_USAGE, "%s is not within %" PRIu64 " to %" PRIu64 "%s", text,
		setting->least, setting->most, setting->kind == SETTING_DURATION ? " seconds" : "");
}

static int set_number(const struct setting *setting, void *value, const char *text, struct err *err)
{
	uint64_t number = 0;
	int rc = setting->kind == SETTING_SIZE       ? locator_parse_size(text, &number, err)
		 : setting->kind == SETTING_DURATION ? clock_parse_duration(text, &number, err)
						     : parse_number(text, &number, err);
	if (rc < 0 || check_bounds(setting, text, number, err) < 0)
		return -1;
	if (setting->kind == SETTING_NUMBER)
		*(unsigned *)value = (unsigned)number;
	else
		*(uint64_t *)value = number;
	return 0;
}

int settings_text_set(const struct setting *setting, void *base, const char *text, struct err *err)
{
	void *value = (char *)base + setting->offset;
	switch (setting->kind) {
	case SETTING_TEXT:
		return check_bounds(setting, text, strlen(text), err) < 0
			       ? -1
			       : copy_text(text, value, err);
	case SETTING_PATH:
		return check_path(text, err) < 0 ? -1 : copy_text(text, value, err);
	case SETTING_LIST:
		return append_text(value, text, err);
	case SETTING_ADDRESS:
		return parse_address(text, value, err);
	case SETTING_CHOICE:
		return parse_choice(setting->choices, text, value, err);
	case SETTING_BOOL:
		return parse_bool(text, value, err);
	case SETTING_PORTS:
		return parse_ports(text, value, err);
	default:
		return set_number(setting, value, text, err);
	}
}

void settings_text_clear(const struct setting *setting, void *base)
{
	void *value = (char *)base + setting->offset;
	if (setting->kind == SETTING_TEXT || setting->kind == SETTING_PATH) {
		free(*(char **)value);
		*(char **)value = NULL;
	} else if (setting->kind == SETTING_LIST) {
		char **list = *(char ***)value;
		for (size_t i = 0; list && list[i]; i++)
			free(list[i]);
		free(list);
		*(char ***)value = NULL;
	}
}

static size_t bytes_of(enum setting_kind kind)
{
	switch (kind) {
	case SETTING_ADDRESS:
		return sizeof(struct settings_address);
	case SETTING_PORTS:
		return 2 * sizeof(unsigned);
	case SETTING_BOOL:
		return sizeof(bool);
	case SETTING_SIZE:
	case SETTING_DURATION:
		return sizeof(uint64_t);
	default:
		return sizeof(unsigned);
	}
}

int settings_text_copy(const struct setting *setting, void *to, const void *from, struct err *err)
{
	void *out = (char *)to + setting->offset;
	const void *in = (const char *)from + setting->offset;
	int rc = 0;
	if (setting->kind == SETTING_TEXT || setting->kind == SETTING_PATH) {
		const char *text = *(char *const *)in;
		rc = text ? copy_text(text, out, err) : 0;
	} else if (setting->kind == SETTING_LIST) {
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

bool settings_text_equal(const struct setting *setting, const void *a, const void *b)
{
	const void *x = (const char *)a + setting->offset, *y = (const char *)b + setting->offset;
	switch (setting->kind) {
	case SETTING_TEXT:
	case SETTING_PATH:
		return equal_texts(*(char *const *)x, *(char *const *)y);
	case SETTING_LIST:
		return equal_lists(*(char **const *)x, *(char **const *)y);
	case SETTING_ADDRESS: {
		const struct settings_address *p = x, *q = y;
		return p->port == q->port && strcmp(p->host, q->host) == 0;
	}
	case SETTING_PORTS:
		return memcmp(x, y, 2 * sizeof(unsigned)) == 0;
	case SETTING_BOOL:
		return *(const bool *)x == *(const bool *)y;
	case SETTING_SIZE:
	case SETTING_DURATION:
		return *(const uint64_t *)x == *(const uint64_t *)y;
	default:
		return *(const unsigned *)x == *(const unsigned *)y;
	}
}

/* --- addresses as text ------------------------------------------------------------------ */

const char *settings_address_text(
	const struct settings_address *address, char out[SETTINGS_ADDRESS_BYTES])
{
	snprintf(out, SETTINGS_ADDRESS_BYTES, strchr(address->host, ':') ? "[%s]:%u" : "%s:%u",
		address->host, address->port);
	return out;
}

void settings_address_url(const struct settings_address *address, bool tls, const char *name,
	unsigned port, char out[SETTINGS_URL_BYTES])
{
	bool all = strcmp(address->host, "0.0.0.0") == 0 || strcmp(address->host, "::") == 0;
	const char *host = all && name ? name : address->host;
	snprintf(out, SETTINGS_URL_BYTES, strchr(host, ':') ? "%s://[%s]:%u" : "%s://%s:%u",
		tls ? "https" : "http", host, port);
}
