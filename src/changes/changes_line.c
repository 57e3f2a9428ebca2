/*
 * One line of the list.
 *
 * Extents come by the million: they are read by hand, and whatever does not fit is
 * read again by the JSON library, which can say better what is wrong.
 */
#include "changes_internal.h"

#include <inttypes.h>
#include <jansson.h>

/* --- extents, by hand ------------------------------------------------------------ */

struct text {
	const char *at, *end;
};

static void skip_space(struct text *c)
{
	while (c->at < c->end && (*c->at == ' ' || *c->at == '\t' || *c->at == '\r'))
		c->at++;
}

/* Takes that character, with white space around it. */
static bool take(struct text *c, char wanted)
{
	skip_space(c);
	if (c->at == c->end || *c->at != wanted)
		return false;
	c->at++;
	skip_space(c);
	return true;
}

static bool take_word(struct text *c, const char *word, size_t length)
{
	if ((size_t)(c->end - c->at) < length || memcmp(c->at, word, length) != 0)
		return false;
	c->at += length;
	return true;
}

/* A whole number of 0..2^63-1 as JSON has it: no sign, no leading zeros. */
static bool take_number(struct text *c, uint64_t *number)
{
	const char *first = c->at;
	uint64_t n = 0;
	while (c->at < c->end && *c->at >= '0' && *c->at <= '9') {
		uint64_t digit = (uint64_t)(*c->at++ - '0');
		if (n > (INT64_MAX - digit) / 10)
			return false;
		n = n * 10 + digit;
	}
	*number = n;
	return c->at > first && (*first != '0' || c->at == first + 1);
}

bool changes_line_extent(const char *line, size_t length, struct changes_extent *extent)
{
	static const char offset_word[] = "\"offset\"", length_word[] = "\"length\"";
	struct text c = {line, line + length};
	bool has_offset = false, has_length = false;
	for (unsigned i = 0; i < 2; i++) {
		uint64_t *number = &extent->offset;
		bool *has = &has_offset;
		if (!take(&c, i == 0 ? '{' : ','))
			return false;
		if (!take_word(&c, offset_word, sizeof offset_word - 1)) {
			if (!take_word(&c, length_word, sizeof length_word - 1))
				return false;
			number = &extent->length;
			has = &has_length;
		}
		if (*has || !take(&c, ':') || !take_number(&c, number))
			return false;
		*has = true;
	}
	return take(&c, '}') && c.at == c.end;
}

/* --- the others, by the library ----------------------------------------------------- */

static json_t *parse(const char *line, size_t length, struct err *err)
{
	json_error_t error;
	json_t *object = json_loadb(line, length, JSON_REJECT_DUPLICATES, &error);
	if (json_is_object(object))
		return object;
	json_decref(object);
	err_set(err, ERR_FORMAT, "is not a JSON object");
	return NULL;
}

static int get_number(const json_t *object, const char *name, uint64_t *number, struct err *err)
{
	const json_t *value = json_object_get(object, name);
	if (!json_is_integer(value) || json_integer_value(value) < 0)
		return err_set(err, ERR_FORMAT, "needs \"%s\", a whole number of 0..%" PRId64, name,
			INT64_MAX);
	*number = (uint64_t)json_integer_value(value);
	return 0;
}

static int get_id(
	const json_t *object, const char *name, char id[CHANGES_ID_BYTES_MAX + 1], struct err *err)
{
	const json_t *value = json_object_get(object, name);
	const char *text = json_string_value(value);
	size_t length = json_string_length(value);
	bool bad = !text || length == 0 || length > CHANGES_ID_BYTES_MAX;
	for (size_t i = 0; !bad && i < length; i++)
		bad = (unsigned char)text[i] < 0x20 || text[i] == 0x7f;
	if (bad)
		return err_set(err, ERR_FORMAT,
			"needs \"%s\", a change id of 1..%u bytes without control characters", name,
			CHANGES_ID_BYTES_MAX);
	memcpy(id, text, length + 1);
	return 0;
}

static int get_key(const json_t *object, char key[CHANGES_KEY_BYTES_MAX + 1], struct err *err)
{
	static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
				      "0123456789_-";
	const json_t *value = json_object_get(object, "key");
	const char *text = json_string_value(value);
	size_t length = json_string_length(value);
	if (!text || length == 0 || length > CHANGES_KEY_BYTES_MAX ||
		strspn(text, allowed) != length)
		return err_set(err, ERR_FORMAT,
			"needs \"key\", the disk's key: 1..%u of A-Z a-z 0-9 _ -",
			CHANGES_KEY_BYTES_MAX);
	memcpy(key, text, length + 1);
	return 0;
}

static int read_header(const json_t *object, struct changes_header *header, struct err *err)
{
	const json_t *version = json_object_get(object, "sendense-extents");
	if (!version)
		return err_set(err, ERR_FORMAT,
			"is not the first line of an extents file "
			"({\"sendense-extents\":1,...})");
	if (!json_is_integer(version) || json_integer_value(version) != 1)
		return err_set(err, ERR_FORMAT, "has a version that is not 1, the only one known");
	if (get_key(object, header->key, err) < 0 ||
		get_number(object, "size", &header->size_bytes, err) < 0 ||
		get_id(object, "from", header->from, err) < 0 ||
		get_id(object, "to", header->to, err) < 0)
		return -1;
	if (header->size_bytes == 0)
		return err_set(err, ERR_FORMAT, "tells of a disk of 0 bytes");
	if (json_object_size(object) != 5)
		return err_set(err, ERR_FORMAT,
			"has other members than sendense-extents, key, size, from, to");
	return 0;
}

int changes_line_header(
	const char *line, size_t length, struct changes_header *header, struct err *err)
{
	json_t *object = parse(line, length, err);
	int rc = object ? read_header(object, header, err) : -1;
	json_decref(object);
	return rc;
}

static int read_end(const json_t *object, uint64_t *count, uint64_t *bytes, struct err *err)
{
	uint64_t number;
	if (!json_object_get(object, "end")) {
		if (get_number(object, "offset", &number, err) == 0 &&
			get_number(object, "length", &number, err) == 0)
			err_set(err, ERR_FORMAT, "has other members than offset and length");
		return -1;
	}
	if (!json_is_true(json_object_get(object, "end")))
		return err_set(err, ERR_FORMAT, "has an \"end\" that is not true");
	if (get_number(object, "count", count, err) < 0 ||
		get_number(object, "bytes", bytes, err) < 0)
		return -1;
	if (json_object_size(object) != 3)
		return err_set(err, ERR_FORMAT, "has other members than end, count, bytes");
	return 0;
}

int changes_line_end(
	const char *line, size_t length, uint64_t *count, uint64_t *bytes, struct err *err)
{
	json_t *object = parse(line, length, err);
	int rc = object ? read_end(object, count, bytes, err) : -1;
	json_decref(object);
	return rc;
}
