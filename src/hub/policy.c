/* What holds for whom; see policy.h. */
#include "policy.h"

#include "repository.h"
#include "rest.h"
#include "schedule.h"
#include "time_internal.h"

#include <fnmatch.h>
#include <stdio.h>
#include <string.h>

#define YEAR_S (INT64_C(366) * 86400)
#define OBJECTIVE_LEAST_S 1
#define LABELS_MOST 64
#define LISTED_MOST 1000

static const char *const modes[] = {"auto", "full", "incremental", NULL};

static const struct rest_field policy_fields[] = {
	{.name = "id", .type = REST_STRING},
	{.name = "description", .type = REST_STRING, .most = 255},
	{.name = "priority", .type = REST_INTEGER, .least = -1000, .most = 1000},
	{.name = "vms", .type = REST_ARRAY, .least = 0, .most = LISTED_MOST},
	{.name = "labels", .type = REST_OBJECT},
	{.name = "schedules", .type = REST_ARRAY, .least = 0, .most = 16},
	{.name = "repository", .type = REST_STRING, .least = 1, .most = 64, .nullable = true},
	{.name = "objective_s",
		.type = REST_INTEGER,
		.least = OBJECTIVE_LEAST_S,
		.most = YEAR_S,
		.nullable = true},
	{.name = "keep", .type = REST_OBJECT, .nullable = true},
	{.name = "time_zone", .type = REST_STRING, .least = 1, .most = 255, .nullable = true},
	{.name = "mode", .type = REST_STRING, .choices = modes},
	{.name = "audit", .type = REST_NUMBER},
	{.name = "limit_rate", .type = REST_INTEGER, .least = 1, .most = INT64_MAX},
	{.name = "created", .type = REST_STRING},
	{.name = "status", .type = REST_OBJECT},
	{.name = NULL},
};

static const struct rest_field keep_fields[] = {
	{.name = "last", .type = REST_INTEGER, .least = 0, .most = 100000},
	{.name = "hourly", .type = REST_INTEGER, .least = 0, .most = 100000},
	{.name = "daily", .type = REST_INTEGER, .least = 0, .most = 100000},
	{.name = "weekly", .type = REST_INTEGER, .least = 0, .most = 100000},
	{.name = "monthly", .type = REST_INTEGER, .least = 0, .most = 100000},
	{.name = "yearly", .type = REST_INTEGER, .least = 0, .most = 100000},
	{.name = "within_s", .type = REST_INTEGER, .least = 0, .most = 1000 * YEAR_S},
	{.name = NULL},
};

static const struct rest_field machine_fields[] = {
	{.name = "name", .type = REST_STRING},
	{.name = "description", .type = REST_STRING, .most = 255},
	{.name = "repository", .type = REST_STRING, .least = 1, .most = 64, .nullable = true},
	{.name = "disks", .type = REST_ARRAY, .least = 0, .most = 64},
	{.name = "node", .type = REST_STRING, .least = 1, .most = 64},
	{.name = "vcenter", .type = REST_STRING, .least = 1, .most = 64},
	{.name = "machine", .type = REST_STRING, .least = 1, .most = 1024},
	{.name = "skip_disks", .type = REST_ARRAY, .least = 0, .most = 64},
	{.name = "skip_unsupported", .type = REST_BOOL},
	{.name = "quiesce", .type = REST_BOOL},
	{.name = "enable_cbt", .type = REST_BOOL},
	{.name = "labels", .type = REST_OBJECT},
	{.name = "policy", .type = REST_STRING, .least = 1, .most = 64, .nullable = true},
	{.name = "objective_s",
		.type = REST_INTEGER,
		.least = OBJECTIVE_LEAST_S,
		.most = YEAR_S,
		.nullable = true},
	{.name = "paused", .type = REST_BOOL},
	{.name = "created", .type = REST_STRING},
	{.name = "status", .type = REST_OBJECT},
	{.name = NULL},
};

