/*
 * What the hub's catalogue costs: an index filled from a repository and asked, the state
 * written and opened.  One figure a line: name, tab, milliseconds (the median of the rounds).
 *
 * catalogue REPOSITORY SCRATCH
 */
#include "catalogue.h"
#include "job.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#define ROUNDS 15
#define ROUNDS_LONG 3
#define NR_JOBS 10000

static struct err err;

static void must(bool good)
{
	if (good)
		return;
	fprintf(stderr, "catalogue: %s\n", err.text);
	exit(1);
}

static int by_value(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
	return x < y ? -1 : x > y;
}

/* --- what is measured ------------------------------------------------------------------- */

struct bench {
	struct repository *repo;
	struct index *index;
	struct state *state;
	char index_path[4096], state_path[4096], cursor[INDEX_CURSOR_BYTES];
	char vm[REPOSITORY_VM_BYTES];
	unsigned nr, nr_jobs;
	struct reindex_result result;
};

static void open_index(struct bench *b)
{
	must((b->index = index_open(b->index_path, NULL, &err)) != NULL);
}

static void walk(struct bench *b, const char *vm, bool quick)
{
	const struct reindex_options options = {
		.index = b->index, .repository = b->repo, .name = "main", .vm = vm, .quick = quick};
	must(reindex_run(&options, &b->result, &err) == 0);
}

static void fill(struct bench *b)
{
	unlink(b->index_path);
	open_index(b);
	walk(b, NULL, false);
	index_close(b->index);
}

static void start(struct bench *b)
{
	open_index(b);
	index_close(b->index);
}

static void walk_all(struct bench *b)
{
	walk(b, NULL, false);
}

static void walk_quick(struct bench *b)
{
	walk(b, NULL, true);
}

static void walk_one(struct bench *b)
{
	walk(b, b->vm, false);
}

static int count(void *context, const struct index_point *point, const char *cursor)
{
	struct bench *b = context;
	b->nr++;
	if (b->nr == 5000)
		snprintf(b->cursor, sizeof b->cursor, "%s", cursor);
	snprintf(b->vm, sizeof b->vm, "%s", point->vm);
	return 0;
}

static void ask(struct bench *b, struct index_filter filter)
{
	b->nr = 0;
	must(index_points(b->index, &filter, count, b, &err) == 0);
}

static void ask_all(struct bench *b)
{
	ask(b, (struct index_filter){.limit = 0});
}

static void ask_page(struct bench *b)
{
	ask(b, (struct index_filter){.limit = 100});
}

static void ask_middle(struct bench *b)
{
	ask(b, (struct index_filter){.limit = 100, .after = b->cursor});
}

static void ask_vm(struct bench *b)
{
	ask(b, (struct index_filter){.repository = "main", .vm = b->vm});
}

static void ask_glob(struct bench *b)
{
	ask(b, (struct index_filter){.vm_glob = "*-17?", .limit = 100});
}

static void ask_time(struct bench *b)
{
	ask(b, (struct index_filter){.since = 1780000000, .before = 1780086400, .limit = 100});
}

static void ask_protected(struct bench *b)
{
	ask(b, (struct index_filter){.is_protected = INDEX_YES, .limit = 100});
}

static void ask_unverified(struct bench *b)
{
	ask(b, (struct index_filter){.is_good = INDEX_NO, .limit = 100});
}

static void ask_newest(struct bench *b)
{
	ask(b, (struct index_filter){.newest_only = true, .without_value = true});
}

static void ask_point(struct bench *b)
{
	json_t *value = index_point(b->index, "main", b->vm, NULL, &err);
	must(value != NULL);
	json_decref(value);
}

static int count_vm(void *context, const struct index_vm *vm)
{
	(void)vm;
	((struct bench *)context)->nr++;
	return 0;
}

static void ask_vms(struct bench *b)
{
	const struct index_vms_filter filter = {.limit = 0};
	b->nr = 0;
	must(index_vms(b->index, &filter, count_vm, b, &err) == 0);
}

