/* Properties of objects; see props.h. */
#include "props.h"

#define PAGE 100 /* objects in one answer */

/* --- asking ------------------------------------------------------------------------------------
 */

static void put_specs(struct soap *soap, const struct props_spec *specs, size_t nr_specs)
{
	for (size_t i = 0; i < nr_specs; i++) {
		soap_open(soap, "propSet", NULL);
		soap_text(soap, "type", specs[i].type);
		for (const char *const *path = specs[i].paths; *path; path++)
			soap_text(soap, "pathSet", *path);
		soap_close(soap, "propSet");
	}
}

int props_get(struct vsphere *vsphere, const struct props_spec *spec, const char *moref,
	struct deadline until, struct vim_answer *answer, const struct xml **object,
	struct err *err)
{
	struct soap soap;
	soap_begin(&soap, "RetrievePropertiesEx", "PropertyCollector", vsphere->property_collector);
	soap_open(&soap, "specSet", NULL);
	put_specs(&soap, spec, 1);
	soap_open(&soap, "objectSet", NULL);
	soap_ref(&soap, "obj", spec->type, moref);
	soap_bool(&soap, "skip", false);
	soap_close(&soap, "objectSet");
	soap_close(&soap, "specSet");
	soap_open(&soap, "options", NULL);
	soap_close(&soap, "options");
	if (vim_call(vsphere, &soap, VIM_SAFE, until, answer, err))
		return -1;
	*object = xml_at(answer->xml, "returnval/objects");
	return *object ? 0 : err_set(err, ERR_NOT_FOUND, "there is no %s %s", spec->type, moref);
}

/* --- looking -----------------------------------------------------------------------------------
 */

const struct xml *props_value(const struct xml *object, const char *path)
{
	for (const struct xml *set = xml_child(object, "propSet"); set; set = xml_again(set))
		if (!strcmp(xml_text(set, "name"), path))
			return xml_child(set, "val");
	return NULL;
}

const char *props_text(const struct xml *object, const char *path)
{
	return xml_text(props_value(object, path), "");
}

bool props_is_true(const struct xml *object, const char *path)
{
	return xml_is_true(props_value(object, path), "");
}

bool props_fault(const struct xml *object, const char *path, struct soap_fault *fault)
{
	for (const struct xml *missing = xml_child(object, "missingSet"); missing;
		missing = xml_again(missing))
		if (!strcmp(xml_text(missing, "path"), path)) {
			soap_fault_read(xml_child(missing, "fault"), fault);
			return true;
		}
	return false;
}

/* --- walking -----------------------------------------------------------------------------------
 */

static int make_view(struct vsphere *vsphere, const struct props_spec *specs, size_t nr_specs,
	char view[VSPHERE_MOREF_BYTES], struct err *err)
{
	struct vim_answer answer;
	struct soap soap;
	soap_begin(&soap, "CreateContainerView", "ViewManager", vsphere->view_manager);
	soap_ref(&soap, "container", "Folder", vsphere->root_folder);
	for (size_t i = 0; i < nr_specs; i++)
		soap_text(&soap, "type", specs[i].type);
	soap_bool(&soap, "recursive", true);
	/* A view that was made and not heard of is gone with the session. */
	int rc = vim_call_for_moref(
		vsphere, &soap, VIM_SAFE, vim_until(vsphere), view, &answer, err);
	vim_free(&answer);
	return rc;
}

/* Also after a cancel. */
static void drop_view(struct vsphere *vsphere, const char *view)
{
	const struct cancel *cancel = vsphere->cancel;
	struct err err = ERR_INIT;
	struct vim_answer answer;
	struct soap soap;
	vsphere->cancel = NULL;
	soap_begin(&soap, "DestroyView", "ContainerView", view);
	if (vim_call(vsphere, &soap, VIM_SAFE, deadline_after_ms(VIM_LOGOUT_MS), &answer, &err))
		log_info("%s (the view ends with the session)", err.text);
	vim_free(&answer);
	vsphere->cancel = cancel;
}

static void ask_first(struct vsphere *vsphere, struct soap *soap, const struct props_spec *specs,
	size_t nr_specs, const char *view)
{
	soap_begin(soap, "RetrievePropertiesEx", "PropertyCollector", vsphere->property_collector);
	soap_open(soap, "specSet", NULL);
	put_specs(soap, specs, nr_specs);
	soap_open(soap, "objectSet", NULL);
	soap_ref(soap, "obj", "ContainerView", view);
	soap_bool(soap, "skip", true);
	soap_open(soap, "selectSet", "TraversalSpec");
	soap_text(soap, "type", "ContainerView");
	soap_text(soap, "path", "view");
	soap_bool(soap, "skip", false);
	soap_close(soap, "selectSet");
	soap_close(soap, "objectSet");
	soap_close(soap, "specSet");
	soap_open(soap, "options", NULL);
	soap_number(soap, "maxObjects", PAGE);
	soap_close(soap, "options");
}

static void ask_next(struct vsphere *vsphere, struct soap *soap, const char *token)
{
	soap_begin(soap, "ContinueRetrievePropertiesEx", "PropertyCollector",
		vsphere->property_collector);
	soap_text(soap, "token", token);
}

static int take_page(const struct xml *page, props_take *take, void *context, struct err *err)
{
	for (const struct xml *object = xml_child(page, "objects"); object;
		object = xml_again(object))
		if (take(context, object, err))
			return -1;
	return 0;
}

static int walk_view(struct vsphere *vsphere, const struct props_spec *specs, size_t nr_specs,
	const char *view, props_take *take, void *context, struct err *err)
{
	unsigned nr_logins = vsphere->nr_logins;
	struct vim_answer answer;
	struct soap soap;
	bool more;
	ask_first(vsphere, &soap, specs, nr_specs, view);
	do {
		int rc = vim_call(vsphere, &soap, VIM_SAFE, vim_until(vsphere), &answer, err);
		if (vsphere->nr_logins != nr_logins)
			rc = err_set(err, ERR_DISCONNECTED,
				"%s: the session ended in the middle of a list",
				https_where(vsphere->https));
		const struct xml *page = rc ? NULL : xml_child(answer.xml, "returnval");
		const char *token = xml_text(page, "token");
		if (!rc)
			rc = take_page(page, take, context, err);
		more = !rc && *token;
		if (more)
			ask_next(vsphere, &soap, token);
		vim_free(&answer);
		if (rc)
			return -1;
	} while (more);
	return 0;
}

int props_walk(struct vsphere *vsphere, const struct props_spec *specs, size_t nr_specs,
	props_take *take, void *context, struct err *err)
{
	char view[VSPHERE_MOREF_BYTES];
	if (make_view(vsphere, specs, nr_specs, view, err))
		return -1;
	unsigned nr_logins = vsphere->nr_logins;
	int rc = walk_view(vsphere, specs, nr_specs, view, take, context, err);
	if (vsphere->nr_logins == nr_logins)
		drop_view(vsphere, view);
	return rc;
}
