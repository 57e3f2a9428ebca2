/*
 * Which job may start: restores first, then by age; each that fits within the limits, so that
 * one that must wait does not keep those behind it.
 */
#include "job_internal.h"

#include "jobplan.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define MOST_OTHERWISE 4u
#define MOST_PER_SOURCE_OTHERWISE 2u

bool queue_is_running(const struct job *job)
{
	return !job->is_foreign && job->state != JOB_QUEUED && !job_state_is_end(job->state);
}

bool queue_is_push(const struct job *job)
{
	return job->is_foreign && strcmp(job->kind, "push") == 0 && !job_state_is_end(job->state);
}

const char *queue_part_of(const struct job *job)
{
	return !job->is_foreign ? NULL : json_string_value(json_object_get(job->spec, "for_job"));
}

/* A client's push does, a node's job from when it runs, with all that belongs to it. */
static bool takes_place(const struct job *job)
{
	if (!job->is_foreign)
		return queue_is_running(job);
	if (strcmp(job->kind, "backup") == 0)
		return job->state != JOB_QUEUED && !job_state_is_end(job->state);
	return queue_is_push(job) && !queue_part_of(job);
}

unsigned queue_most(const struct jobs *jobs)
{
	return jobs->options.most ? jobs->options.most : MOST_OTHERWISE;
}

unsigned queue_nr_places(const struct jobs *jobs)
{
	unsigned nr = 0;
	for (const struct job *job = jobs->open; job; job = job->next)
		nr += takes_place(job);
	return nr;
}

const char *queue_figure(const struct job *job)
{
	return job->is_foreign ? "sent" : "stored";
}

static bool same(const char *a, const char *b)
{
	return a && b && strcmp(a, b) == 0;
}

const struct job *queue_writer(const struct jobs *jobs, const struct job *job)
{
	if (!jobplan_writes(job->spec))
		return NULL;
	const char *whole = queue_part_of(job);
	for (const struct job *other = jobs->open; other; other = other->next)
		if (other != job && !same(other->id, whole) &&
			(other->is_foreign || other->state != JOB_QUEUED) &&
			jobplan_writes(other->spec) && jobplan_same_machine(other->spec, job->spec))
			return other;
	return NULL;
}

uint64_t queue_reserved(const struct jobs *jobs, const char *repository, const struct job *but)
{
	uint64_t sum = 0;
	for (const struct job *job = jobs->open; job; job = job->next) {
		if (job == but || !(queue_is_running(job) || queue_is_push(job)) ||
			!same(job->repository, repository))
			continue;
		json_int_t stored =
			json_integer_value(json_object_get(job->progress, queue_figure(job)));
		if (stored >= 0 && job->reserved_bytes > (uint64_t)stored &&
			!add_u64(sum, job->reserved_bytes - (uint64_t)stored, &sum))
			return UINT64_MAX;
	}
	return sum;
}

/* A job whose lock on the same machine is just being taken away, or NULL. */
static const struct job *fenced(const struct jobs *jobs, const struct job *job)
{
	for (const struct job *other = jobs->unreaped; other; other = other->next)
		if (!other->is_fenced && (!other->vm || same(other->vm, job->vm)) &&
			same(other->repository, job->repository))
			return other;
	return NULL;
}

/* "" when nothing is in its way. */
static void look(const struct jobs *jobs, struct job *job, unsigned nr_running)
{
	const struct jobs_options *o = &jobs->options;
	unsigned most = queue_most(jobs);
	unsigned per_source = o->most_per_source ? o->most_per_source : MOST_PER_SOURCE_OTHERWISE;
	unsigned here = 0;
	job->waits_for[0] = '\0';
	if (job->next_try > 0 && !deadline_passed(job->next_at)) {
		char text[CLOCK_UTC_BYTES];
		clock_utc_text(job->next_try, text);
		snprintf(job->waits_for, sizeof job->waits_for, "its next attempt at %s", text);
		return;
	}
	for (const struct job *other = jobs->open; other; other = other->next)
		here += queue_is_running(other) && strcmp(other->host, job->host) == 0;
	const struct job *writer = queue_writer(jobs, job);
	const struct job *held = jobplan_writes(job->spec) ? fenced(jobs, job) : NULL;
	if (held)
		snprintf(job->waits_for, sizeof job->waits_for,
			"the lock of job %s, whose process does not end, to be taken away",
			held->id);
	else if (writer)
		snprintf(job->waits_for, sizeof job->waits_for, "job %s (%s of the same machine)",
			writer->id, writer->kind);
	else if (nr_running >= most)
		snprintf(job->waits_for, sizeof job->waits_for,
			"a place: %u of at most %u jobs run", nr_running, most);
	else if (job->host[0] && here >= per_source)
		snprintf(job->waits_for, sizeof job->waits_for,
			"a place: %u of at most %u jobs work with %.128s", here, per_source,
			job->host);
}

struct job *queue_next(struct jobs *jobs)
{
	unsigned nr_running = queue_nr_places(jobs);
	struct job *next = NULL;
	for (struct job *job = jobs->open; job; job = job->next) {
		if (job->state != JOB_QUEUED || job->is_foreign)
			continue;
		look(jobs, job, nr_running);
		if (job->waits_for[0])
			continue;
		bool first = strcmp(job->kind, "restore") == 0;
		if (!next || (first && strcmp(next->kind, "restore") != 0))
			next = job;
	}
	return jobs->draining ? NULL : next;
}
