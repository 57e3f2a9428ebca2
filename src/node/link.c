/*
 * The work that a hub gives.  The node calls, and is never called:
 *
 *   what is there to do? ─► unknown ones become jobs here ─► what became of each is told ─► again
 *
 * Each answer has all jobs that have not ended, so nothing is remembered but what was told last: a
 * job here has the hub's name for it ("hub_job"), by which it is found again by whoever was killed
 * in between; what is not in the answer has ended at the hub, and is cancelled here.  While the hub
 * is away jobs go on; where it does not take the node's token any more they are cancelled.
 */
#include "node_internal.h"

#include "job.h"
#include "log.h"
#include "thread.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#define WAIT_S 30 /* for work, when there is none */
#define WAIT_AT_WORK_S 1 /* meanwhile there is something to tell */
#define CALL_MS ((WAIT_S + 15) * 1000)
#define AGAIN_MS 500 /* after a failure; twice that, and so on */
#define AGAIN_MOST_MS 15000
/* Of the token, without an answer between: "node enrol" may just be writing another one. */
#define REFUSALS 2
#define PATH_BYTES 1024

enum link_state { LINK_STARTING, LINK_CONNECTED, LINK_LOST, LINK_REFUSED };

static const char *const state_names[] = {
	[LINK_STARTING] = "starting",
	[LINK_CONNECTED] = "connected",
	[LINK_LOST] = "lost",
	[LINK_REFUSED] = "refused",
};

struct node_link {
	struct node *node;
	pthread_t thread;
	struct cancel *ends;
	struct rest_client *client;
	char seen[64]; /* what the last answer said; "" */
	json_t *told; /* id at the hub -> what was told of it last */
	unsigned nr_refusals; /* of the token, since the last answer */
	pthread_mutex_t mutex; /* of what follows, which others look at */
	enum link_state state;
	int64_t since; /* it is in that state, seconds since 1970 */
	struct err error; /* the last one */
	int64_t failed; /* when that was; 0: never */
};

static const char *text_of(const json_t *object, const char *name)
{
	const char *text = json_string_value(json_object_get(object, name));
	return text ? text : "";
}

/* --- jobs here ------------------------------------------------------------------------------- */

struct find {
	const char *hub_job;
	char id[JOB_ID_BYTES]; /* "": none */
};

static int take_if_its(void *context, const struct state_job *job)
{
	struct find *find = context;
	if (strcmp(text_of(json_object_get(job->value, "spec"), "hub_job"), find->hub_job) != 0)
		return 0;
	memcpy(find->id, job->id, sizeof find->id);
	return 1;
}

/* The newest, whatever became of it. */
static int find_job(struct node *node, const char *hub_job, struct find *find, struct err *err)
{
	const struct state_job_filter all = {0};
	*find = (struct find){.hub_job = hub_job};
	return state_jobs(node->state, &all, take_if_its, find, err);
}

/* "https://hub/" and "main" are "https://hub/main". */
static bool is_at(const char *url, const char *hub, const char *name)
{
	size_t length = strlen(hub);
	while (length > 0 && hub[length - 1] == '/')
		length--;
	return url && strncmp(url, hub, length) == 0 && url[length] == '/' &&
	       strcmp(url + length + 1, name) == 0;
}

/* The hub's name of a repository becomes that of ours which is there. */
static int translate(const struct node *node, json_t *spec, struct err *err)
{
	const struct node_config *c = node_config(node);
	const char *name = text_of(spec, "repository");
	for (size_t i = 0; i < c->nr_repositories; i++)
		if (is_at(c->repositories[i].url, c->hub_url, name)) {
			json_object_set_new(
				spec, "repository", json_string(c->repositories[i].name));
			return 0;
		}
	return err_set(err, ERR_USAGE,
		"repository: node %s has no [repository NAME] with url = %s/%.64s (add it to its "
		"settings)",
		c->name, c->hub_url, name);
}

static int add_job(struct node *node, const json_t *given, char id[JOB_ID_BYTES], struct err *err)
{
	json_t *spec = json_deep_copy(json_object_get(given, "spec"));
	if (!spec)
		return err_set(err, ERR_PROTOCOL, "the hub's answer is none");
	json_object_set_new(spec, "hub_job", json_string(text_of(given, "id")));
	int rc = translate(node, spec, err);
	if (rc == 0)
		rc = jobs_add(node->jobs, spec, "hub", id, err);
	json_decref(spec);
	return rc;
}

/* --- telling ------------------------------------------------------------------------------- */

static void copy(json_t *to, const json_t *from, const char *name)
{
	json_t *value = json_object_get(from, name);
	if (value && !json_is_null(value))
		json_object_set(to, name, value);
}

/* As the hub takes it; see openapi.json. */
static json_t *told_of(const struct node *node, const json_t *job)
{
	static const char *const members[] = {"state", "stage", "error", "report", "point"};
	json_t *body = json_pack("{s:s}", "build", node->options->build);
	json_t *progress = json_deep_copy(json_object_get(job, "progress"));
	for (size_t i = 0; i < ARRAY_LENGTH(members); i++)
		copy(body, job, members[i]);
	if (json_is_object(progress)) {
		copy(progress, job, "disks");
		json_object_set(body, "progress", progress);
	}
	json_decref(progress);
	return body;
}

