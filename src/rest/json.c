/*
 * JSON from outside.  The depth is looked at before the parser sees the text, because the
 * parser recurses and the threads' stacks are small.
 */
#include "rest_internal.h"

/* The deepest nesting, as far as brackets tell it; strings are skipped. */
static bool is_too_deep(const char *text, size_t length)
{
	unsigned depth = 0;
	bool in_string = false;
	for (size_t i = 0; i < length; i++) {
		char c = text[i];
		if (in_string) {
			if (c == '\\')
				i++;
			else if (c == '"')
				in_string = false;
		} else if (c == '"') {
			in_string = true;
		} else if (c == '[' || c == '{') {
			if (++depth > REST_DEPTH_MOST)
				return true;
		} else if ((c == ']' || c == '}') && depth) {
			depth--;
		}
	}
	return false;
}

json_t *rest_json_parse(const void *text, size_t length, struct err *err)
{
	json_error_t why;
	if (is_too_deep(text, length)) {
		err_set(err, ERR_FORMAT, "not acceptable JSON: nested deeper than %u levels",
			REST_DEPTH_MOST);
		return NULL;
	}
	json_t *value = json_loadb(text, length, JSON_REJECT_DUPLICATES, &why);
	if (!value)
		err_set(err, ERR_FORMAT, "not JSON: line %d, column %d: %s", why.line, why.column,
			why.text);
	return value;
}
