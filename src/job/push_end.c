/*
 * The ends of a session (push.h draws its states).
 *
 *   exports removed ─► read back ─► compared ─► committed
 *         │                            └ another digest than the client's: aborted
 *         └► aborted (failed, where a write had failed), or left to be gone on with
 */
#include "push.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define TELL_ENDS_NS (INT64_C(3600) * 1000000000)
#define TRY_AGAIN_MS 1000

/* --- exports --------------------------------------------------------------------- */

/* A disk that keeps a request cannot be closed: it is waited for, and told of. */
static void remove_exports(struct push *session)
{
	for (size_t i = 0; i < session->nr_disks; i++) {
		struct push_disk *disk = &session->disks[i];
		struct err err = ERR_INIT;
		if (!disk->export)
			continue;
		if (i == 0)
			push_stage(session, "end-exports");
		while (export_remove(disk->export, &err) < 0) {
			log_error("session %s waits: %s", session->id, err.text);
			pthread_mutex_lock(&session->service->mutex);
			err_copy(&session->err, &err);
			pthread_mutex_unlock(&session->service->mutex);
			(void)cancel_sleep(NULL, deadline_after_ms(TRY_AGAIN_MS), NULL);
		}
		export_figures(disk->export, &disk->last);
		if (session->failure.code == ERR_NONE &&
			export_failed(disk->export, &session->failure))
			memcpy(session->failed_disk, disk->key, sizeof session->failed_disk);
	}
	WITH_LOCK(&session->service->mutex);
	err_clear(&session->err);
	for (size_t i = 0; i < session->nr_disks; i++) {
		session->disks[i].removed = true;
		export_free(session->disks[i].export);
		session->disks[i].export = NULL;
	}
}

void push_give_back(struct push *session)
{
	remove_exports(session);
	export_group_free(session->group);
	session->group = NULL;
	host_repository_put(session->service, session->repository);
	session->repository = NULL;
}

/* --- commit ---------------------------------------------------------------------- */

static void enter(struct push *session, enum push_state state, const char *stage)
{
	pthread_mutex_lock(&session->service->mutex);
	push_set(session, state);
	pthread_mutex_unlock(&session->service->mutex);
	repository_backup_stage(session->backup, stage);
}

static int settle(struct push *session, struct err *err)
{
	repository_backup_stage(session->backup, "settle");
	for (size_t i = 0; i < session->nr_disks; i++)
		if (repository_backup_settle(session->backup, i, err) < 0)
			return err_context(err, "disk %s", session->disks[i].key);
	return 0;
}

static int compare_disk(struct push *session, size_t index, struct err *err)
{
	struct push_disk *disk = &session->disks[index];
	bool root = disk->check == PUSH_CHECK_ROOT;
	char got[DIGEST_ROOT_HEX_BYTES], given[DIGEST_ROOT_HEX_BYTES];
	uint8_t digest[DIGEST_ROOT_BYTES];
	if (disk->check == PUSH_CHECK_NONE) {
		repository_backup_checked(session->backup, index, "absent");
		return 0;
	}
	if ((root ? repository_backup_root(session->backup, index, digest, err)
		  : repository_backup_sent(session->backup, index, digest, NULL, NULL, err)) < 0)
		return -1;
	repository_backup_checked(session->backup, index, root ? "root" : "sent");
	if (memcmp(digest, disk->digest, sizeof digest) == 0)
		return 0;
	digest_hex(digest, sizeof digest, got);
	digest_hex(disk->digest, sizeof disk->digest, given);
	err_set(err, ERR_CORRUPT,
		"disk %s: what arrived is not what was sent: the %s is %.16s..., and the client "
		"says %.16s...; nothing was committed",
		disk->key, root ? "root digest" : "digest over the chunks that were sent", got,
		given);
	return err_hint(
		err, "another disk was written to this export, or bytes changed on the way");
}

/* 1: a digest is another one. */
static int compare(struct push *session, struct err *err)
{
	enter(session, PUSH_COMPARING, "compare");
	for (size_t i = 0; i < session->nr_disks; i++) {
		struct err why = ERR_INIT;
		if (compare_disk(session, i, &why) == 0)
			continue;
		err_copy(err, &why);
		WITH_LOCK(&session->service->mutex);
		memcpy(session->err_disk, session->disks[i].key, sizeof session->err_disk);
		return why.code == ERR_CORRUPT && session->disks[i].check != PUSH_CHECK_NONE ? 1
											     : -1;
	}
	return 0;
}

