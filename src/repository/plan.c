/*
 * Plans: what an unfinished job owns, and the only licence to remove anything.
 *
 *   (nothing) ─ plan written ─► open ─ manifest renamed ─► committed ─ dropped ─► (nothing)
 *                                │                                         ▲
 *                                └─ listed files removed ──────────────────┘
 *
 * A job lives while its VM's write lock names it and the lock's owner lives.  The
 * folder of a job is made, with its plan, under the guard: a folder without a plan
 * that one finds while holding the guard belongs to nobody any more.
 */
#include "repository_internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static void job_path(const char *job, const char *file, char path[NAME_PATH_BYTES])
{
	snprintf(path, NAME_PATH_BYTES, ".incoming/%.100s%s%s", job, file[0] ? "/" : "", file);
}

/* --- writing ------------------------------------------------------------------ */

int plan_write(struct repository *repo, const char *job, const json_t *plan, struct cancel *cancel,
	struct err *err)
{
	char folder[NAME_PATH_BYTES], path[NAME_PATH_BYTES];
	job_path(job, "", folder);
	job_path(job, "plan.json", path);
	int AUTO_CLOSE guard = lock_guard(repo, cancel, err);
	if (guard < 0)
		return -1;
	if (mkdirat(repo->dir_fd, folder, 0700) < 0)
		return err_errno(err, errno, "cannot make folder %s", folder);
	if (record_store(repo->dir_fd, path, plan, err) < 0) {
		unlinkat(repo->dir_fd, folder, AT_REMOVEDIR);
		return -1;
	}
	return file_sync_dir(repo->dir_fd, ".incoming", err);
}

