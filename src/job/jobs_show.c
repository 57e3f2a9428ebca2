/* Jobs as others see them: one, lists, logs, waiting; see job.h. */
#include "job_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/* *seen of a job that has ended and was told. */
#define SEEN_END UINT64_MAX

static struct job *find_in(struct job *list, const char *id)
{
	while (list && strcmp(list->id, id) != 0)
		list = list->next;
	return list;
}

static const struct job *find_live(const struct jobs *jobs, const char *id)
{
	const struct job *job = find_in(jobs->open, id);
	return job ? job : find_in(jobs->unreaped, id);
}

static bool is_id(const char *id)
{
	static const char good[] = "0123456789abcdefTZ-";
	size_t length = strlen(id);
	return length > 0 && length < JOB_ID_BYTES && strspn(id, good) == length;
}

/* --- one ------------------------------------------------------------------------------------- */

static int take_shown(void *context, const struct state_job *record)
{
	json_t **out = context;
	*out = jobrecord_stored_json(record);
	return 0;
}

static void add_report(const struct jobs *jobs, const char *id, json_t *out)
{
	char path[JOB_ID_BYTES + 32];
	snprintf(path, sizeof path, "%s/" JOBDIR_REPORT, id);
	json_t *report = jobdir_load(jobs->kept_fd, path, NULL);
	/* A path of this machine is not for everybody who may read: the job has the name. */
	json_object_del(report, "repo");
	/* Of what failed it has only the error, which is told already. */
	if (report && !json_object_get(report, "error"))
		json_object_set(out, "report", report);
	json_decref(report);
}

static json_t *get_ended(struct jobs *jobs, const char *id, struct err *err)
{
	json_t *out = NULL;
	if (!is_id(id)) {
		err_set(err, ERR_NOT_FOUND, "there is no job %.64s", id);
		return NULL;
	}
	if (state_job(jobs->options.state, id, take_shown, &out, err) < 0)
		return NULL;
	add_report(jobs, id, out);
	return out;
}

json_t *jobs_get(struct jobs *jobs, const char *id, struct err *err)
{
	pthread_mutex_lock(&jobs->mutex);
	const struct job *job = find_live(jobs, id);
	json_t *out = job ? jobrecord_json(job) : NULL;
	pthread_mutex_unlock(&jobs->mutex);
	return out ? out : get_ended(jobs, id, err);
}

json_t *jobs_wait(
	struct jobs *jobs, const char *id, uint64_t *seen, struct deadline until, struct err *err)
{
	json_t *out = NULL;
	bool is_open = true;
	pthread_mutex_lock(&jobs->mutex);
	for (;;) {
		const struct job *job = find_in(jobs->open, id);
		is_open = job != NULL;
		/* Counted from 1 on, so that 0 is none that was seen. */
		if (job && job->changes + 1 != *seen) {
			*seen = job->changes + 1;
			out = jobrecord_json(job);
		}
		if (out || (!is_open && *seen != SEEN_END) ||
			!thread_cond_wait(&jobs->changed, &jobs->mutex, until))
			break;
	}
	pthread_mutex_unlock(&jobs->mutex);
	if (out || is_open || *seen == SEEN_END)
		return out;
	*seen = SEEN_END;
	return get_ended(jobs, id, err);
}

/* --- many ---------------------------------------------------------------------------------------
 */

struct listing {
	json_t *items;
	unsigned most;
	bool more;
};

static int take_listed(void *context, const struct state_job *record)
{
	struct listing *listing = context;
	if (json_array_size(listing->items) == listing->most) {
		listing->more = true;
		return 1;
	}
	json_array_append_new(listing->items, jobrecord_stored_json(record));
	return 0;
}

