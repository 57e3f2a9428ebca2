/*
 * A push: a session of the hub, from its begin to its end.
 *
 *   POST /sessions ─► (lease renewed by a thread) ─► disks copied (push.c) ─► POST commit ─► its
 *   job followed ─► a restore point
 *                └─► DELETE (keep: what was stored can be gone on with)
 *
 * The hub decides, the client believes nothing of it but what the digests show at the end.
 */
#include "session_internal.h"

#include <errno.h>
#include <string.h>

/* A client that was killed blocks the machine's next backup for so long. */
#define LEASE_S 90

/* --- the request ----------------------------------------------------------------------- */

static void put_text(json_t *object, const char *name, const char *text)
{
	if (text)
		json_object_set_new(object, name, json_string(text));
}

static json_t *source_json(const struct repository_source *source)
{
	json_t *identity = json_object();
	for (size_t i = 0; i < source->nr_identity; i++)
		put_text(identity, source->identity[i].name, source->identity[i].value);
	return json_pack("{s:s, s:s, s:o}", "kind", source->kind, "label", source->label,
		"identity", identity);
}

static json_t *disk_json(const struct store_backup_disk *disk, bool tells_since)
{
	const struct repository_offer *offer = &disk->offer;
	json_t *object = json_pack("{s:s, s:I, s:o, s:s}", "key", offer->key, "size_bytes",
		(json_int_t)offer->size_bytes, "source", source_json(&offer->source), "change",
		repository_change_name(offer->change));
	put_text(object, "from", offer->from);
	put_text(object, "bitmap", offer->bitmap);
	put_text(object, "change_id", disk->change_id);
	put_text(object, "new_bitmap", disk->bitmap);
	put_text(object, "source_state", disk->source_state);
	if (tells_since)
		json_object_set_new(object, "tells_since", json_true());
	put_text(object, "unusable", offer->unusable);
	return object;
}

/* unknown: of which disks it turned out that what changed is not known. */
static json_t *request_json(
	const struct store *store, const struct store_backup_options *options, const bool *unknown)
{
	static const char *const resumes[] = {
		[REPOSITORY_RESUME_AUTO] = "auto",
		[REPOSITORY_RESUME_NEVER] = "never",
		[REPOSITORY_RESUME_MUST] = "must",
	};
	json_t *disks = json_array();
	for (size_t i = 0; i < options->nr_disks; i++)
		json_array_append_new(disks,
			disk_json(&options->disks[i], options->changed_since &&
							      options->disks[i].tells_since &&
							      !unknown[i]));
	json_t *request = json_pack("{s:s, s:s, s:o, s:o, s:s, s:s, s:s, s:i, s:{s:s, s:s, s:i}}",
		"repository", store->repository, "vm", options->vm, "source",
		source_json(&options->source), "disks", disks, "mode", options->wish, "resume",
		resumes[options->resume], "digest", "required", "lease_s", LEASE_S, "client",
		"software", store->software, "build", store->build, "protocol", REST_PROTOCOL);
	put_text(json_object_get(request, "client"), "job", options->job);
	put_text(request, "consistency", options->consistency);
	put_text(request, "consistency_reason", options->consistency_reason);
	return request;
}

/* --- the answer --------------------------------------------------------------------------- */

static int bad_answer(const char *what, struct err *err)
{
	return err_set(err, ERR_PROTOCOL, "the hub's answer has no good \"%s\"", what);
}

static int copy_text(
	const json_t *object, const char *name, char *out, size_t out_bytes, struct err *err)
{
	const char *text = remote_text(object, name);
	if (!text || strlen(text) >= out_bytes)
		return bad_answer(name, err);
	snprintf(out, out_bytes, "%s", text);
	return 0;
}

