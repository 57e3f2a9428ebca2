/*
 * The index, kept up to date: after each job that made or took out restore points, before each
 * list that is asked for, and at the start.  Changes of jobs are worked off by a
 * thread of its own, in their order, so that whoever hears of a job's end finds its
 * restore point in the index.
 *
 * The end of each job is owed: noted with the job, and taken back when all that follows from it
 * has been done (retention, alarms, the audit log).  So what ends while no hub runs, or while one
 * starts or stops, is worked off by the next.
 */
#include "hub_internal.h"

#include "catalogue.h"
#include "job.h"
#include "log.h"
#include "repository.h"
#include "thread.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#define WALK_MS (INT64_C(1000) * 60 * 15)
#define OWED_KIND "end" /* of a take */
#define OWED_NAME "told"

struct change {
	struct change *next;
	char id[JOB_ID_BYTES];
	enum job_state state;
	json_t *job;
};

struct hub_points {
	pthread_t thread;
	pthread_mutex_t mutex;
	pthread_cond_t changed;
	struct change *first, **last;
	bool ends;
	bool works; /* off the changes: those who are told of them are there */
	json_t *owed; /* ids of jobs that ended in an earlier hub's time; of others this one's
			 supervisor tells */
	atomic_bool walked; /* each once, or tried */
	pthread_mutex_t *walking; /* of each repository: one walks it at a time */
	size_t nr_walking;
};

/* --- repositories ----------------------------------------------------------------------------- */

struct repository *hub_repository_open(
	struct hub *hub, const char *name, bool to_write, struct err *err)
{
	const struct job_repository *r = hub_config_repository(hub_config(hub), name);
	if (!r) {
		err_set(err, ERR_NOT_FOUND, "there is no repository \"%s\"", name);
		return NULL;
	}
	/* Space is asked for by those who need some. */
	struct job_repository there = *r;
	there.stop_free_bytes = 0;
	if (job_repository_check_noted(hub->state, &there, 0, NULL, err) < 0)
		return NULL;
	struct repository *repo =
		repository_open(r->path, to_write ? REPOSITORY_WRITE : REPOSITORY_READ, err);
	if (!repo)
		err_context(err, "repository %s", name);
	return repo;
}

enum care {
	CARE_QUICK, /* what came or went */
	CARE_CHANGES, /* what anybody changed */
	CARE_ALL, /* the index is not trusted */
};

/* An index that is damaged gives way to a new one; the other repositories follow when they are
 * asked for. */
static int walk(struct hub *hub, const struct reindex_options *options, struct err *err)
{
	struct reindex_result result;
	struct reindex_options whole = *options;
	struct err why = ERR_INIT;
	if (reindex_run(options, &result, &why) == 0)
		return 0;
	if (why.code != ERR_CORRUPT || index_check(hub->index, NULL) == 0)
		return err_copy(err, &why);
	log_warning("%s: the index is made anew", why.text);
	whole.vm = NULL;
	whole.quick = false;
	return index_renew(hub->index, err) < 0 ? -1 : reindex_run(&whole, &result, err);
}

static int refresh(
	struct hub *hub, const char *name, const char *vm, enum care care, struct err *err)
{
	const struct hub_config *config = hub_config(hub);
	const struct job_repository *r = hub_config_repository(config, name);
	if (!r)
		return err_set(err, ERR_NOT_FOUND, "there is no repository \"%s\"", name);
	size_t nr = (size_t)(r - config->repositories);
	struct repository *repo = hub_repository_open(hub, name, false, err);
	if (!repo)
		return -1;
	struct reindex_options options = {.index = hub->index,
		.repository = repo,
		.name = name,
		.vm = vm,
		.quick = care == CARE_QUICK && !vm,
		.all = care == CARE_ALL};
	int rc = 0;
	if (nr >= hub->points->nr_walking)
		rc = err_set(err, ERR_BUSY, "the repository %s counts after a restart", name);
	else if (!options.quick || !index_walked(hub->index, name))
		pthread_mutex_lock(&hub->points->walking[nr]);
	/* Who walks it now sees what came or went; a list need not wait for him. */
	else if (pthread_mutex_trylock(&hub->points->walking[nr]) != 0)
		goto out;
	if (rc == 0) {
		rc = walk(hub, &options, err);
		pthread_mutex_unlock(&hub->points->walking[nr]);
	}
out:
	repository_close(repo);
	return rc;
}