static void put_job(struct bench *b)
{
	struct state_job job = {.kind = "backup", .state = "done", .vm = "vm-001", .created = 1};
	json_t *value = json_pack(
		"{s:{s:s}, s:s}", "spec", "kind", "backup", "requested_by", "schedule nightly");
	snprintf(job.id, sizeof job.id, "20261122T%06uZ-0000%04u", b->nr_jobs / 10000 % 1000000,
		b->nr_jobs % 10000);
	b->nr_jobs++;
	job.value = value;
	must(state_job_put(b->state, &job, &err) == 0);
	json_decref(value);
}

static void start_state(struct bench *b)
{
	struct state *state = state_open(b->state_path, &err);
	must(state != NULL);
	state_close(state);
}

static int count_job(void *context, const struct state_job *job)
{
	(void)job;
	return ++((struct bench *)context)->nr == 100;
}

static void ask_jobs(struct bench *b)
{
	const struct state_job_filter filter = {.kind = "backup"};
	b->nr = 0;
	must(state_jobs(b->state, &filter, count_job, b, &err) == 0);
}

/* --- rounds --------------------------------------------------------------------------------- */

static void measure(const char *name, void (*what)(struct bench *b), struct bench *b, int rounds)
{
	int64_t times[ROUNDS];
	for (int i = 0; i < rounds; i++) {
		int64_t began = clock_now_ns();
		what(b);
		times[i] = clock_now_ns() - began;
	}
	qsort(times, (size_t)rounds, sizeof times[0], by_value);
	printf("%s\t%.3f\n", name, (double)times[rounds / 2] / 1e6);
	fflush(stdout);
}

static void measure_index(struct bench *b)
{
	measure("index: filled from nothing", fill, b, ROUNDS_LONG);
	measure("index: opened", start, b, ROUNDS);
	open_index(b);
	measure("index: the repository walked, nothing changed", walk_all, b, ROUNDS);
	measure("index: the repository looked at before a list", walk_quick, b, ROUNDS);
	measure("list: all restore points", ask_all, b, ROUNDS);
	printf("restore points\t%u\n", b->nr);
	measure("index: one machine after its backup", walk_one, b, ROUNDS);
	measure("list: the newest 100", ask_page, b, ROUNDS);
	measure("list: 100 in the middle", ask_middle, b, ROUNDS);
	measure("list: one machine", ask_vm, b, ROUNDS);
	measure("filter: machines by *-17?", ask_glob, b, ROUNDS);
	measure("filter: one day", ask_time, b, ROUNDS);
	measure("filter: protected", ask_protected, b, ROUNDS);
	measure("filter: not verified", ask_unverified, b, ROUNDS);
	measure("newest of each machine", ask_newest, b, ROUNDS);
	measure("one restore point", ask_point, b, ROUNDS);
	measure("summary of all machines", ask_vms, b, ROUNDS);
	printf("machines\t%u\n", b->nr);
	index_close(b->index);
}

static void measure_state(struct bench *b)
{
	must((b->state = state_open(b->state_path, &err)) != NULL);
	measure("state: a job put, durable", put_job, b, ROUNDS);
	while (b->nr_jobs < NR_JOBS)
		put_job(b);
	measure("state: the newest 100 of 10,000 jobs", ask_jobs, b, ROUNDS);
	state_close(b->state);
	measure("state: opened, with 10,000 jobs", start_state, b, ROUNDS);
}

int main(int argc, char **argv)
{
	struct bench b = {0};
	if (argc != 3) {
		fprintf(stderr, "catalogue REPOSITORY SCRATCH\n");
		return 2;
	}
	snprintf(b.index_path, sizeof b.index_path, "%s/index.db", argv[2]);
	snprintf(b.state_path, sizeof b.state_path, "%s/state.db", argv[2]);
	must((b.repo = repository_open(argv[1], REPOSITORY_READ, &err)) != NULL);
	measure_index(&b);
	measure_state(&b);
	repository_close(b.repo);
	return 0;
}