json_t *jobs_list(struct jobs *jobs, const struct state_job_filter *filter, unsigned most,
	bool *more, struct err *err)
{
	struct listing listing = {.items = json_array(), .most = most};
	if (state_jobs(jobs->options.state, filter, take_listed, &listing, err) < 0) {
		json_decref(listing.items);
		return NULL;
	}
	size_t i;
	const json_t *item;
	pthread_mutex_lock(&jobs->mutex);
	json_array_foreach(listing.items, i, item)
	{
		const struct job *job =
			find_live(jobs, json_string_value(json_object_get(item, "id")));
		if (job)
			json_array_set_new(listing.items, i, jobrecord_json(job));
	}
	pthread_mutex_unlock(&jobs->mutex);
	*more = listing.more;
	return listing.items;
}

void jobs_count(struct jobs *jobs, unsigned *nr_queued, unsigned *nr_running)
{
	WITH_LOCK(&jobs->mutex);
	*nr_queued = *nr_running = 0;
	for (const struct job *job = jobs->open; job; job = job->next) {
		if (job->state == JOB_QUEUED)
			++*nr_queued;
		else
			++*nr_running;
	}
}

unsigned jobs_count_unreaped(struct jobs *jobs)
{
	unsigned nr = 0;
	WITH_LOCK(&jobs->mutex);
	for (const struct job *job = jobs->unreaped; job; job = job->next)
		nr++;
	return nr;
}

/* --- logs
 * ------------------------------------------------------------------------------------------ */

/* Reads what of the file lies at *offset, which counts down over the files before. */
static int read_part(int dir_fd, const char *path, uint64_t *offset, char *out, size_t most,
	size_t *length, struct err *err)
{
	struct stat st;
	int AUTO_CLOSE fd =
		dir_fd < 0 ? -1 : openat(dir_fd, path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0 || fstat(fd, &st) < 0)
		return 0;
	uint64_t size = (uint64_t)st.st_size;
	if (*offset >= size) {
		*offset -= size;
		return 0;
	}
	ssize_t n = pread(fd, out + *length, most - *length, (off_t)*offset);
	if (n < 0)
		return err_errno(err, errno, "cannot read a job's log");
	*length += (size_t)n;
	*offset = 0;
	return 0;
}

int jobs_log(struct jobs *jobs, const char *id, uint64_t offset, size_t most, char **text,
	size_t *length, struct err *err)
{
	char path[JOB_ID_BYTES + 32];
	json_t *known = jobs_get(jobs, id, err);
	if (!known)
		return -1;
	json_decref(known);
	*length = 0;
	*text = malloc(most + 1);
	if (!*text)
		return err_errno(err, ENOMEM, "cannot read a job's log");
	snprintf(path, sizeof path, "%s/" JOBDIR_LOG, id);
	/* Under the lock: it does not go from one place to the other meanwhile. */
	pthread_mutex_lock(&jobs->mutex);
	int rc = read_part(jobs->kept_fd, path, &offset, *text, most, length, err);
	if (rc == 0 && *length < most)
		rc = read_part(jobs->runtime_fd, path, &offset, *text, most, length, err);
	pthread_mutex_unlock(&jobs->mutex);
	(*text)[*length] = '\0';
	if (rc < 0) {
		free(*text);
		*text = NULL;
	}
	return rc;
}

struct forgetting {
	const struct jobs *jobs;
	unsigned nr;
};

static void forget_files(void *context, const char *id)
{
	struct forgetting *forgetting = context;
	struct err why = ERR_INIT;
	if (jobdir_remove(forgetting->jobs->kept_fd, id, &why) < 0)
		log_warning("job %s: %s", id, why.text);
	forgetting->nr++;
}

int jobs_forget(struct jobs *jobs, int64_t ended_before, struct err *err)
{
	struct forgetting forgetting = {.jobs = jobs};
	int rc = state_jobs_forget(
		jobs->options.state, ended_before, forget_files, &forgetting, err);
	if (forgetting.nr > 0)
		log_info("%u jobs that ended long ago are forgotten", forgetting.nr);
	return rc;
}
