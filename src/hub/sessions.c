/*
 * Push sessions and serves, as far as the hub has to do with them.
 *
 * A session is a job too, with the same id: what the NBD service tells of it becomes the job's
 * state here, twice a second while there is one.  What is open stands in state.db ("session",
 * "serve") before the service is asked for it, so that after a crash of either process:
 *
 *   noted, service has it      goes on; one whose opening nobody answered is let go of (kept)
 *   noted, service lacks it    its restore point exists: done; else failed, to be gone on with
 *   not noted                  the service's own lease ends it
 */
#include "hub_internal.h"

#include "job.h"
#include "log.h"
#include "repository.h"
#include "thread.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define LOOK_MS 500
#define SOON_MS 25 /* while one is about to end */
#define IDLE_MS 60000
#define CALL_MS 600000
#define HURRY_MS 2000
#define OPENING_MS (12 * 3600 * 1000) /* an interrupted job is read before it is gone on with */

struct seen {
	char id[JOB_ID_BYTES];
	enum job_state state;
	char stage[REPOSITORY_STAGE_BYTES];
	int64_t moved_bytes;
	bool round; /* met in this round */
};

struct hub_sessions {
	pthread_t thread;
	pthread_mutex_t mutex;
	pthread_cond_t woken;
	pthread_cond_t looked; /* a round is over */
	bool wake, ends;
	unsigned nr_waiting; /* for an end */
	_Atomic unsigned nr_open;
	unsigned nr_ending; /* met in this round: it will not be long */
	struct seen *seen;
	size_t nr_seen;
	char (*cancelled)[JOB_ID_BYTES]; /* that the supervisor wants to end; nr_cancelled */
	size_t nr_cancelled;
};

json_t *hub_host_octets(struct hub *hub, const char *verb, json_t *request, const void *octets,
	size_t length, void **out, size_t *out_length, struct err *err)
{
	if (!request)
		request = json_object();
	json_object_set_new(request, "verb", json_string(verb));
	json_t *answer = NULL;
	struct err why = ERR_INIT;
	int64_t within_ms = strcmp(verb, "session-open") == 0 ? OPENING_MS : CALL_MS;
	if (!hub->host)
		err_set(&why, ERR_BUSY, "the NBD service does not run yet");
	else
		answer = host_call(hub->host, request, octets, length, out, out_length,
			deadline_after_ms(within_ms), hub->calls_end, &why);
	if (!answer && why.code == ERR_CANCELLED && cancel_requested(hub->calls_end))
		err_set(&why, ERR_DISCONNECTED, "the hub is being stopped");
	if (!answer)
		err_copy(err, &why);
	json_decref(request);
	return answer;
}

json_t *hub_host_call(struct hub *hub, const char *verb, json_t *request, struct err *err)
{
	return hub_host_octets(hub, verb, request, NULL, 0, NULL, NULL, err);
}

/* --- what the service says, as a job -------------------------------------------------------- */

/* SESSION's states (host.h). */
static const struct {
	const char *name;
	enum job_state state;
	const char *stage; /* where the session names none */
} states[] = {
	{"opening", JOB_STARTING, "open"},
	{"open", JOB_RUNNING, "receive"},
	{"settling", JOB_VERIFYING, "settle"},
	{"comparing", JOB_VERIFYING, "compare"},
	{"committing", JOB_COMMITTING, "commit"},
	{"committed", JOB_DONE, NULL},
	{"refused", JOB_FAILED, NULL},
	{"failed", JOB_FAILED, NULL},
	{"left", JOB_FAILED, NULL},
	{"expired", JOB_FAILED, NULL},
	{"aborted", JOB_CANCELLED, NULL},
};

