/* Inventory paths; see places.h. */
#include "places.h"
#include "props.h"

#include <stdio.h>

/* A vApp is in a resource pool, but its place in the inventory is a folder or another vApp. */
static const char *const parent_paths[] = {"parentVApp", "parentFolder", "parent"};

const char *const *places_paths(const char *type)
{
	static const char *const plain[] = {"name", "parent", NULL};
	static const char *const vapp[] = {"name", "parent", "parentFolder", "parentVApp", NULL};
	return strcmp(type, "VirtualApp") != 0 ? plain : vapp;
}

static const struct xml *parent_of(const struct xml *object)
{
	for (size_t i = 0; i < ARRAY_LENGTH(parent_paths); i++) {
		const struct xml *parent = props_value(object, parent_paths[i]);
		if (parent && *parent->text && strcmp(parent->ref, "ResourcePool") != 0)
			return parent;
	}
	return NULL;
}

const char *places_parent(const struct xml *object)
{
	return xml_text(parent_of(object), "");
}

int places_add(struct places *places, const struct xml *object, struct err *err)
{
	const struct xml *obj = xml_child(object, "obj");
	if (places->nr == places->room) {
		size_t room = places->room * 2 + 16;
		struct place *grown = reallocarray(places->places, room, sizeof *grown);
		if (!grown)
			return err_set(err, ERR_NO_MEMORY, "listing folders: no memory");
		places->places = grown;
		places->room = room;
	}
	places->places[places->nr++] = (struct place){
		.moref = memo_text(&places->memo, xml_text(obj, "")),
		.name = memo_text(&places->memo, props_text(object, "name")),
		.parent = memo_text(&places->memo, places_parent(object)),
		.is_datacenter = obj && !strcmp(obj->ref, "Datacenter"),
	};
	places->sorted = false;
	return places->memo.failed ? err_set(err, ERR_NO_MEMORY, "listing folders: no memory") : 0;
}

static int by_moref(const void *a, const void *b)
{
	return strcmp(((const struct place *)a)->moref, ((const struct place *)b)->moref);
}

static const struct place *find(struct places *places, const char *moref)
{
	const struct place wanted = {.moref = moref};
	if (!places->nr)
		return NULL;
	if (!places->sorted)
		qsort(places->places, places->nr, sizeof *places->places, by_moref);
	places->sorted = true;
	return bsearch(&wanted, places->places, places->nr, sizeof wanted, by_moref);
}

int places_climb(struct vsphere *vsphere, struct places *places, const struct xml *object,
	struct deadline until, struct err *err)
{
	struct vim_answer answer = {.parser = NULL};
	int rc = 0;
	for (unsigned depth = 0; depth < PLACES_DEPTH_MOST && !rc; depth++) {
		const struct xml *parent = parent_of(object);
		if (!parent || !strcmp(parent->text, vsphere->root_folder))
			break;
		AUTO_FREE char *type = strdup(parent->ref), *moref = strdup(parent->text);
		vim_free(&answer); /* parent was in it */
		if (!type || !moref) {
			rc = err_set(err, ERR_NO_MEMORY, "asking for a path: no memory");
			break;
		}
		const struct props_spec spec = {type, places_paths(type)};
		struct err why = ERR_INIT;
		rc = props_get(vsphere, &spec, moref, until, &answer, &object, &why);
		if (rc && (why.code == ERR_DENIED || why.code == ERR_NOT_FOUND)) {
			rc = 0; /* not visible for this user */
			break;
		}
		rc = rc ? err_copy(err, &why) : places_add(places, object, err);
	}
	vim_free(&answer);
	return rc;
}

const char *places_path(struct places *places, const struct vsphere *vsphere, const char *parent,
	const char *name, struct memo *memo, const char **datacenter)
{
	const struct place *above[PLACES_DEPTH_MOST];
	unsigned depth = 0;
	while (depth < PLACES_DEPTH_MOST && strcmp(parent, vsphere->root_folder) != 0) {
		const struct place *place = *parent ? find(places, parent) : NULL;
		if (!place || !*place->name)
			break;
		above[depth++] = place;
		parent = place->parent;
	}
	const char *path = strcmp(parent, vsphere->root_folder) == 0 ? "" : "/?";
	if (datacenter)
		*datacenter = "";
	while (depth) {
		const struct place *place = above[--depth];
		path = memo_format(memo, "%s/%s", path, place->name);
		if (place->is_datacenter && datacenter)
			*datacenter = path;
	}
	return memo_format(memo, "%s/%s", path, name);
}

void places_free(struct places *places)
{
	free(places->places);
	memo_free(&places->memo);
	*places = (struct places){.nr = 0};
}
