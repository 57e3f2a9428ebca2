/* Opening a session: what is asked for, checked; decided; begun; exported (push.h). */
#include "push.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define LEASE_S 300
#define LEASE_S_LEAST 2
#define LEASE_S_MOST 86400
#define IDENTITY_MOST 32u

/* --- what is asked for ----------------------------------------------------------- */

/* The request, unpacked; all strings are its own. */
struct open_request {
	const char *id, *path, *repository_id, *vm, *mode, *resume, *digest, *asker, *hub_job;
	const char *consistency, *consistency_reason;
	const char *software, *build, *client_job;
	const json_t *source, *disks;
	int lease_s, protocol;
	char *client; /* software and build; freed */
	size_t nr_disks;
	struct repository_source vm_source;
	struct repository_offer *offers;
	struct repository_disk_spec *specs;
	struct repository_decision *decisions;
	struct repository_pair *pairs; /* of all sources */
	size_t nr_pairs;
};

static void free_request(struct open_request *r)
{
	free(r->client);
	free(r->offers);
	free(r->specs);
	free(r->decisions);
	free(r->pairs);
}

static bool is_kind(const char *kind)
{
	size_t length = strlen(kind);
	return length > 0 && length <= 32 &&
	       strspn(kind, "abcdefghijklmnopqrstuvwxyz0123456789-") == length;
}

static int parse_source(struct open_request *r, const json_t *given,
	struct repository_source *source, struct err *err)
{
	const char *name;
	const json_t *value, *identity = NULL;
	*source = (struct repository_source){.kind = "push", .label = r->client};
	if (!given)
		return 0;
	if (host_unpack(given, "source", err, "{s:s, s:s, s?o}", "kind", &source->kind, "label",
		    &source->label, "identity", &identity) < 0)
		return -1;
	assert(source->kind);
	if (!is_kind(source->kind))
		return err_set(err, ERR_USAGE, "source: a kind is 1 to 32 of a-z, 0-9 and \"-\"");
	if (identity && !json_is_object(identity))
		return err_set(err, ERR_USAGE, "source: identity is an object");
	if (json_object_size(identity) > IDENTITY_MOST)
		return err_set(
			err, ERR_USAGE, "source: identity has more than %u members", IDENTITY_MOST);
	source->identity = r->pairs + r->nr_pairs;
	json_object_foreach((json_t *)identity, name, value)
	{
		if (!json_is_string(value))
			return err_set(err, ERR_USAGE, "source: identity: \"%s\" is no text", name);
		r->pairs[r->nr_pairs++] = (struct repository_pair){name, json_string_value(value)};
		source->nr_identity++;
	}
	return 0;
}

static int parse_change(const char *name, enum repository_change *change, struct err *err)
{
	if (repository_change_parse(name, change))
		return 0;
	return err_set(
		err, ERR_USAGE, "change is \"none\", \"compare\", \"bitmap\" or \"extents\"");
}

static int parse_disk(struct open_request *r, size_t i, const json_t *given, struct err *err)
{
	struct repository_offer *offer = &r->offers[i];
	struct repository_disk_spec *spec = &r->specs[i];
	const char *change = "none";
	int tells_since = 0;
	const json_t *source = NULL;
	json_int_t size = 0, estimate = 0;
	if (host_unpack(given, "a disk", err,
		    "{s:s, s:I, s?o, s?s, s?s, s?s, s?s, s?s, s?s, s?s, s?I, s?b}", "key",
		    &offer->key, "size_bytes", &size, "source", &source, "change", &change, "from",
		    &offer->from, "bitmap", &offer->bitmap, "change_id", &spec->change_id,
		    "new_bitmap", &spec->bitmap, "source_state", &spec->source_state, "unusable",
		    &offer->unusable, "estimate_bytes", &estimate, "tells_since", &tells_since) < 0)
		return -1;
	if (repository_name_check_key(offer->key, err) < 0)
		return -1;
	if (size <= 0 || size > INT64_MAX - 511 || estimate < 0)
		return err_set(err, ERR_USAGE, "disk %s: a size is from 1 to 2^63 - 512 bytes",
			offer->key);
	if (parse_change(change, &offer->change, err) < 0 ||
		parse_source(r, source, &offer->source, err) < 0)
		return err_context(err, "disk %s", offer->key);
	if (offer->change == REPOSITORY_CHANGE_EXTENTS && !offer->from)
		return err_set(err, ERR_USAGE, "disk %s: from is missing", offer->key);
	if (offer->change == REPOSITORY_CHANGE_BITMAP && !offer->bitmap)
		return err_set(err, ERR_USAGE, "disk %s: bitmap is missing", offer->key);
	offer->size_bytes = spec->size_bytes = (uint64_t)size;
	spec->key = offer->key;
	spec->source = offer->source;
	spec->estimate_bytes = (uint64_t)estimate;
	spec->tells_since = tells_since != 0;
	return 0;
}

