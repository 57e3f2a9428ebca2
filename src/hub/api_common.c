/* What several handlers share, and /health. */
#include "hub_internal.h"

#include "job.h"
#include "log.h"

#include <errno.h>
#include <fnmatch.h>
#include <string.h>

int hub_takes_work(struct hub *hub, struct err *err)
{
	return atomic_load(&hub->stopping)
		       ? err_set(err, ERR_BUSY, "the hub is about to stop (try again)")
		       : 0;
}

int hub_check_vm(const struct rest_request *request, const char *vm, struct err *err)
{
	if (rest_actor_may(rest_actor(request), vm))
		return 0;
	return err_set(err, ERR_DENIED, "the token is not for the VM \"%s\"", vm);
}

int hub_unavailable(struct rest_request *request, const char *repository, struct err *err)
{
	struct err told = *err;
	if (err->code == ERR_NO_SPACE)
		return -1;
	if (rest_actor(request)->scope < REST_OPERATE)
		err_set(&told, err->code,
			"the repository %s cannot be used now (the hub's log tells why)",
			repository);
	return rest_problem(request, 500, &told);
}

int hub_reply_new_job(struct hub *hub, struct rest_request *request, json_t *spec, struct err *err)
{
	char id[JOB_ID_BYTES], who[ACCESS_ACTOR_BYTES];
	int rc = hub_takes_work(hub, err);
	if (rc == 0)
		rc = hub_jobs_add(hub, spec, access_actor_text(rest_actor(request), who), id, err);
	json_decref(spec);
	return rc < 0 ? -1 : jobs_rest_made(hub->jobs, request, id, err);
}

/* --- builds -------------------------------------------------------------------------------- */

static bool matches(char *const *patterns, const char *build)
{
	for (size_t i = 0; patterns && patterns[i]; i++)
		if (fnmatch(patterns[i], build, 0) == 0)
			return true;
	return false;
}

int hub_build_check(const struct hub *hub, const char *build, const char *who, struct err *err)
{
	const struct hub_config *c = hub_config(hub);
	const char *told = build && build[0] ? build : "unknown";
	if (c->builds_allow && !matches(c->builds_allow, told))
		return err_set(err, ERR_REFUSED,
			"the build \"%s\" is not one of those that [builds] allow names (bring the "
			"client and the hub, \"%s\", to one build)",
			told, hub->options->build);
	if (matches(c->builds_warn, told))
		log_warning("%s comes with the build \"%s\", which [builds] warn names", who, told);
	return 0;
}

/* --- health --------------------------------------------------------------------------------- */

static int get_health(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	/* Everybody may ask: nothing in it tells of what is kept here. */
	bool serves = hub->host && host_pid(hub->host) > 0;
	return rest_reply(request, 200,
		json_pack("{s:s, s:s, s:s, s:i, s:I}", "status", serves ? "ok" : "degraded",
			"version", hub->options->version, "build", hub->options->build, "protocol",
			REST_PROTOCOL, "uptime_s",
			(json_int_t)((clock_now_ns() - hub->started_ns) / 1000000000)),
		err);
}

const struct rest_route hub_health_routes[] = {
	{"GET", "/api/v1/health", "getHealth", REST_NONE, 0, get_health, 0},
	{0},
};
