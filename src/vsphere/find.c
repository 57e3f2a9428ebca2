/* Which VMs there are, and which of them is meant. */
#include "places.h"
#include "props.h"
#include "vm.h"

#include <ctype.h>
#include <stdio.h>
#include <strings.h>

#define WALKS_MOST 3 /* a session that ends in the middle ends the list with it */
#define TOLD_MOST 5 /* paths in a message */

struct listing {
	struct vsphere_listed *vms;
	const char **parents; /* of each: for its path */
	size_t nr, room;
	struct places places;
	struct memo memo;
};

static void clear(struct listing *listing)
{
	free(listing->vms);
	free(listing->parents);
	places_free(&listing->places);
	memo_free(&listing->memo);
	*listing = (struct listing){.nr = 0};
}

/* --- listing -----------------------------------------------------------------------------------
 */

static int take_place(void *context, const struct xml *object, struct err *err)
{
	struct listing *listing = context;
	return places_add(&listing->places, object, err);
}

/* In names, and only there, '/', '\' and '%' are written as percent codes. */
static const char *plain_name(struct memo *memo, const char *name)
{
	char *plain = strdup(name), *to = plain;
	for (; plain && *name; name++) {
		int c = *name == '%' ? hex_pair(name + 1) : -1;
		if (c == '/' || c == '\\' || c == '%')
			name += 2;
		else
			c = (unsigned char)*name;
		*to++ = (char)c;
	}
	if (plain)
		*to = 0;
	return memo_adopt(memo, plain);
}

static int grow(struct listing *listing, struct err *err)
{
	if (listing->nr < listing->room)
		return 0;
	size_t room = listing->room * 2 + 64;
	struct vsphere_listed *vms = reallocarray(listing->vms, room, sizeof *vms);
	if (vms)
		listing->vms = vms;
	const char **parents = reallocarray(listing->parents, room, sizeof *parents);
	if (parents)
		listing->parents = parents;
	if (!vms || !parents)
		return err_set(err, ERR_NO_MEMORY, "no memory");
	listing->room = room;
	return 0;
}

static int take_vm(void *context, const struct xml *object, struct err *err)
{
	struct listing *listing = context;
	struct memo *memo = &listing->memo;
	int64_t nr_disks = 0, used = 0;
	if (grow(listing, err) ||
		xml_number(props_value(object, "summary.config.numVirtualDisks"), "", 0, INT32_MAX,
			&nr_disks, err) < 0 ||
		xml_number(props_value(object, "summary.storage.committed"), "", 0, INT64_MAX,
			&used, err) < 0)
		return -1;
	const char *power = props_text(object, "runtime.powerState");
	listing->parents[listing->nr] = memo_text(memo, places_parent(object));
	listing->vms[listing->nr++] = (struct vsphere_listed){
		.moref = memo_text(memo, xml_text(object, "obj")),
		.path = memo_text(memo, props_text(object, "name")), /* the rest comes later */
		.name = plain_name(memo, props_text(object, "name")),
		.instance_uuid = memo_text(memo, props_text(object, "config.instanceUuid")),
		.bios_uuid = memo_text(memo, props_text(object, "config.uuid")),
		.guest_name = memo_text(memo, props_text(object, "summary.config.guestFullName")),
		.power = vm_power(power),
		.template = props_is_true(object, "config.template"),
		.cbt_enabled = props_is_true(object, "config.changeTrackingEnabled"),
		.nr_disks = (unsigned)nr_disks,
		.used_bytes = (uint64_t)used,
	};
	return memo->failed ? err_set(err, ERR_NO_MEMORY, "no memory") : 0;
}

static int by_path(const void *a, const void *b)
{
	return strcmp(
		((const struct vsphere_listed *)a)->path, ((const struct vsphere_listed *)b)->path);
}

static int walk(struct vsphere *vsphere, struct listing *listing, struct err *err)
{
	static const char *const paths[] = {"name", "parent", "parentVApp", "config.uuid",
		"config.instanceUuid", "config.template", "config.changeTrackingEnabled",
		"runtime.powerState", "summary.config.guestFullName",
		"summary.config.numVirtualDisks", "summary.storage.committed", NULL};
	static const struct props_spec vms = {"VirtualMachine", paths};
	const struct props_spec places[] = {
		{"Folder", places_paths("Folder")},
		{"Datacenter", places_paths("Datacenter")},
		{"VirtualApp", places_paths("VirtualApp")},
	};
	clear(listing);
	return props_walk(vsphere, places, ARRAY_LENGTH(places), take_place, listing, err) ||
			       props_walk(vsphere, &vms, 1, take_vm, listing, err)
		       ? -1
		       : 0;
}

