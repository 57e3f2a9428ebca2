/* What machines there are; see discover.h. */
#include "discover.h"

#include "log.h"
#include "node_internal.h"
#include "thread.h"
#include "vsphere.h"

#include <errno.h>
#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define LOOK_MS (INT64_C(1000) * 60 * 30)
#define AFTER_FAILURE_S 60u

struct place {
	struct discover *discover;
	const struct node_vcenter *settings;
	pthread_t thread;
	struct vsphere *vsphere; /* its session, kept from look to look; the thread's own */
	/* With the mutex: */
	bool is_wanted; /* a look, now */
	bool is_looking;
	json_t *machines; /* an array; never changed, only replaced */
	json_t *server;
	int64_t tried, looked; /* seconds since 1970; 0: never */
	struct err error; /* of the last look; ERR_NONE: it was good */
};

struct discover {
	pthread_mutex_t mutex;
	pthread_cond_t changed;
	struct cancel *ends;
	bool is_ending;
	uint64_t version;
	struct place *places;
	size_t nr_places, nr_started;
};

/* --- a look -------------------------------------------------------------------------------- */

static int open_session(struct place *place, struct err *err)
{
	const struct job_vcenter *access = &place->settings->access;
	struct vsphere_url url = {0};
	char *password = NULL;
	size_t length = 0;
	if (place->vsphere)
		return 0;
	if (vsphere_url_parse(access->url, &url, err) < 0 ||
		vsphere_password_load(access->password_file, &password, &length, err) < 0) {
		vsphere_url_free(&url);
		return -1;
	}
	const struct vsphere_options options = {
		.host = url.host,
		.port = url.port,
		.user = url.user,
		.password = password,
		.ca_file = access->ca_file,
		.fingerprint = access->fingerprint,
		.cancel = place->discover->ends,
	};
	place->vsphere = vsphere_open(&options, err);
	explicit_bzero(password, length);
	free(password);
	vsphere_url_free(&url);
	return place->vsphere ? 0 : -1;
}

static void close_session(struct place *place)
{
	vsphere_close(place->vsphere);
	place->vsphere = NULL;
}

static int take_listed(void *context, const struct vsphere_listed *vm, struct err *err)
{
	json_t *list = context;
	if (json_array_size(list) >= DISCOVER_MACHINES_MOST)
		return err_set(err, ERR_REFUSED,
			"there are more than %u machines (give the user fewer to see)",
			DISCOVER_MACHINES_MOST);
	json_t *one = vsphere_listed_json(vm);
	/* What the list tells of these the facts tell better, and otherwise. */
	json_object_del(one, "disks");
	json_object_del(one, "cbt");
	return json_array_append_new(list, one) == 0 ? 0 : err_errno(err, ENOMEM, "cannot list");
}

/* The machine's facts in place of the list's; NULL: it is gone by now, or err. */
static json_t *facts_of(struct place *place, json_t *listed, struct err *err)
{
	const char *id = json_string_value(json_object_get(listed, "id"));
	struct vsphere_vm *vm = vsphere_vm(place->vsphere, id, err);
	if (vm) {
		json_t *facts = vsphere_vm_json(vm);
		vsphere_vm_free(vm);
		return facts;
	}
	/* Not what is denied: it may be the login, and a server locks users after a few. */
	if (err->code == ERR_REFUSED) {
		json_object_set_new(listed, "error", json_string(err->text));
		*err = (struct err)ERR_INIT;
		return json_incref(listed);
	}
	if (err->code == ERR_NOT_FOUND)
		*err = (struct err)ERR_INIT;
	return NULL;
}

/* Puts each one's facts into machines, in the list's order. */
static int add_facts(struct place *place, const json_t *listed, json_t *machines, struct err *err)
{
	const struct deadline until = deadline_after_ms(LOOK_MS);
	size_t i;
	json_t *one;
	json_array_foreach(listed, i, one)
	{
		if (deadline_passed(until))
			return err_set(err, ERR_TIMEOUT,
				"the look took more than %lld min, with %zu of %zu machines known",
				(long long)(LOOK_MS / 60000), i, json_array_size(listed));
		json_t *machine = facts_of(place, one, err);
		if (err->code != ERR_NONE)
			return -1;
		if (!machine)
			continue;
		json_object_set_new(machine, "vcenter", json_string(place->settings->access.name));
		json_array_append_new(machines, machine);
	}
	return 0;
}

/* All machines, by path; new. */
static json_t *look(struct place *place, struct err *err)
{
	json_t *listed = json_array(), *machines = json_array();
	int rc = open_session(place, err);
	if (rc == 0)
		rc = vsphere_list_vms(place->vsphere, take_listed, listed, err);
	if (rc == 0)
		rc = add_facts(place, listed, machines, err);
	json_decref(listed);
	if (rc == 0)
		return machines;
	json_decref(machines);
	return NULL;
}