/* Why the session ended without a restore point; clear when it said nothing. */
static void error_of(const json_t *session, struct err *why)
{
	const char *state = hub_text(session, "state");
	const json_t *error = json_object_get(session, "error");
	const char *disk = hub_text(error, "disk"), *text = hub_text(error, "text");
	err_clear(why);
	if (json_is_object(error) && disk[0] && !strstr(text, disk))
		err_set(why, err_code_parse(hub_text(error, "code"), ERR_IO), "disk %s: %s", disk,
			text);
	else if (json_is_object(error))
		err_set(why, err_code_parse(hub_text(error, "code"), ERR_IO), "%s", text);
	else if (strcmp(state, "expired") == 0)
		err_set(why, ERR_TIMEOUT,
			"the client was not heard of for %" PRId64
			" s, its lease ended (a new session of the same disks goes on with it)",
			(int64_t)json_integer_value(json_object_get(session, "lease_s")));
	else if (strcmp(state, "left") == 0)
		err_set(why, ERR_CANCELLED,
			"it was let go of (a new session of the same disks goes on with it)");
	else if (strcmp(state, "aborted") == 0)
		err_set(why, ERR_CANCELLED, "it was cancelled");
}

static int64_t sum_of(const json_t *session, const char *name)
{
	int64_t sum = 0;
	size_t i;
	json_t *disk;
	json_array_foreach(json_object_get(session, "disks"), i, disk) sum +=
		json_integer_value(json_object_get(disk, name));
	return sum;
}

static struct seen *seen_of(struct hub_sessions *s, const char *id)
{
	for (size_t i = 0; i < s->nr_seen; i++)
		if (strcmp(s->seen[i].id, id) == 0)
			return &s->seen[i];
	struct seen *more = reallocarray(s->seen, s->nr_seen + 1, sizeof *more);
	if (!more)
		return NULL;
	s->seen = more;
	struct seen *seen = &more[s->nr_seen++];
	*seen = (struct seen){.state = JOB_QUEUED};
	snprintf(seen->id, sizeof seen->id, "%s", id);
	return seen;
}

/* Gives the session back: nothing in state.db names it any more. */
static void end_session(struct hub *hub, const char *id)
{
	struct err err = ERR_INIT;
	if (state_delete(hub->state, "session", id, STATE_ANY, &err) < 0 &&
		err.code != ERR_NOT_FOUND)
		log_error("the session %s stays noted: %s", id, err.text);
	json_decref(hub_host_call(hub, "session-forget", json_pack("{s:s}", "session", id), NULL));
}

/* Whether it is the first time that this is to be said of the session. */
static bool is_news(struct hub *hub, const char *id, const char *what)
{
	struct seen *seen = seen_of(hub->sessions, id);
	if (!seen)
		return true;
	bool news = strcmp(seen->stage, what) != 0;
	seen->round = true;
	snprintf(seen->stage, sizeof seen->stage, "%s", what);
	return news;
}

/* progress: of which its job may not know yet; may be NULL. */
static void tell_end(struct hub *hub, const char *id, enum job_state state, const json_t *progress,
	const struct err *why)
{
	struct err err = ERR_INIT;
	const struct err *told = why && why->code != ERR_NONE ? why : NULL;
	int rc = jobs_tell(hub->jobs, id, state, NULL, progress, told, &err);
	if (rc == 0 || err.code == ERR_REFUSED || err.code == ERR_NOT_FOUND)
		end_session(hub, id);
	/* Else the note stays, so that the next round tells it again: nobody else ends the job. */
	else if (is_news(hub, id, "untold"))
		log_warning(
			"the job %s does not know yet that its session ended: %s", id, err.text);
}

static json_t *progress_of(const struct state_object *noted, const json_t *session)
{
	static const char *const figures[] = {"logical", "read", "sent", "zeros_skipped", "stored"};
	const json_t *disk = json_array_get(json_object_get(session, "disks"), 0);
	int64_t received = sum_of(session, "received_bytes");
	json_int_t logical = (json_int_t)received + sum_of(session, "zeroed_bytes");
	json_t *progress = json_pack("{s:I, s:I, s:O?, s:O?, s:O?}", "logical", logical, "sent",
		(json_int_t)received, "total", json_object_get(noted->value, "total"), "point",
		json_object_get(session, "point"), "disks", json_object_get(session, "disks"));
	/* Of one that is committed the service tells what its restore point says. */
	for (size_t f = 0; json_object_get(disk, "stored") && f < ARRAY_LENGTH(figures); f++)
		json_object_set_new(
			progress, figures[f], json_integer(sum_of(session, figures[f])));
	return progress;
}