int session_parse_key(const json_t *digest, struct digest_key *key, struct err *err)
{
	uint8_t seed[DIGEST_SEED_BYTES] = {0};
	enum digest_algorithm algorithm;
	const char *name = remote_text(digest, "algorithm"), *hex = remote_text(digest, "seed");
	if (!name || !digest_algorithm_parse(name, &algorithm))
		return bad_answer("digest.algorithm", err);
	if (algorithm == DIGEST_XXH3_128 && (!hex || !digest_unhex(hex, seed, sizeof seed)))
		return bad_answer("digest.seed", err);
	if (json_integer_value(json_object_get(digest, "chunk_bytes")) != DIGEST_CHUNK_BYTES)
		return err_set(err, ERR_UNSUPPORTED, "the hub's chunks are not of %u bytes",
			DIGEST_CHUNK_BYTES);
	digest_key_init(key, algorithm, seed);
	explicit_bzero(seed, sizeof seed);
	return 0;
}

static int parse_decision(
	const json_t *object, struct repository_decision *decision, struct err *err)
{
	const char *mode = remote_text(object, "mode"), *parent = remote_text(object, "parent");
	const char *reason = remote_text(object, "reason"), *change = remote_text(object, "change");
	memset(decision, 0, sizeof *decision);
	if (!mode || (strcmp(mode, "full") != 0 && strcmp(mode, "incremental") != 0))
		return bad_answer("mode", err);
	decision->mode = mode[0] == 'f' ? REPOSITORY_FULL : REPOSITORY_INCREMENTAL;
	decision->fallback = json_is_true(json_object_get(object, "fallback"));
	snprintf(decision->reason, sizeof decision->reason, "%s", reason ? reason : "");
	if (decision->mode == REPOSITORY_FULL)
		return 0;
	if (!parent || !repository_name_is_point(parent))
		return bad_answer("parent", err);
	snprintf(decision->parent, sizeof decision->parent, "%s", parent);
	return repository_change_parse(change, &decision->change) &&
			       decision->change != REPOSITORY_CHANGE_NONE
		       ? 0
		       : bad_answer("change", err);
}

static char *copy_of(const char *text)
{
	return text ? strdup(text) : NULL;
}

static int parse_disk(struct session_disk *disk, const json_t *object,
	struct repository_decision *decision, struct err *err)
{
	static const char *const resumed[] = {
		[REPOSITORY_FRESH] = "fresh",
		[REPOSITORY_RESUMED] = "resumed",
		[REPOSITORY_UPDATED] = "updated",
		[REPOSITORY_COMPARED] = "compared",
	};
	const json_t *export = json_object_get(object, "export");
	const json_t *tls = json_object_get(export, "tls");
	const char *how = remote_text(object, "resumed");
	json_int_t kept = json_integer_value(json_object_get(object, "kept_bytes"));
	if (parse_decision(object, decision, err) < 0)
		return err_context(err, "disk %s", disk->key);
	disk->mode = decision->mode;
	disk->change = decision->change;
	disk->kept_bytes = kept > 0 ? (uint64_t)kept : 0;
	for (unsigned i = 0; how && i < ARRAY_LENGTH(resumed); i++)
		if (strcmp(how, resumed[i]) == 0)
			disk->resumed = i;
	disk->uri = hub_export_uri(export);
	disk->tls_identity = copy_of(remote_text(tls, "identity"));
	disk->tls_psk = copy_of(remote_text(tls, "psk"));
	if (!disk->uri || (json_is_object(tls) && (!disk->tls_identity || !disk->tls_psk)))
		return bad_answer("export", err);
	return hub_export_check(disk->session->store, disk->uri, disk->tls_psk != NULL, err);
}

static const json_t *find_disk(const json_t *disks, const char *key)
{
	const json_t *disk;
	size_t i;
	json_array_foreach(disks, i, disk)
	{
		const char *name = remote_text(disk, "key");
		if (name && strcmp(name, key) == 0)
			return disk;
	}
	return NULL;
}

