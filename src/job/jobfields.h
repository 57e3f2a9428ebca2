/* jobfields: which fields an object of a spec has, and of what they are. */
#ifndef SENDENSE_JOB_JOBFIELDS_H
#define SENDENSE_JOB_JOBFIELDS_H

#include "base.h"

#include <jansson.h>

enum jobfield_type {
	FIELD_TEXT,
	FIELD_BOOL,
	FIELD_INTEGER,
	FIELD_NUMBER,
	FIELD_ARRAY,
	FIELD_OBJECT,
	FIELD_VM,
	FIELD_KEY,
	FIELD_POINT
};

struct jobfield {
	const char *name;
	enum jobfield_type type;
	bool required;
	json_int_t least, most; /* FIELD_INTEGER, and of how many members FIELD_ARRAY is */
	const char *const *choices; /* FIELD_TEXT */
};

#define JOBFIELDS_END                               \
	{                                           \
		NULL, FIELD_TEXT, false, 0, 0, NULL \
	}

/* where: "disks[0]."; ERR_USAGE names the field. */
int jobfields_check(
	const struct jobfield *fields, const char *where, const json_t *object, struct err *err);
/* One value by itself, as a field of that name would be: a list's member. */
int jobfields_check_member(
	enum jobfield_type type, const char *name, const json_t *value, struct err *err);

#endif
