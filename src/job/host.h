/*
 * host: the NBD service, a process of its own ("sendense nbd-service RUNTIME"), and the hub's
 * way to it.
 *
 *   hub ── JSON lines over RUNTIME/nbd.sock ──► nbd-service ── NBD ──► clients
 *                                                 │ sessions: what clients push into restore points
 *                                                 └ serves: restore points that clients read
 *
 * It holds the VMs' write locks and leases of what it serves.  It outlives the hub; when it
 * dies, its sessions are unfinished jobs of the repository, and the next session of the same
 * disks goes on with them.
 *
 * --- The control protocol ---------------------------------------------------------------------
 *
 * RUNTIME/nbd.sock has mode 0600.  A request is one line of JSON (at most 1 MiB), {"verb": ...};
 * where it has "octets": N, N bytes follow it.  The answer is one line: {"ok": true, ...} (with
 * "octets": N, N bytes behind it) or {"ok": false, "error": {"code": err_code_name(), "text":
 * ..., "disk"?: KEY}}.  One request at a time on a connection, any number of connections (at most
 * 64).  Unknown verbs and members are ERR_USAGE, unknown ids ERR_NOT_FOUND.
 *
 *   status          -> {instance, pid, software, since, config (SHA-256 of nbd.json), tls, mode,
 *                      listen: {address, port}?,
 *                      port_range?, connections, max_connections, sessions: [SESSION],
 *                      serves: [SERVE]}
 *   session-open    {session, repository: PATH, repository_id?, vm, source?: SOURCE, mode?:
 *                   "auto|full|incremental", resume?: "auto|never|must", digest?:
 *                   "required|optional", lease_s? (2..86400; 300), client: {software, build?,
 *                   protocol?, job?}, consistency?, consistency_reason?, for?: TEXT (who asks, for
 *                   messages), hub_job? (that the restore point names, else the session),
 *                   disks: [{key, size_bytes, source?: SOURCE, change?:
 *                   "none|compare|bitmap|extents", from?, bitmap?, change_id?, new_bitmap?,
 *                   source_state?, unusable?, estimate_bytes?, tells_since?}]}
 *                   SOURCE: {kind, label, identity?: {NAME: VALUE}}
 *                   -> {session, job, point, vm, lease_s, digest: {algorithm, seed, chunk_bytes,
 *                      leaf_bytes}, missing_disks: [KEY], disks: [{key, size_bytes, mode, reason,
 *                      fallback, parent, change, resumed: "fresh|resumed|updated|compared",
 *                      kept_bytes, stored_since (of "updated": the change id since whose state the
 *                      client reads again what changed, else null), export: EXPORT}]}
 *                   EXPORT: {uri, address, port, name, tls: null | {identity, psk (hex)}}
 *                   session: the hub's id (1..64 of [A-Za-z0-9_-]).  "job" is the repository's,
 *                   an earlier one's where it was gone on with.  Decided, begun and exported when
 *                   it is answered; may take minutes where an interrupted job is looked at.
 *   session         {session, wait_ms?, seen?} -> SESSION; wait_ms (at most 60,000): waits until
 *                   its "changes" is another than seen
 *                   SESSION: {session, job, point, vm, repository, for, state, changes, stage,
 *                   stage_since, opened, lease_s, lease_left_s, error?: {code, text, disk?},
 *                   disks: [{key, connections, received_bytes, zeroed_bytes, requests}]}
 *                   of a committed one also logical, read, sent, zeros_skipped, stored: each
 *                   disk's bytes, as the restore point says
 *                   state: "opening" -> "open" -> "settling" -> "comparing" -> "committing" ->
 *                   "committed"; or "refused" (digests differ: it was aborted), "failed"
 *                   (aborted, error; or a client gave up whose writes had failed), "left"
 *                   (kept to be gone on with: the service stopped, the client let go), "expired"
 *                   (its lease ended; kept in the same way), "aborted".
 *                   "failed" with error.code "no-space", "io" and the like before the manifest
 *                   was renamed; after it, "committed" with a warning in the log.
 *                   An end is told for an hour, or until session-forget.
 *   session-renew   {session} -> {lease_left_s}; NBD traffic renews as well
 *   session-digests {session, key, first, count} -> octets: records of
 *                   repository_backup_digests(), at most 1 MiB; {first, nr}
 *   session-config  {session, name, octets} + octets -> {}; at most 16 MiB
 *   session-distrust {session, key, offsets: [N, ...]} -> {}
 *   session-commit  {session, disks: [{key, digest?: {kind: "root|sent", hex}, figures?:
 *                   {logical_bytes, read_bytes, sent_bytes, zeros_skipped_bytes},
 *                   audited_bytes?}]} -> {} at once; follow it by session.  ERR_USAGE (a disk is
 *                   not named, a digest is missing where it is required) leaves it open.
 *   session-abort   {session, keep?: true: it can be gone on with} -> {}; also while it commits,
 *                   as long as the manifest is not renamed
 *   session-forget  {session} -> {}; one that has ended
 *   serve-open      {serve, repository: PATH, repository_id?, vm, point?, key?, lease_s?, for?} ->
 *                   {serve, vm, point, lease_s, exports: [{key, size_bytes} + EXPORT]}
 *   serve           {serve} -> SERVE: {serve, vm, point, repository, for, opened, lease_s,
 *                   lease_left_s, exports: [{key, connections, read_bytes, requests, error?:
 *                   {code, text}}]}; error: of the first read that failed, or of one that met
 *                   damage ("corrupt")
 *   serve-renew     {serve} -> {lease_left_s}
 *   serve-close     {serve} -> {}
 *   reload          {config?} -> {}: reads certificate, key and CA again; all else needs a new
 *                   process
 *   stop            {} -> {}: leaves all sessions, closes all serves, ends
 *
 * A session whose service died is not known any more: whether it is committed tells the
 * repository (repository_point_load() of its point), and what is not can be gone on with.
 */
