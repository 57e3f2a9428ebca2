/* What the files of rebuild share. */
#ifndef SENDENSE_REBUILD_INTERNAL_H
#define SENDENSE_REBUILD_INTERNAL_H

#include "rebuild.h"

#include <jansson.h>

struct rebuild_machine {
	json_t *json; /* REBUILD_FILE's, or an empty object */
	char *name; /* not empty */
	const char *firmware; /* "bios", "efi"; lent by json, or a literal */
	unsigned nr_cpus, cores_per_socket; /* > 0; the second divides the first */
	uint64_t memory_bytes;
};

/* Members of stored objects: "" and 0 for what is not there. */
const char *rebuild_text(const json_t *object, const char *name);
int64_t rebuild_number(const json_t *object, const char *name);
/* The array's object whose number `name` is that; NULL: none. */
const json_t *rebuild_find(const json_t *array, const char *name, int64_t number);

/* "" instead of what is no uuid, no MAC address. */
const char *rebuild_uuid(const struct rebuild_machine *machine);
const char *rebuild_mac(const json_t *nic);

#endif