/* As POST /backups takes them. */
static const struct rest_field disk_fields[] = {
	{.name = "key", .type = REST_STRING, .least = 1, .most = 64},
	{.name = "source", .type = REST_STRING, .required = true, .least = 1, .most = 4096},
	{.name = "changed_by", .type = REST_STRING, .least = 1, .most = 4096},
	{.name = "change_id", .type = REST_STRING, .least = 1, .most = 1024},
	{.name = "bitmap", .type = REST_STRING, .least = 1, .most = 1024},
	{.name = "source_id", .type = REST_STRING, .least = 1, .most = 1024},
	{.name = NULL},
};

bool policy_matches(const char *pattern, const char *text)
{
	/* Of fnmatch()'s patterns only * and ? mean something here. */
	char escaped[1024];
	size_t used = 0;
	for (; *pattern; pattern++) {
		if (used + 3 > sizeof escaped)
			return false;
		if (*pattern == '[' || *pattern == '\\')
			escaped[used++] = '\\';
		escaped[used++] = *pattern;
	}
	escaped[used] = '\0';
	return fnmatch(escaped, text, 0) == 0;
}

/* --- checking -------------------------------------------------------------------------- */

static int check_texts(const char *name, const json_t *array, size_t most, struct err *err)
{
	size_t i;
	json_t *item;
	json_array_foreach((json_t *)array, i, item)
	{
		const char *text = json_string_value(item);
		if (!text || !text[0] || strlen(text) > most)
			return err_set(err, ERR_USAGE,
				"%s[%zu]: a text of 1 to %zu bytes is "
				"wanted",
				name, i, most);
	}
	return 0;
}

/* Names like a disk's key; texts without control characters. */
static int check_labels(const json_t *labels, struct err *err)
{
	const char *name;
	json_t *value;
	if (json_object_size(labels) > LABELS_MOST)
		return err_set(err, ERR_USAGE, "labels: more than %d", LABELS_MOST);
	json_object_foreach((json_t *)labels, name, value)
	{
		if (schedule_check_id("label", name, err) < 0)
			return err_context(err, "labels");
		const char *text = json_string_value(value);
		if (!text || strlen(text) > 255)
			return err_set(err, ERR_USAGE,
				"labels.%s: a text of at most 255 bytes is wanted", name);
	}
	return 0;
}

/* What is kept, {"last":…}: ERR_USAGE names the member, also when no rule is given. */
static int check_keep(const json_t *keep, struct err *err)
{
	const char *name;
	json_t *value;
	if (rest_check_in("keep", keep, keep_fields, err) < 0)
		return -1;
	json_object_foreach(
		(json_t *)keep, name, value) if (json_integer_value(value) > 0) return 0;
	return err_set(err, ERR_USAGE, "keep: no rule says which restore points are to be kept");
}

json_t *policy_keep_given(const json_t *keep)
{
	const char *name;
	json_t *value;
	json_t *given = json_object();
	json_object_foreach((json_t *)keep, name, value) if (json_integer_value(value) > 0)
		json_object_set_new(given, name, json_deep_copy(value));
	return given;
}

static int check_schedules(const json_t *schedules, struct err *err)
{
	size_t i;
	json_t *item;
	if (check_texts("schedules", schedules, 64, err) < 0)
		return -1;
	json_array_foreach((json_t *)schedules, i,
		item) if (schedule_check_id("schedules", json_string_value(item), err) <
			  0) return -1;
	return 0;
}

int policy_check(const char *id, const json_t *value, struct err *err)
{
	if (schedule_check_id("id", id, err) < 0 || rest_check(value, policy_fields, err) < 0)
		return -1;
	const json_t *keep = json_object_get(value, "keep");
	const char *zone_name = time_text(value, "time_zone");
	double audit = json_number_value(json_object_get(value, "audit"));
	if (check_texts("vms", json_object_get(value, "vms"), 255, err) < 0 ||
		check_labels(json_object_get(value, "labels"), err) < 0 ||
		check_schedules(json_object_get(value, "schedules"), err) < 0 ||
		(json_is_object(keep) && check_keep(keep, err) < 0))
		return -1;
	if (!(audit >= 0 && audit <= 100))
		return err_set(err, ERR_USAGE, "audit: a percentage, 0 to 100, is wanted");
	if (!zone_name)
		return 0;
	struct zone *zone = zone_open(zone_name, err);
	zone_free(zone);
	return zone ? 0 : err_context(err, "time_zone");
}

