/* props: properties of the server's objects, one object's or those of all that a view shows. */
#ifndef SENDENSE_VSPHERE_PROPS_H
#define SENDENSE_VSPHERE_PROPS_H

#include "vim.h"

/* What is asked of each object of a type. */
struct props_spec {
	const char *type;
	const char *const *paths; /* "config.template"; NULL-terminated */
};

/*
 * One object's.  *object lives as long as answer; vim_free() it in any case.  ERR_NOT_FOUND when
 * there is no such object.
 */
int props_get(struct vsphere *vsphere, const struct props_spec *spec, const char *moref,
	struct deadline until, struct vim_answer *answer, const struct xml **object,
	struct err *err);

/* A property's value in what was answered of an object; NULL: it is not set, or not told. */
const struct xml *props_value(const struct xml *object, const char *path);
/* The same as text, "" where there is none. */
const char *props_text(const struct xml *object, const char *path);
bool props_is_true(const struct xml *object, const char *path);

/* Whether the server said why it does not tell it. */
bool props_fault(const struct xml *object, const char *path, struct soap_fault *fault);

/* object is lent to the call; -1 (err) ends the walk. */
typedef int props_take(void *context, const struct xml *object, struct err *err);

/*
 * Those of all objects of these types below the root folder,
 * in pages, through a view that is gone afterwards.  Where the session is lost in the middle the
 * walk cannot go on: ERR_DISCONNECTED, vsphere->nr_logins has changed, and take has been told a
 * part.
 */
int props_walk(struct vsphere *vsphere, const struct props_spec *specs, size_t nr_specs,
	props_take *take, void *context, struct err *err);

#endif
