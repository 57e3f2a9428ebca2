/* REST: VMs, their settings and how they stand. */
#include "policy.h"
#include "time_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static json_t *alarms_of(const struct hub_time *time, const char *name)
{
	size_t nr;
	const struct alarm *alarms = alarm_list(time->alarms, &nr);
	json_t *items = json_array();
	for (size_t i = 0; i < nr; i++)
		if (alarm_subject(&alarms[i]) == ALARM_OF_MACHINE &&
			strcmp(alarms[i].object, name) == 0)
			json_array_append_new(items, api_status_alarm(&alarms[i]));
	return items;
}

/* What holds for it now. */
static json_t *status_of(const struct hub_time *time, const struct machine *machine)
{
	char host[256];
	bool is_late = alarm_find(time->alarms, ALARM_OBJECTIVE, machine->name) != NULL;
	json_t *status = json_pack("{s:s?, s:s?, s:i, s:i, s:I, s:b}", "policy",
		machine->policy ? machine->policy_id : NULL, "repository", machine->repository,
		"points", (int)machine->nr_points, "damaged", (int)machine->nr_damaged, "stored",
		(json_int_t)machine->stored_bytes, "alarm", is_late);
	if (!status)
		return NULL;
	runs_source(machine, host);
	if (machine->objective_s > 0)
		json_object_set_new(status, "objective_s", json_integer(machine->objective_s));
	if (host[0])
		json_object_set_new(status, "source", json_string(host));
	json_object_set_new(status, "last_point",
		machine->newest[0] ? json_string(machine->newest) : json_null());
	json_object_set_new(status, "last_point_time", time_moment(machine->newest_time));
	if (machine->newest_repository)
		json_object_set_new(
			status, "last_point_repository", json_string(machine->newest_repository));
	json_object_set_new(status, "alarms", alarms_of(time, machine->name));
	return status;
}

static json_t *shown(const struct hub_time *time, const struct machine *machine)
{
	json_t *value = machine->settings ? json_deep_copy(machine->settings) : json_object();
	if (!value)
		return NULL;
	json_object_set_new(value, "name", json_string(machine->name));
	if (!json_object_get(value, "created"))
		json_object_set_new(value, "created", time_moment(machine->created));
	json_object_set_new(value, "status", status_of(time, machine));
	return value;
}

int api_machines_list(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	struct hub_time *time = hub->time;
	const struct rest_actor *actor = rest_actor(request);
	const char *after;
	unsigned limit;
	bool more = false;
	char last[256] = "";
	if (rest_page(request, &limit, &after, err) < 0)
		return -1;
	json_t *items = json_array();
	pthread_mutex_lock(&time->mutex);
	int rc = time_refresh(time, err);
	for (size_t i = 0; rc == 0 && !more && i < time->machines->nr_machines; i++) {
		const struct machine *machine = &time->machines->machines[i];
		if ((after && strcmp(machine->name, after) <= 0) ||
			!rest_actor_may(actor, machine->name))
			continue;
		more = json_array_size(items) == limit;
		if (more)
			break;
		json_array_append_new(items, shown(time, machine));
		snprintf(last, sizeof last, "%s", machine->name);
	}
	pthread_mutex_unlock(&time->mutex);
	if (rc == 0)
		return rest_reply_page(request, items, more ? last : NULL, err);
	json_decref(items);
	return -1;
}

/* version 0: it has no settings. */
static int find(
	struct hub *hub, const char *name, json_t **value, uint64_t *version, struct err *err)
{
	struct hub_time *time = hub->time;
	WITH_LOCK(&time->mutex);
	if (time_refresh(time, err) < 0)
		return -1;
	const struct machine *machine = machine_find(time->machines, name);
	if (!machine)
		return err_set(err, ERR_NOT_FOUND, "the hub knows no VM \"%s\"", name);
	*version = machine->version;
	*value = shown(time, machine);
	return *value ? 0 : err_errno(err, ENOMEM, "cannot show VM \"%s\"", name);
}

