/*
 * jsontext: the shape of a JSON text, looked at before a parser sees it: parsers recurse, and
 * take a lot of memory for each value.
 */
#ifndef SENDENSE_JSONTEXT_H
#define SENDENSE_JSONTEXT_H

#include <stddef.h>
#include <stdint.h>

struct jsontext_shape {
	uint64_t depth; /* the deepest nesting, as far as brackets tell it */
	uint64_t nr_values; /* at most so many values; members' names do not count */
};

/* Strings are skipped.  The text need not be JSON. */
struct jsontext_shape jsontext_shape(const char *text, size_t length);

#endif
