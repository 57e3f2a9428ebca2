/*
 * How the last seven days were.
 *
 * Counted are the jobs in the state, the machines and alarms as they are now, and the space of the
 * repositories: what is told can be looked up, nothing is kept for the report alone.
 */
#include "time_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WEEK_S (INT64_C(7) * 86400)

struct kind_figures {
	unsigned nr_done, nr_failed, nr_cancelled;
	uint64_t read_bytes, stored_bytes;
};

struct week {
	int64_t since;
	struct kind_figures backups, restores, verifications, prunes;
};

static int count_job(void *context, const struct state_job *job)
{
	struct week *week = context;
	const json_t *progress = json_object_get(job->value, "progress");
	enum job_state state;
	struct kind_figures *f = NULL;
	if (job->created < week->since - WEEK_S)
		return 1;
	if (!job_state_parse(job->state, &state) || !job_state_is_end(state) ||
		job->ended < week->since ||
		json_object_get(json_object_get(job->value, "spec"), "for_job"))
		return 0;
	if (strcmp(job->kind, "backup") == 0 || strcmp(job->kind, "push") == 0)
		f = &week->backups;
	else if (strcmp(job->kind, "restore") == 0)
		f = &week->restores;
	else if (strcmp(job->kind, "verify") == 0)
		f = &week->verifications;
	else if (strcmp(job->kind, "prune") == 0)
		f = &week->prunes;
	if (!f)
		return 0;
	f->nr_done += state == JOB_DONE;
	f->nr_failed += state == JOB_FAILED;
	f->nr_cancelled += state == JOB_CANCELLED;
	f->read_bytes += (uint64_t)time_number(progress, "read", 0);
	f->stored_bytes += (uint64_t)time_number(progress, "stored", 0);
	return 0;
}

static void put_kind(
	FILE *out, json_t *jobs, const char *kind, const char *title, const struct kind_figures *f)
{
	fprintf(out, "%-14s %6u done %6u failed %6u cancelled", title, f->nr_done, f->nr_failed,
		f->nr_cancelled);
	if (f->stored_bytes == 0)
		fputc('\n', out);
	else
		fprintf(out, ", %.1f GiB read, %.1f GiB stored\n",
			(double)f->read_bytes / (double)(UINT64_C(1) << 30),
			(double)f->stored_bytes / (double)(UINT64_C(1) << 30));
	json_object_set_new(jobs, kind,
		json_pack("{s:i, s:i, s:i, s:I, s:I}", "done", (int)f->nr_done, "failed",
			(int)f->nr_failed, "cancelled", (int)f->nr_cancelled, "read_bytes",
			(json_int_t)f->read_bytes, "stored_bytes", (json_int_t)f->stored_bytes));
}

static void put_machines(FILE *out, json_t *about, const struct machine_set *set, int64_t now)
{
	unsigned nr_objective = 0, nr_met = 0, nr_points = 0, nr_damaged = 0;
	uint64_t stored_bytes = 0;
	for (size_t i = 0; i < set->nr_machines; i++) {
		const struct machine *machine = &set->machines[i];
		nr_objective += machine->objective_s > 0;
		nr_met += machine->objective_s > 0 && machine_alarm_since(machine, now) == 0;
		nr_points += machine->nr_points;
		nr_damaged += machine->nr_damaged;
		stored_bytes += machine->stored_bytes;
	}
	fprintf(out,
		"\n%zu VMs, %u with an objective, %u of these meet it\n"
		"%u restore points, %u damaged, %.1f GiB stored\n",
		set->nr_machines, nr_objective, nr_met, nr_points, nr_damaged,
		(double)stored_bytes / (double)(UINT64_C(1) << 30));
	json_object_set_new(about, "vms",
		json_pack("{s:i, s:i, s:i}", "total", (int)set->nr_machines, "with_objective",
			(int)nr_objective, "objective_met", (int)nr_met));
	json_object_set_new(about, "points",
		json_pack("{s:i, s:i, s:I}", "total", (int)nr_points, "damaged", (int)nr_damaged,
			"stored_bytes", (json_int_t)stored_bytes));
}

static void put_repository(void *context, const struct capacity_report *report)
{
	FILE *out = context;
	fprintf(out, "repository %s: %s, %.1f of %.1f GiB free\n", report->name,
		report->text[0] ? report->text : capacity_state_name(report->state),
		(double)report->free_bytes / (double)(UINT64_C(1) << 30),
		(double)report->total_bytes / (double)(UINT64_C(1) << 30));
}

static void put_alarms(FILE *out, json_t *about, const struct alarms *alarms)
{
	size_t nr;
	const struct alarm *list = alarm_list(alarms, &nr);
	json_t *items = json_array();
	fprintf(out, nr > 0 ? "\nWhat wants to be looked at:\n"
			    : "\nNothing wants to be looked "
			      "at.\n");
	for (size_t i = 0; i < nr; i++) {
		fprintf(out, "%s %s: %s\n", alarm_subject_name(&list[i]), list[i].object,
			list[i].text);
		json_array_append_new(items, api_status_alarm(&list[i]));
	}
	json_object_set_new(about, "alarms", items);
}

int report_make(struct hub_time *time, int64_t now, char **text, json_t **about, struct err *err)
{
	struct week week = {.since = now - WEEK_S};
	struct state_job_filter all = {0};
	char since[CLOCK_UTC_BYTES], until[CLOCK_UTC_BYTES];
	size_t length;
	if (state_jobs(time->hub->state, &all, count_job, &week, err) < 0)
		return -1;
	FILE *out = open_memstream(text, &length);
	json_t *jobs = json_object();
	*about = json_object();
	if (!out || !jobs || !*about) {
		if (out)
			fclose(out);
		json_decref(jobs);
		json_decref(*about);
		return err_errno(err, ENOMEM, "cannot write the report");
	}
	clock_utc_text(week.since, since);
	clock_utc_text(now, until);
	fprintf(out, "From %s to %s\n\n", since, until);
	put_kind(out, jobs, "backups", "backups", &week.backups);
	put_kind(out, jobs, "restores", "restores", &week.restores);
	put_kind(out, jobs, "verifications", "verifications", &week.verifications);
	put_kind(out, jobs, "prunes", "prunes", &week.prunes);
	json_object_set_new(*about, "since", json_string(since));
	json_object_set_new(*about, "jobs", jobs);
	put_machines(out, *about, time->machines, now);
	capacity_look(time->capacity, put_repository, out);
	put_alarms(out, *about, time->alarms);
	if (fclose(out) == 0)
		return 0;
	json_decref(*about);
	free(*text);
	return err_errno(err, ENOMEM, "cannot write the report");
}
