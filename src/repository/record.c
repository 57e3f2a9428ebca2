/*
 * Records: JSON read within bounds, and written in the canonical form that its
 * digests are made of (docs/repository-format.md).
 *
 * The text is scanned for its depth and its number of values before the parser sees it,
 * because the parser recurses, and takes a lot of memory for each value; its size is
 * bounded when the file is loaded.
 */
#include "repository_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>

#define DEPTH_MOST 16u
/* A parsed value takes up to some 300 bytes. */
#define VALUES_MOST 65536u

static int check_shape(const char *text, size_t length, const char *name, struct err *err)
{
	struct jsontext_shape shape = jsontext_shape(text, length);
	if (shape.depth > DEPTH_MOST)
		return err_set(
			err, ERR_FORMAT, "%s is nested deeper than %u levels", name, DEPTH_MOST);
	if (shape.nr_values > VALUES_MOST)
		return err_set(err, ERR_FORMAT, "%s holds more than %u values", name, VALUES_MOST);
	return 0;
}

json_t *record_parse(const char *text, size_t length, const char *name, struct err *err)
{
	if (check_shape(text, length, name, err) < 0)
		return NULL;
	json_error_t error;
	json_t *value = json_loadb(text, length, JSON_REJECT_DUPLICATES, &error);
	if (!value) {
		char shown[sizeof error.text];
		name_printable(error.text, shown, sizeof shown);
		/* Not the text near it: that may be the digest seed. */
		char *near = strstr(shown, " near ");
		if (near)
			*near = '\0';
		err_set(err, ERR_FORMAT, "%s is not valid JSON: line %d: %s", name, error.line,
			shown);
		return NULL;
	}
	if (!json_is_object(value)) {
		json_decref(value);
		err_set(err, ERR_FORMAT, "%s is not a JSON object", name);
		return NULL;
	}
	return value;
}

json_t *record_load(int dir_fd, const char *path, struct err *err)
{
	char *AUTO_FREE text = NULL;
	size_t length;
	if (file_load(dir_fd, path, RECORD_BYTES_MOST, &text, &length, err) < 0)
		return NULL;
	return record_parse(text, length, path, err);
}

char *record_canonical(const json_t *value)
{
	return json_dumps(value, JSON_COMPACT | JSON_SORT_KEYS | JSON_ENCODE_ANY);
}

int record_digest(
	const json_t *value, const char *without, char hex[DIGEST_ROOT_HEX_BYTES], struct err *err)
{
	json_t *copy = NULL;
	if (without) {
		copy = json_copy((json_t *)value);
		json_object_del(copy, without);
		value = copy;
	}
	char *AUTO_FREE text = record_canonical(value);
	json_decref(copy);
	if (!text)
		return err_errno(err, ENOMEM, "cannot digest a record");
	uint8_t digest[DIGEST_ROOT_BYTES];
	digest_sha256(text, strlen(text), digest);
	digest_hex(digest, sizeof digest, hex);
	return 0;
}

char *record_text(const json_t *value, size_t *length, struct err *err)
{
	char *text = json_dumps(value, JSON_INDENT(1) | JSON_SORT_KEYS);
	if (!text) {
		err_errno(err, ENOMEM, "cannot write a record");
		return NULL;
	}
	*length = strlen(text);
	text[(*length)++] = '\n'; /* in place of the terminator: the length counts */
	return text;
}

int record_store(int dir_fd, const char *path, const json_t *value, struct err *err)
{
	size_t length;
	char *AUTO_FREE text = record_text(value, &length, err);
	if (!text)
		return -1;
	if (length > RECORD_BYTES_MOST)
		return err_set(err, ERR_USAGE,
			"%s would have %zu bytes, more than the %d it may have", path, length,
			RECORD_BYTES_MOST);
	return file_replace(dir_fd, path, text, length, 0600, err);
}

int record_check_format(const json_t *value, const char *name, struct err *err)
{
	uint64_t format;
	if (record_u64(value, "format", &format, name, err) < 0)
		return -1;
	if (format > REPOSITORY_FORMAT)
		return err_set(err, ERR_UNSUPPORTED,
			"%s was written by a newer Sendense: format %" PRIu64
			", this program reads %d",
			name, format, REPOSITORY_FORMAT);
	if (format < 1)
		return err_set(err, ERR_FORMAT, "%s states no known format", name);
	return 0;
}

int record_u64(
	const json_t *object, const char *field, uint64_t *out, const char *name, struct err *err)
{
	const json_t *value = json_object_get(object, field);
	if (!json_is_integer(value) || json_integer_value(value) < 0)
		return err_set(err, ERR_FORMAT, "%s: \"%s\" is missing or no number", name, field);
	*out = (uint64_t)json_integer_value(value);
	return 0;
}

const char *record_string(
	const json_t *object, const char *field, const char *name, struct err *err)
{
	const char *text = json_string_value(json_object_get(object, field));
	if (!text)
		err_set(err, ERR_FORMAT, "%s: \"%s\" is missing or no text", name, field);
	return text;
}

int record_text_into(const json_t *object, const char *field, char *out, size_t room,
	const char *name, struct err *err)
{
	const char *text = record_string(object, field, name, err);
	if (!text)
		return -1;
	if (strlen(text) >= room)
		return err_set(err, ERR_FORMAT, "%s: \"%s\" is too long", name, field);
	memcpy(out, text, strlen(text) + 1);
	return 0;
}

json_t *record_object(const json_t *object, const char *field, const char *name, struct err *err)
{
	json_t *value = json_object_get(object, field);
	if (!json_is_object(value)) {
		err_set(err, ERR_FORMAT, "%s: \"%s\" is missing or no object", name, field);
		return NULL;
	}
	return value;
}

int record_check_digest(const json_t *value, const json_t *holder, const char *field,
	const char *without, const char *name, struct err *err)
{
	char hex[DIGEST_ROOT_HEX_BYTES];
	const char *stated = record_string(holder, field, name, err);
	if (!stated || record_digest(value, without, hex, err) < 0)
		return -1;
	if (strcmp(stated, hex) != 0)
		return err_set(err, ERR_CORRUPT, "%s is damaged: its content does not match its %s",
			name, field);
	return 0;
}

json_t *record_printable(const char *text)
{
	size_t room = strlen(text) + 1;
	char *AUTO_FREE clean = malloc(room);
	if (!clean)
		return NULL;
	name_printable(text, clean, room);
	return json_string(clean);
}
