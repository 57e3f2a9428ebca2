/*
 * The queue of jobs alone, for tests: a hub without REST.  Its first line is the configuration,
 * each further one a command; each gets one line in answer, {"error": {"code", "text"}} when it
 * failed.
 *
 *   {"state", "runtime", "kept", "program", "repositories": [{"name", "path", "id", ...}],
 *    "vcenters": [{"name", "url", "password_file", "ca_file"}], "vmware_state", "replica_state",
 *    "vddk", "sources": [], "targets": [], "most", "per_source", "attempts", "retry_ms", ...}
 *   {"do": "add", "spec"} {"do": "get", "id"} {"do": "cancel", "id"} {"do": "wait", "id",
 *   "stage", "states"} {"do": "stop", "hand_over", "ms"} ...
 */
#include "job.h"

#include <stdio.h>
#include <string.h>

#define WAIT_MS 60000
#define MOST 16

struct site {
	json_t *config;
	struct state *state;
	struct jobs *jobs;
	struct job_repository repositories[MOST];
	struct job_vcenter vcenters[MOST];
	size_t nr_repositories, nr_vcenters;
	const char *sources[MOST + 1], *targets[MOST + 1];
};

static const char *text(const json_t *object, const char *name)
{
	return json_string_value(json_object_get(object, name));
}

static json_int_t number(const json_t *object, const char *name)
{
	return json_integer_value(json_object_get(object, name));
}

static void list(const json_t *config, const char *name, const char **out)
{
	size_t i;
	const json_t *item;
	json_array_foreach(json_object_get(config, name), i, item)
	{
		if (i < MOST)
			out[i] = json_string_value(item);
	}
}

static void take_places(struct site *s)
{
	const json_t *c = s->config, *r;
	size_t i;
	json_array_foreach(json_object_get(c, "repositories"), i, r)
	{
		if (s->nr_repositories < MOST)
			s->repositories[s->nr_repositories++] = (struct job_repository){
				.name = text(r, "name"),
				.path = text(r, "path"),
				.url = text(r, "url"),
				.token_file = text(r, "token_file"),
				.ca_file = text(r, "ca_file"),
				.id = text(r, "id"),
				.require_mount = json_is_true(json_object_get(r, "require_mount")),
				.stop_free_bytes = (uint64_t)number(r, "stop_free"),
			};
	}
	json_array_foreach(json_object_get(c, "vcenters"), i, r)
	{
		if (s->nr_vcenters < MOST)
			s->vcenters[s->nr_vcenters++] = (struct job_vcenter){
				.name = text(r, "name"),
				.url = text(r, "url"),
				.password_file = text(r, "password_file"),
				.ca_file = text(r, "ca_file"),
			};
	}
}

static int start(struct site *s, struct err *err)
{
	const json_t *c = s->config;
	take_places(s);
	list(c, "sources", s->sources);
	list(c, "targets", s->targets);
	s->state = state_open(text(c, "state"), err);
	if (!s->state)
		return -1;
	const struct jobs_options options = {
		.state = s->state,
		.runtime_dir = text(c, "runtime"),
		.state_dir = text(c, "kept"),
		.program = text(c, "program"),
		.repositories = s->repositories,
		.nr_repositories = s->nr_repositories,
		.vcenters = s->vcenters,
		.nr_vcenters = s->nr_vcenters,
		.vmware_state_dir = text(c, "vmware_state"),
		.replica_state_dir = text(c, "replica_state"),
		.vddk_dir = text(c, "vddk"),
		.allow_sources = s->sources,
		.allow_targets = s->targets,
		.most = (unsigned)number(c, "most"),
		.most_per_source = (unsigned)number(c, "per_source"),
		.memory_bytes = (uint64_t)number(c, "memory"),
		.attempts = (unsigned)number(c, "attempts"),
		.retry_ms = (unsigned)number(c, "retry_ms"),
		.silence_ms = (unsigned)number(c, "silence_ms"),
		.stage_ms = (unsigned)number(c, "stage_ms"),
	};
	s->jobs = jobs_start(&options, err);
	return s->jobs ? 0 : -1;
}

/* --- commands ----------------------------------------------------------------------------- */

static bool is_one_of(const json_t *texts, const char *value)
{
	size_t i;
	const json_t *item;
	json_array_foreach(texts, i, item)
	{
		if (value && strcmp(json_string_value(item), value) == 0)
			return true;
	}
	return false;
}

/* Until the job is in one of these states or stages. */
static json_t *wait_for(struct site *s, const json_t *command, struct err *err)
{
	uint64_t seen = 0;
	struct deadline until =
		deadline_after_ms(number(command, "ms") ? number(command, "ms") : WAIT_MS);
	json_t *job = NULL, *next;
	while ((next = jobs_wait(s->jobs, text(command, "id"), &seen, until, err))) {
		json_decref(job);
		job = next;
		if (is_one_of(json_object_get(command, "states"), text(job, "state")) ||
			is_one_of(json_object_get(command, "stages"), text(job, "stage")))
			return job;
	}
	if (err->code == ERR_NONE)
		err_set(err, ERR_TIMEOUT, "waited in vain for the job, which is %s in %s",
			text(job, "state"), text(job, "stage"));
	json_decref(job);
	return NULL;
}

