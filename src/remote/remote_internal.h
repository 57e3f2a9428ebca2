/*
 * remote: internals of the room.
 *
 *   store.c     the one door; folders are passed on to the repository
 *   hub.c       a hub's URL, its client, what is asked of it
 *   session.c   a push: the session, its lease, its end
 *   begin.c     asking for a session; what is in its way
 *   push.c      one disk of a session: what is copied and what the hub holds already
 *   sample.c    an audit of a push
 *   keeper.c    a lease, renewed
 *   ranges.c    digests that the hub holds, fetched ahead in windows
 *   told.c      the record of leaves that were told, on a temporary file
 *   serve.c     what a hub serves, and disks read through it
 *   follow.c    jobs of the hub, followed until they end
 *   jobs.c      verify and prune as jobs
 */
#ifndef SENDENSE_REMOTE_INTERNAL_H
#define SENDENSE_REMOTE_INTERNAL_H

#include "rest.h"
#include "store.h"

#define REMOTE_PATH_BYTES 2048 /* of a URL's path */
#define REMOTE_ID_BYTES 65 /* of a job, a session, a serve */

struct store {
	char *name, *software;
	struct cancel *cancel;
	struct repository *repo; /* of a folder; NULL: a hub */
	struct rest_client *client; /* of a hub */
	struct rest_client *opening; /* the same, for what takes long before it is answered */
	struct rest_client *closing; /* the same, for what is given back after a cancel */
	char *repository; /* its name there */
	char *build; /* ours */
};

struct session;
struct served;

struct store_backup {
	struct repository_backup *local; /* one of them */
	struct session *session;
};

struct store_disk {
	struct repository_disk *local; /* one of them */
	struct served *served;
};

/* NULL where it has no such text. */
static inline const char *remote_text(const json_t *object, const char *name)
{
	return json_string_value(json_object_get(object, name));
}

/* --- hub.c ---------------------------------------------------------------- */

int hub_open(struct store *store, const struct store_options *options, struct err *err);
void hub_close(struct store *store);
/* Parts in turn of a path as it is and of a name, ended by NULL. */
int hub_path(char path[REMOTE_PATH_BYTES], struct err *err, const char *const *parts);
#define HUB_PATH(path, err, ...) hub_path(path, err, (const char *const[]){__VA_ARGS__, NULL})
/* Of a session or a serve, allocated; NULL: it has none. */
char *hub_export_uri(const json_t *export);
/* Whether it may be one of this hub's.  ERR_REFUSED: it is in the clear beyond this machine, or
 * it is on this machine while the hub is not, where it could be anybody's disk; has_key: a
 * pre-shared key came with it, which nobody else's server knows. */
int hub_export_check(const struct store *store, const char *uri, bool has_key, struct err *err);
int hub_info(struct store *store, struct repository_info *info, struct err *err);
json_t *hub_info_json(struct store *store, struct err *err);
int hub_list_vms(
	struct store *store, repository_vm_callback *callback, void *context, struct err *err);
int hub_list_points(struct store *store, const char *vm, repository_point_callback *callback,
	void *context, struct err *err);
int hub_point_of_job(struct store *store, const char *vm, const char *job, struct deadline until,
	char point[REPOSITORY_POINT_BYTES], struct err *err);
struct repository_point *hub_point_load(
	struct store *store, const char *vm, const char *point, struct err *err);
int hub_point_config(struct store *store, const char *vm, const char *point, const char *name,
	char **bytes, size_t *length, struct err *err);
int hub_protect(struct store *store, const char *vm, const char *point, bool off, int64_t until,
	struct err *err);

/* --- follow.c ------------------------------------------------------------- */

/* Told the job as it is, again and again. */
typedef void hub_tell(void *context, const json_t *job);

/* Adds a job (body NULL: out of memory), and gives its id. */
int hub_add_job(struct store *store, const char *path, const json_t *body, char id[REMOTE_ID_BYTES],
	struct err *err);