static void set_figures(struct push *session)
{
	for (size_t i = 0; i < session->nr_disks; i++) {
		struct push_disk *disk = &session->disks[i];
		struct repository_figures figures = disk->figures;
		figures.logical_bytes = disk->size_bytes;
		if (!disk->has_figures)
			figures.sent_bytes = disk->last.received_bytes;
		repository_backup_figures(session->backup, i, &figures);
		if (disk->audited_bytes > 0)
			repository_backup_audited(session->backup, i, disk->audited_bytes);
	}
}

/* As they stand in the manifest, with what the disks take: for the job.  Without it a backup is as
 * good. */
static void take_figures(struct push *session)
{
	struct err err = ERR_INIT;
	struct repository_point *point =
		repository_point_load(session->repository->repo, session->vm, session->point, &err);
	if (!point) {
		log_warning(
			"session %s: the figures of its restore point: %s", session->id, err.text);
		return;
	}
	pthread_mutex_lock(&session->service->mutex);
	for (size_t i = 0; i < session->nr_disks; i++)
		for (size_t d = 0; d < point->nr_disks; d++)
			if (strcmp(point->disks[d].key, session->disks[i].key) == 0)
				session->disks[i].figures = point->disks[d].figures;
	session->has_figures = true;
	pthread_mutex_unlock(&session->service->mutex);
	repository_point_free(point);
}

static int commit(struct push *session, struct err *err)
{
	enter(session, PUSH_COMMITTING, "commit");
	set_figures(session);
	if (repository_backup_commit(session->backup, err) == 0) {
		session->backup = NULL;
		take_figures(session);
		return 0;
	}
	if (!repository_backup_is_committed(session->backup))
		return -1;
	log_warning("session %s: %s", session->id, err->text);
	repository_backup_abort(session->backup); /* nothing is removed any more */
	session->backup = NULL;
	return 0;
}

static enum push_state run_commit(struct push *session, struct err *err)
{
	int rc = settle(session, err);
	if (rc == 0)
		rc = compare(session, err);
	if (rc == 0)
		rc = commit(session, err);
	if (rc == 0)
		return PUSH_COMMITTED;
	pthread_mutex_lock(&session->service->mutex);
	bool keep = session->keep;
	pthread_mutex_unlock(&session->service->mutex);
	bool cancelled = rc < 0 && cancel_requested(session->cancel);
	if (cancelled && keep)
		repository_backup_leave(session->backup);
	else
		repository_backup_abort(session->backup);
	session->backup = NULL;
	if (cancelled)
		return keep ? PUSH_LEFT : PUSH_ABORTED;
	return rc > 0 ? PUSH_REFUSED : PUSH_FAILED;
}

/* --- the thread ------------------------------------------------------------------ */

/* A client whose writes failed gives up, which is no wish of anybody: it failed. */
static enum push_state run_end(struct push *session, struct err *err)
{
	enum push_state state = session->end;
	if (state == PUSH_ABORTED)
		repository_backup_abort(session->backup);
	else
		repository_backup_leave(session->backup);
	session->backup = NULL;
	if (state != PUSH_ABORTED || session->failure.code == ERR_NONE)
		return state;
	err_copy(err, &session->failure);
	WITH_LOCK(&session->service->mutex);
	memcpy(session->err_disk, session->failed_disk, sizeof session->err_disk);
	return PUSH_FAILED;
}

static void *end_main(void *arg)
{
	struct push *session = arg;
	struct host_service *service = session->service;
	struct err err = ERR_INIT;
	enum push_state state;
	pthread_mutex_lock(&session->work);
	remove_exports(session);
	/* Before it is set by somebody else. */
	state = session->state == PUSH_SETTLING ? run_commit(session, &err)
						: run_end(session, &err);
	push_give_back(session);
	pthread_mutex_unlock(&session->work);
	pthread_mutex_lock(&service->mutex);
	if (err.code != ERR_NONE && state != PUSH_COMMITTED)
		err_copy(&session->err, &err);
	push_set(session, state);
	pthread_mutex_unlock(&service->mutex);
	log_info("session %s of VM \"%s\": %s%s%s", session->id, session->vm,
		push_state_name(state), session->err.code ? ": " : "", session->err.text);
	push_put(session);
	return NULL;
}