static const char *find_pair(const struct repository_source *source, const char *name)
{
	for (size_t i = 0; i < source->nr_identity; i++)
		if (strcmp(source->identity[i].name, name) == 0)
			return source->identity[i].value;
	return NULL;
}

/* One disk, one target: keys are distinct, and what can be only one disk is not given twice. */
static int check_distinct(const struct open_request *r, struct err *err)
{
	static const char *const names[] = {"disk-uuid", "source-id"};
	for (size_t i = 0; i < r->nr_disks; i++)
		for (size_t k = 0; k < i; k++) {
			const struct repository_offer *a = &r->offers[k], *b = &r->offers[i];
			assert(a->key && b->key);
			if (strcmp(a->key, b->key) == 0)
				return err_set(
					err, ERR_USAGE, "disk key %s is given twice", b->key);
			for (size_t n = 0; n < ARRAY_LENGTH(names); n++) {
				const char *of_a = find_pair(&a->source, names[n]);
				const char *of_b = find_pair(&b->source, names[n]);
				if (of_a && of_b && strcmp(of_a, of_b) == 0)
					return err_set(err, ERR_USAGE,
						"disks %s and %s are the same one: %s is %s of "
						"both",
						a->key, b->key, names[n], of_a);
			}
		}
	return 0;
}

static int parse_disks(struct open_request *r, struct err *err)
{
	size_t i;
	const json_t *given;
	r->nr_disks = json_array_size(r->disks);
	if (r->nr_disks == 0 || r->nr_disks > REPOSITORY_DISKS_MAX)
		return err_set(err, ERR_USAGE, "session-open: disks is a list of 1 to %d",
			REPOSITORY_DISKS_MAX);
	r->offers = calloc(r->nr_disks, sizeof *r->offers);
	r->specs = calloc(r->nr_disks, sizeof *r->specs);
	r->decisions = calloc(r->nr_disks, sizeof *r->decisions);
	r->pairs = calloc((r->nr_disks + 1) * IDENTITY_MOST, sizeof *r->pairs);
	if (!r->offers || !r->specs || !r->decisions || !r->pairs)
		return err_errno(err, ENOMEM, "cannot open a session");
	if (parse_source(r, r->source, &r->vm_source, err) < 0)
		return -1;
	json_array_foreach(r->disks, i, given)
	{
		if (parse_disk(r, i, given, err) < 0)
			return -1;
	}
	return check_distinct(r, err);
}

static int check_words(const struct open_request *r, struct err *err)
{
	if (strcmp(r->resume, "auto") != 0 && strcmp(r->resume, "never") != 0 &&
		strcmp(r->resume, "must") != 0)
		return err_set(err, ERR_USAGE, "resume is \"auto\", \"never\" or \"must\"");
	if (strcmp(r->digest, "required") != 0 && strcmp(r->digest, "optional") != 0)
		return err_set(err, ERR_USAGE, "digest is \"required\" or \"optional\"");
	if (r->lease_s < LEASE_S_LEAST || r->lease_s > LEASE_S_MOST)
		return err_set(err, ERR_USAGE, "lease_s: %d to %d", LEASE_S_LEAST, LEASE_S_MOST);
	return host_check_id("session", r->id, err);
}

static int parse_request(struct open_request *r, const json_t *request, struct err *err)
{
	r->mode = "auto";
	r->digest = "required";
	r->lease_s = LEASE_S;
	if (host_unpack(request, "session-open", err,
		    "{s:s, s?s, s:s, s?s, s:s, s?s, s?s, s?s, s?s, s?s, s?s, s?o, s:o, s?i, "
		    "s:{s:s, "
		    "s?s, "
		    "s?i, s?s}}",
		    "session", &r->id, "hub_job", &r->hub_job, "repository", &r->path,
		    "repository_id", &r->repository_id, "vm", &r->vm, "mode", &r->mode, "resume",
		    &r->resume, "digest", &r->digest, "for", &r->asker, "consistency",
		    &r->consistency, "consistency_reason", &r->consistency_reason, "source",
		    &r->source, "disks", &r->disks, "lease_s", &r->lease_s, "client", "software",
		    &r->software, "build", &r->build, "protocol", &r->protocol, "job",
		    &r->client_job) < 0)
		return -1;
	/* Who gives no digests does not ask for ours, so it cannot know what is there. */
	if (!r->resume)
		r->resume = strcmp(r->digest, "optional") == 0 ? "never" : "auto";
	assert(r->id && r->path && r->vm && r->software);
	bool told = r->build && !strstr(r->software, r->build);
	if (asprintf(&r->client, "%s%s%s%s", r->software, told ? " (" : "", told ? r->build : "",
		    told ? ")" : "") < 0)
		return err_errno(err, ENOMEM, "cannot open a session");
	if (check_words(r, err) < 0 || repository_name_check_vm(r->vm, err) < 0)
		return -1;
	return parse_disks(r, err);
}