static void tell_progress(struct hub *hub, const struct state_object *noted, const json_t *session,
	enum job_state state, const char *stage)
{
	struct seen *seen = seen_of(hub->sessions, noted->id);
	int64_t moved = sum_of(session, "received_bytes") + sum_of(session, "zeroed_bytes");
	if (!seen)
		return;
	seen->round = true;
	if (seen->state == state && strcmp(seen->stage, stage) == 0 && seen->moved_bytes == moved)
		return;
	seen->state = state;
	seen->moved_bytes = moved;
	snprintf(seen->stage, sizeof seen->stage, "%s", stage);
	json_t *progress = progress_of(noted, session);
	struct err err = ERR_INIT;
	if (jobs_tell(hub->jobs, noted->id, state, stage, progress, NULL, &err) < 0)
		log_warning("the job %s is not up to date: %s", noted->id, err.text);
	json_decref(progress);
}

static void follow(struct hub *hub, const struct state_object *noted, const json_t *session)
{
	const char *name = hub_text(session, "state"), *stage = hub_text(session, "stage");
	if (strcmp(name, "ending") == 0) {
		hub->sessions->nr_ending++;
		return; /* what it ends as is told in a moment */
	}
	for (size_t i = 0; i < ARRAY_LENGTH(states); i++) {
		if (strcmp(states[i].name, name) != 0)
			continue;
		struct err why = ERR_INIT;
		if (states[i].stage) {
			hub->sessions->nr_ending += states[i].state != JOB_RUNNING;
			tell_progress(hub, noted, session, states[i].state,
				stage[0] ? stage : states[i].stage);
		} else {
			json_t *progress = progress_of(noted, session);
			error_of(session, &why);
			tell_end(hub, noted->id, states[i].state, progress, &why);
			json_decref(progress);
		}
		return;
	}
	log_warning("the session %s is in a state that is not known: %s", noted->id, name);
}

/* 1 when it became a restore point all the same (the plan that it left is dropped then), 0 when
 * not (err: there is one, and it is damaged), -1 when that cannot be told now. */
static int is_made(struct repository *repo, const json_t *noted, struct err *err)
{
	const char *vm = hub_text(noted, "vm"), *point = hub_text(noted, "point");
	struct err why = ERR_INIT;
	if (!point[0])
		return 0;
	struct repository_point *made = repository_point_load(repo, vm, point, &why);
	if (!made && why.code == ERR_NOT_FOUND)
		return 0;
	if (!made) {
		err_copy(err, &why);
		return why.code == ERR_CORRUPT || why.code == ERR_FORMAT ? 0 : -1;
	}
	repository_point_free(made);
	if (repository_clean(repo, REPOSITORY_CLEAN_DEAD, vm, NULL, NULL, &why) < 0)
		log_warning("what a push of %s left is not cleaned up: %s", vm, why.text);
	return 1;
}

/* The service died, or the machine was started again: what became of it tells the
 * repository. */
static void settle_lost(struct hub *hub, const struct state_object *noted)
{
	struct err err = ERR_INIT, why = ERR_INIT;
	const char *name = hub_text(noted->value, "repository");
	bool is_known = hub_config_repository(hub_config(hub), name) != NULL;
	struct repository *repo = hub_repository_open(hub, name, true, &err);
	int made = repo ? is_made(repo, noted->value, &err) : -1;
	repository_close(repo);
	if (made < 0 && is_known && hub_text(noted->value, "point")[0]) {
		if (is_news(hub, noted->id, "lost"))
			log_warning("what became of the session %s is not known yet: %s", noted->id,
				err.text);
		return; /* it is asked again when the repository is back */
	}
	err_set(&why, ERR_DISCONNECTED,
		"the NBD service ended while it ran (a new session of the same disks goes on with "
		"it)");
	if (made == 0 && err.code != ERR_NONE)
		err_copy(&why, &err);
	json_t *progress = json_pack("{s:O?}", "point", json_object_get(noted->value, "point"));
	if (made > 0)
		tell_end(hub, noted->id, JOB_DONE, progress, NULL);
	else
		tell_end(hub, noted->id, JOB_FAILED, NULL, &why);
	json_decref(progress);
}