static int answer(
	struct hub *hub, struct rest_request *request, const char *name, bool made, struct err *err)
{
	json_t *value;
	uint64_t version = 0;
	char location[800] = "/api/v1/vms/";
	if (find(hub, name, &value, &version, err) < 0)
		return -1;
	rest_set_etag(request, version);
	if (!made)
		return rest_reply(request, 200, value, err);
	if (rest_path_append(location, sizeof location, name, err) == 0)
		return rest_reply_made(request, 201, location, value, err);
	json_decref(value);
	return -1;
}

int api_machines_get(void *context, struct rest_request *request, struct err *err)
{
	return answer(context, request, rest_param(request, "vm"), false, err);
}

/* The node must be there: it may be taken out, but not be named before. */
static int check_node(struct hub *hub, const json_t *body, struct err *err)
{
	const char *node = time_text(body, "node");
	return node ? api_objects_is_there(hub, "node", node, err) : 0;
}

/* What its jobs would be refused for is told now, to who sets it: in the night nobody listens.
 * A source that is only not there now may come. */
static int check_disks(struct hub *hub, const char *name, const json_t *body, struct err *err)
{
	const struct hub_config *config = hub_config(hub);
	json_t *disks = json_object_get(body, "disks");
	struct err why = ERR_INIT;
	if (json_array_size(disks) == 0 || config->nr_repositories == 0)
		return 0;
	json_t *spec = json_pack("{s:s, s:s, s:s, s:O}", "kind", "backup", "repository",
		config->repositories[0].name, "vm", name, "disks", disks);
	if (!spec)
		return err_errno(err, ENOMEM, "cannot look at the disks of VM \"%s\"", name);
	int rc = jobs_check(hub->jobs, spec, &why);
	json_decref(spec);
	return rc < 0 && (why.code == ERR_USAGE || why.code == ERR_DENIED) ? err_copy(err, &why)
									   : 0;
}

int api_machines_replace(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	const char *name = rest_param(request, "vm");
	const json_t *body = rest_body(request);
	const char *repository = time_text(body, "repository");
	const char *policy = time_text(body, "policy");
	struct state_object old = {0};
	struct err why = ERR_INIT;
	if (policy_check_machine(name, body, err) < 0)
		return -1;
	if (repository && !hub_config_repository(hub_config(hub), repository))
		return err_set(
			err, ERR_USAGE, "repository: there is no repository \"%s\"", repository);
	if (policy && api_objects_is_there(hub, "policy", policy, err) < 0)
		return err_context(err, "policy");
	if (check_node(hub, body, err) < 0 || check_disks(hub, name, body, err) < 0)
		return -1;
	if (state_get(hub->state, "vm", name, &old, &why) < 0 && why.code != ERR_NOT_FOUND)
		return err_copy(err, &why);
	json_t *value = NULL;
	int rc = rest_check_match(request, old.version, err);
	if (rc == 0 && !(value = api_objects_stored(body, old.value)))
		rc = err_errno(err, ENOMEM, "cannot keep VM \"%s\"", name);
	if (rc == 0)
		rc = state_put(hub->state, "vm", name, value, old.version, NULL, err);
	json_decref(value);
	bool made = !old.value;
	state_object_clear(&old);
	if (rc < 0)
		return -1;
	time_changed(hub->time, false, true);
	return answer(hub, request, name, made, err);
}

int api_machines_delete(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	struct hub_time *time = hub->time;
	const char *name = rest_param(request, "vm");
	struct state_object old;
	struct err why = ERR_INIT;
	if (state_get(hub->state, "vm", name, &old, err) < 0)
		return -1;
	uint64_t version = old.version;
	state_object_clear(&old);
	if (rest_check_match(request, version, err) < 0 ||
		state_delete(hub->state, "vm", name, version, err) < 0)
		return -1;
	time_changed(time, false, true);
	pthread_mutex_lock(&time->mutex);
	if (time_refresh(time, &why) < 0 || runs_forget(time->runs, NULL, name, &why) < 0 ||
		alarm_forget(time->alarms, ALARM_OF_MACHINE, name, &why) < 0)
		log_warning(
			"what the schedule knew of VM %s stays in the state: %s", name, why.text);
	pthread_mutex_unlock(&time->mutex);
	return rest_reply(request, 204, NULL, err);
}