/* --- opening --------------------------------------------------------------------- */

/* Under the mutex: nobody else is at this VM. */
static int check_free(const struct host_service *service, const struct push *new, struct err *err)
{
	unsigned nr = 0;
	assert(new->path);
	for (const struct push *at = service->sessions; at; at = at->next) {
		if (strcmp(at->id, new->id) == 0)
			return err_set(err, ERR_EXISTS, "session %s is there already", at->id);
		if (push_is_end(at->state))
			continue;
		nr++;
		if (strcmp(at->vm, new->vm) != 0 || strcmp(at->path, new->path) != 0)
			continue;
		char since[CLOCK_UTC_BYTES];
		clock_utc_text(at->opened_s, since);
		return err_set(err, ERR_BUSY,
			"VM \"%s\" is being backed up by session %s%s%s%s since %s (%s)", at->vm,
			at->id, at->asker ? " (" : "", at->asker ? at->asker : "",
			at->asker ? ")" : "", since, push_state_name(at->state));
	}
	if (nr >= service->config.max_sessions)
		return err_set(err, ERR_BUSY, "%u sessions are open already: that is the most", nr);
	return 0;
}

static struct push *push_new(
	struct host_service *service, const struct open_request *r, struct err *err)
{
	struct push *session = calloc(1, sizeof *session);
	if (!session) {
		err_errno(err, ENOMEM, "cannot open a session");
		return NULL;
	}
	pthread_mutex_init(&session->work, NULL);
	session->service = service;
	session->nr_refs = 2; /* the list's and the caller's */
	snprintf(session->id, sizeof session->id, "%s", r->id);
	snprintf(session->vm, sizeof session->vm, "%s", r->vm);
	snprintf(session->stage, sizeof session->stage, "decide");
	session->opened_s = session->stage_s = time(NULL);
	session->renewed_ns = clock_now_ns();
	session->lease_s = r->lease_s;
	session->digest_required = strcmp(r->digest, "required") == 0;
	session->path = strdup(r->path);
	session->asker = r->asker ? strdup(r->asker) : NULL;
	session->disks = calloc(r->nr_disks, sizeof *session->disks);
	if (!session->path || !session->asker != !r->asker || !session->disks)
		err_errno(err, ENOMEM, "cannot open a session");
	else
		session->cancel = cancel_new(err);
	if (session->cancel) {
		pthread_mutex_lock(&service->mutex);
		int rc = check_free(service, session, err);
		if (rc == 0) {
			session->next = service->sessions;
			service->sessions = session;
		}
		pthread_mutex_unlock(&service->mutex);
		if (rc == 0)
			return session;
	}
	push_free(session);
	return NULL;
}

/* Two disks that have each other's size were given each other's key. */
static int check_sizes(
	const struct open_request *r, const struct repository_point *latest, struct err *err)
{
	for (size_t i = 0; i < r->nr_disks; i++)
		for (size_t k = 0; k < i; k++) {
			const struct repository_offer *a = &r->offers[k], *b = &r->offers[i];
			const struct repository_disk_info *was_a =
				repository_point_disk(latest, a->key);
			const struct repository_disk_info *was_b =
				repository_point_disk(latest, b->key);
			if (!was_a || !was_b || was_a->size_bytes == was_b->size_bytes ||
				a->size_bytes != was_b->size_bytes ||
				b->size_bytes != was_a->size_bytes)
				continue;
			err_set(err, ERR_CONFLICT,
				"disks %s and %s of VM \"%s\" are swapped: each has the size that "
				"the other had at restore point %s",
				a->key, b->key, r->vm, latest->id);
			return err_hint(err, "--mode full takes them all the same");
		}
	return 0;
}

