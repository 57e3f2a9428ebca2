/* Inside of index. */
#ifndef SENDENSE_CATALOGUE_INDEX_INTERNAL_H
#define SENDENSE_CATALOGUE_INDEX_INTERNAL_H

#include "db.h"
#include "index.h"

struct index {
	struct db db;
};

/* A cursor is hexadecimal for "TIME\nREPOSITORY\nVM\nID". */
struct cursor_place {
	int64_t time;
	char text[INDEX_CURSOR_BYTES / 2];
	const char *repository, *vm, *id; /* in text */
};
void index_cursor_make(const struct index_point *point, char cursor[INDEX_CURSOR_BYTES]);
int index_cursor_parse(const char *cursor, struct cursor_place *place, struct err *err);

#endif
