/*
 * From the request's line to a route.  The target is taken as it came, and each part is
 * percent-decoded once, by itself, after it was cut out: "%2F" can't become another segment,
 * and what could mislead a handler that makes a name of it (a NUL, "..") is refused.  A slash
 * may be in a machine's name alone.
 */
#include "rest_internal.h"

#include <stdio.h>

static bool is_utf8(const char *text)
{
	json_t *string = json_string(text);
	json_decref(string);
	return string != NULL;
}

/* In place; plus: "+" is a space, as forms have it. */
static int decode(char *text, bool plus, struct err *err)
{
	const char *from = text;
	char *to = text;
	for (; *from; from++) {
		unsigned char c = (unsigned char)*from;
		if (c == '%') {
			int value = hex_pair(from + 1);
			if (value < 0)
				return err_set(err, ERR_USAGE, "a \"%%\" without two hex digits");
			c = (unsigned char)value;
			from += 2;
		} else if (c == '+' && plus) {
			c = ' ';
		}
		if (c < 0x20 || c == 0x7f)
			return err_set(err, ERR_USAGE, "a control character (%%%02X)", c);
		*to++ = (char)c;
	}
	*to = 0;
	return is_utf8(text) ? 0 : err_set(err, ERR_USAGE, "bytes that are not UTF-8");
}

static int take_segment(struct rest_target *target, char *segment, struct err *err)
{
	if (target->nr_segments == ARRAY_LENGTH(target->segments))
		return err_set(err, ERR_USAGE, "too many segments");
	if (decode(segment, false, err))
		return -1;
	if (!strcmp(segment, ".") || !strcmp(segment, ".."))
		return err_set(err, ERR_USAGE, "a segment that is \".\" or \"..\"");
	target->segments[target->nr_segments++] = segment;
	return 0;
}

static int take_query(struct rest_target *target, char *pair, struct err *err)
{
	if (!*pair)
		return 0;
	if (target->nr_queries == REST_QUERIES_MOST)
		return err_set(err, ERR_USAGE, "more than %d parameters", REST_QUERIES_MOST);
	char *value = strchr(pair, '=');
	if (value)
		*value++ = 0;
	else
		value = pair + strlen(pair);
	if (decode(pair, true, err) || decode(value, true, err))
		return -1;
	for (size_t i = 0; i < target->nr_queries; i++)
		if (!strcmp(target->queries[i].name, pair))
			return err_set(err, ERR_USAGE, "the parameter \"%s\" twice", pair);
	target->queries[target->nr_queries++] = (struct rest_pair){pair, value};
	return 0;
}

static int take_apart(struct rest_target *target, char *path, char *query, struct err *err)
{
	for (char *next = path; next;) {
		char *segment = next;
		next = strchr(segment, '/');
		if (next)
			*next++ = 0;
		if (take_segment(target, segment, err))
			return -1;
	}
	for (char *next = query; next;) {
		char *pair = next;
		next = strchr(pair, '&');
		if (next)
			*next++ = 0;
		if (take_query(target, pair, err))
			return -1;
	}
	return 0;
}

/* Each path in one way: what somebody did to "web01" is found under that name, however he wrote it.
 */
static int make_path(struct rest_target *target, struct err *err)
{
	/* As much again as each byte escaped, and what rest_path_append() keeps free. */
	size_t bytes = 3 * strlen(target->raw) + 8;
	target->path = malloc(bytes);
	if (!target->path)
		return err_set(err, ERR_NO_MEMORY, "reading the request's target: no memory");
	target->path[0] = '\0';
	for (size_t i = 0; i < target->nr_segments; i++) {
		size_t used = strlen(target->path);
		memcpy(target->path + used, "/", 2);
		if (rest_path_append(target->path, bytes, target->segments[i], err) < 0)
			return -1;
	}
	return 0;
}