/* missing: keys of the latest point that are not in this session. */
static int decide(struct push *session, struct open_request *r, json_t *missing, struct err *err)
{
	struct repository *repo = session->repository->repo;
	struct err why = ERR_INIT;
	struct repository_point *latest = repository_point_load(repo, r->vm, NULL, &why);
	int rc = latest && strcmp(r->mode, "full") != 0 ? check_sizes(r, latest, err) : 0;
	for (size_t i = 0; rc == 0 && latest && i < latest->nr_disks; i++) {
		bool found = false;
		for (size_t k = 0; k < r->nr_disks && !found; k++) {
			assert(r->offers[k].key);
			found = strcmp(latest->disks[i].key, r->offers[k].key) == 0;
		}
		if (!found)
			json_array_append_new(missing, json_string(latest->disks[i].key));
	}
	repository_point_free(latest);
	if (rc < 0 || repository_decide(
			      repo, r->vm, r->mode, r->offers, r->nr_disks, r->decisions, err) < 0)
		return -1;
	for (size_t i = 0; i < r->nr_disks; i++) {
		struct repository_disk_spec *spec = &r->specs[i];
		const struct repository_decision *decision = &r->decisions[i];
		bool full = decision->mode == REPOSITORY_FULL;
		spec->mode = decision->mode;
		spec->reason = decision->reason;
		spec->parent = full ? NULL : decision->parent;
		spec->change = decision->change;
		spec->tells_since &= !decision->distrusts_changes;
	}
	return 0;
}

static int begin(struct push *session, const struct open_request *r, struct err *err)
{
	const struct repository_backup_options options = {
		.vm = r->vm,
		.source = r->vm_source,
		.disks = r->specs,
		.nr_disks = r->nr_disks,
		.software = session->service->software,
		.client = r->client,
		.client_job = r->client_job,
		.hub_job = r->hub_job ? r->hub_job : session->id,
		.consistency = r->consistency,
		.consistency_reason = r->consistency_reason,
		.resume = strcmp(r->resume, "never") == 0  ? REPOSITORY_RESUME_NEVER
			  : strcmp(r->resume, "must") == 0 ? REPOSITORY_RESUME_MUST
							   : REPOSITORY_RESUME_AUTO,
		.wait_ms = 10000,
		.cancel = session->cancel,
		.stage = push_stage,
		.stage_context = session,
	};
	session->backup = repository_backup_begin(session->repository->repo, &options, err);
	if (!session->backup)
		return -1;
	WITH_LOCK(&session->service->mutex);
	memcpy(session->job, repository_backup_job(session->backup), sizeof session->job);
	memcpy(session->point, repository_backup_point(session->backup), sizeof session->point);
	return 0;
}

static int export_disks(struct push *session, const struct open_request *r, struct err *err)
{
	char what[HOST_ID_BYTES + 16], label[REPOSITORY_VM_BYTES + REPOSITORY_KEY_BYTES + 32];
	snprintf(what, sizeof what, "session %s", session->id);
	session->group = export_group_new(session->service->exports, what, err);
	if (!session->group)
		return -1;
	for (size_t i = 0; i < r->nr_disks; i++) {
		struct push_disk *disk = &session->disks[i];
		assert(r->offers[i].key);
		snprintf(disk->key, sizeof disk->key, "%s", r->offers[i].key);
		disk->size_bytes = r->offers[i].size_bytes;
		disk->decision = r->decisions[i];
		if (repository_backup_intake(session->backup, i, &disk->block, err) < 0)
			return -1;
		snprintf(label, sizeof label, "VM \"%s\" disk %s", session->vm, disk->key);
		struct export_one *export =
			export_add(session->group, label, disk->block, false, err);
		if (!export)
			return -1;
		WITH_LOCK(&session->service->mutex);
		disk->export = export;
		session->nr_disks = i + 1;
	}
	repository_backup_stage(session->backup, REPOSITORY_STAGE_COPY);
	return 0;
}

/* What was resumed stays to be gone on with; what was made for this is removed. */
static void give_up(struct push *session, size_t nr_wanted)
{
	bool resumed = false;
	pthread_mutex_lock(&session->work);
	for (size_t i = 0; session->backup && i < nr_wanted; i++)
		resumed |= repository_backup_resumed(session->backup, i, NULL) != REPOSITORY_FRESH;
	for (size_t i = 0; i < session->nr_disks; i++)
		while (export_remove(session->disks[i].export, NULL) < 0)
			(void)cancel_sleep(NULL, deadline_after_ms(1000), NULL);
	if (session->backup && resumed)
		repository_backup_leave(session->backup);
	else if (session->backup)
		repository_backup_abort(session->backup);
	session->backup = NULL;
	push_give_back(session);
	pthread_mutex_unlock(&session->work);
	pthread_mutex_lock(&session->service->mutex);
	push_drop(session);
	pthread_mutex_unlock(&session->service->mutex);
	push_put(session);
}