/* --- the thread ------------------------------------------------------------------------------ */

static void keep_good(struct place *place, json_t *machines)
{
	if (place->error.code != ERR_NONE)
		log_info("[vcenter %s] can be looked at again", place->settings->access.name);
	place->error = (struct err)ERR_INIT;
	place->looked = time(NULL);
	json_decref(place->server);
	place->server = vsphere_about_json(place->vsphere);
	if (place->machines && json_equal(place->machines, machines)) {
		json_decref(machines);
		return;
	}
	json_decref(place->machines);
	place->machines = machines;
	place->discover->version++;
}

/* What was known stays known. */
static void keep_bad(struct place *place, const struct err *why)
{
	if (place->error.code == ERR_NONE)
		log_warning("[vcenter %s] cannot be looked at: %s", place->settings->access.name,
			why->text);
	err_copy(&place->error, why);
}

/* With the mutex, which is not held while the vCenter is asked. */
static void look_once(struct place *place)
{
	struct discover *discover = place->discover;
	struct err err = ERR_INIT;
	place->is_wanted = false;
	place->is_looking = true;
	place->tried = time(NULL);
	pthread_mutex_unlock(&discover->mutex);
	json_t *machines = look(place, &err);
	if (!machines)
		close_session(place);
	pthread_mutex_lock(&discover->mutex);
	place->is_looking = false;
	if (machines)
		keep_good(place, machines);
	else if (!discover->is_ending)
		keep_bad(place, &err);
}

static uint64_t pause_s(const struct place *place)
{
	uint64_t every_s = place->settings->discover_every_s;
	/* What is denied stays so until somebody sees to it. */
	bool soon = place->error.code != ERR_NONE && place->error.code != ERR_DENIED;
	return soon ? min_u64(every_s, AFTER_FAILURE_S) : every_s;
}

static void *watch(void *context)
{
	struct place *place = context;
	struct discover *discover = place->discover;
	pthread_mutex_lock(&discover->mutex);
	while (!discover->is_ending) {
		look_once(place);
		const struct deadline next = deadline_after_ms((int64_t)pause_s(place) * 1000);
		while (!discover->is_ending && !place->is_wanted &&
			thread_cond_wait(&discover->changed, &discover->mutex, next))
			;
	}
	pthread_mutex_unlock(&discover->mutex);
	close_session(place);
	return NULL;
}

struct discover *discover_start(const struct node_vcenter *vcenters, size_t nr, struct err *err)
{
	struct discover *discover = calloc(1, sizeof *discover);
	struct place *places = calloc(nr + 1, sizeof *places);
	if (!discover || !places) {
		free(discover);
		free(places);
		err_errno(err, ENOMEM, "cannot look at vCenters");
		return NULL;
	}
	pthread_mutex_init(&discover->mutex, NULL);
	thread_cond_init(&discover->changed);
	discover->places = places;
	discover->nr_places = nr;
	/* Another one after each start, so that no client takes what it knows for what is here. */
	discover->version = (uint64_t)time(NULL) << 20;
	discover->ends = cancel_new(err);
	for (size_t i = 0; discover->ends && i < nr; i++) {
		places[i] = (struct place){.discover = discover, .settings = &vcenters[i]};
		if (thread_start(&places[i].thread, "discover", watch, &places[i], err) < 0)
			break;
		discover->nr_started++;
	}
	if (discover->ends && discover->nr_started == nr)
		return discover;
	discover_stop(discover);
	return NULL;
}

void discover_stop(struct discover *discover)
{
	if (!discover)
		return;
	pthread_mutex_lock(&discover->mutex);
	discover->is_ending = true;
	pthread_cond_broadcast(&discover->changed);
	pthread_mutex_unlock(&discover->mutex);
	if (discover->ends)
		cancel_request(discover->ends);
	for (size_t i = 0; i < discover->nr_started; i++)
		pthread_join(discover->places[i].thread, NULL);
	for (size_t i = 0; i < discover->nr_started; i++) {
		json_decref(discover->places[i].machines);
		json_decref(discover->places[i].server);
	}
	cancel_free(discover->ends);
	pthread_cond_destroy(&discover->changed);
	pthread_mutex_destroy(&discover->mutex);
	free(discover->places);
	free(discover);
}

/* --- asked ----------------------------------------------------------------------------------- */

static struct place *find(struct discover *discover, const char *name, size_t length)
{
	for (size_t i = 0; i < discover->nr_places; i++) {
		const char *other = discover->places[i].settings->access.name;
		if (strlen(other) == length && strncmp(other, name, length) == 0)
			return &discover->places[i];
	}
	return NULL;
}

