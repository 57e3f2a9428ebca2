/* A worker's own side; see worker.h. */
#include "worker.h"

#include "job_internal.h"
#include "jobplan.h"
#include "remote.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>

#define LOG_BYTES_MOST (16 * MIB)
#define LOOK_MOST_MS 15000 /* sooner than the supervisor loses patience */
#define WORK_BYTES MIB /* one of "work" ... */
#define WORK_NS 1000000000 /* ... or so much of a processor's time */

struct worker {
	char *folder;
	const char *software, *build;
	int dir_fd, log_fd;
	json_t *plan;
	char **words;

	pthread_mutex_t mutex; /* over the log */
	uint64_t logged_bytes;

	uint64_t heartbeat, own_bytes; /* of whoever tells the status */
};

struct worker *worker_open(
	const char *folder, const char *software, const char *build, struct err *err)
{
	struct worker *w = calloc(1, sizeof *w);
	if (!w) {
		err_errno(err, ENOMEM, "cannot work");
		return NULL;
	}
	pthread_mutex_init(&w->mutex, NULL);
	w->log_fd = -1;
	w->software = software;
	w->build = build;
	w->folder = strdup(folder);
	w->dir_fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (w->dir_fd < 0) {
		err_errno(err, errno, "cannot open %s", folder);
		goto fail;
	}
	w->plan = jobdir_load(w->dir_fd, JOBDIR_PLAN, err);
	if (!w->plan)
		goto fail;
	w->log_fd = openat(w->dir_fd, JOBDIR_LOG, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (w->log_fd < 0) {
		err_errno(err, errno, "cannot open %s/%s", folder, JOBDIR_LOG);
		goto fail;
	}
	return w;
fail:
	worker_close(w);
	return NULL;
}

void worker_close(struct worker *w)
{
	if (!w)
		return;
	guard_set(NULL, NULL);
	jobplan_free(w->words);
	json_decref(w->plan);
	if (w->dir_fd >= 0)
		close(w->dir_fd);
	if (w->log_fd >= 0)
		close(w->log_fd);
	pthread_mutex_destroy(&w->mutex);
	free(w->folder);
	free(w);
}

/* --- what to do ------------------------------------------------------------------------ */

static uint64_t number_of(const json_t *object, const char *name)
{
	json_int_t value = json_integer_value(json_object_get(object, name));
	return value > 0 ? (uint64_t)value : 0;
}

static const char *text_of(const json_t *object, const char *name)
{
	return json_string_value(json_object_get(object, name));
}

static int check_local(const json_t *r, struct err *err)
{
	const struct job_repository repository = {
		.name = text_of(r, "name"),
		.path = text_of(r, "path"),
		.id = text_of(r, "id"),
		.require_mount = json_is_true(json_object_get(r, "require_mount")),
		.mount = text_of(r, "mount"),
		.stop_free_bytes = number_of(r, "stop_free"),
	};
	return job_repository_check(&repository, number_of(r, "reserved"), err);
}

/* The repository, wherever it is. */
static struct store *open_store(const struct worker *w, const json_t *r, struct err *err)
{
	const char *url = text_of(r, "url");
	const struct store_options options = {
		.name = url ? url : text_of(r, "path"),
		.mode = REPOSITORY_WRITE,
		.token_file = text_of(r, "token_file"),
		.ca_file = text_of(r, "ca_file"),
		.software = w->software,
		.build = w->build,
	};
	struct store *store = store_open(&options, err);
	if (!store)
		err_context(err, "repository %s", text_of(r, "name"));
	return store;
}

/* Its space is looked at where it is. */
static int check_hub(const struct worker *w, const json_t *r, struct err *err)
{
	struct repository_info info;
	const char *id = text_of(r, "id");
	struct store *store = open_store(w, r, err);
	if (!store)
		return -1;
	int rc = id ? store_info(store, &info, err) : 0;
	if (rc == 0 && id && strcmp(id, info.id) != 0)
		rc = err_set(err, ERR_DENIED,
			"repository %s: at %s is the repository %s, and not %s", text_of(r, "name"),
			text_of(r, "url"), info.id, id);
	store_close(store);
	return rc;
}

static int check_repository(const struct worker *w, struct err *err)
{
	const json_t *r = json_object_get(w->plan, "repository");
	if (!r)
		return 0; /* a job without one */
	if (!text_of(r, "name") || (!text_of(r, "path") && !text_of(r, "url")))
		return err_set(err, ERR_FORMAT, "the plan is not one: it names no repository");
	return text_of(r, "url") ? check_hub(w, r, err) : check_local(r, err);
}

/* --- without a command ------------------------------------------------------------------- */

static const char *path_of(const json_t *plan)
{
	return text_of(json_object_get(plan, "repository"), "path");
}

/* Whatever that process holds in the repository. */
static int take_locks(const json_t *plan, const json_t *who, struct err *err)
{
	unsigned nr = 0;
	const struct repository_process process = {
		.boot_id = json_string_value(json_object_get(who, "boot")),
		.pid = (int64_t)number_of(who, "pid"),
		.start = number_of(who, "start"),
	};
	if (!path_of(plan) || !process.boot_id || process.pid == 0)
		return err_set(err, ERR_FORMAT, "the plan is not one: it names no process");
	struct repository *repo = repository_open(path_of(plan), REPOSITORY_WRITE, err);
	if (!repo)
		return -1;
	int rc = repository_revoke(repo, &process, &nr, err);
	repository_close(repo);
	if (rc == 0)
		log_warning(
			"process %" PRId64 ", which does not end, held %u locks", process.pid, nr);
	return rc;
}

static int report_made(const struct worker *w, const char *vm, const char *point, struct err *err)
{
	json_t *report = json_pack("{s:s, s:s, s:s}", "vm", vm, "point", point, "note",
		"its worker made the restore point, and ended before it could tell");
	int rc = report ? jobdir_store(w->dir_fd, JOBDIR_REPORT, report, err)
			: err_errno(err, ENOMEM, "cannot make the report");
	json_decref(report);
	return rc;
}

/* Then its maker's plan may still be there. */
static void clean_up(struct store *store, const char *vm)
{
	struct repository *repo = store_local(store);
	struct err why = ERR_INIT;
	if (repo && repository_clean(repo, REPOSITORY_CLEAN_EXPIRED, vm, NULL, NULL, &why) < 0)
		log_warning("what its maker left is not cleaned up: %s", why.text);
}

/* 1 when this job's restore point is there. */
static int is_made(const struct worker *w, const json_t *look, struct err *err)
{
	const char *vm = text_of(look, "vm"), *job = worker_job(w);
	const json_t *r = json_object_get(w->plan, "repository");
	char point[REPOSITORY_POINT_BYTES];
	if (!vm || !r || !job)
		return err_set(err, ERR_FORMAT, "the plan is not one: it names no machine");
	struct store *store = open_store(w, r, err);
	if (!store)
		return -1;
	int made = store_point_of_job(store, vm, job, deadline_after_ms(LOOK_MOST_MS), point, err);
	if (made > 0)
		clean_up(store, vm);
	store_close(store);
	if (made <= 0)
		return made;
	log_warning("restore point %s was made by this job: nothing is left to do", point);
	return report_made(w, vm, point, err) < 0 ? -1 : 1;
}

const char *worker_job(const struct worker *w)
{
	return text_of(w->plan, "job");
}

char **worker_words(struct worker *w, struct err *err)
{
	const json_t *who = json_object_get(w->plan, "revoke");
	const json_t *look = json_object_get(w->plan, "look");
	if (who ? take_locks(w->plan, who, err) < 0 : check_repository(w, err) < 0)
		return NULL;
	int made = look ? is_made(w, look, err) : 0;
	if (made < 0)
		return NULL;
	w->words = made ? calloc(1, sizeof *w->words) : jobplan_words(w->plan, err);
	guard_set(jobplan_may_open, w->plan);
	return w->words;
}

const json_t *worker_credentials(const struct worker *w, const char *name)
{
	return credentials_find(json_object_get(w->plan, "credentials"), name);
}

/* --- telling ----------------------------------------------------------------------------- */

void worker_log(struct worker *w, enum log_level level, const char *text)
{
	static const char full[] = "the log ends here: it is full";
	char time_text[CLOCK_UTC_BYTES];
	WITH_LOCK(&w->mutex);
	if (w->logged_bytes > LOG_BYTES_MOST)
		return;
	if (w->logged_bytes + strlen(text) > LOG_BYTES_MOST)
		text = full;
	clock_utc_text(time(NULL), time_text);
	json_t *words = json_string(text);
	json_t *line =
		json_pack("{s:s, s:s, s:o}", "time", time_text, "level", log_level_name(level),
			"text", words ? words : json_string("(a line that is no UTF-8)"));
	char *out = line ? json_dumps(line, JSON_COMPACT) : NULL;
	struct iovec parts[] = {{out, out ? strlen(out) : 0}, {(char[]){'\n'}, 1}};
	/* One write a line: nobody reads half of one. */
	if (out && writev(w->log_fd, parts, 2) > 0)
		w->logged_bytes += parts[0].iov_len + 1;
	if (text == full)
		w->logged_bytes = LOG_BYTES_MOST + 1;
	free(out);
	json_decref(line);
}

static uint64_t cpu_ns(clockid_t clock)
{
	struct timespec t = {0};
	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* Bytes through read and write calls. */
static uint64_t io_bytes(void)
{
	char text[512];
	int AUTO_CLOSE fd = open("/proc/self/io", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	uint64_t in = 0, out = 0;
	text[n > 0 ? n : 0] = '\0';
	const char *written = strstr(text, "wchar: ");
	if (sscanf(text, "rchar: %" SCNu64, &in) == 1 && written)
		out = strtoull(written + 7, NULL, 10);
	return in + out;
}

void worker_status(struct worker *w, const json_t *now)
{
	uint64_t bytes = io_bytes(), ns = cpu_ns(CLOCK_PROCESS_CPUTIME_ID);
	uint64_t own_ns = cpu_ns(CLOCK_THREAD_CPUTIME_ID);
	uint64_t others = bytes > w->own_bytes ? bytes - w->own_bytes : 0;
	uint64_t work = others / WORK_BYTES + (ns > own_ns ? ns - own_ns : 0) / WORK_NS;
	json_t *object = json_pack(
		"{s:I, s:I}", "heartbeat", (json_int_t)++w->heartbeat, "work", (json_int_t)work);
	struct err why = ERR_INIT;
	json_object_update(object, (json_t *)now);
	if (jobdir_store(w->dir_fd, JOBDIR_STATUS, object, &why) < 0)
		worker_log(w, LOG_LEVEL_WARNING, why.text);
	json_decref(object);
	w->own_bytes += io_bytes() - bytes;
}

int worker_begin_report(struct worker *w, struct err *err)
{
	int AUTO_CLOSE fd = openat(
		w->dir_fd, JOBDIR_REPORT ".new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || dup2(fd, STDOUT_FILENO) < 0)
		return err_errno(err, errno, "cannot make the report in %s", w->folder);
	return 0;
}

int worker_end(struct worker *w, int status, const struct err *why, struct err *err)
{
	struct stat st;
	fflush(stdout);
	if (fstatat(w->dir_fd, JOBDIR_REPORT ".new", &st, 0) == 0 && st.st_size > 0 &&
		renameat(w->dir_fd, JOBDIR_REPORT ".new", w->dir_fd, JOBDIR_REPORT) < 0)
		return err_errno(err, errno, "cannot rename the report in %s", w->folder);
	struct err end = *why;
	if (status == 3 && end.code == ERR_NONE)
		err_set(&end, ERR_CORRUPT, "damage was found: the report tells where");
	else if (status != 0 && end.code == ERR_NONE)
		err_set(&end, ERR_IO, "it ended with status %d: the log tells why", status);
	json_t *text = json_string(end.text);
	json_t *object = json_pack("{s:i, s:s, s:o}", "status", status, "code",
		err_code_name(end.code), "error",
		text ? text : json_string("(the text is no UTF-8, the log has it)"));
	int rc = jobdir_store(w->dir_fd, JOBDIR_EXIT, object, err);
	json_decref(object);
	return rc;
}