int push_start_end(struct push *session, enum push_state to, enum push_state end, struct err *err)
{
	pthread_t thread;
	assert(session->state == PUSH_OPEN);
	push_set(session, to);
	session->end = end;
	session->nr_refs++;
	/* Whoever waits for what is written to become durable need not. */
	if (to == PUSH_ENDING)
		cancel_request(session->cancel);
	if (thread_start(&thread, "session-end", end_main, session, err) == 0) {
		pthread_detach(thread);
		return 0;
	}
	session->nr_refs--;
	session->state = PUSH_OPEN;
	return -1;
}

/* --- verbs ----------------------------------------------------------------------- */

static struct push_disk *find_disk(struct push *session, const char *key, struct err *err)
{
	for (size_t i = 0; i < session->nr_disks; i++)
		if (strcmp(session->disks[i].key, key) == 0)
			return &session->disks[i];
	err_set(err, ERR_NOT_FOUND, "session %s has no disk %s", session->id, key);
	return NULL;
}

static int parse_digest(
	const struct push *session, struct push_disk *disk, const json_t *digest, struct err *err)
{
	const char *kind, *hex;
	if (!digest || json_is_null(digest)) {
		if (!session->digest_required)
			return 0;
		return err_set(err, ERR_USAGE,
			"session-commit: disk %s has no digest, which this session requires",
			disk->key);
	}
	if (host_unpack(digest, "session-commit", err, "{s:s, s:s}", "kind", &kind, "hex", &hex) <
		0)
		return -1;
	disk->check = strcmp(kind, "root") == 0   ? PUSH_CHECK_ROOT
		      : strcmp(kind, "sent") == 0 ? PUSH_CHECK_SENT
						  : PUSH_CHECK_NONE;
	if (disk->check == PUSH_CHECK_NONE)
		return err_set(err, ERR_USAGE,
			"session-commit: disk %s: a digest is of kind \"root\" or \"sent\"",
			disk->key);
	if (disk->check == PUSH_CHECK_SENT && disk->decision.mode == REPOSITORY_FULL)
		return err_set(err, ERR_USAGE,
			"session-commit: disk %s is a full: its digest is the \"root\"", disk->key);
	if (strlen(hex) != 2 * sizeof disk->digest ||
		!digest_unhex(hex, disk->digest, sizeof disk->digest))
		return err_set(err, ERR_USAGE,
			"session-commit: disk %s: a digest is 64 digits of hex", disk->key);
	return 0;
}

static int parse_disk(struct push *session, const json_t *given, struct err *err)
{
	const char *key;
	const json_t *digest = NULL, *figures = NULL;
	json_int_t audited = 0, logical = 0, read = 0, sent = 0, zeros = 0;
	if (host_unpack(given, "session-commit", err, "{s:s, s?o, s?o, s?I}", "key", &key, "digest",
		    &digest, "figures", &figures, "audited_bytes", &audited) < 0 ||
		(figures && host_unpack(figures, "session-commit", err, "{s?I, s?I, s?I, s?I}",
				    "logical_bytes", &logical, "read_bytes", &read, "sent_bytes",
				    &sent, "zeros_skipped_bytes", &zeros) < 0))
		return -1;
	struct push_disk *disk = find_disk(session, key, err);
	if (!disk)
		return -1;
	if (disk->named)
		return err_set(err, ERR_USAGE, "session-commit: disk %s is given twice", key);
	if (audited < 0 || logical < 0 || read < 0 || sent < 0 || zeros < 0)
		return err_set(err, ERR_USAGE, "session-commit: disk %s: a negative figure", key);
	disk->named = true;
	disk->audited_bytes = (uint64_t)audited;
	disk->has_figures = figures != NULL;
	disk->figures = (struct repository_figures){.read_bytes = (uint64_t)read,
		.sent_bytes = (uint64_t)sent,
		.zeros_skipped_bytes = (uint64_t)zeros};
	return parse_digest(session, disk, digest, err);
}

static int parse_disks(struct push *session, const json_t *disks, struct err *err)
{
	size_t i;
	const json_t *given;
	for (i = 0; i < session->nr_disks; i++) {
		session->disks[i].named = false;
		session->disks[i].check = PUSH_CHECK_NONE;
	}
	json_array_foreach(disks, i, given)
	{
		if (parse_disk(session, given, err) < 0)
			return -1;
	}
	for (i = 0; i < session->nr_disks; i++)
		if (!session->disks[i].named)
			return err_set(err, ERR_USAGE, "session-commit: disk %s is not named",
				session->disks[i].key);
	return 0;
}

