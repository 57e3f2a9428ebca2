/*
 * Secrets in texts; see redact.h.
 *
 *   scheme://user:password@host:port/name?key=value&key=value
 *            ^^^^^^^^^^^^^                    ^^^^^     ^^^^^
 *
 * A URI ends with a space, a quote or a control character.  The rule leans to
 * hiding too much: a message stays readable with a star in it.
 */
#include "redact.h"

#include <ctype.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

static size_t uri_length(const char *text)
{
	size_t n = 0;
	while ((unsigned char)text[n] > 0x20 && !strchr("'\"<>`", text[n]))
		n++;
	return n;
}

/* Replaces [start, end) by one star; returns the place behind it. */
static char *hide(char *start, const char *end)
{
	*start = '*';
	memmove(start + 1, end, strlen(end) + 1);
	return start + 1;
}

/* "host:4711" and "host" hold nothing; "[::1]:4711" and "HOST[:PORT]" neither. */
static bool ends_in_port(const char *colon, const char *end)
{
	for (const char *c = colon + 1; c < end; c++)
		if (!isdigit((unsigned char)*c) && !strchr(":,;.)", *c))
			return false;
	return true;
}

static const char *last_at(const char *start, const char *end)
{
	while (end > start && end[-1] != '@')
		end--;
	return end > start ? end - 1 : NULL;
}

/* start: behind "://".  Returns the place behind the authority. */
static char *hide_user(char *start)
{
	char *end = start + uri_length(start);
	char *authority_end = start + strcspn(start, "/?#");
	authority_end = authority_end < end ? authority_end : end;
	const char *at = last_at(start, authority_end);
	const char *colon = memchr(start, ':', (size_t)(authority_end - start));
	if (at)
		return colon && colon < at ? hide(start, at) : authority_end;
	if (!colon || ends_in_port(colon, authority_end) ||
		memchr(start, '[', (size_t)(colon - start)))
		return authority_end;
	/* A password with a slash in it, or one that was cut off. */
	at = last_at(authority_end, end);
	return hide(start, at ? at : authority_end);
}

static bool is_harmless(const char *key, size_t length)
{
	static const char *const known[] = {"socket", "tls-certificates", "tls-hostname",
		"tls-psk-file", "tls-username", "tls-verify-peer"};
	for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
		if (strlen(known[i]) == length && strncmp(key, known[i], length) == 0)
			return true;
	return false;
}

static void hide_parameters(char *at)
{
	char *query = memchr(at, '?', uri_length(at));
	while (query) {
		char *key = query + 1;
		size_t key_length = strcspn(key, "=&");
		size_t left = uri_length(key);
		if (key_length >= left)
			return;
		char *next = key + key_length;
		if (*next == '=') {
			size_t length = strcspn(next + 1, "&");
			size_t most = uri_length(next + 1);
			length = length < most ? length : most;
			if (length > 0 && !is_harmless(key, key_length))
				next = hide(next + 1, next + 1 + length);
			else
				next += 1 + length;
		}
		query = *next == '&' ? next : NULL;
	}
}

void redact_uris(char *text)
{
	static const char mark[] = "://";
	for (char *uri = strstr(text, mark); uri; uri = strstr(uri, mark)) {
		uri += strlen(mark);
		uri = hide_user(uri);
		hide_parameters(uri);
	}
}

void redact_word(char *text, const char *word)
{
	size_t length = strlen(word);
	for (char *at = text; length > 0 && (at = strstr(at, word)) != NULL;)
		at = hide(at, at + length);
}