static int no_vcenter(const char *name, struct err *err)
{
	return err_set(err, ERR_NOT_FOUND, "there is no vCenter of the name %.64s", name);
}

int discover_wake(struct discover *discover, const char *name, struct err *err)
{
	if (name && !find(discover, name, strlen(name)))
		return no_vcenter(name, err);
	WITH_LOCK(&discover->mutex);
	for (size_t i = 0; i < discover->nr_places; i++)
		if (!name || strcmp(discover->places[i].settings->access.name, name) == 0)
			discover->places[i].is_wanted = true;
	pthread_cond_broadcast(&discover->changed);
	return 0;
}

static const char *state_of(const struct place *place)
{
	if (place->error.code != ERR_NONE)
		return "failed";
	return place->looked > 0 ? "ok" : place->is_looking ? "looking" : "unknown";
}

static json_t *error_of(const struct place *place)
{
	if (place->error.code == ERR_NONE)
		return json_null();
	return json_pack(
		"{s:s, s:s}", "code", err_code_name(place->error.code), "text", place->error.text);
}

json_t *discover_vcenters(struct discover *discover)
{
	json_t *items = json_array();
	WITH_LOCK(&discover->mutex);
	for (size_t i = 0; i < discover->nr_places; i++) {
		const struct place *p = &discover->places[i];
		json_array_append_new(
			items, json_pack("{s:s, s:s, s:s, s:b, s:I, s:o, s:o, s:o, s:O?}", "name",
				       p->settings->access.name, "url", p->settings->access.url,
				       "state", state_of(p), "looking", p->is_looking, "machines",
				       (json_int_t)json_array_size(p->machines), "tried",
				       node_moment(p->tried), "looked", node_moment(p->looked),
				       "error", error_of(p), "server", p->server));
	}
	return items;
}

static bool fits(const json_t *machine, const struct discover_filter *filter)
{
	const char *name = json_string_value(json_object_get(machine, "name"));
	return !filter->name || fnmatch(filter->name, name ? name : "", 0) == 0;
}

static const char *path_of(const json_t *machine)
{
	const char *path = json_string_value(json_object_get(machine, "path"));
	return path ? path : "";
}

/* Appends to items what of this vCenter comes behind the path; true: there is more than limit. */
static bool add_page(const json_t *machines, const struct discover_filter *filter,
	const char *behind, json_t *items)
{
	size_t i;
	const json_t *machine;
	json_array_foreach(machines, i, machine)
	{
		if ((behind && strcmp(path_of(machine), behind) <= 0) || !fits(machine, filter))
			continue;
		if (json_array_size(items) >= filter->limit)
			return true;
		json_array_append_new(items, json_deep_copy(machine));
	}
	return false;
}

static char *name_of_last(const json_t *items)
{
	const json_t *last = json_array_get(items, json_array_size(items) - 1);
	char *name = NULL;
	if (asprintf(&name, "%s%s", json_string_value(json_object_get(last, "vcenter")),
		    path_of(last)) < 0)
		return NULL;
	return name;
}

json_t *discover_machines(struct discover *discover, const struct discover_filter *filter,
	char **next, uint64_t *version, struct err *err)
{
	json_t *items = json_array();
	bool more = false;
	const char *behind = filter->after ? strchrnul(filter->after, '/') : NULL;
	/* Where the last page ended; a vCenter that is gone by now was before all others. */
	const struct place *from =
		filter->after ? find(discover, filter->after, (size_t)(behind - filter->after))
			      : NULL;
	if (filter->vcenter && !find(discover, filter->vcenter, strlen(filter->vcenter))) {
		json_decref(items);
		no_vcenter(filter->vcenter, err);
		return NULL;
	}
	*next = NULL;
	WITH_LOCK(&discover->mutex);
	*version = discover->version;
	for (size_t i = 0; i < discover->nr_places && !more; i++) {
		const struct place *p = &discover->places[i];
		if ((from && p < from) ||
			(filter->vcenter && strcmp(filter->vcenter, p->settings->access.name) != 0))
			continue;
		more = add_page(p->machines, filter, p == from ? behind : NULL, items);
	}
	if (more)
		*next = name_of_last(items);
	return items;
}

void discover_each(struct discover *discover,
	void (*take)(void *context, const struct discover_figures *figures), void *context)
{
	WITH_LOCK(&discover->mutex);
	for (size_t i = 0; i < discover->nr_places; i++) {
		const struct place *p = &discover->places[i];
		take(context, &(struct discover_figures){
				      .name = p->settings->access.name,
				      .failed = p->error.code != ERR_NONE,
				      .looked = p->looked,
				      .nr_machines = json_array_size(p->machines),
			      });
	}
}
