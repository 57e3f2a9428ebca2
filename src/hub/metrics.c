/* For Prometheus; see metrics.h. */
#include "metrics.h"

#include "nodes.h"
#include "time_internal.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { NR_KINDS = 7, NR_ENDS = 3, NR_FIGURES = 5, NR_BUCKETS = 8 };

static const char *const kinds[NR_KINDS] = {
	"backup", "push", "restore", "verify", "prune", "replicate", "reindex"};
static const char *const ends[NR_ENDS] = {"done", "failed", "cancelled"};
/* Of a job's progress; what the name of the metric says. */
static const char *const figures[NR_FIGURES] = {
	"logical", "read", "sent", "zeros_skipped", "stored"};
static const double buckets[NR_BUCKETS] = {10, 60, 300, 900, 3600, 10800, 36000, INFINITY};

struct metrics {
	pthread_mutex_t mutex;
	uint64_t nr_ended[NR_KINDS][NR_ENDS];
	uint64_t bytes[NR_KINDS][NR_FIGURES];
	uint64_t nr_durations[NR_KINDS][NR_BUCKETS]; /* not summed up */
	double duration_s[NR_KINDS];
};

struct metrics *metrics_new(struct err *err)
{
	struct metrics *metrics = calloc(1, sizeof *metrics);
	if (!metrics) {
		err_errno(err, ENOMEM, "cannot count jobs");
		return NULL;
	}
	pthread_mutex_init(&metrics->mutex, NULL);
	return metrics;
}

void metrics_free(struct metrics *metrics)
{
	if (!metrics)
		return;
	pthread_mutex_destroy(&metrics->mutex);
	free(metrics);
}

/* --- counting ------------------------------------------------------------------------------ */

/* A moment of a job: text, or seconds. */
static int64_t moment_of(const json_t *job, const char *name)
{
	const json_t *value = json_object_get(job, name);
	struct tm tm = {0};
	const char *text = json_string_value(value);
	if (text && strptime(text, "%Y-%m-%dT%H:%M:%SZ", &tm))
		return timegm(&tm);
	return json_is_integer(value) ? json_integer_value(value) : 0;
}

void metrics_job_ended(struct metrics *metrics, enum job_state state, const json_t *job)
{
	const char *kind = time_text(job, "kind");
	const json_t *progress = json_object_get(job, "progress");
	size_t k = 0, end = state == JOB_DONE ? 0 : state == JOB_FAILED ? 1 : 2, b = 0;
	while (kind && k < NR_KINDS && strcmp(kind, kinds[k]) != 0)
		k++;
	if (!kind || k == NR_KINDS)
		return;
	WITH_LOCK(&metrics->mutex);
	metrics->nr_ended[k][end]++;
	for (size_t f = 0; f < NR_FIGURES; f++) {
		int64_t bytes = time_number(progress, figures[f], 0);
		metrics->bytes[k][f] += bytes > 0 ? (uint64_t)bytes : 0;
	}
	int64_t started = moment_of(job, "started"), ended = moment_of(job, "ended");
	if (started == 0 || ended < started)
		return;
	double seconds = (double)(ended - started);
	while (seconds > buckets[b])
		b++;
	metrics->nr_durations[k][b]++;
	metrics->duration_s[k] += seconds;
}

/* --- writing -------------------------------------------------------------------------------- */

static void put_durations(FILE *out, const struct metrics *m)
{
	static const char name[] = "sendense_job_duration_seconds";
	prometheus_head(out, name, "histogram", "Time that jobs took, from start to end.");
	for (size_t k = 0; k < NR_KINDS; k++) {
		uint64_t sum = 0;
		for (size_t b = 0; b < NR_BUCKETS; b++) {
			char le[32];
			sum += m->nr_durations[k][b];
			if (isinf(buckets[b]))
				snprintf(le, sizeof le, "+Inf");
			else
				snprintf(le, sizeof le, "%.0f", buckets[b]);
			prometheus_put(out, "sendense_job_duration_seconds_bucket",
				PROMETHEUS_LABELS("kind", kinds[k], "le", le), (double)sum);
		}
		prometheus_put(out, "sendense_job_duration_seconds_sum",
			PROMETHEUS_LABELS("kind", kinds[k]), m->duration_s[k]);
		prometheus_put(out, "sendense_job_duration_seconds_count",
			PROMETHEUS_LABELS("kind", kinds[k]), (double)sum);
	}
}

