/* Verify and prune as jobs of the hub: their reports are what the commands print of local ones. */
#include "remote_internal.h"

#include <errno.h>
#include <string.h>

static unsigned count_of(const json_t *object, const char *name)
{
	json_int_t count = json_integer_value(json_object_get(object, name));
	return count > 0 && count <= UINT32_MAX ? (unsigned)count : 0;
}

static void put_text(json_t *object, const char *name, const char *text)
{
	if (text && text[0])
		json_object_set_new(object, name, json_string(text));
}

static void put_count(json_t *object, const char *name, int64_t count)
{
	if (count > 0)
		json_object_set_new(object, name, json_integer(count));
}

/* What the job had to report; it may have ended badly all the same (damage was found). */
static int run_job(struct store *store, const char *path, json_t *body, hub_tell *tell,
	void *context, json_t **job, const json_t **report, struct err *err)
{
	char id[REMOTE_ID_BYTES];
	*job = NULL;
	*report = NULL;
	int rc = hub_add_job(store, path, body, id, err);
	json_decref(body);
	if (rc < 0)
		return -1;
	log_debug("the hub's job is %s", id);
	rc = hub_follow(store, id, true, tell, context, job, err);
	*report = json_object_get(*job, "report");
	return rc;
}

/* --- verify -------------------------------------------------------------------------- */

static enum repository_finding_kind finding_kind(const char *name)
{
	for (enum repository_finding_kind kind = REPOSITORY_FINDING_DAMAGE;
		name && kind <= REPOSITORY_FINDING_REPAIRED; kind++)
		if (strcmp(name, repository_finding_name(kind)) == 0)
			return kind;
	return REPOSITORY_FINDING_DAMAGE;
}

static void tell_finding(const struct repository_verify_options *options, const json_t *object)
{
	json_int_t offset = json_integer_value(json_object_get(object, "offset"));
	json_int_t length = json_integer_value(json_object_get(object, "length"));
	struct repository_finding finding = {
		.kind = finding_kind(remote_text(object, "kind")),
		.vm = remote_text(object, "vm"),
		.point = remote_text(object, "point"),
		.key = remote_text(object, "disk"),
		.file = remote_text(object, "file"),
		.guest_offset = offset > 0 ? (uint64_t)offset : 0,
		.guest_length = length > 0 ? (uint64_t)length : 0,
		.text = remote_text(object, "text") ? remote_text(object, "text") : "",
		.remedy = remote_text(object, "remedy"),
	};
	options->finding(options->context, &finding);
}

static void take_figures(void *context, const json_t *job)
{
	const struct repository_verify_options *options = context;
	hub_tell_figures(job, options->progress);
}

int hub_verify(struct store *store, const struct repository_verify_options *options,
	struct repository_verify_result *result, struct err *err)
{
	json_t *body = json_pack("{s:s}", "repository", store->repository), *job;
	const json_t *report, *finding;
	struct err why = ERR_INIT;
	size_t i;
	put_text(body, "vm", options->vm);
	put_text(body, "point", options->point);
	put_count(body, "time_box_s", options->time_box_ms / 1000);
	memset(result, 0, sizeof *result);
	int rc = run_job(store, "/api/v1/verifications", body, take_figures, (void *)options, &job,
		&report, &why);
	if (json_is_object(report) && json_object_get(report, "points_good")) {
		json_array_foreach(json_object_get(report, "findings"), i, finding)
			tell_finding(options, finding);
		json_int_t bytes = json_integer_value(json_object_get(report, "bytes_checked"));
		result->points_good = count_of(report, "points_good");
		result->points_damaged = count_of(report, "points_damaged");
		result->points_left = count_of(report, "points_left");
		result->damages = count_of(report, "damages");
		result->bytes_checked = bytes > 0 ? (uint64_t)bytes : 0;
		rc = 0;
	} else if (rc == 0) {
		rc = err_set(&why, ERR_PROTOCOL, "the hub's job ended without a report");
	}
	json_decref(job);
	return rc < 0 ? err_copy(err, &why) : 0;
}