/* One export for each disk, and each disk another one. */
static int check_exports(const struct session *session, struct err *err)
{
	for (size_t i = 0; i < session->nr_disks; i++)
		for (size_t k = 0; k < i; k++)
			if (strcmp(session->disks[i].uri, session->disks[k].uri) == 0)
				return err_set(err, ERR_REFUSED,
					"the hub gave disks %s and %s the same export",
					session->disks[k].key, session->disks[i].key);
	return 0;
}

static int parse_answer(struct session *session, const struct store_backup_options *options,
	const json_t *answer, struct repository_decision *decisions, struct err *err)
{
	json_int_t lease = json_integer_value(json_object_get(answer, "lease_s"));
	if (copy_text(answer, "id", session->id, sizeof session->id, err) < 0 ||
		HUB_PATH(session->path, err, "/api/v1/sessions/", session->id) < 0)
		return -1;
	session->lease_s = lease > 3 && lease <= 86400 ? (unsigned)lease : LEASE_S;
	if (copy_text(answer, "point", session->point, sizeof session->point, err) < 0 ||
		session_parse_key(json_object_get(answer, "digest"), &session->key, err) < 0)
		return -1;
	for (size_t i = 0; i < options->nr_disks; i++) {
		const struct repository_offer *offer = &options->disks[i].offer;
		struct session_disk *disk = &session->disks[session->nr_disks++];
		const json_t *object = find_disk(json_object_get(answer, "disks"), offer->key);
		disk->session = session;
		disk->size_bytes = offer->size_bytes;
		snprintf(disk->key, sizeof disk->key, "%s", offer->key);
		snprintf(
			disk->label, sizeof disk->label, "the hub's export for disk %s", disk->key);
		if (!object)
			return bad_answer("disks", err);
		if (parse_disk(disk, object, &decisions[i], err) < 0)
			return -1;
	}
	return check_exports(session, err);
}

/* --- begin ---------------------------------------------------------------------------------- */

static void session_free(struct session *session)
{
	keeper_stop(session->keeper);
	for (size_t i = 0; i < session->nr_disks; i++)
		push_close(&session->disks[i]);
	explicit_bzero(&session->key, sizeof session->key);
	free(session->disks);
	free(session);
}

static struct session *session_new(
	struct store *store, const struct store_backup_options *options, struct err *err)
{
	struct session *session = calloc(1, sizeof *session);
	if (session)
		session->disks = calloc(options->nr_disks, sizeof *session->disks);
	if (!session || !session->disks) {
		free(session);
		err_errno(err, ENOMEM, "cannot back up %s", options->vm);
		return NULL;
	}
	session->store = store;
	session->stage = options->stage;
	session->stage_context = options->context;
	snprintf(session->vm, sizeof session->vm, "%s", options->vm);
	return session;
}

/*
 * What changed since the hub's part was stored, of each disk that is to be brought up to date so:
 * 1, 0 (not known of one: unknown says of which), -1.
 */
static int ask_changes(struct session *session, const struct store_backup_options *options,
	const json_t *answer, bool *unknown, struct err *err)
{
	int all = 1;
	for (size_t i = 0; i < session->nr_disks; i++) {
		struct session_disk *disk = &session->disks[i];
		const json_t *object = find_disk(json_object_get(answer, "disks"), disk->key);
		const char *since = remote_text(object, "stored_since");
		if (disk->resumed != REPOSITORY_UPDATED)
			continue;
		if (!since || !options->changed_since || !options->disks[i].tells_since ||
			unknown[i])
			return bad_answer("resumed", err);
		int known = options->changed_since(options->context, i, since, &disk->changed, err);
		if (known < 0)
			return -1;
		unknown[i] = known == 0;
		all &= known;
	}
	return all;
}

