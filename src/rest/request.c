/* What a handler can ask of a call. */
#include "rest_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

const char *rest_param(const struct rest_request *request, const char *name)
{
	return rest_match_param(&request->match, name);
}

const char *rest_query(const struct rest_request *request, const char *name)
{
	for (size_t i = 0; i < request->target.nr_queries; i++)
		if (!strcmp(request->target.queries[i].name, name))
			return request->target.queries[i].value;
	return NULL;
}

int rest_query_number(const struct rest_request *request, const char *name, uint64_t least,
	uint64_t most, uint64_t otherwise, uint64_t *value, struct err *err)
{
	const char *text = rest_query(request, name);
	*value = otherwise;
	if (!text)
		return 0;
	char *end;
	errno = 0;
	unsigned long long number = strtoull(text, &end, 10);
	if (*text < '0' || *text > '9' || *end || errno || number < least || number > most)
		return err_set(err, ERR_USAGE,
			"the parameter %s: must be a number from %" PRIu64 " to %" PRIu64, name,
			least, most);
	*value = number;
	return 0;
}

const char *rest_header(const struct rest_request *request, const char *name)
{
	return MHD_lookup_connection_value(request->connection, MHD_HEADER_KIND, name);
}

const struct rest_actor *rest_actor(const struct rest_request *request)
{
	return &request->actor;
}

const char *rest_peer(const struct rest_request *request)
{
	return request->line->address.text;
}

const json_t *rest_body(const struct rest_request *request)
{
	return request->body;
}

const void *rest_octets(const struct rest_request *request, size_t *length)
{
	*length = request->length;
	return request->length ? (const void *)request->bytes : "";
}

int rest_page(
	const struct rest_request *request, unsigned *limit, const char **after, struct err *err)
{
	uint64_t number;
	*after = rest_query(request, "after");
	if (*after && strlen(*after) > 512)
		return err_set(err, ERR_USAGE, "the parameter after: longer than 512 bytes");
	if (rest_query_number(request, "limit", 1, 1000, 100, &number, err))
		return -1;
	*limit = (unsigned)number;
	return 0;
}

void rest_set_job(struct rest_request *request, const char *job)
{
	snprintf(request->answer.job, sizeof request->answer.job, "%s", job);
}

void rest_set_etag(struct rest_request *request, uint64_t version)
{
	snprintf(request->answer.etag, sizeof request->answer.etag, "\"%" PRIu64 "\"", version);
}

int rest_check_match(const struct rest_request *request, uint64_t version, struct err *err)
{
	const char *wanted = rest_header(request, "If-Match");
	char tag[32];
	int length = snprintf(tag, sizeof tag, "\"%" PRIu64 "\"", version);
	if (!wanted || !strcmp(wanted, "*"))
		return 0;
	for (const char *at = wanted; (at = strstr(at, tag)); at += length)
		if (at == wanted || at[-1] != '/') /* W/"1" is a weak one */
			return 0;
	return err_set(err, ERR_RANGE,
		"it was changed by somebody else: If-Match names %.40s, it is %s now", wanted, tag);
}