#ifndef SENDENSE_JOB_HOST_H
#define SENDENSE_JOB_HOST_H

#include "base.h"

#include <jansson.h>

/* --- the process ----------------------------------------------------------------- */

/*
 * Serves until SIGTERM (cancel) or the verb stop.  Reads runtime_dir/nbd.json (0600), written by
 * host_start():
 *   {"listen": {"address": "127.0.0.1", "port": 10809}, "mode": "single" | "range",
 *    "port_range": [10100, 10200], "max_connections": 256, "max_sessions": 64,
 *    "address_for_clients": "127.0.0.1", "tls": null | {"certificate": PATH, "key": PATH, "ca":
 *    PATH}}
 * software: of this program, for manifests.  ERR_BUSY when another one runs there.
 */
int host_run(const char *runtime_dir, const char *software, struct cancel *cancel, struct err *err);

/* --- the hub's side -------------------------------------------------------------- */

struct host;

struct host_options {
	const char *runtime_dir; /* exists, 0700 */
	const char *program; /* this binary; NULL: /proc/self/exe */
	const json_t *config; /* of nbd.json, borrowed for the call */
};

/*
 * Finds the service that runs in runtime_dir, or starts one (in a session of its own, its log to
 * runtime_dir/nbd.log), and waits until it answers.  One that runs with another configuration is
 * kept as long as it has sessions (logged), else replaced; so is one that takes calls and does not
 * answer within 10 s.
 */
struct host *host_start(const struct host_options *options, struct err *err);

/* Lets go; the service goes on.  NULL is harmless. */
void host_close(struct host *host);

/* Its process, and the random id that this run of it has; 0 and "" when it does not run. */
pid_t host_pid(struct host *host);
void host_instance(struct host *host, char instance[33]);

/*
 * Sends request (borrowed; "octets" is set by length) and gives the answer, which the caller
 * releases; NULL with err as the service told it (its "disk" is kept in front of the text:
 * "disk KEY: ..."), ERR_DISCONNECTED when it does not run or died over it, ERR_TIMEOUT, and
 * ERR_CANCELLED by cancel (may be NULL): the service does what it was asked all the same.
 * octets, answer_octets, answer_length: may be NULL; *answer_octets is freed by the caller.
 * Any thread; calls go over connections of their own.
 */
json_t *host_call(struct host *host, const json_t *request, const void *octets, size_t length,
	void **answer_octets, size_t *answer_length, struct deadline until,
	const struct cancel *cancel, struct err *err);

/* Where it does not run any more: starts it again (one caller at a time; others wait).  1 when it
 * was, 0 when it runs, -1. */
int host_revive(struct host *host, struct err *err);

/* The verb stop, and waits for its end until then, else SIGKILL (its sessions can be gone on
 * with). */
int host_stop(struct host *host, struct deadline until, struct err *err);

#endif
