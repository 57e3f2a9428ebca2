/* Fields of a spec, checked; see jobfields.h. */
#include "jobfields.h"

#include "repository.h"

#include <inttypes.h>
#include <string.h>

#define TEXT_MOST 4096u

static bool is_choice(const char *const *choices, const char *text)
{
	for (size_t i = 0; choices && choices[i]; i++)
		if (strcmp(choices[i], text) == 0)
			return true;
	return !choices;
}

static int check_text(
	const struct jobfield *f, const char *where, const json_t *value, struct err *err)
{
	const char *text = json_string_value(value);
	size_t length = text ? strlen(text) : 0;
	if (!text || length != json_string_length(value) || length == 0 || length > TEXT_MOST)
		return err_set(err, ERR_USAGE, "%s%s: it is no text of 1 to %u bytes", where,
			f->name, TEXT_MOST);
	for (size_t i = 0; i < length; i++)
		if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f)
			return err_set(err, ERR_USAGE, "%s%s: it holds a control character", where,
				f->name);
	int rc = 0;
	if (f->type == FIELD_VM)
		rc = repository_name_check_vm(text, err);
	else if (f->type == FIELD_KEY)
		rc = repository_name_check_key(text, err);
	else if (f->type == FIELD_POINT && !repository_name_is_point(text))
		rc = err_set(err, ERR_USAGE, "%s is no restore point's id", text);
	else if (!is_choice(f->choices, text))
		rc = err_set(err, ERR_USAGE, "%s is none of those that there are", text);
	return rc < 0 ? err_context(err, "%s%s", where, f->name) : 0;
}

static int check_value(
	const struct jobfield *f, const char *where, const json_t *value, struct err *err)
{
	static const char *const names[] = {[FIELD_BOOL] = "neither true nor false",
		[FIELD_INTEGER] = "no whole number",
		[FIELD_NUMBER] = "no number",
		[FIELD_ARRAY] = "no list",
		[FIELD_OBJECT] = "no object"};
	bool good = true;
	switch (f->type) {
	case FIELD_BOOL:
		good = json_is_boolean(value);
		break;
	case FIELD_INTEGER:
		good = json_is_integer(value);
		break;
	case FIELD_NUMBER:
		good = json_is_number(value);
		break;
	case FIELD_ARRAY:
		good = json_is_array(value);
		break;
	case FIELD_OBJECT:
		good = json_is_object(value);
		break;
	default:
		return check_text(f, where, value, err);
	}
	if (!good)
		return err_set(err, ERR_USAGE, "%s%s: it is %s", where, f->name, names[f->type]);
	json_int_t nr = f->type == FIELD_INTEGER ? json_integer_value(value)
			: f->type == FIELD_ARRAY ? (json_int_t)json_array_size(value)
						 : f->least;
	if (nr < f->least || (f->most > 0 && nr > f->most))
		return err_set(err, ERR_USAGE,
			"%s%s: must be %" JSON_INTEGER_FORMAT " to %" JSON_INTEGER_FORMAT
			"%s, not %" JSON_INTEGER_FORMAT,
			where, f->name, f->least, f->most, f->type == FIELD_ARRAY ? " members" : "",
			nr);
	return 0;
}

int jobfields_check_member(
	enum jobfield_type type, const char *name, const json_t *value, struct err *err)
{
	const struct jobfield one = {.name = name, .type = type};
	return check_value(&one, "", value, err);
}

int jobfields_check(
	const struct jobfield *fields, const char *where, const json_t *object, struct err *err)
{
	const char *name;
	json_t *value;
	if (!json_is_object(object))
		return err_set(err, ERR_USAGE, "%sit is no object", where);
	json_object_foreach((json_t *)object, name, value)
	{
		const struct jobfield *f = fields;
		while (f->name && strcmp(f->name, name) != 0)
			f++;
		if (!f->name)
			return err_set(
				err, ERR_USAGE, "%s%.64s: there is no such field", where, name);
		if ((f->required || !json_is_null(value)) && check_value(f, where, value, err) < 0)
			return -1;
	}
	for (const struct jobfield *f = fields; f->name; f++)
		if (f->required && !json_object_get(object, f->name))
			return err_set(err, ERR_USAGE, "%s%s: it is missing", where, f->name);
	return 0;
}
