/*
 * Asking a hub for a session, for as long as what is in its way comes to an end by itself.
 *
 *   of the same machine                       here
 *   a prune                                   waited for
 *   a session that is opened or that ends     waited for: nobody's data comes any more, or not yet
 *   (settling … committing)
 *   one that is open, its client is not       let go of; what it stored is gone on with
 *   one that is open, its client is           busy
 *   a backup that the hub makes itself        busy
 */
#include "remote_internal.h"

#include <errno.h>
#include <string.h>

/* A hub whose NBD service is just being started again. */
#define BEGIN_WAIT_MS 60000
#define BEGIN_PAUSE_MS 1000
/* A client that lives connects sooner than that, and is connected from then on. */
#define DESERTED_S 5
#define DESERT_WAIT_MS 20000
#define GONE_WAIT_MS 5000
#define GONE_PAUSE_MS 100

/* What is in the way. */
struct obstacle {
	enum {
		OBSTACLE_STAYS, /* or is not known */
		OBSTACLE_ENDS,
		OBSTACLE_DESERTED, /* or its client has not come yet */
	} kind;
	char what[256];
};

static const char *text_of(const json_t *object, const char *name)
{
	const char *text = remote_text(object, name);
	return text ? text : "";
}

bool begin_is_state(const json_t *object, const char *state)
{
	return strcmp(text_of(object, "state"), state) == 0;
}

int begin_end_session(struct store *store, const char *session, bool keep, struct err *err)
{
	char path[REMOTE_PATH_BYTES];
	struct deadline until = deadline_after_ms(GONE_WAIT_MS);
	snprintf(path, sizeof path, "%.2000s%s", session, keep ? "?keep=true" : "");
	if (rest_call(store->closing, "DELETE", path, NULL, NULL, err) < 0)
		return -1;
	while (!deadline_passed(until)) {
		json_t *still = NULL;
		int rc = rest_call(store->closing, "GET", session, NULL, &still, NULL);
		json_decref(still);
		if (rc < 0)
			break;
		cancel_sleep(NULL, deadline_after_ms(GONE_PAUSE_MS), NULL);
	}
	return 0;
}

/* --- sessions of the same machine -------------------------------------------------------- */

static bool has_connections(const json_t *session)
{
	const json_t *disk;
	size_t i;
	json_array_foreach(json_object_get(session, "disks"), i, disk)
	{
		if (json_integer_value(json_object_get(disk, "connections")) > 0)
			return true;
	}
	return false;
}

/* Without connections for so long that its client cannot be coming. */
static bool is_deserted(const json_t *session)
{
	json_int_t lease = json_integer_value(json_object_get(session, "lease_s"));
	json_int_t left = json_integer_value(json_object_get(session, "lease_left_s"));
	return lease - left >= DESERTED_S;
}

static void look_at_session(
	struct store *store, const char *vm, const char *id, struct obstacle *obstacle)
{
	char path[REMOTE_PATH_BYTES];
	json_t *session = NULL;
	const char *of = "end";
	if (HUB_PATH(path, NULL, "/api/v1/sessions/", id) < 0)
		return;
	bool known = rest_call(store->closing, "GET", path, NULL, &session, NULL) == 0;
	bool open = known && begin_is_state(session, "open");
	if (open && has_connections(session))
		goto out;
	obstacle->kind = open ? OBSTACLE_DESERTED : OBSTACLE_ENDS;
	if (known)
		of = begin_is_state(session, "opening") ? "opening" : "commit";
	snprintf(obstacle->what, sizeof obstacle->what,
		"the %s of an earlier backup of %s (job %s)", open ? "client" : of, vm, id);
	/* A client that was killed left it open until its lease ends. */
	if (open && is_deserted(session) && begin_end_session(store, path, true, NULL) == 0)
		log_warning("an earlier backup of %s whose program is gone is ended", vm);
out:
	json_decref(session);
}

static void look_at_sessions(struct store *store, const char *vm, struct obstacle *obstacle)
{
	json_t *list = NULL;
	const json_t *item;
	size_t i;
	rest_call(store->closing, "GET", "/api/v1/sessions?limit=1000", NULL, &list, NULL);
	json_array_foreach(json_object_get(list, "items"), i, item)
	{
		if (strcmp(text_of(item, "vm"), vm) == 0 &&
			strcmp(text_of(item, "repository"), store->repository) == 0)
			look_at_session(store, vm, text_of(item, "id"), obstacle);
	}
	json_decref(list);
}