/* --- rounds ---------------------------------------------------------------------------------- */

struct round {
	struct hub *hub;
	struct state_object *noted;
	size_t nr_noted;
	bool failed;
};

static int note(void *context, const struct state_object *object)
{
	struct round *round = context;
	struct state_object *more = reallocarray(round->noted, round->nr_noted + 1, sizeof *more);
	char *id = strdup(object->id);
	if (more)
		round->noted = more;
	if (!more || !id) {
		free(id);
		round->failed = true;
		return 1;
	}
	more[round->nr_noted++] = (struct state_object){
		.id = id, .version = object->version, .value = json_incref(object->value)};
	return 0;
}

static void free_round(struct round *round)
{
	for (size_t i = 0; i < round->nr_noted; i++) {
		free(round->noted[i].id);
		json_decref(round->noted[i].value);
	}
	free(round->noted);
}

static const json_t *find_in(
	const json_t *status, const char *list, const char *member, const char *id)
{
	size_t i;
	json_t *item;
	json_array_foreach(json_object_get(status, list), i,
		item) if (strcmp(hub_text(item, member), id) == 0) return item;
	return NULL;
}

/* Whether a handler of this hub is about to open it. */
static bool is_opening_here(const struct hub *hub, const struct state_object *noted)
{
	return strcmp(hub_text(noted->value, "state"), "opening") == 0 &&
	       json_integer_value(json_object_get(noted->value, "hub")) == hub->started_ns;
}

static void look_at_sessions(struct hub *hub, const json_t *status, const struct round *round)
{
	for (size_t i = 0; i < round->nr_noted; i++) {
		const struct state_object *noted = &round->noted[i];
		const json_t *session = find_in(status, "sessions", "session", noted->id);
		bool opening = strcmp(hub_text(noted->value, "state"), "opening") == 0;
		if (is_opening_here(hub, noted))
			continue;
		if (!session)
			settle_lost(hub, noted);
		else if (opening && strcmp(hub_text(session, "state"), "open") == 0)
			/* The hub died before it could answer: nobody has the exports. */
			json_decref(hub_host_call(hub, "session-abort",
				json_pack("{s:s, s:b}", "session", noted->id, "keep", 1), NULL));
		else
			follow(hub, noted, session);
	}
}

static void look_at_serves(struct hub *hub, const json_t *status, const struct round *round)
{
	for (size_t i = 0; i < round->nr_noted; i++) {
		const struct state_object *noted = &round->noted[i];
		bool opening = strcmp(hub_text(noted->value, "state"), "opening") == 0;
		if (is_opening_here(hub, noted))
			continue;
		bool there = find_in(status, "serves", "serve", noted->id) != NULL;
		json_t *closed = NULL;
		if (there && opening) /* its hub ended before it could answer */
			closed = hub_host_call(
				hub, "serve-close", json_pack("{s:s}", "serve", noted->id), NULL);
		if (!there || closed)
			state_delete(hub->state, "serve", noted->id, STATE_ANY, NULL);
		json_decref(closed);
	}
}

static void forget_unmet(struct hub_sessions *s)
{
	size_t kept = 0;
	for (size_t i = 0; i < s->nr_seen; i++)
		if (s->seen[i].round) {
			s->seen[kept] = s->seen[i];
			s->seen[kept++].round = false;
		}
	s->nr_seen = kept;
}