static int list(struct vsphere *vsphere, struct listing *listing, struct err *err)
{
	int rc = -1;
	for (unsigned walks = 0; rc && walks < WALKS_MOST; walks++) {
		unsigned nr_logins = vsphere->nr_logins;
		struct err why = ERR_INIT;
		rc = walk(vsphere, listing, &why);
		if (rc)
			err_copy(err, &why);
		if (rc && nr_logins == vsphere->nr_logins)
			break;
	}
	if (rc)
		return err_context(err, "listing VMs");
	for (size_t i = 0; i < listing->nr; i++)
		listing->vms[i].path = places_path(&listing->places, vsphere, listing->parents[i],
			listing->vms[i].path, &listing->memo, NULL);
	if (listing->memo.failed)
		return err_set(err, ERR_NO_MEMORY, "listing VMs: no memory");
	if (listing->nr)
		qsort(listing->vms, listing->nr, sizeof *listing->vms, by_path);
	return 0;
}

int vsphere_list_vms(struct vsphere *vsphere, vsphere_take_vm *take, void *context, struct err *err)
{
	struct listing listing = {.nr = 0};
	int rc = list(vsphere, &listing, err);
	for (size_t i = 0; !rc && i < listing.nr; i++)
		rc = take(context, &listing.vms[i], err);
	clear(&listing);
	return rc;
}

/* --- finding -----------------------------------------------------------------------------------
 */

/* 1: found; 0: there is no such object. */
static int search(struct vsphere *vsphere, struct soap *soap, char moref[VSPHERE_MOREF_BYTES],
	char type[SOAP_NAME_BYTES], struct err *err)
{
	struct vim_answer answer;
	int rc = vim_call(vsphere, soap, VIM_SAFE, vim_until(vsphere), &answer, err);
	const struct xml *found = rc ? NULL : xml_child(answer.xml, "returnval");
	if (found) {
		snprintf(type, SOAP_NAME_BYTES, "%s", found->ref);
		rc = vim_moref(found, "", moref, err) ? -1 : 1;
	}
	vim_free(&answer);
	return rc;
}

static int search_path(struct vsphere *vsphere, const char *path, size_t length,
	char moref[VSPHERE_MOREF_BYTES], char type[SOAP_NAME_BYTES], struct err *err)
{
	struct soap soap;
	AUTO_FREE char *part = strndup(path, length);
	if (!part)
		return err_set(err, ERR_NO_MEMORY, "no memory");
	soap_begin(&soap, "FindByInventoryPath", "SearchIndex", vsphere->search_index);
	soap_text(&soap, "inventoryPath", part);
	return search(vsphere, &soap, moref, type, err);
}

/* How far the path is right. */
static int not_there(struct vsphere *vsphere, const char *path, struct err *err)
{
	char moref[VSPHERE_MOREF_BYTES], type[SOAP_NAME_BYTES];
	size_t length = strlen(path);
	struct err ignored = ERR_INIT;
	while (length) {
		while (length && path[length - 1] != '/')
			length--;
		while (length && path[length - 1] == '/')
			length--;
		if (length && search_path(vsphere, path, length, moref, type, &ignored) == 1)
			return err_set(err, ERR_NOT_FOUND,
				"there is no VM /%s: /%.*s is there (a %s), what follows is not",
				path, (int)length, path, type);
	}
	return err_set(err, ERR_NOT_FOUND,
		"there is no VM /%s: paths begin with a datacenter, then \"vm\", as \"sendense "
		"vmware ls\" shows them",
		path);
}

static int find_by_path(
	struct vsphere *vsphere, const char *path, char moref[VSPHERE_MOREF_BYTES], struct err *err)
{
	char type[SOAP_NAME_BYTES];
	while (*path == '/')
		path++;
	int rc = search_path(vsphere, path, strlen(path), moref, type, err);
	if (rc < 0)
		return -1;
	if (!rc)
		return not_there(vsphere, path, err);
	return !strcmp(type, "VirtualMachine")
		       ? 0
		       : err_set(err, ERR_REFUSED, "/%s is no VM, but a %s", path, type);
}

