/* Sessions: their states, and what is asked of an open one (push.h). */
#include "push.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define DIGESTS_BYTES (1u << 20)
#define WAIT_MS_MOST 60000
#define WAIT_LOOK_MS 500
#define OFFSETS_MOST 65536u

/* --- states ---------------------------------------------------------------------- */

static const char *const state_names[] = {
	[PUSH_OPENING] = "opening",
	[PUSH_OPEN] = "open",
	[PUSH_SETTLING] = "settling",
	[PUSH_COMPARING] = "comparing",
	[PUSH_COMMITTING] = "committing",
	[PUSH_ENDING] = "ending",
	[PUSH_COMMITTED] = "committed",
	[PUSH_REFUSED] = "refused",
	[PUSH_FAILED] = "failed",
	[PUSH_LEFT] = "left",
	[PUSH_EXPIRED] = "expired",
	[PUSH_ABORTED] = "aborted",
};

#define TO(state) (1u << (state))
#define TO_GIVEN_UP (TO(PUSH_FAILED) | TO(PUSH_LEFT) | TO(PUSH_ABORTED))

/* From each state, those that may follow. */
static const unsigned followers[] = {
	[PUSH_OPENING] = TO(PUSH_OPEN),
	[PUSH_OPEN] = TO(PUSH_SETTLING) | TO(PUSH_ENDING),
	[PUSH_SETTLING] = TO(PUSH_COMPARING) | TO_GIVEN_UP,
	[PUSH_COMPARING] = TO(PUSH_COMMITTING) | TO(PUSH_REFUSED) | TO_GIVEN_UP,
	[PUSH_COMMITTING] = TO(PUSH_COMMITTED) | TO_GIVEN_UP,
	[PUSH_ENDING] = TO(PUSH_LEFT) | TO(PUSH_EXPIRED) | TO(PUSH_ABORTED) | TO(PUSH_FAILED),
	[PUSH_ABORTED] = 0,
};

const char *push_state_name(enum push_state state)
{
	return state_names[state];
}

bool push_is_end(enum push_state state)
{
	return state >= PUSH_COMMITTED;
}

static void tell(struct push *session)
{
	session->changes++;
	pthread_cond_broadcast(&session->service->changed);
}

void push_set(struct push *session, enum push_state state)
{
	assert(followers[session->state] & TO(state));
	session->state = state;
	if (push_is_end(state))
		session->ended_ns = clock_now_ns();
	tell(session);
}

void push_stage(void *context, const char *stage)
{
	struct push *session = context;
	WITH_LOCK(&session->service->mutex);
	snprintf(session->stage, sizeof session->stage, "%s", stage);
	session->stage_s = time(NULL);
	tell(session);
}

/* --- the list -------------------------------------------------------------------- */

/* Under the mutex. */
static struct push *find(struct host_service *service, const char *id)
{
	struct push *at = service->sessions;
	while (at && strcmp(at->id, id) != 0)
		at = at->next;
	return at;
}

struct push *push_get(struct host_service *service, const char *id, struct err *err)
{
	struct push *session = find(service, id);
	if (session)
		session->nr_refs++;
	else
		err_set(err, ERR_NOT_FOUND, "there is no session %s", id);
	return session;
}

void push_drop(struct push *session)
{
	struct push **at = &session->service->sessions;
	while (*at != session)
		at = &(*at)->next;
	*at = session->next;
}

void push_free(struct push *session)
{
	assert(!session->backup && !session->group);
	cancel_free(session->cancel);
	pthread_mutex_destroy(&session->work);
	free(session->disks);
	free(session->path);
	free(session->asker);
	free(session);
}

void push_put(struct push *session)
{
	if (!session)
		return;
	struct host_service *service = session->service;
	pthread_mutex_lock(&service->mutex);
	bool last = --session->nr_refs == 0;
	if (last)
		push_free(session);
	pthread_cond_broadcast(&service->changed);
	pthread_mutex_unlock(&service->mutex);
}

/* --- looking --------------------------------------------------------------------- */

static void add_figures(json_t *object, const struct repository_figures *figures)
{
	json_object_update_new(object,
		json_pack("{s:I, s:I, s:I, s:I, s:I}", "logical",
			(json_int_t)figures->logical_bytes, "read", (json_int_t)figures->read_bytes,
			"sent", (json_int_t)figures->sent_bytes, "zeros_skipped",
			(json_int_t)figures->zeros_skipped_bytes, "stored",
			(json_int_t)figures->stored_bytes));
}

/* Under the mutex. */
static json_t *describe_disks(const struct push *session)
{
	json_t *disks = json_array();
	for (size_t i = 0; i < session->nr_disks; i++) {
		const struct push_disk *disk = &session->disks[i];
		struct export_figures now = disk->last;
		if (disk->export)
			export_figures(disk->export, &now);
		json_t *object =
			json_pack("{s:s, s:I, s:i, s:I, s:I, s:I}", "key", disk->key, "size_bytes",
				(json_int_t)disk->size_bytes, "connections", (int)now.connections,
				"received_bytes", (json_int_t)now.received_bytes, "zeroed_bytes",
				(json_int_t)now.zeroed_bytes, "requests", (json_int_t)now.requests);
		if (session->has_figures)
			add_figures(object, &disk->figures);
		json_array_append_new(disks, object);
	}
	return disks;
}