/* The next that is to be cancelled; false: none. */
static bool take_cancelled(struct hub_sessions *s, char id[JOB_ID_BYTES])
{
	WITH_LOCK(&s->mutex);
	if (s->nr_cancelled == 0)
		return false;
	memcpy(id, s->cancelled[--s->nr_cancelled], JOB_ID_BYTES);
	return true;
}

static void look(struct hub *hub)
{
	char id[JOB_ID_BYTES];
	while (take_cancelled(hub->sessions, id))
		json_decref(hub_host_call(
			hub, "session-abort", json_pack("{s:s}", "session", id), NULL));
	struct round round = {.hub = hub}, serves = {.hub = hub};
	struct err err = ERR_INIT;
	hub->sessions->nr_ending = 0;
	/* The notes first: what is opened meanwhile is in the service's answer then. */
	if (state_list(hub->state, "session", NULL, note, &round, &err) < 0 || round.failed)
		log_error("sessions are not looked at: %s", err.text);
	bool has_serves =
		state_list(hub->state, "serve", NULL, note, &serves, NULL) == 0 && !serves.failed;
	json_t *status = hub_host_call(hub, "status", NULL, &err);
	if (status) {
		look_at_sessions(hub, status, &round);
		if (has_serves)
			look_at_serves(hub, status, &serves);
	}
	json_decref(status);
	atomic_store(&hub->sessions->nr_open, (unsigned)round.nr_noted);
	forget_unmet(hub->sessions);
	free_round(&serves);
	free_round(&round);
}

static bool wait_for_round(struct hub_sessions *s)
{
	WITH_LOCK(&s->mutex);
	pthread_cond_broadcast(&s->looked);
	struct deadline until = deadline_after_ms(s->nr_ending + s->nr_waiting > 0 ? SOON_MS
						  : atomic_load(&s->nr_open) > 0   ? LOOK_MS
										   : IDLE_MS);
	while (!s->ends && !s->wake && thread_cond_wait(&s->woken, &s->mutex, until))
		;
	s->wake = false;
	return !s->ends;
}

static void *watch(void *context)
{
	struct hub *hub = context;
	do
		look(hub);
	while (wait_for_round(hub->sessions));
	return NULL;
}

void hub_sessions_wake(struct hub *hub)
{
	struct hub_sessions *s = hub->sessions;
	if (!s)
		return;
	WITH_LOCK(&s->mutex);
	s->wake = true;
	pthread_cond_signal(&s->woken);
}

static bool is_noted(struct hub *hub, const char *id)
{
	struct state_object noted = {0};
	struct err err = ERR_INIT;
	bool found = state_get(hub->state, "session", id, &noted, &err) == 0 ||
		     err.code != ERR_NOT_FOUND;
	state_object_clear(&noted);
	return found;
}

void hub_sessions_wait(struct hub *hub, const char *id, struct deadline until)
{
	struct hub_sessions *s = hub->sessions;
	pthread_mutex_lock(&s->mutex);
	s->nr_waiting++;
	s->wake = true;
	pthread_cond_signal(&s->woken);
	bool in_time = true;
	while (in_time && !s->ends) {
		pthread_mutex_unlock(&s->mutex);
		bool open = is_noted(hub, id);
		pthread_mutex_lock(&s->mutex);
		if (!open)
			break;
		in_time = thread_cond_wait(&s->looked, &s->mutex, until);
	}
	s->nr_waiting--;
	pthread_mutex_unlock(&s->mutex);
}

void hub_sessions_cancel(void *context, const char *id, const char *why)
{
	struct hub *hub = context;
	struct hub_sessions *s = hub->sessions;
	if (!s)
		return; /* not yet, or not any more: it is asked again */
	log_info("session %s: %s", id, why);
	WITH_LOCK(&s->mutex);
	char(*more)[JOB_ID_BYTES] = reallocarray(s->cancelled, s->nr_cancelled + 1, sizeof *more);
	if (!more)
		return;
	s->cancelled = more;
	snprintf(more[s->nr_cancelled++], JOB_ID_BYTES, "%s", id);
	s->wake = true;
	pthread_cond_signal(&s->woken);
}