int rest_target_parse(const char *raw, struct rest_target *target, struct err *err)
{
	*target = (struct rest_target){0};
	size_t length = strlen(raw);
	if (length > REST_TARGET_MOST)
		return err_set(err, ERR_USAGE, "the request's target: longer than %d bytes",
			REST_TARGET_MOST);
	if (raw[0] != '/')
		return err_set(err, ERR_USAGE, "the request's target: does not begin with \"/\"");
	target->raw = strdup(raw);
	target->text = strdup(raw);
	if (!target->raw || !target->text)
		return err_set(err, ERR_NO_MEMORY, "reading the request's target: no memory");
	char *query = strchr(target->text, '?');
	if (query)
		*query++ = 0;
	if (take_apart(target, target->text + 1, query, err) || make_path(target, err))
		return err_context(err, "the request's target");
	return 0;
}

void rest_target_clear(struct rest_target *target)
{
	free(target->raw);
	free(target->text);
	free(target->path);
	*target = (struct rest_target){0};
}

/* --- matching --------------------------------------------------------------------------- */

/* 0: does not match; else the more, the more of it (from the left) is literal. */
static uint64_t match_path(
	const char *pattern, const struct rest_target *target, struct rest_match *match)
{
	uint64_t weight = 1;
	const char *at = pattern;
	match->nr_params = 0;
	for (size_t i = 0; i < target->nr_segments; i++) {
		if (*at != '/')
			return 0;
		const char *part = ++at;
		at += strcspn(at, "/?");
		size_t length = (size_t)(at - part);
		const char *segment = target->segments[i];
		bool is_param = length && *part == '{';
		if (is_param ? !*segment
			     : strlen(segment) != length || memcmp(segment, part, length) != 0)
			return 0;
		weight = weight << 1 | !is_param;
		if (!is_param)
			continue;
		if (strchr(segment, '/') && strncmp(part, "{vm}", length) != 0)
			return 0;
		if (match->nr_params == REST_PARAMS_MOST)
			return 0;
		match->params[match->nr_params++] =
			(struct rest_pair){(char *)(uintptr_t)(part + 1), target->segments[i]};
	}
	return *at && *at != '?' ? 0 : weight;
}

static void allow_more(char allow[REST_ALLOW_BYTES], const char *method)
{
	const char *words[] = {method, !strcmp(method, "GET") ? "HEAD" : ""};
	for (size_t i = 0; i < ARRAY_LENGTH(words); i++) {
		size_t length = strlen(allow);
		if (*words[i] && !strstr(allow, words[i]))
			snprintf(allow + length, REST_ALLOW_BYTES - length, "%s%s",
				length ? ", " : "", words[i]);
	}
}

unsigned rest_route_find(const struct rest_route *const *tables, const char *method,
	const struct rest_target *target, struct rest_match *match, char allow[REST_ALLOW_BYTES])
{
	uint64_t best = 0;
	const char *wanted = !strcmp(method, "HEAD") ? "GET" : method;
	allow[0] = 0;
	for (; *tables; tables++)
		for (const struct rest_route *route = *tables; route->method; route++) {
			struct rest_match tried = {.route = route};
			uint64_t weight = match_path(route->path, target, &tried);
			if (!weight)
				continue;
			allow_more(allow, route->method);
			if (weight > best && !strcmp(route->method, wanted)) {
				best = weight;
				*match = tried;
			}
		}
	if (best)
		return 0;
	return allow[0] ? 405 : 404;
}

const char *rest_route_queries(const struct rest_route *route)
{
	const char *queries = strchr(route->path, '?');
	return queries ? queries + 1 : "";
}

bool rest_route_knows(const struct rest_route *route, const char *query)
{
	size_t length = strlen(query);
	for (const char *at = rest_route_queries(route); *at; at += *at == '&') {
		size_t name = strcspn(at, "&");
		if (name == length && memcmp(at, query, length) == 0)
			return true;
		at += name;
	}
	return false;
}

const char *rest_match_param(const struct rest_match *match, const char *name)
{
	size_t length = strlen(name);
	for (size_t i = 0; i < match->nr_params; i++)
		if (!strncmp(match->params[i].name, name, length) &&
			match->params[i].name[length] == '}')
			return match->params[i].value;
	return NULL;
}