static bool is_uuid(const char *text)
{
	for (int i = 0; i < 36; i++) {
		bool dash = i == 8 || i == 13 || i == 18 || i == 23;
		if (dash ? text[i] != '-' : !isxdigit((unsigned char)text[i]))
			return false;
	}
	return !text[36];
}

/* 1: found.  The server compares letters as they are. */
static int find_by_instance(
	struct vsphere *vsphere, const char *uuid, char moref[VSPHERE_MOREF_BYTES], struct err *err)
{
	char type[SOAP_NAME_BYTES], lower[37];
	struct soap soap;
	for (size_t i = 0; i < sizeof lower; i++)
		lower[i] = (char)tolower((unsigned char)uuid[i]);
	soap_begin(&soap, "FindByUuid", "SearchIndex", vsphere->search_index);
	soap_text(&soap, "uuid", lower);
	soap_bool(&soap, "vmSearch", true);
	soap_bool(&soap, "instanceUuid", true);
	return search(vsphere, &soap, moref, type, err);
}

static int several(const struct listing *listing, const char *what,
	bool (*is_it)(const struct vsphere_listed *, const char *), size_t nr, struct err *err)
{
	char paths[ERR_TEXT_BYTES / 2] = "";
	size_t length = 0;
	unsigned told = 0;
	for (size_t i = 0; i < listing->nr && told < TOLD_MOST; i++)
		if (is_it(&listing->vms[i], what) && length < sizeof paths) {
			int more = snprintf(paths + length, sizeof paths - length, "%s%s",
				told ? ", " : "", listing->vms[i].path);
			length += more > 0 ? (size_t)more : 0;
			told++;
		}
	return err_set(err, ERR_REFUSED, "%zu VMs are \"%s\": %s%s (name one by its path)", nr,
		what, paths, nr > told ? ", ..." : "");
}

static bool has_bios_uuid(const struct vsphere_listed *vm, const char *what)
{
	return !strcasecmp(vm->bios_uuid, what);
}

static bool has_name(const struct vsphere_listed *vm, const char *what)
{
	return !strcmp(vm->name, what);
}

/* 1: one was found; 0: none. */
static int pick(const struct listing *listing, const char *what,
	bool (*is_it)(const struct vsphere_listed *, const char *), char moref[VSPHERE_MOREF_BYTES],
	struct err *err)
{
	const struct vsphere_listed *found = NULL;
	size_t nr = 0;
	for (size_t i = 0; i < listing->nr; i++)
		if (is_it(&listing->vms[i], what)) {
			found = &listing->vms[i];
			nr++;
		}
	if (nr > 1)
		return several(listing, what, is_it, nr, err);
	if (found)
		snprintf(moref, VSPHERE_MOREF_BYTES, "%s", found->moref);
	return nr ? 1 : 0;
}

static int find_in_list(
	struct vsphere *vsphere, const char *what, char moref[VSPHERE_MOREF_BYTES], struct err *err)
{
	struct listing listing = {.nr = 0};
	int rc = list(vsphere, &listing, err);
	if (!rc && is_uuid(what))
		rc = pick(&listing, what, has_bios_uuid, moref, err);
	if (!rc)
		rc = pick(&listing, what, has_name, moref, err);
	if (!rc)
		rc = err_set(err, ERR_NOT_FOUND,
			"there is no VM \"%s\" among the %zu that %s may see at %s", what,
			listing.nr, vsphere->user, https_where(vsphere->https));
	clear(&listing);
	return rc < 0 ? -1 : 0;
}

struct vsphere_vm *vsphere_find_vm(struct vsphere *vsphere, const char *what, struct err *err)
{
	char moref[VSPHERE_MOREF_BYTES];
	int rc = 0;
	while (*what == '/')
		what++;
	if (!*what) {
		err_set(err, ERR_USAGE, "which VM? (its path, name or uuid)");
		return NULL;
	}
	if (strchr(what, '/'))
		rc = find_by_path(vsphere, what, moref, err) ? -1 : 1;
	if (!rc && is_uuid(what))
		rc = find_by_instance(vsphere, what, moref, err);
	if (!rc)
		rc = find_in_list(vsphere, what, moref, err);
	return rc < 0 ? NULL : vsphere_vm(vsphere, moref, err);
}
