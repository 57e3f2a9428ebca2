/*
 * places: inventory paths.  Folders, datacenters and vApps with their parents, from which the path
 * of what is in them is put together.
 */
#ifndef SENDENSE_VSPHERE_PLACES_H
#define SENDENSE_VSPHERE_PLACES_H

#include "memo.h"
#include "vim.h"

#define PLACES_DEPTH_MOST 64u

struct place {
	const char *moref, *name, *parent; /* parent: "" for none */
	bool is_datacenter;
};

struct places {
	struct place *places;
	size_t nr, room;
	bool sorted;
	struct memo memo;
};

/* Adds what was answered of an object that has a name and perhaps a parent. */
int places_add(struct places *places, const struct xml *object, struct err *err);

/* The moref of what the object is in, "" for nothing that is told. */
const char *places_parent(const struct xml *object);
/* The properties that both need, for a type: NULL-terminated. */
const char *const *places_paths(const char *type);

/* Asks the server for all that is above this object. */
int places_climb(struct vsphere *vsphere, struct places *places, const struct xml *object,
	struct deadline until, struct err *err);

/*
 * "/Datacenter/vm/folder/name", in memo; where what is above is not visible, it begins with "/?".
 * datacenter (may be NULL): the part of it that is its datacenter's path, "" when not visible.
 */
const char *places_path(struct places *places, const struct vsphere *vsphere, const char *parent,
	const char *name, struct memo *memo, const char **datacenter);

void places_free(struct places *places);

#endif