void hub_sessions_hurry(struct hub *hub)
{
	struct round round = {.hub = hub};
	struct deadline until = deadline_after_ms(HURRY_MS);
	state_list(hub->state, "session", NULL, note, &round, NULL);
	for (size_t i = 0; i < round.nr_noted; i++) {
		const struct state_object *noted = &round.noted[i];
		if (!is_opening_here(hub, noted))
			continue;
		json_t *request = json_pack("{s:s, s:s, s:b}", "verb", "session-abort", "session",
			noted->id, "keep", 1);
		json_t *answer =
			host_call(hub->host, request, NULL, 0, NULL, NULL, until, NULL, NULL);
		if (answer) /* its handler undoes it */
			hub_sessions_wait(hub, noted->id, until);
		json_decref(answer);
		json_decref(request);
	}
	free_round(&round);
}

/* --- what an earlier hub left ----------------------------------------------------------------- */

/* Of all jobs of sessions that are open: what nobody else would look at. */
struct left {
	struct hub *hub;
	char (*unnoted)[JOB_ID_BYTES]; /* nr_unnoted: the hub was killed between job and note */
	size_t nr_unnoted;
};

static int take_left(void *context, const struct state_job *job)
{
	struct left *left = context;
	const json_t *cancel = json_object_get(job->value, "cancel");
	if (cancel)
		hub_sessions_cancel(left->hub, job->id, hub_text(cancel, "text"));
	char(*more)[JOB_ID_BYTES] = reallocarray(left->unnoted, left->nr_unnoted + 1, sizeof *more);
	if (!more)
		return 1;
	left->unnoted = more;
	snprintf(more[left->nr_unnoted++], JOB_ID_BYTES, "%s", job->id);
	return 0;
}

/* Before anybody opens a session. */
static int settle_left(struct hub *hub, struct err *err)
{
	const struct state_job_filter open = {.state = "open", .kind = "push"};
	struct left left = {.hub = hub};
	int rc = state_jobs(hub->state, &open, take_left, &left, err);
	for (size_t i = 0; i < left.nr_unnoted; i++) {
		const char *id = left.unnoted[i];
		struct err why = ERR_INIT, trouble = ERR_INIT;
		if (is_noted(hub, id))
			continue;
		err_set(&why, ERR_DISCONNECTED,
			"the hub was killed before it had opened the session");
		if (jobs_tell(hub->jobs, id, JOB_FAILED, NULL, NULL, &why, &trouble) < 0)
			log_warning("the job %s stays open: %s", id, trouble.text);
	}
	free(left.unnoted);
	return rc;
}

int hub_sessions_start(struct hub *hub, struct err *err)
{
	struct hub_sessions *s = calloc(1, sizeof *s);
	if (!s)
		return err_errno(err, ENOMEM, "cannot look after sessions");
	pthread_mutex_init(&s->mutex, NULL);
	thread_cond_init(&s->woken);
	thread_cond_init(&s->looked);
	hub->sessions = s;
	if (settle_left(hub, err) == 0 &&
		thread_start(&s->thread, "sessions", watch, hub, err) == 0)
		return 0;
	hub->sessions = NULL;
	free(s->cancelled);
	free(s);
	return -1;
}

void hub_sessions_stop(struct hub *hub)
{
	struct hub_sessions *s = hub->sessions;
	if (!s)
		return;
	{
		WITH_LOCK(&s->mutex);
		s->ends = true;
		pthread_cond_signal(&s->woken);
	}
	pthread_join(s->thread, NULL);
	pthread_cond_destroy(&s->looked);
	pthread_cond_destroy(&s->woken);
	pthread_mutex_destroy(&s->mutex);
	free(s->cancelled);
	free(s->seen);
	free(s);
	hub->sessions = NULL;
}