/* Under the mutex. */
static int check_open(const struct push *session, struct err *err)
{
	if (session->state == PUSH_OPEN)
		return 0;
	return err_set(err, push_is_end(session->state) ? ERR_REFUSED : ERR_BUSY,
		"session %s of VM \"%s\" is %s", session->id, session->vm,
		push_state_name(session->state));
}

json_t *push_verb_commit(struct host_service *service, const json_t *request,
	const struct host_octets *in, struct host_octets *out, struct err *err)
{
	const char *id;
	const json_t *disks;
	(void)in, (void)out;
	if (host_unpack(request, "session-commit", err, "{s:s, s:o}", "session", &id, "disks",
		    &disks) < 0)
		return NULL;
	if (!json_is_array(disks)) {
		err_set(err, ERR_USAGE, "session-commit: disks is a list");
		return NULL;
	}
	pthread_mutex_lock(&service->mutex);
	struct push *session = push_get(service, id, err);
	int rc = session ? check_open(session, err) : -1;
	if (rc == 0)
		rc = parse_disks(session, disks, err);
	if (rc == 0)
		rc = push_start_end(session, PUSH_SETTLING, PUSH_COMMITTED, err);
	pthread_mutex_unlock(&service->mutex);
	push_put(session);
	return rc < 0 ? NULL : json_object();
}

json_t *push_verb_abort(struct host_service *service, const json_t *request,
	const struct host_octets *in, struct host_octets *out, struct err *err)
{
	const char *id;
	int keep = 0;
	(void)in, (void)out;
	if (host_unpack(
		    request, "session-abort", err, "{s:s, s?b}", "session", &id, "keep", &keep) < 0)
		return NULL;
	pthread_mutex_lock(&service->mutex);
	struct push *session = push_get(service, id, err);
	int rc = session ? 0 : -1;
	if (session && push_is_end(session->state)) {
		rc = check_open(session, err);
	} else if (session) {
		session->keep = keep;
		if (session->state == PUSH_OPEN)
			rc = push_start_end(
				session, PUSH_ENDING, keep ? PUSH_LEFT : PUSH_ABORTED, err);
		else
			cancel_request(session->cancel);
	}
	pthread_mutex_unlock(&service->mutex);
	push_put(session);
	return rc < 0 ? NULL : json_object();
}

/* --- by the clock ---------------------------------------------------------------- */

void push_look_round(struct host_service *service)
{
	struct push *ended = NULL;
	pthread_mutex_lock(&service->mutex);
	for (struct push *at = service->sessions; at; at = at->next) {
		struct err err = ERR_INIT;
		if (at->state == PUSH_OPEN &&
			push_idle_ns(at) > (int64_t)at->lease_s * 1000000000) {
			log_warning("session %s of VM \"%s\": nothing came from its client for %d "
				    "s",
				at->id, at->vm, at->lease_s);
			if (push_start_end(at, PUSH_ENDING, PUSH_EXPIRED, &err) < 0)
				log_error("session %s: %s", at->id, err.text);
		}
		if (push_is_end(at->state) && clock_now_ns() - at->ended_ns > TELL_ENDS_NS)
			ended = at;
	}
	if (ended)
		push_drop(ended);
	pthread_mutex_unlock(&service->mutex);
	push_put(ended);
}

void push_hurry(struct host_service *service)
{
	WITH_LOCK(&service->mutex);
	for (struct push *at = service->sessions; at; at = at->next)
		if (at->state == PUSH_OPENING)
			cancel_request(at->cancel);
	pthread_cond_broadcast(&service->changed);
}

void push_stop_all(struct host_service *service)
{
	bool left = true;
	WITH_LOCK(&service->mutex);
	for (struct push *at = service->sessions; at; at = at->next) {
		struct err err = ERR_INIT;
		if (at->state == PUSH_OPEN &&
			push_start_end(at, PUSH_ENDING, PUSH_LEFT, &err) < 0) {
			log_error("session %s: %s", at->id, err.text);
			_exit(1);
		}
	}
	/* What commits, commits: its deadline is that of who stops us. */
	while (left) {
		left = false;
		for (struct push *at = service->sessions; at; at = at->next)
			left |= !push_is_end(at->state) || at->nr_refs > 1;
		if (left)
			thread_cond_wait(
				&service->changed, &service->mutex, deadline_after_ms(500));
	}
	while (service->sessions) {
		struct push *at = service->sessions;
		push_drop(at);
		pthread_mutex_unlock(&service->mutex);
		push_put(at);
		pthread_mutex_lock(&service->mutex);
	}
}