int hub_points_refresh(struct hub *hub, const char *name, const char *vm, struct err *err)
{
	return refresh(hub, name, vm, CARE_QUICK, err);
}

bool hub_points_known(struct hub *hub)
{
	const struct hub_config *config = hub_config(hub);
	for (size_t i = 0; i < config->nr_repositories; i++)
		if (!index_walked(hub->index, config->repositories[i].name))
			return hub->points && atomic_load(&hub->points->walked);
	return true;
}

/* --- changes of jobs
 * ------------------------------------------------------------------------------- */

static bool changes_points(const char *kind)
{
	static const char *const kinds[] = {"backup", "push", "verify", "prune", "reindex"};
	for (size_t i = 0; kind && i < ARRAY_LENGTH(kinds); i++)
		if (strcmp(kind, kinds[i]) == 0)
			return true;
	return false;
}

static void work_off(struct hub *hub, struct change *change)
{
	const json_t *job = change->job;
	const char *repository = json_string_value(json_object_get(job, "repository"));
	const char *kind = json_string_value(json_object_get(job, "kind"));
	struct err err = ERR_INIT;
	/* Whoever asks for it does not trust what the index holds. */
	enum care care = kind && strcmp(kind, "reindex") == 0 ? CARE_ALL : CARE_CHANGES;
	if (job_state_is_end(change->state) && repository && changes_points(kind) &&
		refresh(hub, repository, json_string_value(json_object_get(job, "vm")), care,
			&err) < 0)
		log_warning("the index does not know what the job %s changed: %s", change->id,
			err.text);
	hub_time_job_changed(hub, change->id, change->state, job);
	json_decref(change->job);
	free(change);
}

/* NULL when the deadline passed before there was one, or with *ends. */
static struct change *next_change(struct hub_points *points, struct deadline until, bool *ends)
{
	WITH_LOCK(&points->mutex);
	while (!(points->first && points->works) && !points->ends &&
		thread_cond_wait(&points->changed, &points->mutex, until))
		;
	struct change *change = points->works || points->ends ? points->first : NULL;
	*ends = points->ends && !change;
	if (change) {
		points->first = change->next;
		if (!points->first)
			points->last = &points->first;
	}
	return change;
}

static void refresh_all(struct hub *hub)
{
	const struct hub_config *config = hub_config(hub);
	for (size_t i = 0; i < config->nr_repositories; i++) {
		struct err err = ERR_INIT;
		if (refresh(hub, config->repositories[i].name, NULL, CARE_CHANGES, &err) < 0)
			log_error("%s", err.text);
	}
}

static void *work(void *context)
{
	struct hub *hub = context;
	struct deadline next_walk = deadline_after_ms(0);
	bool ends = false;
	while (!ends) {
		/* What was done beside the hub, from the command line, is seen in time. */
		if (deadline_passed(next_walk)) {
			refresh_all(hub);
			atomic_store(&hub->points->walked, true);
			hub_time_points_changed(hub);
			next_walk = deadline_after_ms(WALK_MS);
		}
		struct change *change = next_change(hub->points, next_walk, &ends);
		if (change)
			work_off(hub, change);
	}
	return NULL;
}

static void owe(struct hub *hub, const char *id)
{
	struct err err = ERR_INIT;
	if (state_take(hub->state, id, OWED_KIND, OWED_NAME, NULL, &err) < 0)
		log_warning("what follows from the end of the job %s is lost with this hub: %s", id,
			err.text);
}

void hub_points_settled(struct hub *hub, const char *id)
{
	struct err err = ERR_INIT;
	if (state_gave_back(hub->state, id, OWED_KIND, OWED_NAME, &err) < 0)
		log_warning("what follows from the end of the job %s is done again by the next "
			    "hub: %s",
			id, err.text);
}

void hub_points_job_changed(void *context, const char *id, enum job_state state, const json_t *job)
{
	struct hub *hub = context;
	struct hub_points *points = hub->points;
	if (state == JOB_QUEUED)
		owe(hub, id);
	struct change *change = calloc(1, sizeof *change);
	json_t *copy = change ? json_deep_copy(job) : NULL;
	if (!copy) {
		log_error("no memory to tell of the job %s", id);
		free(change);
		return;
	}
	snprintf(change->id, sizeof change->id, "%s", id);
	change->state = state;
	change->job = copy;
	WITH_LOCK(&points->mutex);
	*points->last = change;
	points->last = &change->next;
	pthread_cond_signal(&points->changed);
}

