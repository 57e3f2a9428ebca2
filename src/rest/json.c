/*
 * JSON from outside.  The depth is looked at before the parser sees the text, because the
 * parser recurses and the threads' stacks are small.
 */
#include "rest_internal.h"

json_t *rest_json_parse(const void *text, size_t length, struct err *err)
{
	json_error_t why;
	if (jsontext_shape(text, length).depth > REST_DEPTH_MOST) {
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