int begin_settle(struct store *store, const char *vm, struct deadline until, struct err *err)
{
	for (;;) {
		struct obstacle obstacle = {.kind = OBSTACLE_STAYS};
		look_at_sessions(store, vm, &obstacle);
		if (obstacle.kind == OBSTACLE_STAYS)
			return 0;
		if (deadline_passed(until))
			return err_set(err, ERR_BUSY, "%s has not come to its end", obstacle.what);
		if (cancel_sleep(store->cancel, deadline_after_ms(BEGIN_PAUSE_MS), err) < 0)
			return -1;
	}
}

/* Of this machine, or of all. */
static void look_at_prunes(struct store *store, const char *vm, struct obstacle *obstacle)
{
	json_t *list = NULL;
	const json_t *item;
	size_t i;
	rest_call(store->closing, "GET", "/api/v1/jobs?kind=prune&state=open&limit=1000", NULL,
		&list, NULL);
	json_array_foreach(json_object_get(list, "items"), i, item)
	{
		const char *of = text_of(item, "vm");
		if (!begin_is_state(item, "queued") && (!of[0] || strcmp(of, vm) == 0) &&
			strcmp(text_of(item, "repository"), store->repository) == 0) {
			obstacle->kind = OBSTACLE_ENDS;
			snprintf(obstacle->what, sizeof obstacle->what, "prune job %s",
				text_of(item, "id"));
		}
	}
	json_decref(list);
}

/* --- asking ------------------------------------------------------------------------------ */

struct waiting {
	struct obstacle before;
	unsigned wait_ms;
	struct deadline until, deserted_until;
};

/* Whether what made the hub busy is worth waiting for, still; tells of it once. */
static bool should_wait(struct store *store, const char *vm, struct waiting *w, struct err *why)
{
	struct obstacle now = {.kind = OBSTACLE_STAYS};
	if (why->sys_errno == EAGAIN) {
		now.kind = OBSTACLE_ENDS;
		snprintf(now.what, sizeof now.what, "a place at the hub (%.180s)", why->text);
	} else {
		look_at_sessions(store, vm, &now);
	}
	if (now.kind == OBSTACLE_STAYS)
		look_at_prunes(store, vm, &now);
	bool is_new = strcmp(now.what, w->before.what) != 0;
	w->before = now;
	if (now.kind == OBSTACLE_DESERTED) {
		if (is_new)
			w->deserted_until = deadline_after_ms(DESERT_WAIT_MS);
		return !deadline_passed(w->deserted_until);
	}
	if (now.kind == OBSTACLE_STAYS || w->wait_ms == 0)
		return false;
	if (deadline_passed(w->until)) {
		err_hint(why, "waited %u s for it", w->wait_ms / 1000);
		return false;
	}
	if (is_new)
		log_warning("waiting for %s, at most %u s", now.what, w->wait_ms / 1000);
	return true;
}

int begin_post(struct store *store, const struct store_backup_options *options,
	const json_t *request, json_t **answer, struct err *err)
{
	struct deadline until = deadline_after_ms(BEGIN_WAIT_MS);
	struct waiting waiting = {
		.wait_ms = options->wait_ms, .until = deadline_after_ms(options->wait_ms)};
	for (;;) {
		struct err why = ERR_INIT;
		if (rest_call(store->opening, "POST", "/api/v1/sessions", request, answer, &why) ==
			0)
			return 0;
		/* ERR_EXISTS: it was opened by a call whose answer was lost, and is deserted. */
		bool again = (why.code == ERR_DISCONNECTED || why.code == ERR_EXISTS) &&
			     !deadline_passed(until);
		if (why.code == ERR_BUSY)
			again = should_wait(store, options->vm, &waiting, &why);
		if (!again)
			return err_copy(err, &why);
		log_info("%s; trying again", why.text);
		if (cancel_sleep(store->cancel, deadline_after_ms(BEGIN_PAUSE_MS), err) < 0)
			return -1;
	}
}
