/*
 * A worker that the kernel holds: signals do not reach it (process_signal() is wrapped).  Its job
 * is closed within five seconds, its lock is taken away, it is reaped when it goes, by the next hub
 * too.
 */
#include "test_support.h"

#include "job.h"
#include "process.h"
#include "repository.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define WAIT_MS 60000
#define DISK_BYTES (8 * MIB)

static const char *program;
static atomic_bool is_held;
static atomic_int held_pid;

int __real_process_signal(const struct process *process, int number, struct err *err);
int __wrap_process_signal(const struct process *process, int number, struct err *err);

int __wrap_process_signal(const struct process *process, int number, struct err *err)
{
	if (!atomic_load(&is_held))
		return __real_process_signal(process, number, err);
	atomic_store(&held_pid, process->pid);
	return 0;
}

struct site {
	char top[64], run[96], repo[96], source[96], rule[96];
	struct state *state;
	struct job_repository repository;
	int silent_fd; /* a vCenter that takes connections, and says nothing */
	char url[64], password[96];
	struct job_vcenter vcenter;
	const char *sources[2];
	struct jobs *jobs;
};

static void start(struct site *s)
{
	struct err err = ERR_INIT;
	s->repository = (struct job_repository){.name = "main", .path = s->repo};
	s->vcenter =
		(struct job_vcenter){.name = "silent", .url = s->url, .password_file = s->password};
	s->sources[0] = s->rule;
	const struct jobs_options options = {
		.state = s->state,
		.runtime_dir = s->run,
		.state_dir = s->top,
		.program = program,
		.repositories = &s->repository,
		.nr_repositories = 1,
		.vcenters = &s->vcenter,
		.nr_vcenters = 1,
		.vmware_state_dir = s->top,
		.allow_sources = s->sources,
	};
	s->jobs = jobs_start(&options, &err);
	if (!s->jobs)
		fail_msg("%s", err.text);
}

static int set_up_vcenter(struct site *s)
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t length = sizeof at;
	snprintf(s->password, sizeof s->password, "%s/password", s->top);
	int AUTO_CLOSE fd = open(s->password, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	s->silent_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || write(fd, "x\n", 2) != 2 || s->silent_fd < 0 ||
		bind(s->silent_fd, (struct sockaddr *)&at, sizeof at) < 0 ||
		listen(s->silent_fd, 8) < 0 ||
		getsockname(s->silent_fd, (struct sockaddr *)&at, &length) < 0)
		return -1;
	snprintf(s->url, sizeof s->url, "vmware://root@127.0.0.1:%u", ntohs(at.sin_port));
	return 0;
}

static int set_up(void **context)
{
	struct site *s = calloc(1, sizeof *s);
	struct err err = ERR_INIT;
	struct repository_settings settings;
	char path[128];
	*context = s;
	snprintf(s->top, sizeof s->top, "/tmp/fence-XXXXXX");
	if (!mkdtemp(s->top))
		return -1;
	snprintf(s->run, sizeof s->run, "%s/run", s->top);
	if (mkdir(s->run, 0700) < 0)
		return -1;
	snprintf(s->repo, sizeof s->repo, "%s/repo", s->top);
	snprintf(s->source, sizeof s->source, "raw:%s/disk", s->top);
	snprintf(s->rule, sizeof s->rule, "raw:%s/", s->top);
	repository_settings_default(&settings);
	snprintf(path, sizeof path, "%s/disk", s->top);
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	char bytes[4096];
	memset(bytes, 'x', sizeof bytes);
	for (uint64_t at = 0; fd >= 0 && at < DISK_BYTES; at += sizeof bytes)
		if (write(fd, bytes, sizeof bytes) != (ssize_t)sizeof bytes)
			return -1;
	close(fd);
	snprintf(path, sizeof path, "%s/state.db", s->top);
	s->state = state_open(path, &err);
	if (!s->state || repository_init(s->repo, &settings, &err) < 0) {
		print_error("%s\n", err.text);
		return -1;
	}
	if (set_up_vcenter(s) < 0)
		return -1;
	start(s);
	return 0;
}

static int tear_down(void **context)
{
	struct site *s = *context;
	char command[128];
	jobs_stop(s->jobs, false, deadline_after_ms(WAIT_MS));
	state_close(s->state);
	close(s->silent_fd);
	snprintf(command, sizeof command, "rm -rf %s", s->top);
	free(s);
	return system(command);
}