static json_t *add(struct site *s, const json_t *command, struct err *err)
{
	char id[JOB_ID_BYTES];
	bool is_foreign = json_is_true(json_object_get(command, "foreign"));
	const json_t *spec = json_object_get(command, "spec");
	const json_t *free_bytes = json_object_get(command, "free_bytes");
	int rc = is_foreign ? jobs_add_foreign(s->jobs, spec, "test",
				      free_bytes ? (uint64_t)json_integer_value(free_bytes)
						 : UINT64_MAX,
				      id, err)
			    : jobs_add(s->jobs, spec, "test", id, err);
	return rc < 0 ? NULL : json_pack("{s:s}", "id", id);
}

static json_t *tell(struct site *s, const json_t *command, struct err *err)
{
	enum job_state state;
	if (!job_state_parse(text(command, "state"), &state)) {
		err_set(err, ERR_USAGE, "no state");
		return NULL;
	}
	int rc = jobs_tell(s->jobs, text(command, "id"), state, text(command, "stage"),
		json_object_get(command, "progress"), NULL, err);
	return rc < 0 ? NULL : json_object();
}

static json_t *retry(struct site *s, const json_t *command, struct err *err)
{
	char id[JOB_ID_BYTES];
	int rc = jobs_retry(s->jobs, text(command, "id"), id, err);
	return rc < 0 ? NULL : json_pack("{s:s}", "id", id);
}

static json_t *log_of(struct site *s, const json_t *command, struct err *err)
{
	char *bytes;
	size_t length;
	if (jobs_log(s->jobs, text(command, "id"), (uint64_t)number(command, "offset"), 1 << 20,
		    &bytes, &length, err) < 0)
		return NULL;
	json_t *out = json_pack("{s:s}", "log", bytes);
	free(bytes);
	return out;
}

static json_t *listed(struct site *s, const json_t *command, struct err *err)
{
	bool more = false;
	const struct state_job_filter filter = {
		.state = text(command, "state"), .before = text(command, "before")};
	json_t *items = jobs_list(s->jobs, &filter, 1000, &more, err);
	return items ? json_pack("{s:o, s:b}", "items", items, "more", more) : NULL;
}

static int take(
	void *context, const char *job, const char *kind, const char *name, const json_t *value)
{
	json_array_append_new(context, json_pack("{s:s, s:s, s:s, s:O?}", "job", job, "kind", kind,
					       "name", name, "value", (json_t *)value));
	return 0;
}

static json_t *counts(struct site *s, const json_t *command, struct err *err)
{
	(void)command;
	unsigned nr_queued, nr_running;
	json_t *takes = json_array();
	jobs_count(s->jobs, &nr_queued, &nr_running);
	if (state_takes(s->state, NULL, take, takes, err) < 0) {
		json_decref(takes);
		return NULL;
	}
	return json_pack("{s:i, s:i, s:i, s:o}", "queued", (int)nr_queued, "running",
		(int)nr_running, "unreaped", (int)jobs_count_unreaped(s->jobs), "takes", takes);
}

static json_t *answer(struct site *s, const json_t *command, struct err *err)
{
	const char *what = text(command, "do");
	static const struct {
		const char *what;
		json_t *(*run)(struct site *s, const json_t *command, struct err *err);
	} commands[] = {{"add", add}, {"tell", tell}, {"retry", retry}, {"log", log_of},
		{"list", listed}, {"counts", counts}, {"wait", wait_for}};
	if (!what)
		err_set(err, ERR_USAGE, "do what?");
	else if (strcmp(what, "get") == 0)
		return jobs_get(s->jobs, text(command, "id"), err);
	else if (strcmp(what, "cancel") == 0)
		return jobs_cancel(s->jobs, text(command, "id"), "the test asked for it", err) < 0
			       ? NULL
			       : json_object();
	for (size_t i = 0; what && i < ARRAY_LENGTH(commands); i++)
		if (strcmp(commands[i].what, what) == 0)
			return commands[i].run(s, command, err);
	return NULL;
}

static void print(json_t *object, const struct err *err)
{
	if (!object)
		object = json_pack("{s:{s:s, s:s}}", "error", "code", err_code_name(err->code),
			"text", err->text);
	json_dumpf(object, stdout, JSON_COMPACT);
	putchar('\n');
	fflush(stdout);
	json_decref(object);
}

static void log_to_stderr(void *context, enum log_level level, const char *line)
{
	(void)context;
	fprintf(stderr, "%s: %s\n", log_level_name(level), line);
}

int main(void)
{
	char *line = NULL;
	size_t room = 0;
	struct site s = {0};
	struct err err = ERR_INIT;
	log_set_sink(log_to_stderr, NULL, LOG_LEVEL_INFO);
	if (getline(&line, &room, stdin) <= 0)
		return 1;
	s.config = json_loads(line, 0, NULL);
	int rc = start(&s, &err);
	print(rc < 0 ? NULL : json_object(), &err);
	bool hand_over = true;
	json_int_t ms = 0;
	while (rc == 0 && getline(&line, &room, stdin) > 0) {
		json_t *command = json_loads(line, 0, NULL);
		const char *what = text(command, "do");
		bool stops = what && strcmp(what, "stop") == 0;
		err_clear(&err);
		if (stops) {
			hand_over = json_is_true(json_object_get(command, "hand_over"));
			ms = number(command, "ms");
		} else {
			print(answer(&s, command, &err), &err);
		}
		json_decref(command);
		if (stops)
			break;
	}
	jobs_stop(s.jobs, hand_over, deadline_after_ms(ms));
	state_close(s.state);
	json_decref(s.config);
	free(line);
	return rc < 0;
}