int plan_write_stage(struct repository *repo, const char *job, const char *stage,
	uint64_t heartbeat, struct err *err)
{
	char path[NAME_PATH_BYTES], temporary[NAME_PATH_BYTES], now[CLOCK_UTC_BYTES];
	job_path(job, "stage.json", path);
	job_path(job, "stage.json.new", temporary);
	name_now(now);
	json_t *record = json_pack("{s:i, s:s, s:s, s:I}", "format", REPOSITORY_FORMAT, "stage",
		stage, "since", now, "heartbeat", (json_int_t)heartbeat);
	size_t length;
	char *AUTO_FREE text = record ? record_text(record, &length, err) : NULL;
	json_decref(record);
	if (!text)
		return err_errno(err, ENOMEM, "cannot write %s", path);
	int AUTO_CLOSE fd = openat(repo->dir_fd, temporary,
		O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return err_errno(err, errno, "cannot make %s", temporary);
	/* Not synced: it tells what a killed job was doing, and after a power cut
	 * that is of no use. */
	if (file_pwrite(fd, text, length, 0, temporary, err) < 0)
		return -1;
	if (renameat(repo->dir_fd, temporary, repo->dir_fd, path) < 0)
		return err_errno(err, errno, "cannot rename %s", temporary);
	return 0;
}

/* --- reading ------------------------------------------------------------------ */

/* What a prune makes of the point that the pruned one becomes part of. */
static bool is_made_for_child(const struct plan *plan, const char *path)
{
	return plan->kind == PLAN_PRUNE && plan->child[0] && strstr(path, plan->child) != NULL &&
	       (path_has_suffix(path, ".sums.part") || path_has_suffix(path, "/manifest.json.new"));
}

/* Whether a path from a plan may be removed: below the VM's folder, of the plan's
 * point, and without any way out. */
static bool may_remove(const struct plan *plan, const char *path)
{
	char folder[NAME_PATH_BYTES];
	path_vm(plan->vm, folder);
	size_t length = strlen(folder);
	return strlen(path) < NAME_PATH_BYTES && strncmp(path, folder, length) == 0 &&
	       path[length] == '/' && !strstr(path, "//") && !strstr(path, "/./") &&
	       !strstr(path, "/../") && !path_has_suffix(path, "/..") &&
	       !path_has_suffix(path, "/.") &&
	       (strstr(path + length, plan->point) || is_made_for_child(plan, path + length));
}

/* A folder is only ever removed when it is empty, but not a foreign one. */
static bool may_remove_folder(const struct plan *plan, const char *path)
{
	char folder[NAME_PATH_BYTES];
	path_vm(plan->vm, folder);
	size_t length = strlen(folder);
	return strlen(path) < NAME_PATH_BYTES && strncmp(path, folder, length) == 0 &&
	       (path[length] == '\0' || path[length] == '/') && !strstr(path, "/.");
}

static int check_paths(const struct plan *plan, const char *name, struct err *err)
{
	size_t i;
	const json_t *value;
	json_array_foreach(json_object_get(plan->json, "files"), i, value)
	{
		const char *path = json_string_value(value);
		if (!path || !may_remove(plan, path))
			return err_set(err, ERR_FORMAT,
				"%s lists a file that is not its own: nothing of it is removed",
				name);
	}
	json_array_foreach(json_object_get(plan->json, "folders"), i, value)
	{
		const char *path = json_string_value(value);
		if (!path || !may_remove_folder(plan, path))
			return err_set(err, ERR_FORMAT,
				"%s lists a folder that is not its own: nothing of it is removed",
				name);
	}
	return 0;
}

static int parse(struct plan *plan, const char *job, const char *name, struct err *err)
{
	const json_t *json = plan->json;
	const char *kind;
	if (record_check_format(json, name, err) < 0 ||
		!(kind = record_string(json, "kind", name, err)) ||
		record_text_into(json, "job", plan->job, sizeof plan->job, name, err) < 0 ||
		record_text_into(json, "vm", plan->vm, sizeof plan->vm, name, err) < 0 ||
		record_text_into(json, "point", plan->point, sizeof plan->point, name, err) < 0 ||
		record_text_into(json, "started", plan->started, sizeof plan->started, name, err) <
			0 ||
		record_u64(json, "keep_seconds", &plan->keep_s, name, err) < 0)
		return -1;
	/* What a kind of job that is not known began is not undone by removing its files. */
	if (strcmp(kind, "backup") == 0)
		plan->kind = PLAN_BACKUP;
	else if (strcmp(kind, "prune") == 0)
		plan->kind = PLAN_PRUNE;
	else
		return err_set(err, ERR_UNSUPPORTED,
			"%s is of a job of kind \"%s\", which this program does not know", name,
			kind);
	const json_t *owner = record_object(json, "owner", name, err);
	if (!owner || owner_from_json(&plan->owner, owner, name, err) < 0)
		return -1;
	if (strcmp(plan->job, job) != 0 || repository_name_check_vm(plan->vm, NULL) < 0 ||
		!repository_name_is_point(plan->point))
		return err_set(err, ERR_FORMAT, "%s is not the plan of this job", name);
	if (plan->kind == PLAN_PRUNE && merge_parse_plan(plan, name, err) < 0)
		return -1;
	return check_paths(plan, name, err);
}

static void load_stage(struct repository *repo, struct plan *plan)
{
	char name[NAME_PATH_BYTES];
	job_path(plan->job, "stage.json", name);
	snprintf(plan->stage, sizeof plan->stage, "%s", REPOSITORY_STAGE_BEGIN);
	snprintf(plan->stage_since, sizeof plan->stage_since, "%s", plan->started);
	json_t *record = record_load(repo->dir_fd, name, NULL);
	if (record) {
		record_text_into(record, "stage", plan->stage, sizeof plan->stage, name, NULL);
		record_text_into(
			record, "since", plan->stage_since, sizeof plan->stage_since, name, NULL);
	}
	json_decref(record);
}

static uint64_t stored_bytes(struct repository *repo, const struct plan *plan)
{
	uint64_t sum = 0;
	size_t i;
	const json_t *value;
	json_array_foreach(json_object_get(plan->json, "files"), i, value)
	{
		struct stat st;
		if (fstatat(repo->dir_fd, json_string_value(value), &st, AT_SYMLINK_NOFOLLOW) == 0)
			sum += (uint64_t)st.st_blocks * 512;
	}
	return sum;
}

/* Fails rather than guess: what hangs on it is the removal of data. */
static int is_committed(
	struct repository *repo, const struct plan *plan, bool *committed, struct err *err)
{
	char path[NAME_PATH_BYTES];
	path_point(plan->vm, plan->point, "manifest.json", path);
	if (path_look(repo->dir_fd, path, committed, err) < 0)
		return -1;
	if (*committed || plan->kind != PLAN_BACKUP)
		return 0;
	/* A prune has it in hand; what it held is needed until that is done. */
	path_point(plan->vm, plan->point, "merging.json", path);
	return path_look(repo->dir_fd, path, committed, err);
}

int plan_load(struct repository *repo, const char *job, struct plan *plan, struct err *err)
{
	char name[NAME_PATH_BYTES], path[NAME_PATH_BYTES];
	memset(plan, 0, sizeof *plan);
	job_path(job, "plan.json", name);
	plan->json = record_load(repo->dir_fd, name, err);
	if (!plan->json)
		return -1;
	if (parse(plan, job, name, err) < 0) {
		plan_free(plan);
		return -1;
	}
	load_stage(repo, plan);
	if (plan->kind == PLAN_BACKUP && is_committed(repo, plan, &plan->committed, err) < 0) {
		plan_free(plan);
		return -1;
	}
	plan->stored_bytes = stored_bytes(repo, plan);

	struct lock_record held;
	lock_write_name(plan->vm, path);
	bool alive = false;
	if (lock_look(repo, path, &held, &alive, NULL) == 0)
		plan->alive = alive && strcmp(held.job, job) == 0;
	return 0;
}

void plan_free(struct plan *plan)
{
	json_decref(plan->json);
	plan->json = NULL;
}

int64_t plan_keep_until(const struct plan *plan)
{
	return name_seconds_utc(plan->stage_since) +
	       (int64_t)min_u64(plan->keep_s, UINT64_C(366) * 86400);
}

/* --- removing ------------------------------------------------------------------- */

static int remove_file(struct repository *repo, const char *path, struct err *err)
{
	if (unlinkat(repo->dir_fd, path, 0) < 0 && errno != ENOENT && errno != ENOTDIR)
		return err_errno(err, errno, "cannot remove %s", path);
	return 0;
}

/*
 * From here on nobody commits it any more: an owner that was declared dead, and is past
 * its last look at the lock, finds nothing to rename; or it was faster, and the
 * manifest is there.
 */
int plan_fence(struct repository *repo, const struct plan *plan, struct err *err)
{
	size_t i;
	const json_t *value;
	bool committed;
	json_array_foreach(json_object_get(plan->json, "files"), i, value)
	{
		const char *path = json_string_value(value);
		if (path_has_suffix(path, "/manifest.json.part") &&
			remove_file(repo, path, err) < 0)
			return -1;
	}
	if (is_committed(repo, plan, &committed, err) < 0)
		return -1;
	if (committed)
		return err_set(err, ERR_EXISTS, "restore point %s of VM \"%s\" is committed",
			plan->point, plan->vm);
	return 0;
}

/* The folders of the listed files: were the plan's end to outlast a power cut and a
 * file's not, that file would be nobody's. */
static int sync_removal(struct repository *repo, const json_t *files, struct err *err)
{
	char last[NAME_PATH_BYTES] = "";
	size_t i;
	const json_t *value;
	json_array_foreach(files, i, value)
	{
		char folder[NAME_PATH_BYTES];
		snprintf(folder, sizeof folder, "%s", json_string_value(value));
		*strrchr(folder, '/') = '\0';
		if (strcmp(folder, last) == 0 || !path_exists(repo->dir_fd, folder))
			continue;
		if (file_sync_dir(repo->dir_fd, folder, err) < 0)
			return -1;
		memcpy(last, folder, sizeof last);
	}
	return 0;
}

int plan_remove_files(struct repository *repo, const struct plan *plan, struct err *err)
{
	const json_t *files = json_object_get(plan->json, "files");
	const json_t *folders = json_object_get(plan->json, "folders");
	size_t i;
	const json_t *value;
	if (plan_fence(repo, plan, err) < 0)
		return -1;
	json_array_foreach(files, i, value)
	{
		if (remove_file(repo, json_string_value(value), err) < 0)
			return -1;
	}
	if (sync_removal(repo, files, err) < 0)
		return -1;
	/* Listed from the top downwards; one that is not empty holds what is not ours. */
	for (i = json_array_size(folders); i-- > 0;) {
		const char *path = json_string_value(json_array_get(folders, i));
		if (unlinkat(repo->dir_fd, path, AT_REMOVEDIR) < 0 && errno != ENOENT &&
			errno != ENOTEMPTY && errno != EEXIST && errno != ENOTDIR)
			return err_errno(err, errno, "cannot remove folder %s", path);
	}
	return 0;
}

int plan_drop(struct repository *repo, const char *job, struct err *err)
{
	static const char *const files[] = {
		"stage.json.new", "stage.json", "plan.json.new", "plan.json"};
	char path[NAME_PATH_BYTES];
	for (unsigned i = 0; i < ARRAY_LENGTH(files); i++) {
		job_path(job, files[i], path);
		if (unlinkat(repo->dir_fd, path, 0) < 0 && errno != ENOENT)
			return err_errno(err, errno, "cannot remove %s", path);
	}
	job_path(job, "", path);
	if (unlinkat(repo->dir_fd, path, AT_REMOVEDIR) < 0 && errno != ENOENT &&
		errno != ENOTEMPTY && errno != EEXIST)
		return err_errno(err, errno, "cannot remove folder %s", path);
	return 0;
}

int plan_finish(struct repository *repo, const struct plan *plan, struct err *err)
{
	bool logged;
	char facts_sha256[DIGEST_ROOT_HEX_BYTES], path[NAME_PATH_BYTES];
	/* Its maker may have ended between the manifest's rename and the sync. */
	path_point(plan->vm, plan->point, "", path);
	if (file_sync_dir(repo->dir_fd, path, err) < 0)
		return -1;
	if (pointslog_has(repo, plan->vm, plan->point, &logged, err) < 0 ||
		(logged && pointslog_sync(repo, plan->vm, err) < 0))
		return -1;
	if (!logged) {
		path_point(plan->vm, plan->point, "manifest.json", path);
		json_t *manifest = record_load(repo->dir_fd, path, err);
		int rc = manifest ? record_text_into(manifest, "facts_sha256", facts_sha256,
					    sizeof facts_sha256, path, err)
				  : -1;
		json_decref(manifest);
		if (rc < 0 || pointslog_append(repo, plan->vm, "committed", plan->point, plan->job,
				      facts_sha256, err) < 0)
			return -1;
	}
	return plan_drop(repo, plan->job, err);
}

/* --- what dead jobs left ---------------------------------------------------------- */

bool plan_is_leftover(struct repository *repo, const char *job)
{
	static const char *const ours[] = {"plan.json.new", "stage.json", "stage.json.new"};
	char path[NAME_PATH_BYTES];
	struct path_names names;
	job_path(job, "", path);
	if (!name_is_job(job) || path_names(repo->dir_fd, path, &names, NULL) < 0)
		return false;
	bool all_ours = true;
	for (size_t i = 0; i < names.nr; i++) {
		bool is_ours = false;
		for (unsigned k = 0; k < ARRAY_LENGTH(ours); k++)
			is_ours |= strcmp(names.name[i], ours[k]) == 0;
		all_ours &= is_ours;
	}
	path_names_free(&names);
	return all_ours;
}

/* Drops a job's folder that has no plan, if nobody can be about to write one. */
static void clean_planless(struct repository *repo, const char *job, struct cancel *cancel)
{
	struct err err = ERR_INIT;
	int AUTO_CLOSE guard = lock_guard(repo, cancel, &err);
	if (guard >= 0 && plan_is_leftover(repo, job) && plan_drop(repo, job, &err) == 0)
		return;
	if (err.code != ERR_NONE)
		log_warning("%s", err.text);
}

/* Whether the job that cleans cannot go on beside this one. */
static bool is_in_the_way(const struct plan *plan, const struct clean *clean)
{
	return clean->must_finish && (strcmp(plan->point, clean->must_finish) == 0 ||
					     strcmp(plan->child, clean->must_finish) == 0);
}

/* What keeps a prune from being finished does no harm to others, who go on without. */
static int finish_prune(
	struct repository *repo, const struct plan *plan, struct clean *clean, struct err *err)
{
	struct err why = ERR_INIT;
	int64_t freed_bytes = 0;
	if (clean->must_finish && !is_in_the_way(plan, clean))
		return 0; /* tried when this prune began */
	log_info("job %s, which takes restore point %s out of VM \"%s\", is gone on with (stage %s "
		 "since %s)",
		plan->job, plan->point, plan->vm, plan->stage, plan->stage_since);
	int rc = merge_go_on(repo, plan, clean->cancel, &freed_bytes, &why);
	if (rc == 0) {
		clean->freed_signed_bytes += freed_bytes;
		clean->freed_bytes += freed_bytes > 0 ? (uint64_t)freed_bytes : 0;
		return 0;
	}
	err_context(&why, "job %s, which takes out restore point %s, is not finished", plan->job,
		plan->point);
	if (is_in_the_way(plan, clean) || why.code == ERR_CANCELLED)
		return err_copy(err, &why);
	log_warning("%s", why.text);
	return 0;
}

/* A dead backup: what it had committed is completed, everything else removed. */
static int end_backup(
	struct repository *repo, const struct plan *plan, struct clean *clean, struct err *err)
{
	if (plan->committed) {
		log_info("restore point %s of VM \"%s\" had been committed: its job %s is closed",
			plan->point, plan->vm, plan->job);
		return plan_finish(repo, plan, err);
	}
	log_info("unfinished job %s of VM \"%s\" (stage %s since %s) is removed", plan->job,
		plan->vm, plan->stage, plan->stage_since);
	struct err why = ERR_INIT;
	if (plan_remove_files(repo, plan, &why) < 0)
		return why.code == ERR_EXISTS ? plan_finish(repo, plan, err) : err_copy(err, &why);
	clean->freed_bytes += plan->stored_bytes;
	clean->freed_signed_bytes += (int64_t)plan->stored_bytes;
	return plan_drop(repo, plan->job, err);
}

/* The VM's write lock is held. */
static int clean_one(struct repository *repo, const char *job, struct clean *clean, struct err *err)
{
	struct plan plan;
	struct err why = ERR_INIT;
	if (plan_load(repo, job, &plan, &why) < 0)
		/* Somebody else was faster, before we had the lock. */
		return why.code == ERR_NOT_FOUND ? 0 : err_copy(err, &why);
	int rc = plan.kind == PLAN_PRUNE ? finish_prune(repo, &plan, clean, err)
					 : end_backup(repo, &plan, clean, &why);
	if (why.code != ERR_NONE) {
		/* A backup that cannot be made because of what an older one left would be
		 * worse; that stays as it is. */
		err_context(&why, "job %s cannot be cleaned up after", job);
		bool goes_on = clean->vm_is_locked && why.code != ERR_CANCELLED &&
			       !is_in_the_way(&plan, clean);
		if (goes_on)
			log_warning("%s", why.text);
		rc = goes_on ? 0 : err_copy(err, &why);
	}
	clean->nr_jobs++;
	plan_free(&plan);
	return rc;
}

static int clean_locked(
	struct repository *repo, const struct plan *plan, struct clean *clean, struct err *err)
{
	char job[REPOSITORY_JOB_BYTES];
	if (clean->vm_is_locked)
		return clean_one(repo, plan->job, clean, err);
	if (name_make_job(time(NULL), job, err) < 0)
		return -1;
	struct err lock_err = ERR_INIT;
	struct lock *lock =
		lock_take(repo, LOCK_KIND_WRITE, plan->vm, NULL, job, clean->cancel, &lock_err);
	if (!lock && lock_err.code == ERR_BUSY)
		return 0; /* its next backup cleans */
	if (!lock)
		return err_copy(err, &lock_err);
	int rc = clean_one(repo, plan->job, clean, err);
	lock_release(lock);
	return rc;
}

int plan_clean(struct repository *repo, struct clean *clean, struct err *err)
{
	struct path_names jobs;
	if (path_names(repo->dir_fd, ".incoming", &jobs, err) < 0)
		return -1;
	int rc = 0;
	for (size_t i = 0; i < jobs.nr && rc == 0; i++) {
		struct plan plan;
		struct err load_err = ERR_INIT;
		if (!name_is_job(jobs.name[i]) ||
			(clean->keep && strcmp(clean->keep, jobs.name[i]) == 0))
			continue;
		if (plan_load(repo, jobs.name[i], &plan, &load_err) < 0) {
			if (load_err.code == ERR_NOT_FOUND)
				clean_planless(repo, jobs.name[i], clean->cancel);
			else
				log_warning("%s", load_err.text);
			continue;
		}
		/* A lock that is held names this very job or a newer one: this one is dead. */
		bool dead = clean->vm_is_locked || !plan.alive;
		bool due = clean->what == REPOSITORY_CLEAN_DEAD || plan.committed ||
			   (plan.kind == PLAN_PRUNE ? clean->vm != NULL
						    : plan_keep_until(&plan) <= time(NULL));
		if (dead && due && (!clean->vm || strcmp(clean->vm, plan.vm) == 0))
			rc = clean_locked(repo, &plan, clean, err);
		plan_free(&plan);
	}
	path_names_free(&jobs);
	return rc;
}

int repository_clean(struct repository *repo, enum repository_clean_what what, const char *vm,
	unsigned *nr_jobs, uint64_t *freed_bytes, struct err *err)
{
	struct clean clean = {.what = what, .vm = vm};
	int rc = plan_clean(repo, &clean, err);
	if (nr_jobs)
		*nr_jobs = clean.nr_jobs;
	if (freed_bytes)
		*freed_bytes = clean.freed_bytes;
	return rc;
}

const char *repository_job_kind_name(enum repository_job_kind kind)
{
	return kind == REPOSITORY_JOB_PRUNE ? "prune" : "backup";
}

/* --- telling of jobs --------------------------------------------------------------- */

static void tell(const struct plan *plan, struct repository_job *job)
{
	snprintf(job->vm, sizeof job->vm, "%s", plan->vm);
	snprintf(job->point, sizeof job->point, "%s", plan->point);
	snprintf(job->host, sizeof job->host, "%s", plan->owner.host);
	snprintf(job->started, sizeof job->started, "%s", plan->started);
	snprintf(job->stage, sizeof job->stage, "%s", plan->stage);
	snprintf(job->stage_since, sizeof job->stage_since, "%s", plan->stage_since);
	job->kind = plan->kind == PLAN_PRUNE ? REPOSITORY_JOB_PRUNE : REPOSITORY_JOB_BACKUP;
	job->pid = plan->owner.pid;
	job->alive = plan->alive;
	job->committed = plan->committed;
	job->stored_bytes = plan->stored_bytes;
	if (!plan->alive && plan->kind == PLAN_BACKUP)
		clock_utc_text(plan_keep_until(plan), job->keep_until);
}

int repository_jobs(
	struct repository *repo, repository_job_callback *callback, void *context, struct err *err)
{
	struct path_names names;
	if (path_names(repo->dir_fd, ".incoming", &names, err) < 0)
		return -1;
	int rc = 0;
	for (size_t i = 0; i < names.nr && rc == 0; i++) {
		struct repository_job job = {0};
		struct plan plan;
		struct err load_err = ERR_INIT;
		if (!name_is_job(names.name[i]))
			continue;
		snprintf(job.id, sizeof job.id, "%.25s", names.name[i]);
		if (plan_load(repo, names.name[i], &plan, &load_err) == 0) {
			tell(&plan, &job);
			plan_free(&plan);
		} else if (load_err.code == ERR_NOT_FOUND && plan_is_leftover(repo, job.id)) {
			continue; /* killed before its plan, or after: it owns nothing */
		} else {
			job.damage = load_err.text;
		}
		rc = callback(context, &job);
	}
	path_names_free(&names);
	return rc < 0 ? -1 : 0;
}
