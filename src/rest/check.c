/* Holds a JSON object to a table of the members that it may have. */
#include "rest_internal.h"

#include <inttypes.h>
#include <stdio.h>

#define STRING_MOST 4096 /* where the table has no bounds */

static const char *type_name(enum rest_type type)
{
	static const char *const names[] = {
		[REST_STRING] = "a string",
		[REST_INTEGER] = "a whole number",
		[REST_NUMBER] = "a number",
		[REST_BOOL] = "true or false",
		[REST_OBJECT] = "an object",
		[REST_ARRAY] = "an array",
	};
	return names[type];
}

static bool has_type(const json_t *value, enum rest_type type)
{
	switch (type) {
	case REST_STRING:
		return json_is_string(value);
	case REST_INTEGER:
		return json_is_integer(value);
	case REST_NUMBER:
		return json_is_number(value);
	case REST_BOOL:
		return json_is_boolean(value);
	case REST_OBJECT:
		return json_is_object(value);
	case REST_ARRAY:
		return json_is_array(value);
	}
	return false;
}

static int check_choice(
	const char *where, const struct rest_field *field, const char *text, struct err *err)
{
	char list[256] = "";
	for (const char *const *choice = field->choices; *choice; choice++) {
		if (!strcmp(*choice, text))
			return 0;
		size_t length = strlen(list);
		snprintf(list + length, sizeof list - length, "%s\"%s\"", length ? ", " : "",
			*choice);
	}
	return err_set(err, ERR_USAGE, "%s%s: must be one of %s", where, field->name, list);
}

/* Of a number its value, of a string its bytes, of an array its members. */
static int check_bounds(
	const char *where, const struct rest_field *field, const json_t *value, struct err *err)
{
	int64_t least = field->least, most = field->most, have;
	const char *unit = "";
	if (field->type == REST_STRING) {
		if (!least && !most)
			most = STRING_MOST;
		have = (int64_t)json_string_length(value);
		unit = " bytes";
	} else if (least == 0 && most == 0) {
		return 0;
	} else if (field->type == REST_INTEGER) {
		have = json_integer_value(value);
	} else if (field->type == REST_ARRAY) {
		have = (int64_t)json_array_size(value);
		unit = " members";
	} else {
		return 0;
	}
	if (have < least || have > most)
		return err_set(err, ERR_USAGE,
			"%s%s: must be %" PRId64 " to %" PRId64 "%s, not %" PRId64, where,
			field->name, least, most, unit, have);
	return 0;
}

static int check_field(
	const char *where, const struct rest_field *field, const json_t *value, struct err *err)
{
	if (!value) {
		if (field->required)
			return err_set(err, ERR_USAGE, "%s%s: is missing", where, field->name);
		return 0;
	}
	if (json_is_null(value) && field->nullable)
		return 0;
	if (!has_type(value, field->type))
		return err_set(err, ERR_USAGE, "%s%s: must be %s%s", where, field->name,
			type_name(field->type), field->nullable ? " or null" : "");
	if (check_bounds(where, field, value, err))
		return -1;
	if (field->type == REST_STRING && field->choices)
		return check_choice(where, field, json_string_value(value), err);
	return 0;
}

static bool is_known(const struct rest_field *fields, const char *name)
{
	for (const struct rest_field *field = fields; field->name; field++)
		if (!strcmp(field->name, name))
			return true;
	return false;
}

/* where: "" or "disks[0]." */
static int check(
	const char *where, const json_t *object, const struct rest_field *fields, struct err *err)
{
	const char *name;
	json_t *value;
	/* The iteration takes no const. */
	json_object_foreach((json_t *)(uintptr_t)object, name,
		value) if (!is_known(fields, name)) return err_set(err, ERR_USAGE,
		"%s%.64s: there is no such member", where, name);
	for (const struct rest_field *field = fields; field->name; field++)
		if (check_field(where, field, json_object_get(object, field->name), err))
			return -1;
	return 0;
}

int rest_check(const json_t *object, const struct rest_field *fields, struct err *err)
{
	return check("", object, fields, err);
}

int rest_check_in(
	const char *where, const json_t *object, const struct rest_field *fields, struct err *err)
{
	char prefix[256];
	snprintf(prefix, sizeof prefix, "%s.", where);
	if (object && !json_is_object(object))
		return err_set(err, ERR_USAGE, "%s: must be an object", where);
	return check(prefix, object, fields, err);
}

int rest_check_each(
	const char *where, const json_t *array, const struct rest_field *fields, struct err *err)
{
	size_t i;
	json_t *object;
	if (array && !json_is_array(array))
		return err_set(err, ERR_USAGE, "%s: must be an array", where);
	json_array_foreach(array, i, object)
	{
		char member[256];
		snprintf(member, sizeof member, "%s[%zu]", where, i);
		if (rest_check_in(member, object, fields, err))
			return -1;
	}
	return 0;
}