/* A node reads a machine of a vCenter, the hub disks: one of them backs it up. */
static int check_source(const json_t *value, struct err *err)
{
	static const char *const of_nodes[] = {
		"vcenter", "machine", "skip_disks", "skip_unsupported", "quiesce", "enable_cbt"};
	bool has_node = json_object_get(value, "node") != NULL;
	if (has_node && json_object_get(value, "disks"))
		return err_set(err, ERR_USAGE, "node and disks: only one of them");
	for (size_t i = 0; i < ARRAY_LENGTH(of_nodes); i++)
		if (!has_node && json_object_get(value, of_nodes[i]))
			return err_set(err, ERR_USAGE, "%s: needs a node", of_nodes[i]);
	for (size_t i = 0; has_node && i < 2; i++)
		if (!json_object_get(value, of_nodes[i]))
			return err_set(err, ERR_USAGE, "%s: it is missing (the node \"%s\" asks)",
				of_nodes[i], hub_text(value, "node"));
	return check_texts("skip_disks", json_object_get(value, "skip_disks"), 64, err);
}

int policy_check_machine(const char *name, const json_t *value, struct err *err)
{
	const json_t *disks = json_object_get(value, "disks");
	const char *own_name = time_text(value, "name");
	const char *policy = time_text(value, "policy");
	if (repository_name_check_vm(name, err) < 0)
		return err_context(err, "name");
	if (rest_check(value, machine_fields, err) < 0 ||
		(disks && rest_check_each("disks", disks, disk_fields, err) < 0) ||
		check_labels(json_object_get(value, "labels"), err) < 0 ||
		check_source(value, err) < 0 ||
		(policy && schedule_check_id("policy", policy, err) < 0))
		return -1;
	if (own_name && strcmp(own_name, name) != 0)
		return err_set(err, ERR_USAGE, "name: it is \"%s\" in the path", name);
	for (size_t i = 0; i < json_array_size(disks); i++) {
		const char *key = time_text(json_array_get(disks, i), "key");
		/* Of several each needs one, which the job's own check says. */
		if (!key)
			continue;
		if (repository_name_check_key(key, err) < 0)
			return err_context(err, "disks[%zu].key", i);
		for (size_t j = 0; j < i; j++)
			if (strcmp(key, hub_text(json_array_get(disks, j), "key")) == 0)
				return err_set(err, ERR_USAGE,
					"disks[%zu].key: \"%s\" is there twice", i, key);
	}
	return 0;
}

/* --- choosing ---------------------------------------------------------------------------- */

static bool has_labels(const json_t *wanted, const json_t *labels)
{
	const char *name;
	json_t *pattern;
	json_object_foreach((json_t *)wanted, name, pattern)
	{
		const char *text = time_text(labels, name);
		if (!text || !policy_matches(json_string_value(pattern), text))
			return false;
	}
	return true;
}

static bool applies(const json_t *policy, const char *machine, const json_t *labels)
{
	const json_t *patterns = json_object_get(policy, "vms");
	const json_t *wanted = json_object_get(policy, "labels");
	bool named = json_array_size(patterns) == 0;
	if (named && json_object_size(wanted) == 0)
		return false;
	for (size_t i = 0; !named && i < json_array_size(patterns); i++)
		named = policy_matches(json_string_value(json_array_get(patterns, i)), machine);
	return named && has_labels(wanted, labels);
}

const json_t *policy_of(
	const json_t *policies, const char *machine, const json_t *settings, const char **id)
{
	const char *chosen = time_text(settings, "policy"), *name;
	const json_t *labels = json_object_get(settings, "labels");
	int64_t highest = 0;
	json_t *policy;
	const json_t *found = chosen ? json_object_get(policies, chosen) : NULL;
	if (!chosen) {
		json_object_foreach((json_t *)policies, name, policy)
		{
			int64_t priority = time_number(policy, "priority", 0);
			bool first = !found || priority > highest ||
				     (priority == highest && strcmp(name, chosen) < 0);
			if (!first || !applies(policy, machine, labels))
				continue;
			highest = priority;
			chosen = name;
			found = policy;
		}
	}
	if (id)
		*id = chosen;
	return found;
}