/* rate 0: as fast as it goes. */
static void add(struct site *s, int rate, char id[JOB_ID_BYTES])
{
	struct err err = ERR_INIT;
	json_t *spec = json_pack("{s:s, s:s, s:s, s:[{s:s, s:s}]}", "kind", "backup", "repository",
		"main", "vm", "web", "disks", "key", "d0", "source", s->source);
	if (rate)
		json_object_set_new(spec, "limit_rate", json_integer(rate));
	if (jobs_add(s->jobs, spec, "test", id, &err) < 0)
		fail_msg("%s", err.text);
	json_decref(spec);
}

/* Until the job has that in that member; the job. */
static json_t *wait_for(struct site *s, const char *id, const char *member, const char *value)
{
	struct err err = ERR_INIT;
	struct deadline until = deadline_after_ms(WAIT_MS);
	uint64_t seen = 0;
	json_t *job;
	while ((job = jobs_wait(s->jobs, id, &seen, until, &err))) {
		const char *is = json_string_value(json_object_get(job, member));
		if (is && strcmp(is, value) == 0)
			return job;
		json_decref(job);
	}
	fail_msg("job %s never had %s %s %s", id, member, value, err.text);
	return NULL;
}

static void wait_reaped(struct site *s)
{
	struct deadline until = deadline_after_ms(WAIT_MS);
	while (jobs_count_unreaped(s->jobs) > 0) {
		assert_false(deadline_passed(until));
		struct deadline step = deadline_after_ms(20);
		cancel_sleep(NULL, step, NULL);
	}
}

static int count_take(
	void *context, const char *job, const char *kind, const char *name, const json_t *value)
{
	(void)job;
	(void)kind;
	(void)name;
	(void)value;
	++*(unsigned *)context;
	return 0;
}

static unsigned nr_takes(struct site *s)
{
	struct err err = ERR_INIT;
	unsigned nr = 0;
	assert_int_equal(state_takes(s->state, NULL, count_take, &nr, &err), 0);
	return nr;
}

/* A backup that is closed while its process stays. */
static void hold_one(struct site *s, char id[JOB_ID_BYTES])
{
	struct err err = ERR_INIT;
	add(s, 1, id);
	json_decref(wait_for(s, id, "stage", "copy"));
	atomic_store(&is_held, true);
	int64_t began = clock_now_ns();
	assert_int_equal(jobs_cancel(s->jobs, id, "by the test", &err), 0);
	json_t *job = wait_for(s, id, "state", "cancelled");
	int64_t took_ms = (clock_now_ns() - began) / 1000000;
	assert_in_range(took_ms, 4000, 20000); /* 5 s, on a machine that is not busy */
	const char *text =
		json_string_value(json_object_get(json_object_get(job, "error"), "text"));
	assert_non_null(strstr(text, "by the test"));
	assert_non_null(strstr(text, "the kernel holds it"));
	json_decref(job);
	assert_int_equal(jobs_count_unreaped(s->jobs), 1);
	job = jobs_get(s->jobs, id, &err);
	assert_int_equal(
		json_integer_value(json_object_get(job, "process_left")), atomic_load(&held_pid));
	json_decref(job);
}

static void test_fenced(void **context)
{
	struct site *s = *context;
	char held[JOB_ID_BYTES], id[JOB_ID_BYTES];
	hold_one(s, held);
	/* Its lock was taken: the machine's next backup need not wait. */
	add(s, 0, id);
	json_decref(wait_for(s, id, "state", "done"));
	assert_int_equal(kill(atomic_load(&held_pid), 0), 0);
	atomic_store(&is_held, false);
	kill(atomic_load(&held_pid), SIGKILL);
	wait_reaped(s);
	assert_int_equal(nr_takes(s), 0);
	json_decref(wait_for(s, held, "state", "cancelled"));
}

/* What runs and what is kept must not be one folder. */
static void test_one_folder(void **context)
{
	struct site *s = *context;
	struct err err = ERR_INIT;
	const struct jobs_options options = {
		.state = s->state, .runtime_dir = s->top, .state_dir = s->top};
	assert_null(jobs_start(&options, &err));
	assert_int_equal(err.code, ERR_USAGE);
}

static void test_next_hub_reaps(void **context)
{
	struct site *s = *context;
	char held[JOB_ID_BYTES];
	hold_one(s, held);
	jobs_stop(s->jobs, true, deadline_after_ms(0));
	start(s);
	assert_int_equal(jobs_count_unreaped(s->jobs), 1);
	assert_true(nr_takes(s) > 0);
	atomic_store(&is_held, false);
	kill(atomic_load(&held_pid), SIGKILL);
	wait_reaped(s);
	assert_int_equal(nr_takes(s), 0);
	json_decref(wait_for(s, held, "state", "cancelled"));
}

