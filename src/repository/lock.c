/*
 * Locks and leases: files in .locks that say who holds what.
 *
 *   absent ──link()──► held ──unlink()──► absent
 *                       │ its owner is dead
 *                       └──rename() over it──► held by another
 *
 * The content is complete before the name appears.  Taking, taking over and
 * giving back happen under flock() on .locks/guard, which the kernel drops when
 * its holder dies, so two takers never take over the same dead lock.  Where the
 * guard does not reach (hosts whose flock() is local), link() still lets only one
 * of two takers win an absent lock.
 *
 * An owner on another host is judged by its heartbeat: whoever finds such a lock
 * writes down what it saw (NAME.seen-HOST) and refuses; when a later attempt finds
 * the same heartbeat ten minutes on, by its own clock, the owner is dead.
 */
#include "repository_internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#define GUARD_TIMEOUT_MS 10000
#define GUARD_STEP_MS 5
#define BEAT_MS 15000
#define SILENT_S 600
#define LOCK_FILE_BYTES 8192
#define HEARTBEAT_DIGITS 20
#define SEEN_BYTES (NAME_PATH_BYTES + 48)
/* The longest lock's name, this and ".new" behind it make 249 of the 255 bytes that a name
 * may have. */
#define SEEN_HASH_BYTES 12
#define UNREADABLE_LOOKS 5
#define WAIT_STEP_MS 50
#define LET_OTHERS_MS 500

struct lock {
	struct repository *repo;
	struct lock *next;
	struct lock_record record;
	char name[NAME_PATH_BYTES]; /* relative to the repository */
	int fd;
	uint64_t heartbeat_at; /* where the digits stand in the file */
	uint64_t heartbeat;
};

void lock_write_name(const char *vm, char name[NAME_PATH_BYTES])
{
	char folder[REPOSITORY_FOLDER_BYTES];
	repository_name_folder(vm, folder);
	snprintf(name, NAME_PATH_BYTES, ".locks/%s.write", folder);
}

static void read_name(
	const char *vm, const char *point, const char *job, char name[NAME_PATH_BYTES])
{
	char folder[REPOSITORY_FOLDER_BYTES];
	repository_name_folder(vm, folder);
	snprintf(name, NAME_PATH_BYTES, ".locks/%s.%s.%s.read", folder, point, job);
}