/* --- prune ----------------------------------------------------------------------------- */

static json_t *keep_json(const struct retention_policy *policy)
{
	json_t *keep = json_object();
	put_count(keep, "last", policy->last);
	put_count(keep, "hourly", policy->hourly);
	put_count(keep, "daily", policy->daily);
	put_count(keep, "weekly", policy->weekly);
	put_count(keep, "monthly", policy->monthly);
	put_count(keep, "yearly", policy->yearly);
	put_count(keep, "within_s", policy->within_s);
	return keep;
}

static enum repository_fate fate_of(const char *name)
{
	if (name && strcmp(name, "keep") == 0)
		return REPOSITORY_KEPT;
	return name && strncmp(name, "prune", 5) == 0 ? REPOSITORY_PRUNED : REPOSITORY_LEFT;
}

static void tell_points(const struct repository_prune_options *options, const json_t *report)
{
	const json_t *point;
	size_t i;
	json_array_foreach(json_object_get(report, "points"), i, point)
	{
		const char *vm = remote_text(point, "vm"), *id = remote_text(point, "point");
		const char *why = remote_text(point, "why");
		if (vm && id && options->point)
			options->point(options->context, vm, id,
				fate_of(remote_text(point, "fate")), why ? why : "",
				json_integer_value(json_object_get(point, "freed")));
	}
}

static void take_stage(void *context, const json_t *job)
{
	const struct repository_prune_options *options = context;
	hub_tell_figures(job, options->progress);
}

int hub_prune(struct store *store, const struct repository_prune_options *options,
	struct repository_prune_result *result, struct err *err)
{
	json_t *body = json_pack("{s:s, s:o}", "repository", store->repository, "keep",
		       keep_json(options->policy)),
	       *job;
	const json_t *report;
	struct err why = ERR_INIT;
	put_text(body, "vm", options->vm);
	put_text(body, "timezone", options->policy->timezone);
	if (options->dry_run)
		json_object_set_new(body, "dry_run", json_true());
	if (options->trust_clock)
		json_object_set_new(body, "trust_clock", json_true());
	memset(result, 0, sizeof *result);
	int rc = run_job(
		store, "/api/v1/prunes", body, take_stage, (void *)options, &job, &report, &why);
	if (json_is_object(report) && json_object_get(report, "kept")) {
		tell_points(options, report);
		result->kept = count_of(report, "kept");
		result->pruned = count_of(report, "pruned");
		result->left = count_of(report, "left");
		result->freed_bytes = json_integer_value(json_object_get(report, "freed"));
		/* The report is whole: what could not be taken out is told as of a folder. */
		if (rc < 0 && why.code != ERR_CANCELLED && result->left > 0) {
			result->failed = 1;
			snprintf(result->failure, sizeof result->failure, "%.*s",
				(int)sizeof result->failure - 1, why.text);
			rc = 0;
		}
	} else if (rc == 0) {
		rc = err_set(&why, ERR_PROTOCOL, "the hub's job ended without a report");
	}
	json_decref(job);
	return rc < 0 ? err_copy(err, &why) : 0;
}

/* --- reindex ------------------------------------------------------------------------------- */

int hub_reindex(struct store *store, json_t **report, struct err *err)
{
	char path[REMOTE_PATH_BYTES];
	json_t *job;
	const json_t *told;
	struct err why = ERR_INIT;
	*report = NULL;
	if (HUB_PATH(path, err, "/api/v1/repositories/", store->repository, "/reindex") < 0)
		return -1;
	int rc = run_job(store, path, json_object(), NULL, NULL, &job, &told, &why);
	/* Damage is a report, and no failure. */
	if (json_is_object(told) && count_of(told, "damaged") > 0 && why.code != ERR_CANCELLED)
		rc = 0;
	if (rc == 0)
		*report = json_deep_copy(told);
	json_decref(job);
	return rc < 0 ? err_copy(err, &why) : 0;
}