/* Nothing could be taken away when it was closed: the next hub sees to it. */
static void test_next_hub_fences(void **context)
{
	struct site *s = *context;
	struct err err = ERR_INIT;
	char away[128], held[JOB_ID_BYTES], id[JOB_ID_BYTES];
	snprintf(away, sizeof away, "%s.away", s->repo);
	add(s, 1, held);
	json_decref(wait_for(s, held, "stage", "copy"));
	atomic_store(&is_held, true);
	assert_int_equal(rename(s->repo, away), 0);
	assert_int_equal(jobs_cancel(s->jobs, held, "by the test", &err), 0);
	json_decref(wait_for(s, held, "state", "cancelled"));
	jobs_stop(s->jobs, true, deadline_after_ms(0));
	assert_int_equal(rename(away, s->repo), 0);
	start(s);
	assert_int_equal(jobs_count_unreaped(s->jobs), 1);
	add(s, 0, id);
	json_t *job = wait_for(s, id, "state", "done");
	assert_int_equal(json_integer_value(json_object_get(job, "attempt")), 1);
	json_decref(job);
	assert_int_equal(kill(atomic_load(&held_pid), 0), 0);
	atomic_store(&is_held, false);
	kill(atomic_load(&held_pid), SIGKILL);
	wait_reaped(s);
	assert_int_equal(nr_takes(s), 0);
}

static int find_fence(
	void *context, const char *job, const char *kind, const char *name, const json_t *value)
{
	bool *found = context;
	(void)job;
	*found = *found || (strcmp(kind, "process") == 0 && strcmp(name, "fence") == 0 && value);
	return 0;
}

/* It goes at last, while whoever is to take its locks away is held up himself. */
static void test_goes_before_it_is_fenced(void **context)
{
	struct site *s = *context;
	struct err err = ERR_INIT;
	char id[JOB_ID_BYTES], path[128];
	bool is_fencing = false;
	add(s, 1, id);
	json_decref(wait_for(s, id, "stage", "copy"));
	snprintf(path, sizeof path, "%s/.locks/guard", s->repo);
	int AUTO_CLOSE guard = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_true(guard >= 0 && flock(guard, LOCK_EX) == 0);
	atomic_store(&is_held, true);
	int64_t began = clock_now_ns();
	assert_int_equal(jobs_cancel(s->jobs, id, "by the test", &err), 0);
	struct deadline until = deadline_after_ms(WAIT_MS);
	while (!is_fencing) {
		assert_false(deadline_passed(until));
		cancel_sleep(NULL, deadline_after_ms(5), NULL);
		assert_int_equal(state_takes(s->state, NULL, find_fence, &is_fencing, &err), 0);
	}
	atomic_store(&is_held, false);
	kill(atomic_load(&held_pid), SIGKILL);
	json_t *job = wait_for(s, id, "state", "cancelled");
	assert_in_range((clock_now_ns() - began) / 1000000, 4000, 20000);
	assert_null(json_object_get(job, "process_left"));
	json_decref(job);
	assert_int_equal(jobs_count_unreaped(s->jobs), 0);
	assert_int_equal(nr_takes(s), 0);
}

/* It holds nothing here that could be taken away: nobody tries. */
static void test_without_a_repository(void **context)
{
	struct site *s = *context;
	struct err err = ERR_INIT;
	char id[JOB_ID_BYTES];
	bool is_fencing = false;
	json_t *spec = json_pack("{s:s, s:s}", "kind", "cleanup", "vcenter", "silent");
	assert_int_equal(jobs_add(s->jobs, spec, "test", id, &err), 0);
	json_decref(spec);
	json_decref(wait_for(s, id, "stage", "give-back"));
	atomic_store(&is_held, true);
	int64_t began = clock_now_ns();
	assert_int_equal(jobs_cancel(s->jobs, id, "by the test", &err), 0);
	json_decref(wait_for(s, id, "state", "cancelled"));
	assert_in_range((clock_now_ns() - began) / 1000000, 4000, 20000);
	assert_int_equal(jobs_count_unreaped(s->jobs), 1);
	assert_int_equal(state_takes(s->state, NULL, find_fence, &is_fencing, &err), 0);
	assert_false(is_fencing);
	atomic_store(&is_held, false);
	kill(atomic_load(&held_pid), SIGKILL);
	wait_reaped(s);
	assert_int_equal(nr_takes(s), 0);
}

int main(void)
{
	program = getenv("SENDENSE");
	if (!program) {
		print_error("SENDENSE must name the built binary\n");
		return 2;
	}
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_fenced, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_one_folder, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_next_hub_reaps, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_next_hub_fences, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_goes_before_it_is_fenced, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_without_a_repository, set_up, tear_down),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
