/*
 * Bytes as a rule and a name ("RULE\nNAME").  What is allowed is looked at once more in the
 * plainest way: the same host between the same signs, no user, no "..", and a local path that comes
 * out below the rule's folder.
 */
#include "job.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* "HOST" of "scheme://HOST:PORT/...". */
static void host_of(const char *uri, char *out, size_t bytes)
{
	const char *at = strstr(uri, "://") + 3;
	size_t length = *at == '[' ? strcspn(at, "]") + 1 : strcspn(at, ":/?#");
	assert(length < bytes);
	memcpy(out, at, length);
	out[length] = '\0';
}

static void check_net(const char *rule, const char *name)
{
	char a[8192], b[8192];
	size_t authority = strcspn(strstr(name, "://") + 3, "/?#");
	assert(!memchr(strstr(name, "://") + 3, '@', authority));
	assert(!strchr(name, '#') && !strchr(name, '?'));
	host_of(rule, a, sizeof a);
	host_of(name, b, sizeof b);
	assert((a[0] == '[') == (b[0] == '['));
	if (a[0] != '[')
		assert(strcasecmp(a, b) == 0);
}

static void check_file(const char *rule, const char *checked)
{
	const char *path = strchr(checked, ':') + 1;
	assert(path[0] == '/' && !strstr(path, "/../") && !strstr(path, "//"));
	char *AUTO_FREE folder = realpath(strchr(rule, ':') + 1, NULL);
	size_t length = folder ? strlen(folder) : 0;
	if (length > 1)
		assert(strncmp(path, folder, length) == 0 &&
			(path[length] == '\0' || path[length] == '/'));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char rule[4096], name[4096], checked[ALLOW_NAME_BYTES];
	const uint8_t *end = size > 1 ? memchr(data + 1, '\n', size - 1) : NULL;
	if (!end || (size_t)(end - data) >= sizeof rule ||
		size - (size_t)(end - data) >= sizeof name)
		return 0;
	snprintf(rule, sizeof rule, "%.*s", (int)(end - data - 1), (const char *)data + 1);
	snprintf(name, sizeof name, "%.*s", (int)(size - (size_t)(end - data) - 1),
		(const char *)end + 1);
	enum allow_use use = data[0] % 3;
	const char *const rules[] = {rule, NULL};
	struct err err = ERR_INIT;
	if (allow_check(rules, use, name, checked, &err) < 0)
		return 0;
	assert(allow_check_rule(rule, use, &err) == 0);
	bool is_file = strncmp(rule, "raw:", 4) == 0 || strncmp(rule, "qcow2:", 6) == 0;
	bool is_net = strncmp(rule, "nbd://", 6) == 0 || strncmp(rule, "nbds://", 7) == 0 ||
		      strncmp(rule, "http", 4) == 0;
	if (is_net)
		check_net(rule, name);
	else if (is_file)
		check_file(rule, checked);
	return 0;
}