static void put_jobs(FILE *out, struct hub_time *time)
{
	struct metrics *m = time->metrics;
	unsigned nr_queued = 0, nr_running = 0;
	jobs_count(time->hub->jobs, &nr_queued, &nr_running);
	prometheus_head(out, "sendense_jobs", "gauge", "Jobs that have not ended.");
	prometheus_put(out, "sendense_jobs", PROMETHEUS_LABELS("state", "queued"), nr_queued);
	prometheus_put(out, "sendense_jobs", PROMETHEUS_LABELS("state", "running"), nr_running);
	WITH_LOCK(&m->mutex);
	prometheus_head(out, "sendense_jobs_ended_total", "counter",
		"Jobs that ended since the hub was started.");
	for (size_t k = 0; k < NR_KINDS; k++)
		for (size_t e = 0; e < NR_ENDS; e++)
			prometheus_put(out, "sendense_jobs_ended_total",
				PROMETHEUS_LABELS("kind", kinds[k], "state", ends[e]),
				(double)m->nr_ended[k][e]);
	for (size_t f = 0; f < NR_FIGURES; f++) {
		char name[64], help[128];
		snprintf(name, sizeof name, "sendense_job_%s_bytes_total", figures[f]);
		snprintf(help, sizeof help,
			"Bytes of ended jobs, the figure \"%s\" of their progress.", figures[f]);
		prometheus_head(out, name, "counter", help);
		for (size_t k = 0; k < NR_KINDS; k++)
			prometheus_put(out, name, PROMETHEUS_LABELS("kind", kinds[k]),
				(double)m->bytes[k][f]);
	}
	put_durations(out, m);
}

/* --- what is looked at while it is asked ------------------------------------------------------ */

static void put_machines(FILE *out, struct hub_time *time)
{
	const struct machine_set *set = time->machines;
	static const struct {
		const char *name, *help;
	} gauges[] = {
		{"sendense_vm_last_good_point_timestamp_seconds",
			"When the newest usable restore point was made; 0: there is none."},
		{"sendense_vm_objective_seconds",
			"How long the VM may be without a good restore point."},
		{"sendense_vm_alarm",
			"1 while the VM has been without a good restore point for longer than "
			"that."},
		{"sendense_vm_points", "Restore points of the VM."},
		{"sendense_vm_damaged_points", "Restore points of the VM that are damaged."},
		{"sendense_vm_stored_bytes", "Bytes that the VM's restore points take."},
	};
	for (size_t g = 0; g < ARRAY_LENGTH(gauges); g++) {
		prometheus_head(out, gauges[g].name, "gauge", gauges[g].help);
		for (size_t i = 0; i < set->nr_machines; i++) {
			const struct machine *machine = &set->machines[i];
			if (g == 1 && machine->objective_s == 0)
				continue;
			bool alarm = alarm_find(time->alarms, ALARM_OBJECTIVE, machine->name);
			const double values[] = {(double)machine->newest_time,
				(double)machine->objective_s, alarm, machine->nr_points,
				machine->nr_damaged, (double)machine->stored_bytes};
			prometheus_put(out, gauges[g].name, PROMETHEUS_LABELS("vm", machine->name),
				values[g]);
		}
	}
}

static void put_alarms(FILE *out, struct hub_time *time)
{
	size_t nr;
	unsigned nr_severe = 0;
	const struct alarm *alarms = alarm_list(time->alarms, &nr);
	for (size_t i = 0; i < nr; i++)
		nr_severe += alarms[i].severe;
	prometheus_head(out, "sendense_alarms", "gauge", "What somebody should look at.");
	prometheus_put(out, "sendense_alarms", PROMETHEUS_LABELS("severity", "alarm"), nr_severe);
	prometheus_put(out, "sendense_alarms", PROMETHEUS_LABELS("severity", "warning"),
		(double)nr - nr_severe);
}

struct repositories {
	FILE *out;
	unsigned what;
};

static void put_repository(void *context, const struct capacity_report *report)
{
	struct repositories *r = context;
	static const char *const names[] = {"sendense_repository_free_bytes",
		"sendense_repository_size_bytes", "sendense_repository_up"};
	bool up = report->state == CAPACITY_GOOD || report->state == CAPACITY_LITTLE ||
		  report->state == CAPACITY_FULL;
	const double values[] = {(double)report->free_bytes, (double)report->total_bytes, up};
	if (r->what < 2 && report->total_bytes == 0)
		return;
	prometheus_put(r->out, names[r->what], PROMETHEUS_LABELS("repository", report->name),
		values[r->what]);
}

static void put_repositories(FILE *out, struct hub_time *time)
{
	prometheus_head(out, "sendense_repository_free_bytes", "gauge",
		"Free bytes of the repository's file system.");
	capacity_look(time->capacity, put_repository, &(struct repositories){out, 0});
	prometheus_head(out, "sendense_repository_size_bytes", "gauge",
		"Size of the repository's file system.");
	capacity_look(time->capacity, put_repository, &(struct repositories){out, 1});
	prometheus_head(out, "sendense_repository_up", "gauge",
		"1 while the repository is there and its file system answers.");
	capacity_look(time->capacity, put_repository, &(struct repositories){out, 2});
}

struct nodes {
	FILE *out;
	struct hub *hub;
	unsigned what;
};

static const struct {
	const char *name, *help;
} node_gauges[] = {
	{"sendense_hub_node_up", "0 while the node is silent for longer than it may be."},
	{"sendense_hub_node_last_heard_timestamp_seconds", "When the node called last."},
	{"sendense_hub_node_jobs", "Jobs of the node that have not ended."},
};

