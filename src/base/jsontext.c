/* The shape of a JSON text; see jsontext.h. */
#include "jsontext.h"

#include <stdbool.h>

struct jsontext_shape jsontext_shape(const char *text, size_t length)
{
	struct jsontext_shape shape = {.nr_values = 1};
	uint64_t depth = 0;
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
			shape.nr_values++;
			if (++depth > shape.depth)
				shape.depth = depth;
		} else if (c == ']' || c == '}') {
			depth -= depth > 0;
		} else if (c == ',') {
			shape.nr_values++;
		}
	}
	return shape;
}
