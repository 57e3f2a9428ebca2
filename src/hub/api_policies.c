/* REST: policies. */
#include "policy.h"
#include "time_internal.h"

#include <string.h>

/* Names that mean nothing are refused. */
static int check(struct hub *hub, const char *id, const json_t *value, struct err *err)
{
	const char *repository = time_text(value, "repository");
	if (policy_check(id, value, err) < 0)
		return -1;
	if (repository && !hub_config_repository(hub_config(hub), repository))
		return err_set(
			err, ERR_USAGE, "repository: there is no repository \"%s\"", repository);
	size_t i;
	json_t *schedule;
	json_array_foreach(json_object_get(value, "schedules"), i, schedule)
	{
		if (api_objects_is_there(hub, "schedule", json_string_value(schedule), err) < 0)
			return err_context(err, "schedules[%zu]", i);
	}
	return 0;
}

static void show(struct hub_time *time, const char *id, json_t *value)
{
	struct err err = ERR_INIT;
	int nr = 0;
	WITH_LOCK(&time->mutex);
	if (time_refresh(time, &err) < 0)
		log_warning("the VMs of policy %s: %s", id, err.text);
	for (size_t i = 0; i < time->machines->nr_machines; i++) {
		const char *policy = time->machines->machines[i].policy_id;
		nr += policy && strcmp(policy, id) == 0;
	}
	json_object_set_new(value, "status", json_pack("{s:i}", "vms", nr));
}

static const struct api_objects policies = {
	.kind = "policy", .path = "/api/v1/policies", .check = check, .show = show};

int api_policies_list(void *context, struct rest_request *request, struct err *err)
{
	return api_objects_list(&policies, context, request, err);
}

int api_policies_get(void *context, struct rest_request *request, struct err *err)
{
	return api_objects_get(&policies, context, request, err);
}

int api_policies_create(void *context, struct rest_request *request, struct err *err)
{
	return api_objects_create(&policies, context, request, err);
}

int api_policies_replace(void *context, struct rest_request *request, struct err *err)
{
	return api_objects_replace(&policies, context, request, err);
}

int api_policies_delete(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	if (api_objects_is_unnamed(hub, "policy", rest_param(request, "id"), "vm", "policy", err) <
			0 ||
		api_objects_delete(&policies, hub, request, err) < 0)
		return -1;
	time_changed(hub->time, false, true);
	return rest_reply(request, 204, NULL, err);
}