static int put_node(void *context, const struct state_object *node)
{
	struct nodes *n = context;
	int64_t seen;
	bool silent = hub_nodes_is_silent(n->hub, node, &seen);
	const double values[] = {
		!silent, (double)seen, n->what == 2 ? node_jobs_count(n->hub, node->id) : 0};
	prometheus_put(n->out, node_gauges[n->what].name, PROMETHEUS_LABELS("node", node->id),
		values[n->what]);
	return 0;
}

static void put_nodes(FILE *out, struct hub *hub)
{
	for (unsigned g = 0; g < ARRAY_LENGTH(node_gauges); g++) {
		struct err err = ERR_INIT;
		struct nodes n = {out, hub, g};
		prometheus_head(out, node_gauges[g].name, "gauge", node_gauges[g].help);
		if (state_list(hub->state, "node", NULL, put_node, &n, &err) < 0)
			log_warning("metrics of nodes are missing: %s", err.text);
	}
}

struct soonest {
	int64_t next;
};

static void note_soonest(void *context, const struct runs_entry *entry)
{
	struct soonest *s = context;
	if (entry->next > 0 && (s->next == 0 || entry->next < s->next))
		s->next = entry->next;
}

static void put_schedules(FILE *out, struct hub_time *time, int64_t now)
{
	static const char name[] = "sendense_schedule_next_run_timestamp_seconds";
	struct runs_view view = time_view(time, now);
	prometheus_head(out, name, "gauge", "When the schedule begins something next; 0: never.");
	for (size_t i = 0; i < time->nr_schedules; i++) {
		struct soonest soonest = {0};
		runs_list(time->runs, &view, time->schedules[i], note_soonest, &soonest);
		prometheus_put(out, name, PROMETHEUS_LABELS("schedule", time->schedules[i]->id),
			(double)soonest.next);
	}
}

static void put_notices(FILE *out, struct hub_time *time)
{
	struct notify_figures f;
	static const char name[] = "sendense_notices_total";
	notify_figures(time->notify, &f);
	prometheus_one(out, "sendense_notices_pending", "gauge",
		"Notices that are not delivered yet.", f.nr_pending);
	prometheus_head(out, name, "counter", "Tries to deliver a notice, by how they ended.");
	prometheus_put(out, name, PROMETHEUS_LABELS("channel", "webhook", "result", "delivered"),
		(double)f.nr_webhooks);
	prometheus_put(out, name, PROMETHEUS_LABELS("channel", "webhook", "result", "failed"),
		(double)f.nr_webhook_failures);
	prometheus_put(out, name, PROMETHEUS_LABELS("channel", "mail", "result", "delivered"),
		(double)f.nr_mails);
	prometheus_put(out, name, PROMETHEUS_LABELS("channel", "mail", "result", "failed"),
		(double)f.nr_mail_failures);
	prometheus_one(out, "sendense_notices_given_up_total", "counter",
		"Notices that were never delivered.", (double)f.nr_given_up);
}

/* --- the process --------------------------------------------------------------------------- */

static unsigned count_fds(void)
{
	unsigned nr = 0;
	DIR *dir = opendir("/proc/self/fd");
	while (dir && readdir(dir))
		nr++;
	if (dir)
		closedir(dir);
	return nr > 3 ? nr - 3 : 0; /* ".", "..", and this look itself */
}

static void put_process(FILE *out, const struct hub *hub)
{
	unsigned long size = 0, resident = 0;
	struct timespec cpu = {0};
	FILE *statm = fopen("/proc/self/statm", "re");
	if (statm && fscanf(statm, "%lu %lu", &size, &resident) != 2)
		resident = 0;
	if (statm)
		fclose(statm);
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
	prometheus_one(out, "process_start_time_seconds", "gauge", "When the hub was started.",
		(double)hub->started);
	prometheus_one(out, "process_cpu_seconds_total", "counter",
		"Processor time of the hub itself.",
		(double)cpu.tv_sec + (double)cpu.tv_nsec / 1e9);
	prometheus_one(out, "process_resident_memory_bytes", "gauge", "Memory of the hub itself.",
		(double)resident * (double)sysconf(_SC_PAGESIZE));
	prometheus_one(out, "process_open_fds", "gauge", "Open file descriptors of the hub itself.",
		count_fds());
}

char *metrics_text(struct hub_time *time, struct err *err)
{
	char *text = NULL;
	size_t length;
	FILE *out = open_memstream(&text, &length);
	if (!out) {
		err_errno(err, errno, "cannot write the metrics");
		return NULL;
	}
	const struct hub_run_options *options = time->hub->options;
	prometheus_head(out, "sendense_build_info", "gauge", "The exact build; always 1.");
	prometheus_put(out, "sendense_build_info",
		PROMETHEUS_LABELS("version", options->version, "build", options->build), 1);
	put_jobs(out, time);
	put_notices(out, time);
	put_process(out, time->hub);
	put_nodes(out, time->hub);
	pthread_mutex_lock(&time->mutex);
	put_alarms(out, time);
	put_repositories(out, time);
	put_schedules(out, time, time_now());
	put_machines(out, time);
	pthread_mutex_unlock(&time->mutex);
	bool bad = ferror(out);
	if (fclose(out) == 0 && !bad)
		return text;
	free(text);
	err_errno(err, ENOMEM, "cannot write the metrics");
	return NULL;
}