/* Until it has ended: 0, or -1 with its error.  *job is what it was last, the caller's; NULL:
 * not known.  cancels: on cancel it is cancelled, and its end waited for. */
int hub_follow(struct store *store, const char *id, bool cancels, hub_tell *tell, void *context,
	json_t **job, struct err *err);
void hub_tell_figures(const json_t *job, struct copy_progress *figures);

/* --- keeper.c ------------------------------------------------------------- */

struct keeper;

/* Posts to path/heartbeat; what: for messages. */
struct keeper *keeper_start(
	struct store *store, const char *path, const char *what, unsigned lease_s, struct err *err);
/* NULL is harmless. */
void keeper_stop(struct keeper *keeper);

/* --- begin.c -------------------------------------------------------------- */

/* POST /sessions.  What is in the way and comes to an end by itself is waited for, at most for
 * options->wait_ms; a session whose client is gone is let go of. */
int begin_post(struct store *store, const struct store_backup_options *options,
	const json_t *request, json_t **answer, struct err *err);
/* Waits until no session of that machine is opened or commits any more; one whose client is gone is
 * ended.  ERR_BUSY: it did not until then. */
int begin_settle(struct store *store, const char *vm, struct deadline until, struct err *err);
/* Ends a session (its path), and waits until the hub has noted that: its machine may be backed up
 * again then.  keep: what it stored can be gone on with. */
int begin_end_session(struct store *store, const char *session, bool keep, struct err *err);
bool begin_is_state(const json_t *object, const char *state);

/* --- session.c ------------------------------------------------------------ */

/* What a session or a serve tells of the repository's digests. */
int session_parse_key(const json_t *digest, struct digest_key *key, struct err *err);

/* --- jobs.c --------------------------------------------------------------- */

int hub_verify(struct store *store, const struct repository_verify_options *options,
	struct repository_verify_result *result, struct err *err);
int hub_prune(struct store *store, const struct repository_prune_options *options,
	struct repository_prune_result *result, struct err *err);
int hub_reindex(struct store *store, json_t **report, struct err *err);

/* --- session.c, as the functions of store.h ------------------------------- */

struct session *session_begin(struct store *store, const struct store_backup_options *options,
	struct repository_decision *decisions, struct err *err);
const char *session_point(const struct session *session);
void session_stage(struct session *session, const char *stage);
enum repository_resumed session_resumed(
	const struct session *session, size_t disk, uint64_t *kept_bytes);
int session_copy(struct session *session, size_t disk, struct block *source,
	struct copy_options *options, struct block **from, struct block **to, struct err *err);
int session_audit(struct session *session, size_t disk, struct block *source, unsigned per_mille,
	uint64_t *audited_bytes, struct err *err);
void session_figures(
	struct session *session, size_t disk, const struct repository_figures *figures);
int session_config(struct session *session, const char *name, const void *bytes, size_t length,
	struct err *err);
/* On success the session is gone. */
int session_commit(struct session *session, struct err *err);
/* After a commit that failed, or was not waited for: ends it; true when it came to its end all
 * the same. */
bool session_stop_commit(struct session *session, bool keep);
bool session_is_committed(const struct session *session);
/* keep: what was stored is kept to be gone on with.  Gone in any case; NULL is harmless. */
void session_end(struct session *session, bool keep);
bool session_is_lost(const struct session *session, const struct err *why);

/* --- serve.c -------------------------------------------------------------- */

struct served *served_open(
	struct store *store, const char *vm, const char *point, const char *key, struct err *err);
struct block *served_block(struct served *served);
const struct repository_disk_info *served_info(const struct served *served);
const char *served_point(const struct served *served);
const struct copy_chunk_sink *served_sink(struct served *served);
const struct digest_key *served_digest_key(struct served *served);
int served_check(struct served *served, struct err *err);
void served_explain(struct served *served, struct err *err);
void served_close(struct served *served);

#endif