int64_t push_idle_ns(const struct push *session)
{
	int64_t last = session->renewed_ns;
	for (size_t i = 0; i < session->nr_disks; i++) {
		struct export_figures figures;
		if (!session->disks[i].export)
			continue;
		export_figures(session->disks[i].export, &figures);
		if (figures.active_ns > last)
			last = figures.active_ns;
	}
	return clock_now_ns() - last;
}

/* The same. */
static int64_t lease_left_s(const struct push *session)
{
	int64_t left = session->lease_s - push_idle_ns(session) / 1000000000;
	return left > 0 ? left : 0;
}

/* The same. */
static json_t *describe(const struct push *session)
{
	char opened[CLOCK_UTC_BYTES], since[CLOCK_UTC_BYTES];
	clock_utc_text(session->opened_s, opened);
	clock_utc_text(session->stage_s, since);
	json_t *object =
		json_pack("{s:s, s:s, s:s, s:s, s:s, s:s*, s:s, s:I, s:s, s:s, s:s, s:i, s:I, s:o}",
			"session", session->id, "job", session->job, "point", session->point, "vm",
			session->vm, "repository", session->path, "for", session->asker, "state",
			push_state_name(session->state), "changes", (json_int_t)session->changes,
			"stage", session->stage, "stage_since", since, "opened", opened, "lease_s",
			session->lease_s, "lease_left_s", (json_int_t)lease_left_s(session),
			"disks", describe_disks(session));
	if (session->err.code != ERR_NONE)
		json_object_set_new(object, "error",
			json_pack("{s:s, s:s, s:s*}", "code", err_code_name(session->err.code),
				"text", session->err.text, "disk",
				session->err_disk[0] ? session->err_disk : NULL));
	return object;
}

json_t *push_list(struct host_service *service)
{
	json_t *list = json_array();
	for (const struct push *at = service->sessions; at; at = at->next)
		json_array_append_new(list, describe(at));
	return list;
}

json_t *push_verb_look(struct host_service *service, const json_t *request,
	const struct host_octets *in, struct host_octets *out, struct err *err)
{
	const char *id;
	int wait_ms = 0;
	json_int_t seen = -1;
	(void)in, (void)out;
	if (host_unpack(request, "session", err, "{s:s, s?i, s?I}", "session", &id, "wait_ms",
		    &wait_ms, "seen", &seen) < 0)
		return NULL;
	if (wait_ms < 0 || wait_ms > WAIT_MS_MOST) {
		err_set(err, ERR_USAGE, "session: wait_ms is 0 to %d", WAIT_MS_MOST);
		return NULL;
	}
	struct deadline until = deadline_after_ms(wait_ms);
	pthread_mutex_lock(&service->mutex);
	struct push *session = push_get(service, id, err);
	while (session && (json_int_t)session->changes == seen && !deadline_passed(until) &&
		!cancel_requested(service->stop))
		thread_cond_wait(&service->changed, &service->mutex,
			deadline_min(until, deadline_after_ms(WAIT_LOOK_MS)));
	json_t *answer = session ? describe(session) : NULL;
	pthread_mutex_unlock(&service->mutex);
	push_put(session);
	return answer;
}

json_t *push_verb_forget(struct host_service *service, const json_t *request,
	const struct host_octets *in, struct host_octets *out, struct err *err)
{
	const char *id;
	(void)in, (void)out;
	if (host_unpack(request, "session-forget", err, "{s:s}", "session", &id) < 0)
		return NULL;
	pthread_mutex_lock(&service->mutex);
	struct push *session = find(service, id);
	if (!session) {
		err_set(err, ERR_NOT_FOUND, "there is no session %s", id);
	} else if (!push_is_end(session->state)) {
		err_set(err, ERR_BUSY, "session %s has not ended: it is %s", id,
			push_state_name(session->state));
		session = NULL;
	} else {
		push_drop(session);
	}
	pthread_mutex_unlock(&service->mutex);
	push_put(session);
	return session ? json_object() : NULL;
}

/* --- an open one ----------------------------------------------------------------- */

/* Gives it with work held, or NULL: the backup is there until push_let_go(). */
static struct push *take_open(struct host_service *service, const char *id, struct err *err)
{
	pthread_mutex_lock(&service->mutex);
	struct push *session = push_get(service, id, err);
	if (session)
		session->renewed_ns = clock_now_ns();
	pthread_mutex_unlock(&service->mutex);
	if (!session)
		return NULL;
	pthread_mutex_lock(&session->work);
	pthread_mutex_lock(&service->mutex);
	enum push_state state = session->state;
	pthread_mutex_unlock(&service->mutex);
	if (state == PUSH_OPEN && session->backup)
		return session;
	err_set(err, push_is_end(state) ? ERR_REFUSED : ERR_BUSY, "session %s is %s", id,
		push_state_name(state));
	pthread_mutex_unlock(&session->work);
	push_put(session);
	return NULL;
}