static json_t *describe_opened(struct push *session, json_t *missing)
{
	static const char *const resumed_names[] = {[REPOSITORY_FRESH] = "fresh",
		[REPOSITORY_RESUMED] = "resumed",
		[REPOSITORY_UPDATED] = "updated",
		[REPOSITORY_COMPARED] = "compared"};
	struct repository_info info;
	uint8_t seed[DIGEST_SEED_BYTES];
	char seed_hex[2 * DIGEST_SEED_BYTES + 1];
	struct repository *repo = session->repository->repo;
	json_t *disks = json_array();
	if (repository_info(repo, &info, NULL) < 0)
		memset(&info, 0, sizeof info);
	repository_seed(repo, seed);
	digest_hex(seed, sizeof seed, seed_hex);
	for (size_t i = 0; i < session->nr_disks; i++) {
		const struct push_disk *disk = &session->disks[i];
		const struct repository_decision *decision = &disk->decision;
		bool full = decision->mode == REPOSITORY_FULL;
		uint64_t kept;
		enum repository_resumed resumed =
			repository_backup_resumed(session->backup, i, &kept);
		json_array_append_new(disks,
			json_pack("{s:s, s:I, s:s, s:s, s:b, s:s?, s:s, s:s, s:I, s:s?, s:o}",
				"key", disk->key, "size_bytes", (json_int_t)disk->size_bytes,
				"mode", full ? "full" : "incremental", "reason", decision->reason,
				"fallback", decision->fallback, "parent",
				full ? NULL : decision->parent, "change",
				repository_change_name(decision->change), "resumed",
				resumed_names[resumed], "kept_bytes", (json_int_t)kept,
				"stored_since", repository_backup_since(session->backup, i),
				"export", export_json(disk->export)));
	}
	return json_pack("{s:s, s:s, s:s, s:s, s:i, s:{s:s, s:s, s:i, s:i}, s:O, s:o}", "session",
		session->id, "job", session->job, "point", session->point, "vm", session->vm,
		"lease_s", session->lease_s, "digest", "algorithm",
		digest_algorithm_name(info.settings.digest), "seed", seed_hex, "chunk_bytes",
		(int)DIGEST_CHUNK_BYTES, "leaf_bytes", (int)digest_leaf_bytes(info.settings.digest),
		"missing_disks", missing, "disks", disks);
}

static json_t *open_session(struct push *session, struct open_request *r, struct err *err)
{
	struct host_service *service = session->service;
	json_t *missing = json_array(), *answer = NULL;
	session->repository = host_repository_get(service, r->path, r->repository_id, true, err);
	if (session->repository && decide(session, r, missing, err) == 0 &&
		begin(session, r, err) == 0 && export_disks(session, r, err) == 0)
		answer = describe_opened(session, missing);
	json_decref(missing);
	if (!answer)
		return NULL;
	log_info("session %s: VM \"%s\", restore point %s, job %s, %zu disks%s%s", session->id,
		session->vm, session->point, session->job, session->nr_disks,
		session->asker ? ", for " : "", session->asker ? session->asker : "");
	pthread_mutex_lock(&service->mutex);
	/* Who aborted it until now believes it to be gone. */
	int rc = cancel_check(session->cancel, err);
	if (rc == 0) {
		session->renewed_ns = clock_now_ns();
		push_set(session, PUSH_OPEN);
	}
	pthread_mutex_unlock(&service->mutex);
	if (rc == 0)
		return answer;
	json_decref(answer);
	return NULL;
}

json_t *push_verb_open(struct host_service *service, const json_t *request,
	const struct host_octets *in, struct host_octets *out, struct err *err)
{
	struct open_request r = {0};
	json_t *answer = NULL;
	(void)in, (void)out;
	struct push *session =
		parse_request(&r, request, err) == 0 ? push_new(service, &r, err) : NULL;
	if (session) {
		answer = open_session(session, &r, err);
		if (!answer)
			give_up(session, r.nr_disks);
		push_put(session);
	}
	free_request(&r);
	return answer;
}