/* --- what an earlier hub left ----------------------------------------------------------------- */

struct left {
	json_t *open, *owed; /* ids of jobs that have not ended; of those whose end is owed */
};

static int take_open(void *context, const struct state_job *job)
{
	struct left *left = context;
	return json_object_set_new(left->open, job->id, json_true());
}

static int take_owed(
	void *context, const char *job, const char *kind, const char *name, const json_t *value)
{
	struct left *left = context;
	(void)name, (void)value;
	return strcmp(kind, OWED_KIND) == 0 ? json_object_set_new(left->owed, job, json_true()) : 0;
}

/* Before there are jobs: what ends from then on is told by itself. */
static int find_owed(struct hub *hub, struct hub_points *points, struct err *err)
{
	const struct state_job_filter open = {.state = "open"};
	struct left left = {.open = json_object(), .owed = json_object()};
	const char *id;
	json_t *value;
	int rc = left.open && left.owed ? 0 : err_errno(err, ENOMEM, "cannot look at ended jobs");
	if (rc == 0)
		rc = state_jobs(hub->state, &open, take_open, &left, err);
	if (rc == 0)
		rc = state_takes(hub->state, NULL, take_owed, &left, err);
	json_object_foreach(left.open, id, value)
	{
		/* Not there: the hub was killed before it could note that. */
		if (json_object_del(left.owed, id) < 0)
			owe(hub, id);
	}
	json_decref(left.open);
	points->owed = left.owed;
	return rc;
}

/* Told as if it had ended now. */
static void settle_owed(struct hub *hub, const char *id)
{
	struct err err = ERR_INIT;
	enum job_state state;
	json_t *job = jobs_get(hub->jobs, id, &err);
	const char *name = json_string_value(json_object_get(job, "state"));
	if (name && job_state_parse(name, &state) && job_state_is_end(state))
		hub_points_job_changed(hub, id, state, job);
	else if (!job && err.code == ERR_NOT_FOUND)
		hub_points_settled(hub, id); /* forgotten */
	json_decref(job);
}

void hub_points_catch_up(struct hub *hub)
{
	struct hub_points *points = hub->points;
	const char *id;
	json_t *value;
	json_object_foreach(points->owed, id, value) settle_owed(hub, id);
	WITH_LOCK(&points->mutex);
	points->works = true;
	pthread_cond_signal(&points->changed);
}

/* --- start and stop
 * ---------------------------------------------------------------------------------- */

int hub_points_start(struct hub *hub, struct err *err)
{
	struct hub_points *points = calloc(1, sizeof *points);
	size_t nr = hub_config(hub)->nr_repositories;
	pthread_mutex_t *walking = calloc(nr + 1, sizeof *walking);
	if (!points || !walking) {
		free(points);
		free(walking);
		return err_errno(err, ENOMEM, "cannot look after the index");
	}
	for (size_t i = 0; i < nr; i++)
		pthread_mutex_init(&walking[i], NULL);
	points->walking = walking;
	points->nr_walking = nr;
	points->last = &points->first;
	pthread_mutex_init(&points->mutex, NULL);
	thread_cond_init(&points->changed);
	hub->points = points;
	if (find_owed(hub, points, err) == 0 &&
		thread_start(&points->thread, "points", work, hub, err) == 0)
		return 0;
	hub->points = NULL;
	json_decref(points->owed);
	free(walking);
	free(points);
	return -1;
}

void hub_points_stop(struct hub *hub)
{
	struct hub_points *points = hub->points;
	if (!points)
		return;
	{
		WITH_LOCK(&points->mutex);
		points->ends = true;
		pthread_cond_signal(&points->changed);
	}
	pthread_join(points->thread, NULL); /* what is queued is worked off before */
	for (size_t i = 0; i < points->nr_walking; i++)
		pthread_mutex_destroy(&points->walking[i]);
	pthread_cond_destroy(&points->changed);
	pthread_mutex_destroy(&points->mutex);
	json_decref(points->owed);
	free(points->walking);
	free(points);
	hub->points = NULL;
}