static void let_go(struct push *session)
{
	pthread_mutex_unlock(&session->work);
	push_put(session);
}

static int find_disk(const struct push *session, const char *key, size_t *index, struct err *err)
{
	for (*index = 0; *index < session->nr_disks; ++*index)
		if (strcmp(session->disks[*index].key, key) == 0)
			return 0;
	return err_set(err, ERR_NOT_FOUND, "session %s has no disk %s", session->id, key);
}

json_t *push_verb_renew(struct host_service *service, const json_t *request,
	const struct host_octets *in, struct host_octets *out, struct err *err)
{
	const char *id;
	json_t *answer = NULL;
	(void)in, (void)out;
	if (host_unpack(request, "session-renew", err, "{s:s}", "session", &id) < 0)
		return NULL;
	pthread_mutex_lock(&service->mutex);
	struct push *session = push_get(service, id, err);
	if (session && push_is_end(session->state)) {
		err_set(err, ERR_REFUSED, "session %s is %s", id, push_state_name(session->state));
	} else if (session) {
		session->renewed_ns = clock_now_ns();
		answer = json_pack("{s:i}", "lease_left_s", session->lease_s);
	}
	pthread_mutex_unlock(&service->mutex);
	push_put(session);
	return answer;
}

json_t *push_verb_digests(struct host_service *service, const json_t *request,
	const struct host_octets *in, struct host_octets *out, struct err *err)
{
	const char *id, *key;
	json_int_t first = 0, count = 0;
	size_t index;
	uint64_t nr;
	(void)in;
	if (host_unpack(request, "session-digests", err, "{s:s, s:s, s:I, s:I}", "session", &id,
		    "key", &key, "first", &first, "count", &count) < 0)
		return NULL;
	if (first < 0 || count <= 0) {
		err_set(err, ERR_USAGE, "session-digests: first and count are no negative numbers");
		return NULL;
	}
	struct push *session = take_open(service, id, err);
	if (!session)
		return NULL;
	json_t *answer = NULL;
	out->bytes = malloc(DIGESTS_BYTES);
	if (!out->bytes)
		err_errno(err, ENOMEM, "digests");
	else if (find_disk(session, key, &index, err) == 0 &&
		 repository_backup_digests(session->backup, index, (uint64_t)first, (uint64_t)count,
			 out->bytes, DIGESTS_BYTES, &out->length, &nr, err) == 0)
		answer = json_pack("{s:I, s:I}", "first", first, "nr", (json_int_t)nr);
	let_go(session);
	if (answer)
		return answer;
	free(out->bytes);
	out->bytes = NULL;
	return NULL;
}

json_t *push_verb_config(struct host_service *service, const json_t *request,
	const struct host_octets *in, struct host_octets *out, struct err *err)
{
	const char *id, *name;
	(void)out;
	if (host_unpack(request, "session-config", err, "{s:s, s:s}", "session", &id, "name",
		    &name) < 0)
		return NULL;
	if (!in->bytes) {
		err_set(err, ERR_USAGE, "session-config: octets are missing");
		return NULL;
	}
	struct push *session = take_open(service, id, err);
	if (!session)
		return NULL;
	int rc = repository_backup_config(session->backup, name, in->bytes, in->length, err);
	let_go(session);
	return rc < 0 ? NULL : json_object();
}

json_t *push_verb_distrust(struct host_service *service, const json_t *request,
	const struct host_octets *in, struct host_octets *out, struct err *err)
{
	const char *id, *key;
	const json_t *list, *value;
	size_t index, i;
	(void)in, (void)out;
	if (host_unpack(request, "session-distrust", err, "{s:s, s:s, s:o}", "session", &id, "key",
		    &key, "offsets", &list) < 0)
		return NULL;
	size_t nr = json_array_size(list);
	uint64_t *AUTO_FREE offsets = calloc(nr ? nr : 1, sizeof *offsets);
	bool good = nr > 0 && nr <= OFFSETS_MOST;
	json_array_foreach(list, i, value)
	{
		good &= json_is_integer(value) && json_integer_value(value) >= 0;
		if (offsets)
			offsets[i] = (uint64_t)json_integer_value(value);
	}
	if (!good || !offsets) {
		err_set(err, ERR_USAGE, "session-distrust: offsets is a list of 1 to %u numbers",
			OFFSETS_MOST);
		return NULL;
	}
	struct push *session = take_open(service, id, err);
	if (!session)
		return NULL;
	int rc = find_disk(session, key, &index, err);
	if (rc == 0)
		rc = repository_backup_distrust(session->backup, index, offsets, nr, err);
	let_go(session);
	return rc < 0 ? NULL : json_object();
}