/* NULL with err clear: to be begun again, by what unknown says now. */
static struct session *try_begin(struct store *store, const struct store_backup_options *options,
	struct repository_decision *decisions, bool *unknown, struct err *err)
{
	struct session *session = session_new(store, options, err);
	json_t *request = session ? request_json(store, options, unknown) : NULL, *answer = NULL;
	if (!session)
		return NULL;
	session_stage(session, REPOSITORY_STAGE_BEGIN);
	int rc = request ? begin_post(store, options, request, &answer, err)
			 : err_errno(err, ENOMEM, "cannot back up %s", options->vm);
	json_decref(request);
	if (rc < 0) {
		session_free(session);
		return NULL;
	}
	rc = parse_answer(session, options, answer, decisions, err);
	if (rc == 0)
		session->keeper = keeper_start(
			store, session->path, "the session at the hub", session->lease_s, err);
	int known = session->keeper ? ask_changes(session, options, answer, unknown, err) : -1;
	json_decref(answer);
	if (known > 0)
		return session;
	/* What was there to go on with stays. */
	session_end(session, session->keeper != NULL);
	return NULL;
}

struct session *session_begin(struct store *store, const struct store_backup_options *options,
	struct repository_decision *decisions, struct err *err)
{
	bool *AUTO_FREE unknown = calloc(options->nr_disks, sizeof *unknown);
	if (!unknown) {
		err_errno(err, ENOMEM, "cannot back up %s", options->vm);
		return NULL;
	}
	for (;;) {
		struct err why = ERR_INIT;
		struct session *session = try_begin(store, options, decisions, unknown, &why);
		if (session)
			return session;
		if (why.code != ERR_NONE) {
			err_copy(err, &why);
			return NULL;
		}
	}
}

const char *session_point(const struct session *session)
{
	return session->point;
}

void session_stage(struct session *session, const char *stage)
{
	if (session->stage)
		session->stage(session->stage_context, stage);
}

enum repository_resumed session_resumed(
	const struct session *session, size_t disk, uint64_t *kept_bytes)
{
	if (kept_bytes)
		*kept_bytes = session->disks[disk].kept_bytes;
	return session->disks[disk].resumed;
}

void session_figures(struct session *session, size_t disk, const struct repository_figures *figures)
{
	session->disks[disk].figures = *figures;
}

int session_config(struct session *session, const char *name, const void *bytes, size_t length,
	struct err *err)
{
	char path[REMOTE_PATH_BYTES];
	if (HUB_PATH(path, err, "/api/v1/sessions/", session->id, "/config/", name) < 0)
		return -1;
	return rest_call_octets(
		session->store->client, "PUT", path, bytes, length, NULL, NULL, 0, err);
}

/* --- end ------------------------------------------------------------------------------------- */

/* Stages of the commit, as literals. */
static void take_stage(void *context, const json_t *job)
{
	static const char *const stages[] = {"settle", "compare", "commit", REPOSITORY_STAGE_FILL,
		REPOSITORY_STAGE_SYNC_DATA, REPOSITORY_STAGE_CLOSE_DATA, REPOSITORY_STAGE_SYNC_SUMS,
		REPOSITORY_STAGE_RENAME_DATA, REPOSITORY_STAGE_SYNC_FOLDERS,
		REPOSITORY_STAGE_RENAME_MANIFEST, REPOSITORY_STAGE_LOG, REPOSITORY_STAGE_DROP_PLAN};
	struct session *session = context;
	const char *stage = remote_text(job, "stage");
	for (unsigned i = 0; stage && i < ARRAY_LENGTH(stages); i++)
		if (strcmp(stages[i], stage) == 0)
			session_stage(session, stages[i]);
}

static json_t *commit_json(struct session *session, struct err *err)
{
	json_t *disks = json_array();
	for (size_t i = 0; i < session->nr_disks; i++) {
		json_t *disk = push_digest(&session->disks[i], err);
		if (!disk) {
			json_decref(disks);
			return NULL;
		}
		json_array_append_new(disks, disk);
	}
	return json_pack("{s:o}", "disks", disks);
}