/* Takes body.  What is not told now is told in the next round.  Who says no may be a gateway: what
 * has ended at the hub is not in its next answer. */
static void tell(struct node_link *link, const char *hub_job, json_t *body)
{
	char path[PATH_BYTES] = "/api/v1/nodes/self/jobs/";
	struct err err = ERR_INIT;
	if (json_equal(json_object_get(link->told, hub_job), body) ||
		rest_path_append(path, sizeof path, hub_job, NULL) < 0) {
		json_decref(body);
		return;
	}
	if (rest_call(link->client, "POST", path, body, NULL, &err) == 0)
		json_object_set(link->told, hub_job, body);
	else
		log_debug("the hub does not know yet what became of job %s: %s", hub_job, err.text);
	json_decref(body);
}

static void tell_refused(struct node_link *link, const char *hub_job, const struct err *why)
{
	log_warning("the hub's job %s cannot be done here: %s", hub_job, why->text);
	tell(link, hub_job,
		json_pack("{s:s, s:{s:s, s:s}}", "state", "failed", "error", "code",
			err_code_name(why->code), "text", why->text));
}

/* --- a round ---------------------------------------------------------------------------------- */

static void look_at(struct node_link *link, const json_t *given)
{
	struct node *node = link->node;
	const char *hub_job = text_of(given, "id");
	struct find find;
	struct err err = ERR_INIT;
	/* Without a name it would be any job that was asked for here. */
	if (!hub_job[0])
		return;
	if (find_job(node, hub_job, &find, &err) < 0) {
		log_warning("the hub's job %s is not looked at: %s", hub_job, err.text);
		return;
	}
	if (!find.id[0] && add_job(node, given, find.id, &err) < 0) {
		if (err.code != ERR_BUSY) /* there is room later */
			tell_refused(link, hub_job, &err);
		return;
	}
	json_t *job = jobs_get(node->jobs, find.id, &err);
	if (job)
		tell(link, hub_job, told_of(node, job));
	json_decref(job);
}

static bool holds(const json_t *array, const char *member, const char *id)
{
	size_t i;
	json_t *item;
	json_array_foreach((json_t *)array, i, item)
	{
		const char *text = member ? text_of(item, member) : json_string_value(item);
		if (text && strcmp(text, id) == 0)
			return true;
	}
	return false;
}

struct unwanted {
	const json_t *work;
	json_t *ids;
};

static int take_unwanted(void *context, const struct state_job *job)
{
	struct unwanted *u = context;
	const char *hub_job = text_of(json_object_get(job->value, "spec"), "hub_job");
	if (hub_job[0] && !json_object_get(job->value, "cancel") &&
		(!holds(json_object_get(u->work, "jobs"), "id", hub_job) ||
			holds(json_object_get(u->work, "cancel"), NULL, hub_job)))
		json_array_append_new(u->ids, json_string(job->id));
	return 0;
}

/* What is to be cancelled there, or has ended; work NULL: all of the hub's. */
static void cancel_unwanted(struct node_link *link, const json_t *work, const char *why)
{
	const struct state_job_filter open = {.state = "open"};
	struct unwanted u = {.work = work, .ids = json_array()};
	size_t i;
	json_t *id;
	state_jobs(link->node->state, &open, take_unwanted, &u, NULL);
	json_array_foreach(u.ids, i, id)
		jobs_cancel(link->node->jobs, json_string_value(id), why, NULL);
	json_decref(u.ids);
}

static void forget_told(struct node_link *link, const json_t *jobs)
{
	const char *id;
	void *next;
	json_t *told;
	json_object_foreach_safe(link->told, next, id, told)
	{
		if (!holds(jobs, "id", id))
			json_object_del(link->told, id);
	}
}

/* All jobs of this node, waited for; NULL: err says why. */
static json_t *ask(struct node_link *link, struct err *err)
{
	const struct node_run_options *o = link->node->options;
	const struct {
		const char *name, *value;
	} words[] = {{"&version=", o->version}, {"&build=", o->build},
		{"&digest=", link->node->digest}, {"&seen=", link->seen}};
	char path[PATH_BYTES];
	json_t *work = NULL;
	int wait_s = json_object_size(link->told) > 0 ? WAIT_AT_WORK_S : WAIT_S;
	snprintf(path, sizeof path, "/api/v1/nodes/self/work?wait=%d&protocol=%d", wait_s,
		REST_PROTOCOL);
	for (size_t i = 0; i < ARRAY_LENGTH(words); i++) {
		if (!words[i].value[0])
			continue;
		size_t used = strlen(path);
		snprintf(path + used, sizeof path - used, "%s", words[i].name);
		if (rest_path_append(path, sizeof path, words[i].value, err) < 0)
			return NULL;
	}
	return rest_call(link->client, "GET", path, NULL, &work, err) < 0 ? NULL : work;
}

