/*
 * Jobs of a hub, followed until they end.
 *
 *   events (SSE) ─► each tells the job as it is ─► its end ─► asked for once more, whole
 *
 * When this program is to stop, the job is cancelled and its end waited for, a while.
 */
#include "remote_internal.h"

#include <string.h>

#define PAUSE_MS 300 /* between streams that ended without an end */
#define CANCEL_WAIT_MS 10000

struct follow {
	hub_tell *tell;
	void *context;
	bool ended;
};

static bool is_end(const json_t *job)
{
	const char *state = json_string_value(json_object_get(job, "state"));
	return state && (strcmp(state, "done") == 0 || strcmp(state, "failed") == 0 ||
				strcmp(state, "cancelled") == 0);
}

static int on_event(void *context, const char *name, const json_t *data)
{
	struct follow *follow = context;
	if (follow->tell && json_is_object(data))
		follow->tell(follow->context, data);
	follow->ended = strcmp(name, "end") == 0 || is_end(data);
	return follow->ended;
}

static int outcome(const json_t *job, struct err *err)
{
	const json_t *why = json_object_get(job, "error");
	const char *state = json_string_value(json_object_get(job, "state"));
	const char *text = json_string_value(json_object_get(why, "text"));
	if (state && strcmp(state, "done") == 0)
		return 0;
	enum err_code code =
		err_code_parse(json_string_value(json_object_get(why, "code")), ERR_IO);
	if (state && strcmp(state, "cancelled") == 0)
		code = ERR_CANCELLED;
	return err_set(err, code, "%s", text ? text : "the hub's job ended without a reason");
}

/* Best effort: what cannot be cancelled is told by the hub. */
static void cancel_job(struct store *store, const char *id, const char *path)
{
	char cancel[REMOTE_PATH_BYTES];
	struct err err = ERR_INIT;
	struct deadline until = deadline_after_ms(CANCEL_WAIT_MS);
	if (HUB_PATH(cancel, &err, "/api/v1/jobs/", id, "/cancel") < 0 ||
		rest_call(store->closing, "POST", cancel, NULL, NULL, &err) < 0) {
		log_warning("the hub's job %s was not cancelled: %s", id, err.text);
		return;
	}
	for (bool ended = false; !ended && !deadline_passed(until);) {
		json_t *job = NULL;
		if (rest_call(store->closing, "GET", path, NULL, &job, NULL) < 0)
			return;
		ended = is_end(job);
		json_decref(job);
		if (!ended)
			cancel_sleep(NULL, deadline_after_ms(PAUSE_MS), NULL);
	}
}

int hub_follow(struct store *store, const char *id, bool cancels, hub_tell *tell, void *context,
	json_t **job, struct err *err)
{
	struct follow follow = {.tell = tell, .context = context};
	char path[REMOTE_PATH_BYTES], events[REMOTE_PATH_BYTES];
	struct err why = ERR_INIT;
	*job = NULL;
	if (HUB_PATH(path, err, "/api/v1/jobs/", id) < 0 ||
		HUB_PATH(events, err, "/api/v1/jobs/", id, "/events") < 0)
		return -1;
	for (;;) {
		int rc = rest_follow(store->client, events, on_event, &follow, &why);
		if (rc == 0)
			rc = rest_call(store->client, "GET", path, NULL, job, &why);
		if (rc == 0 && !is_end(*job)) {
			json_decref(*job);
			*job = NULL;
			rc = cancel_sleep(store->cancel, deadline_after_ms(PAUSE_MS), &why);
			if (rc == 0)
				continue;
		}
		if (rc < 0 && why.code == ERR_CANCELLED && cancels)
			cancel_job(store, id, path);
		return rc < 0 ? err_copy(err, &why) : outcome(*job, err);
	}
}

/* Adds the job, and gives its id. */
int hub_add_job(struct store *store, const char *path, const json_t *body, char id[REMOTE_ID_BYTES],
	struct err *err)
{
	json_t *reply = NULL;
	if (!body)
		return err_set(err, ERR_NO_MEMORY, "cannot ask the hub: out of memory");
	if (rest_call(store->client, "POST", path, body, &reply, err) < 0)
		return -1;
	const char *text = json_string_value(json_object_get(reply, "id"));
	int rc = 0;
	if (text && strlen(text) < REMOTE_ID_BYTES)
		snprintf(id, REMOTE_ID_BYTES, "%s", text);
	else
		rc = err_set(err, ERR_PROTOCOL, "the hub's answer names no job");
	json_decref(reply);
	return rc;
}

void hub_tell_figures(const json_t *job, struct copy_progress *figures)
{
	const json_t *progress = json_object_get(job, "progress");
	if (!json_is_object(progress) || !figures)
		return;
	const struct {
		const char *name;
		atomic_uint_fast64_t *figure;
	} members[] = {
		{"logical", &figures->logical},
		{"read", &figures->read},
		{"sent", &figures->sent},
		{"zeros_skipped", &figures->zeros_skipped},
		{"stored", &figures->stored},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(members); i++) {
		json_int_t value = json_integer_value(json_object_get(progress, members[i].name));
		if (value > 0 && (uint64_t)value > atomic_load(members[i].figure))
			atomic_store(members[i].figure, (uint64_t)value);
	}
}
