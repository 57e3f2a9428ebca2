/*
 * What is done once in a while: a copy of the hub's state in each repository after changes (so
 * that the repositories alone are enough after the hub's machine burnt down); what dead jobs left
 * there, ended jobs with their logs, and old lines of the audit log, gone when their time has
 * passed.
 */
#include "hub_internal.h"

#include "archive.h"
#include "log.h"
#include "thread.h"

#include <errno.h>
#include <string.h>

#define ROUND_MS (INT64_C(1000) * 60 * 10)
#define FORGET_MS (INT64_C(1000) * 60 * 60 * 24)

struct hub_keeper {
	pthread_t thread;
	struct cancel *ends;
	uint64_t copied_at; /* state_changes() of the newest copies */
	bool has_copied;
};

/* The hub's name as a name of a file: what that may not hold becomes '_'. */
static void name_of_copy(const char *name, char out[65])
{
	size_t i = 0;
	for (; i < 64 && name[i]; i++)
		out[i] = strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.",
				 name[i]) &&
					 (i > 0 || name[i] != '.')
				 ? name[i]
				 : '_';
	out[i] = '\0';
}

static void copy_state(struct hub *hub)
{
	const struct hub_config *c = hub_config(hub);
	uint64_t changes = state_changes(hub->state);
	char name[65];
	bool all = true;
	name_of_copy(c->name, name);
	for (size_t i = 0; i < c->nr_repositories; i++) {
		struct err err = ERR_INIT;
		struct repository *repo =
			hub_repository_open(hub, c->repositories[i].name, true, &err);
		if (!repo || archive_keep(hub->state, c->state_dir, name, repo, &err) < 0) {
			log_warning("the hub's state has no new copy in the repository %s: %s",
				c->repositories[i].name, err.text);
			all = false;
		}
		repository_close(repo);
	}
	hub->keeper->copied_at = changes;
	hub->keeper->has_copied = all;
}

/* What dead jobs left, and nobody went on with in time. */
static void clean(struct hub *hub)
{
	const struct hub_config *c = hub_config(hub);
	for (size_t i = 0; i < c->nr_repositories; i++) {
		const char *name = c->repositories[i].name;
		struct err err = ERR_INIT;
		unsigned nr_jobs = 0;
		uint64_t freed_bytes = 0;
		struct repository *repo = hub_repository_open(hub, name, true, &err);
		if (!repo || repository_clean(repo, REPOSITORY_CLEAN_EXPIRED, NULL, &nr_jobs,
				     &freed_bytes, &err) < 0)
			log_warning("repository %s: what dead jobs left is not cleaned up: %s",
				name, err.text);
		else if (nr_jobs > 0)
			log_info("repository %s: %u unfinished jobs, whose time has passed, were "
				 "cleaned up, %llu MiB freed",
				name, nr_jobs, (unsigned long long)(freed_bytes / MIB));
		repository_close(repo);
	}
}

static void forget(struct hub *hub)
{
	struct err err = ERR_INIT;
	int64_t before = time(NULL) - (int64_t)hub_config(hub)->keep_jobs_s;
	if (jobs_forget(hub->jobs, before, &err) < 0)
		log_warning("old jobs are not forgotten: %s", err.text);
	before = time(NULL) - (int64_t)hub_config(hub)->keep_events_s;
	if (state_events_forget(hub->state, before, &err) < 0)
		log_warning("the audit log is not shortened: %s", err.text);
}

static void *keep(void *context)
{
	struct hub *hub = context;
	struct hub_keeper *keeper = hub->keeper;
	struct deadline next_forget = deadline_after_ms(0);
	do {
		if (deadline_passed(next_forget)) {
			forget(hub);
			next_forget = deadline_after_ms(FORGET_MS);
		}
		clean(hub);
		if (!keeper->has_copied || state_changes(hub->state) != keeper->copied_at)
			copy_state(hub);
		/* None at the end: a repository that does not answer would hold up the stop, and
		 * the next start makes one. */
	} while (cancel_sleep(keeper->ends, deadline_after_ms(ROUND_MS), NULL) == 0);
	return NULL;
}

int hub_keeper_start(struct hub *hub, struct err *err)
{
	struct hub_keeper *keeper = calloc(1, sizeof *keeper);
	if (!keeper)
		return err_errno(err, ENOMEM, "cannot keep copies");
	keeper->ends = cancel_new(err);
	hub->keeper = keeper;
	if (keeper->ends && thread_start(&keeper->thread, "keeper", keep, hub, err) == 0)
		return 0;
	hub->keeper = NULL;
	cancel_free(keeper->ends);
	free(keeper);
	return -1;
}

void hub_keeper_stop(struct hub *hub)
{
	struct hub_keeper *keeper = hub->keeper;
	if (!keeper)
		return;
	cancel_request(keeper->ends);
	pthread_join(keeper->thread, NULL);
	cancel_free(keeper->ends);
	free(keeper);
	hub->keeper = NULL;
}