static int go_round(struct node_link *link, struct err *err)
{
	json_t *work = ask(link, err);
	const json_t *jobs = json_object_get(work, "jobs");
	size_t i;
	json_t *given;
	if (!work)
		return -1;
	snprintf(link->seen, sizeof link->seen, "%s", text_of(work, "seen"));
	cancel_unwanted(link, work, "the hub does not want it any more");
	json_array_foreach((json_t *)jobs, i, given) look_at(link, given);
	forget_told(link, jobs);
	json_decref(work);
	return 0;
}

/* From which one; why: NULL, or what failed. */
static enum link_state turn(struct node_link *link, enum link_state state, const struct err *why)
{
	WITH_LOCK(&link->mutex);
	enum link_state before = link->state;
	int64_t now = time(NULL);
	link->state = state;
	if (state != before)
		link->since = now;
	if (why) {
		link->error = *why;
		link->failed = now;
	}
	return before;
}

static void note_answer(struct node_link *link)
{
	link->nr_refusals = 0;
	if (turn(link, LINK_CONNECTED, NULL) > LINK_CONNECTED)
		log_info("hub %s answers again", node_config(link->node)->hub_url);
}

static void note_failure(struct node_link *link, const struct err *why)
{
	const char *url = node_config(link->node)->hub_url;
	bool is_refusal = why->sys_errno == EKEYREJECTED;
	link->nr_refusals += is_refusal;
	bool refused = link->nr_refusals >= REFUSALS;
	enum link_state before = turn(link, refused ? LINK_REFUSED : LINK_LOST, why);
	if (before <= LINK_CONNECTED)
		log_warning(
			"hub %s gives no work: %s (jobs go on; it is asked again)", url, why->text);
	if (!refused)
		return;
	if (before != LINK_REFUSED) {
		log_error("hub %s refuses this node's token: its jobs are cancelled (the node was "
			  "taken out there, or enrolled elsewhere; \"sendense node enrol\" with "
			  "another code enrols it again)",
			url);
		node_event(link->node, "hub", "node.refused", url, NULL);
	}
	cancel_unwanted(link, NULL, "the hub refuses this node's token");
}

static void *follow(void *context)
{
	struct node_link *link = context;
	int again_ms = AGAIN_MS;
	while (!cancel_requested(link->ends)) {
		struct err err = ERR_INIT;
		if (go_round(link, &err) == 0) {
			note_answer(link);
			again_ms = AGAIN_MS;
			continue;
		}
		if (cancel_requested(link->ends))
			break;
		note_failure(link, &err);
		cancel_sleep(link->ends, deadline_after_ms(again_ms), NULL);
		again_ms = again_ms * 2 < AGAIN_MOST_MS ? again_ms * 2 : AGAIN_MOST_MS;
	}
	return NULL;
}

/* --- as it is shown ------------------------------------------------------------------------ */

json_t *node_link_json(const struct node *node, bool whole)
{
	struct node_link *link = node->link;
	if (!link)
		return json_null();
	WITH_LOCK(&link->mutex);
	json_t *out = json_pack(
		"{s:s, s:o}", "state", state_names[link->state], "since", node_moment(link->since));
	if (!out || !whole)
		return out;
	json_object_set_new(out, "url", json_string(node_config(node)->hub_url));
	json_object_set_new(out, "failed", node_moment(link->failed));
	json_object_set_new(out, "error",
		link->failed ? json_pack("{s:s, s:s}", "code", err_code_name(link->error.code),
				       "text", link->error.text)
			     : json_null());
	return out;
}

/* --- start and stop ------------------------------------------------------------------------ */

static void free_link(struct node_link *link)
{
	rest_client_free(link->client);
	cancel_free(link->ends);
	json_decref(link->told);
	pthread_mutex_destroy(&link->mutex);
	free(link);
}

int node_link_start(struct node *node, struct err *err)
{
	const struct node_config *c = node_config(node);
	if (!c->hub_url)
		return 0;
	struct node_link *link = calloc(1, sizeof *link);
	if (!link)
		return err_errno(err, ENOMEM, "cannot ask the hub for work");
	pthread_mutex_init(&link->mutex, NULL);
	link->since = time(NULL);
	link->node = node;
	link->told = json_object();
	link->ends = cancel_new(err);
	const struct rest_client_options options = {
		.url = c->hub_url,
		.token_file = c->hub_token_file,
		.ca_file = c->hub_ca_file,
		.silence_timeout_ms = CALL_MS,
		.retry_ms = 1, /* it is asked again here */
		.cancel = link->ends,
	};
	link->client = link->ends && link->told ? rest_client_new(&options, err) : NULL;
	if (link->client && thread_start(&link->thread, "hub", follow, link, err) == 0) {
		node->link = link;
		return 0;
	}
	free_link(link);
	return -1;
}

void node_link_stop(struct node *node)
{
	struct node_link *link = node->link;
	if (!link)
		return;
	cancel_request(link->ends);
	pthread_join(link->thread, NULL);
	node->link = NULL;
	free_link(link);
}