/* Whether the restore point is there, whatever became of the answers. */
static bool is_there(struct session *session)
{
	char path[REMOTE_PATH_BYTES];
	json_t *point = NULL;
	bool there = HUB_PATH(path, NULL, "/api/v1/repositories/", session->store->repository,
			     "/vms/", session->vm, "/points/", session->point) == 0 &&
		     rest_call(session->store->closing, "GET", path, NULL, &point, NULL) == 0 &&
		     !json_object_get(point, "damage");
	json_decref(point);
	return there;
}

/* A hub that was killed before it could answer did what it was asked for, and does not remember
 * having been asked: the session has the id of its job, which tells what comes of it. */
static bool commits_already(struct session *session, const struct err *why)
{
	json_t *now = NULL;
	if (why->code == ERR_NOT_FOUND)
		return true; /* it has ended */
	bool does =
		why->code == ERR_BUSY &&
		rest_call(session->store->closing, "GET", session->path, NULL, &now, NULL) == 0 &&
		!begin_is_state(now, "open");
	json_decref(now);
	return does;
}

static int commit(struct session *session, struct err *err)
{
	char path[REMOTE_PATH_BYTES], job[REMOTE_ID_BYTES];
	json_t *request = NULL, *ended = NULL;
	/* Connected while it lasts: a session without connections counts as deserted. */
	session_stage(session, "digest");
	request = commit_json(session, err);
	if (!request)
		return -1;
	for (size_t i = 0; i < session->nr_disks; i++)
		if (push_finish(&session->disks[i], err) < 0) {
			json_decref(request);
			return err_context(err, "disk %s", session->disks[i].key);
		}
	session_stage(session, "commit");
	struct err why = ERR_INIT;
	int rc = HUB_PATH(path, err, "/api/v1/sessions/", session->id, "/commit");
	session->asked = rc == 0;
	if (rc == 0 && hub_add_job(session->store, path, request, job, &why) < 0) {
		if (commits_already(session, &why))
			snprintf(job, sizeof job, "%s", session->id);
		else
			rc = err_copy(err, &why);
	}
	json_decref(request);
	if (rc == 0)
		rc = hub_follow(session->store, job, false, take_stage, session, &ended, err);
	json_decref(ended);
	return rc;
}

int session_commit(struct session *session, struct err *err)
{
	struct err why = ERR_INIT;
	if (commit(session, &why) < 0) {
		session->committed = why.code != ERR_CORRUPT && is_there(session);
		if (!session->committed) {
			err_copy(err, &why);
			return err_context(
				err, "cannot commit the backup of VM \"%s\"", session->vm);
		}
		log_warning("the restore point was made, although: %s", why.text);
	}
	session_free(session);
	return 0;
}

bool session_stop_commit(struct session *session, bool keep)
{
	/* Asked to end it, the hub does, or commits: one of both is told then. */
	if (!session->asked || session->committed)
		return session->committed;
	begin_end_session(session->store, session->path, keep, NULL);
	session->committed = is_there(session);
	return session->committed;
}

bool session_is_committed(const struct session *session)
{
	return session->committed;
}

void session_end(struct session *session, bool keep)
{
	struct err err = ERR_INIT;
	if (!session)
		return;
	for (size_t i = 0; i < session->nr_disks; i++)
		push_finish(&session->disks[i], NULL);
	if (session->id[0] && !session->committed &&
		begin_end_session(session->store, session->path, keep, &err) < 0 &&
		err.code != ERR_NOT_FOUND)
		log_warning("the hub was not told that the backup of %s has ended (it ends "
			    "it by itself after %u s): %s",
			session->vm, session->lease_s, err.text);
	session_free(session);
}

bool session_is_lost(const struct session *session, const struct err *why)
{
	json_t *now = NULL;
	if (why->code != ERR_DISCONNECTED && why->code != ERR_TIMEOUT &&
		why->code != ERR_NOT_FOUND && why->code != ERR_REFUSED)
		return false;
	/* Where it stands the loss was the source's. */
	bool stands =
		rest_call(session->store->closing, "GET", session->path, NULL, &now, NULL) == 0 &&
		begin_is_state(now, "open");
	json_decref(now);
	return !stands;
}