static int open_guard(struct repository *repo, struct err *err)
{
	int fd = openat(repo->dir_fd, ".locks/guard", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	return fd < 0 ? err_errno(err, errno, "cannot open .locks/guard of repository %s",
				repo->info.path)
		      : fd;
}

/* False when it was made anew meanwhile (lock_revoke()). */
static bool is_guard(struct repository *repo, int fd)
{
	struct stat held, in_place;
	return fstat(fd, &held) == 0 && fstatat(repo->dir_fd, ".locks/guard", &in_place, 0) == 0 &&
	       held.st_ino == in_place.st_ino && held.st_dev == in_place.st_dev;
}

int lock_guard(struct repository *repo, struct cancel *cancel, struct err *err)
{
	int fd = open_guard(repo, err);
	struct deadline until = deadline_after_ms(GUARD_TIMEOUT_MS);
	while (fd >= 0) {
		int rc = 0;
		if (flock(fd, LOCK_EX | LOCK_NB) == 0) {
			if (is_guard(repo, fd))
				return fd;
		} else if (errno == ENOLCK || errno == EOPNOTSUPP) {
			return fd; /* link() alone must do */
		} else if (errno != EWOULDBLOCK && errno != EINTR) {
			rc = err_errno(err, errno, "cannot lock .locks/guard of repository %s",
				repo->info.path);
		}
		if (rc == 0 && deadline_passed(until))
			rc = err_set(err, ERR_TIMEOUT,
				"repository %s: another process has held .locks/guard for %d s",
				repo->info.path, GUARD_TIMEOUT_MS / 1000);
		else if (rc == 0)
			rc = cancel_sleep(cancel, deadline_after_ms(GUARD_STEP_MS), err);
		close(fd);
		fd = rc < 0 ? -1 : open_guard(repo, err);
	}
	return -1;
}

/* --- what stands in a lock file -------------------------------------------- */

static char *lock_text(const struct lock_record *record, uint64_t *heartbeat_at)
{
	json_t *object = json_object();
	int bad = owner_to_json(&record->owner, object);
	bad |= json_object_set_new(object, "format", json_integer(REPOSITORY_FORMAT));
	bad |= json_object_set_new(
		object, "kind", json_string(record->kind == LOCK_KIND_WRITE ? "write" : "read"));
	bad |= json_object_set_new(object, "vm", json_string(record->vm));
	if (record->point[0])
		bad |= json_object_set_new(object, "point", json_string(record->point));
	if (record->task == LOCK_TASK_PRUNE)
		bad |= json_object_set_new(object, "task", json_string("prune"));
	bad |= json_object_set_new(object, "job", json_string(record->job));
	bad |= json_object_set_new(object, "since", json_string(record->since));
	char *AUTO_FREE head = bad ? NULL : record_canonical(object);
	json_decref(object);
	char *text = NULL;
	if (!head)
		return NULL;
	int head_length = (int)strlen(head) - 1; /* without its closing brace */
	if (asprintf(&text, "%.*s,\"heartbeat\":%*d}\n", head_length, head, HEARTBEAT_DIGITS, 0) <
		0)
		return NULL;
	*heartbeat_at = strlen(text) - 2 - HEARTBEAT_DIGITS;
	return text;
}

static int lock_load(
	struct repository *repo, const char *name, struct lock_record *record, struct err *err)
{
	memset(record, 0, sizeof *record);
	char *AUTO_FREE text = NULL;
	size_t length;
	if (file_load(repo->dir_fd, name, LOCK_FILE_BYTES, &text, &length, err) < 0)
		return -1;
	json_t *object = record_parse(text, length, name, err);
	if (!object)
		return -1;
	int rc = -1;
	const char *kind = record_string(object, "kind", name, err);
	if (!kind || owner_from_json(&record->owner, object, name, err) < 0 ||
		record_text_into(object, "vm", record->vm, sizeof record->vm, name, err) < 0 ||
		record_text_into(object, "job", record->job, sizeof record->job, name, err) < 0 ||
		record_text_into(object, "since", record->since, sizeof record->since, name, err) <
			0 ||
		record_u64(object, "heartbeat", &record->heartbeat, name, err) < 0)
		goto out;
	record->kind = strcmp(kind, "read") == 0 ? LOCK_KIND_READ : LOCK_KIND_WRITE;
	const char *task = json_string_value(json_object_get(object, "task"));
	record->task = task && strcmp(task, "prune") == 0 ? LOCK_TASK_PRUNE : LOCK_TASK_OTHER;
	if (record->kind == LOCK_KIND_READ && record_text_into(object, "point", record->point,
						      sizeof record->point, name, err) < 0)
		goto out;
	rc = 0;
out:
	json_decref(object);
	return rc;
}

/* --- whose heart beats elsewhere --------------------------------------------- */

static void seen_name(const char *name, const struct owner *self, char seen[SEEN_BYTES])
{
	uint8_t hash[DIGEST_ROOT_BYTES];
	char hex[2 * SEEN_HASH_BYTES + 1];
	digest_sha256(self->host_id, strlen(self->host_id), hash);
	digest_hex(hash, SEEN_HASH_BYTES, hex);
	snprintf(seen, SEEN_BYTES, "%s.seen-%s", name, hex);
}

static int64_t boot_seconds(void)
{
	struct timespec now;
	clock_gettime(CLOCK_BOOTTIME, &now);
	return now.tv_sec;
}

/* True when this host saw the same heartbeat long enough ago; else writes down
 * what it sees, unless it did so before. */
static bool silent_for_long(
	struct repository *repo, const char *name, const struct lock_record *record)
{
	struct owner self;
	char seen[SEEN_BYTES];
	if (owner_self(&self, NULL) < 0)
		return false;
	seen_name(name, &self, seen);
	json_t *note = record_load(repo->dir_fd, seen, NULL);
	const char *job = json_string_value(json_object_get(note, "job"));
	const char *boot = json_string_value(json_object_get(note, "boot_id"));
	bool same = job && boot && strcmp(job, record->job) == 0 &&
		    strcmp(boot, self.boot_id) == 0 &&
		    json_integer_value(json_object_get(note, "heartbeat")) ==
			    (json_int_t)record->heartbeat;
	int64_t since = json_integer_value(json_object_get(note, "at_s"));
	json_decref(note);
	if (same)
		return boot_seconds() - since >= SILENT_S;
	note = json_pack("{s:s, s:s, s:I, s:I}", "job", record->job, "boot_id", self.boot_id,
		"heartbeat", (json_int_t)record->heartbeat, "at_s", (json_int_t)boot_seconds());
	struct err err = ERR_INIT;
	if (note && !repo->read_only && record_store(repo->dir_fd, seen, note, &err) < 0)
		log_warning("%s", err.text);
	json_decref(note);
	return false;
}

static void forget_seen(struct repository *repo, const char *name)
{
	struct owner self;
	char seen[SEEN_BYTES];
	if (owner_self(&self, NULL) < 0)
		return;
	seen_name(name, &self, seen);
	unlinkat(repo->dir_fd, seen, 0);
}

int lock_look(struct repository *repo, const char *name, struct lock_record *record, bool *alive,
	struct err *err)
{
	if (lock_load(repo, name, record, err) < 0)
		return -1;
	switch (owner_state(&record->owner)) {
	case OWNER_ALIVE:
		*alive = true;
		break;
	case OWNER_DEAD:
		*alive = false;
		break;
	case OWNER_ELSEWHERE:
		*alive = !silent_for_long(repo, name, record);
		break;
	}
	return 0;
}

/* --- the heartbeat ------------------------------------------------------------- */

static void beat(struct lock *lock)
{
	char digits[HEARTBEAT_DIGITS + 1];
	snprintf(digits, sizeof digits, "%*" PRIu64, HEARTBEAT_DIGITS, ++lock->heartbeat);
	struct err err = ERR_INIT;
	if (file_pwrite(lock->fd, digits, HEARTBEAT_DIGITS, lock->heartbeat_at, lock->name, &err) <
		0)
		log_warning("heartbeat of job %s: %s", lock->record.job, err.text);
}

static void *beat_main(void *arg)
{
	struct repository *repo = arg;
	WITH_LOCK(&repo->locks_mutex);
	struct deadline next = deadline_after_ms(BEAT_MS);
	while (!repo->stopping) {
		if (thread_cond_wait(&repo->locks_changed, &repo->locks_mutex, next))
			continue;
		for (struct lock *lock = repo->locks; lock; lock = lock->next)
			beat(lock);
		next = deadline_after_ms(BEAT_MS);
	}
	return NULL;
}

static int enter(struct repository *repo, struct lock *lock, struct err *err)
{
	WITH_LOCK(&repo->locks_mutex);
	if (!repo->beating) {
		if (thread_start(&repo->beater, "heartbeat", beat_main, repo, err) < 0)
			return -1;
		repo->beating = true;
	}
	lock->next = repo->locks;
	repo->locks = lock;
	return 0;
}

static void leave(struct repository *repo, struct lock *lock)
{
	WITH_LOCK(&repo->locks_mutex);
	for (struct lock **at = &repo->locks; *at; at = &(*at)->next) {
		if (*at == lock) {
			*at = lock->next;
			break;
		}
	}
}

/* --- taking and giving back ------------------------------------------------------ */

/* A lease of this host whose owner is dead; those of others only age (lock_look). */
static bool is_dead_lease(struct repository *repo, const char *file)
{
	char name[NAME_PATH_BYTES];
	struct lock_record record;
	snprintf(name, sizeof name, ".locks/%.255s", file);
	return path_has_suffix(file, ".read") && lock_load(repo, name, &record, NULL) == 0 &&
	       owner_state(&record.owner) == OWNER_DEAD;
}

/* What killed takers and readers left.  The guard is held, so no taker is at work. */
static void sweep(struct repository *repo)
{
	struct path_names names;
	if (path_names(repo->dir_fd, ".locks", &names, NULL) < 0)
		return;
	for (size_t i = 0; i < names.nr; i++) {
		char name[NAME_PATH_BYTES];
		snprintf(name, sizeof name, ".locks/%.255s", names.name[i]);
		if (strncmp(names.name[i], "new-", 4) == 0 || is_dead_lease(repo, names.name[i]))
			unlinkat(repo->dir_fd, name, 0);
	}
	path_names_free(&names);
}

static int refuse(struct repository *repo, const struct lock_record *held, struct err *err)
{
	char stage[REPOSITORY_STAGE_BYTES] = "", path[NAME_PATH_BYTES];
	if (name_is_job(held->job)) {
		snprintf(path, sizeof path, ".incoming/%s/stage.json", held->job);
		json_t *object = record_load(repo->dir_fd, path, NULL);
		if (object)
			record_text_into(object, "stage", stage, sizeof stage, path, NULL);
		json_decref(object);
	}
	err_set(err, ERR_BUSY,
		"VM \"%s\" is locked by %sjob %s (pid %" PRId64 " on host %s, since %s%s%s)",
		held->vm, held->task == LOCK_TASK_PRUNE ? "prune " : "", held->job, held->owner.pid,
		held->owner.host, held->since, stage[0] ? ", stage " : "", stage);
	return err_hint(err, "wait for it, or end that process");
}

/* Puts the finished file into its place.  The guard is held. */
static int place(struct lock *lock, const char *temporary, struct err *err)
{
	struct repository *repo = lock->repo;
	int nr_unreadable = 0;
	for (int attempt = 0; attempt < 100; attempt++) {
		if (linkat(repo->dir_fd, temporary, repo->dir_fd, lock->name, 0) == 0)
			return 0;
		if (errno != EEXIST)
			return err_errno(err, errno, "cannot make %s", lock->name);
		struct lock_record held;
		struct err look_err = ERR_INIT;
		bool alive = false;
		if (lock_look(repo, lock->name, &held, &alive, &look_err) < 0) {
			if (look_err.code == ERR_NOT_FOUND)
				continue; /* given back meanwhile */
			if (look_err.code != ERR_FORMAT)
				return err_copy(err, &look_err);
			/* It was synced before it had a name: what cannot be read now, and not
			 * just while its heart beat, has been damaged. */
			if (++nr_unreadable < UNREADABLE_LOOKS) {
				cancel_sleep(NULL, deadline_after_ms(5), NULL);
				continue;
			}
			log_warning("%s: taken over", look_err.text);
		} else if (alive) {
			return refuse(repo, &held, err);
		} else {
			log_warning("%s of job %s is taken over: its owner (pid %" PRId64
				    " on host %s) is dead",
				lock->name, held.job, held.owner.pid, held.owner.host);
		}
		if (renameat(repo->dir_fd, temporary, repo->dir_fd, lock->name) < 0)
			return err_errno(err, errno, "cannot take over %s", lock->name);
		forget_seen(repo, lock->name);
		return 0;
	}
	return err_set(err, ERR_BUSY, "%s changes too often to be taken", lock->name);
}

static int make(struct lock *lock, struct cancel *cancel, struct err *err)
{
	struct repository *repo = lock->repo;
	char temporary[NAME_PATH_BYTES];
	snprintf(temporary, sizeof temporary, ".locks/new-%s", lock->record.job);
	char *AUTO_FREE text = lock_text(&lock->record, &lock->heartbeat_at);
	if (!text)
		return err_errno(err, ENOMEM, "cannot lock VM \"%s\"", lock->record.vm);
	int AUTO_CLOSE guard = lock_guard(repo, cancel, err);
	if (guard < 0)
		return -1;
	sweep(repo);
	lock->fd = openat(
		repo->dir_fd, temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (lock->fd < 0)
		return err_errno(err, errno, "cannot make %s", temporary);
	int rc = file_pwrite(lock->fd, text, strlen(text), 0, temporary, err);
	if (rc == 0 && fsync(lock->fd) < 0)
		rc = err_errno(err, errno, "cannot sync %s", temporary);
	if (rc == 0)
		rc = place(lock, temporary, err);
	unlinkat(repo->dir_fd, temporary, 0);
	return rc;
}

static struct lock *take(struct repository *repo, enum lock_kind kind, enum lock_task task,
	const char *vm, const char *point, const char *job, struct cancel *cancel, struct err *err)
{
	if (kind == LOCK_KIND_READ && repo->read_only)
		return NULL;
	struct lock *lock = calloc(1, sizeof *lock);
	if (!lock) {
		err_errno(err, ENOMEM, "cannot lock VM \"%s\"", vm);
		return NULL;
	}
	lock->repo = repo;
	lock->fd = -1;
	lock->record.kind = kind;
	lock->record.task = task;
	snprintf(lock->record.vm, sizeof lock->record.vm, "%s", vm);
	snprintf(lock->record.job, sizeof lock->record.job, "%s", job);
	snprintf(lock->record.point, sizeof lock->record.point, "%s", point ? point : "");
	name_now(lock->record.since);
	if (kind == LOCK_KIND_WRITE)
		lock_write_name(vm, lock->name);
	else
		read_name(vm, point, job, lock->name);
	struct err why = ERR_INIT;
	if (owner_self(&lock->record.owner, &why) < 0 || make(lock, cancel, &why) < 0) {
		/* Where nothing can be written nothing is pruned either; and a repository
		 * that is full must still give back what it holds. */
		if (kind == LOCK_KIND_READ && why.code == ERR_NO_SPACE)
			log_warning("restore point %s of VM \"%s\" is read without a lease: %s",
				point, vm, why.text);
		else if (kind != LOCK_KIND_READ || why.sys_errno != EROFS)
			err_copy(err, &why);
		goto fail;
	}
	if (enter(repo, lock, err) < 0) {
		lock_release(lock);
		return NULL;
	}
	return lock;
fail:
	if (lock->fd >= 0)
		close(lock->fd);
	free(lock);
	return NULL;
}

struct lock *lock_take(struct repository *repo, enum lock_kind kind, const char *vm,
	const char *point, const char *job, struct cancel *cancel, struct err *err)
{
	return take(repo, kind, LOCK_TASK_OTHER, vm, point, job, cancel, err);
}

/* --- waiting for one ---------------------------------------------------------------- */

/*
 * A waiter holds a shared flock() on the file of the lock that it waits for, so that its
 * holder sees that somebody waits; the kernel drops it with the waiter.
 */
static void show_wish(struct repository *repo, const char *name, int *wish)
{
	struct stat in_place, wished;
	int fd = openat(repo->dir_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd < 0)
		return;
	if (*wish >= 0 && fstat(fd, &in_place) == 0 && fstat(*wish, &wished) == 0 &&
		in_place.st_ino == wished.st_ino && in_place.st_dev == wished.st_dev) {
		close(fd);
		return;
	}
	if (*wish >= 0)
		close(*wish);
	*wish = fd;
	if (flock(fd, LOCK_SH | LOCK_NB) < 0)
		log_debug("cannot show on %s that somebody waits: %m", name);
}

static bool is_wanted(const struct lock *lock)
{
	if (flock(lock->fd, LOCK_EX | LOCK_NB) < 0)
		return errno == EWOULDBLOCK;
	flock(lock->fd, LOCK_UN);
	return false;
}

/* Whether the holder of the lock is worth waiting for; tells of it once. */
static bool should_wait(
	struct repository *repo, const char *name, const struct lock_wait *wait, bool *told)
{
	struct lock_record held;
	bool alive;
	if (lock_look(repo, name, &held, &alive, NULL) < 0)
		return true; /* given back meanwhile */
	if (wait->for_prune_only && held.task != LOCK_TASK_PRUNE)
		return false;
	if (!*told)
		log_warning("waiting for %sjob %s of VM \"%s\" (pid %" PRId64
			    " on host %s, since %s), at most %u s",
			held.task == LOCK_TASK_PRUNE ? "prune " : "", held.job, held.vm,
			held.owner.pid, held.owner.host, held.since, wait->wait_ms / 1000);
	*told = true;
	return true;
}

struct lock *lock_take_write(struct repository *repo, enum lock_task task, const char *vm,
	const char *job, const struct lock_wait *wait, struct cancel *cancel, struct err *err)
{
	char name[NAME_PATH_BYTES];
	struct deadline until = deadline_after_ms(wait->wait_ms);
	int AUTO_CLOSE wish = -1;
	bool told = false;
	lock_write_name(vm, name);
	for (;;) {
		struct err why = ERR_INIT;
		struct lock *lock = take(repo, LOCK_KIND_WRITE, task, vm, NULL, job, cancel, &why);
		if (lock)
			return lock;
		if (why.code != ERR_BUSY || wait->wait_ms == 0 ||
			!should_wait(repo, name, wait, &told)) {
			err_copy(err, &why);
			return NULL;
		}
		if (deadline_passed(until)) {
			err_copy(err, &why);
			err_hint(err, "waited %u s for it", wait->wait_ms / 1000);
			return NULL;
		}
		show_wish(repo, name, &wish);
		if (cancel_sleep(
			    cancel, deadline_min(until, deadline_after_ms(WAIT_STEP_MS)), err) < 0)
			return NULL;
	}
}

void lock_let_others(struct repository *repo, struct lock *lock, struct cancel *cancel)
{
	bool wanted = is_wanted(lock);
	char name[NAME_PATH_BYTES];
	struct deadline until = deadline_after_ms(LET_OTHERS_MS);
	memcpy(name, lock->name, sizeof name);
	lock_release(lock);
	while (wanted && !deadline_passed(until) && !path_exists(repo->dir_fd, name))
		if (cancel_sleep(cancel, deadline_after_ms(5), NULL) < 0)
			return;
}

/* --- leases ------------------------------------------------------------------------------ */

/* 1: it is there and read; 0: it is gone; -1: it cannot be read, and not just while its
 * heart beat. */
static int look_at_lease(struct repository *repo, const char *name, struct lock_record *record,
	bool *alive, struct err *err)
{
	for (int look = 0;; look++) {
		struct err why = ERR_INIT;
		if (lock_look(repo, name, record, alive, &why) == 0)
			return 1;
		if (why.code == ERR_NOT_FOUND)
			return 0;
		if (why.code != ERR_FORMAT || look == UNREADABLE_LOOKS)
			return err_copy(err, &why);
		cancel_sleep(NULL, deadline_after_ms(5), NULL);
	}
}

int lock_leases(struct repository *repo, const char *vm, lock_lease_callback *callback,
	void *context, struct err *err)
{
	struct path_names names;
	char folder[REPOSITORY_FOLDER_BYTES];
	repository_name_folder(vm, folder);
	size_t length = strlen(folder);
	if (path_names(repo->dir_fd, ".locks", &names, err) < 0)
		return -1;
	int rc = 0;
	for (size_t i = 0; i < names.nr && rc == 0; i++) {
		char name[NAME_PATH_BYTES];
		struct lock_record record;
		bool alive = false;
		if (strncmp(names.name[i], folder, length) != 0 || names.name[i][length] != '.' ||
			!path_has_suffix(names.name[i], ".read"))
			continue;
		snprintf(name, sizeof name, ".locks/%.255s", names.name[i]);
		rc = look_at_lease(repo, name, &record, &alive, err);
		if (rc > 0)
			rc = alive && strcmp(record.vm, vm) == 0 ? callback(context, &record) : 0;
	}
	path_names_free(&names);
	return rc < 0 ? -1 : 0;
}

int lock_still_ours(const struct lock *lock, struct err *err)
{
	struct stat in_place, ours;
	/* Opened, because then a network file system asks its server. */
	int AUTO_CLOSE fd = openat(
		lock->repo->dir_fd, lock->name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd >= 0 && fstat(lock->fd, &ours) == 0 && fstat(fd, &in_place) == 0 &&
		ours.st_ino == in_place.st_ino && ours.st_dev == in_place.st_dev)
		return 0;
	return err_set(err, ERR_BUSY,
		"job %s lost its lock on VM \"%s\": another job declared it dead and took over",
		lock->record.job, lock->record.vm);
}

void lock_release(struct lock *lock)
{
	if (!lock)
		return;
	struct repository *repo = lock->repo;
	leave(repo, lock);
	struct err err = ERR_INIT;
	/* Without the guard a taker could slip between look and unlink; that it is
	 * held for so long is worse. */
	int AUTO_CLOSE guard = lock_guard(repo, NULL, &err);
	if (guard < 0)
		log_warning("%s", err.text);
	if (lock_still_ours(lock, &err) < 0)
		log_warning("%s", err.text);
	else if (unlinkat(repo->dir_fd, lock->name, 0) < 0)
		log_warning("cannot remove %s: %m", lock->name);
	close(lock->fd);
	free(lock);
}

int lock_remove_dead(struct repository *repo, const char *name, struct err *err)
{
	struct lock_record record;
	bool alive;
	int AUTO_CLOSE guard = lock_guard(repo, NULL, err);
	if (guard < 0 || lock_look(repo, name, &record, &alive, err) < 0)
		return -1;
	if (alive)
		return refuse(repo, &record, err);
	if (unlinkat(repo->dir_fd, name, 0) < 0)
		return err_errno(err, errno, "cannot remove %s", name);
	forget_seen(repo, name);
	return 0;
}

/* --- taking away --------------------------------------------------------------------- */

static int revoke_one(struct repository *repo, const char *file,
	const struct repository_process *process, unsigned *nr, struct err *err)
{
	char name[NAME_PATH_BYTES];
	struct lock_record held;
	snprintf(name, sizeof name, ".locks/%.255s", file);
	/* What cannot be read is nobody's that one knows. */
	if ((!path_has_suffix(file, ".write") && !path_has_suffix(file, ".read")) ||
		lock_load(repo, name, &held, NULL) < 0 || !owner_is(&held.owner, process))
		return 0;
	if (unlinkat(repo->dir_fd, name, 0) < 0 && errno != ENOENT)
		return err_errno(err, errno, "cannot remove %s", name);
	forget_seen(repo, name);
	++*nr;
	log_warning("%s of job %s was taken away from process %" PRId64 ", which does not end",
		name, held.job, process->pid);
	return 0;
}

/* "1: FLOCK  ADVISORY  WRITE 4711 fd:01:1234 0 EOF" */
static bool holds_guard(struct repository *repo, int64_t pid)
{
	char line[256];
	struct stat st;
	bool holds = false;
	FILE *locks = fopen("/proc/locks", "re");
	if (!locks || fstatat(repo->dir_fd, ".locks/guard", &st, 0) < 0)
		st.st_ino = 0;
	while (locks && !holds && fgets(line, sizeof line, locks)) {
		int64_t holder;
		unsigned long long inode;
		holds = sscanf(line, "%*s FLOCK %*s WRITE %" SCNd64 " %*x:%*x:%llu", &holder,
				&inode) == 2 &&
			holder == pid && inode == (unsigned long long)st.st_ino;
	}
	if (locks)
		fclose(locks);
	return holds;
}

/* The process may be held while it holds the guard: then the guard is made anew. */
static int guard_against(
	struct repository *repo, const struct repository_process *process, struct err *err)
{
	if (holds_guard(repo, process->pid) && unlinkat(repo->dir_fd, ".locks/guard", 0) < 0)
		return err_errno(err, errno, "cannot remove .locks/guard");
	return lock_guard(repo, NULL, err);
}

int lock_revoke(struct repository *repo, const struct repository_process *process, unsigned *nr,
	struct err *err)
{
	struct path_names names;
	int AUTO_CLOSE guard = guard_against(repo, process, err);
	if (guard < 0 || path_names(repo->dir_fd, ".locks", &names, err) < 0)
		return -1;
	int rc = 0;
	for (size_t i = 0; i < names.nr && rc == 0; i++)
		rc = revoke_one(repo, names.name[i], process, nr, err);
	path_names_free(&names);
	return rc;
}
