/*
 * One job of the hub's: the words of its plan are a command line, and run as such.  A thread of
 * its own tells each half second, and at each new stage, how far it is.
 */
#include "worker_main.h"

#include "cli.h"
#include "console.h"
#include "job.h"
#include "progress.h"
#include "tls_options.h"
#include "version.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#define TELL_MS 500

struct telling {
	struct worker *worker;
	struct err why; /* the last error that a command told */
	pthread_t thread;

	pthread_mutex_t mutex;
	pthread_cond_t changed;
	const char *stage; /* where no command says one */
	char stage_since[CLOCK_UTC_BYTES];
	json_t *last; /* what the command said last */
	bool ending;
};

static void log_to_worker(void *context, enum log_level level, const char *text)
{
	struct telling *t = context;
	worker_log(t->worker, level, text);
}

static void keep_error(void *context, const struct err *err)
{
	struct telling *t = context;
	t->why = *err;
	worker_log(t->worker, LOG_LEVEL_ERROR, err->text);
}

/* Under the mutex: one at a time. */
static void tell(struct telling *t)
{
	json_t *now = progress_now();
	if (now) {
		json_decref(t->last);
		t->last = now;
	}
	json_t *shown =
		t->last ? json_incref(t->last)
			: json_pack("{s:s, s:s}", "stage", t->stage, "stage_since", t->stage_since);
	worker_status(t->worker, shown);
	json_decref(shown);
}

static void tell_at_once(void *context)
{
	struct telling *t = context;
	WITH_LOCK(&t->mutex);
	tell(t);
}

static void *tell_main(void *arg)
{
	struct telling *t = arg;
	WITH_LOCK(&t->mutex);
	while (!t->ending) {
		thread_cond_wait(&t->changed, &t->mutex, deadline_after_ms(TELL_MS));
		if (t->stage)
			tell(t);
	}
	return NULL;
}

static void set_stage(struct telling *t, const char *stage)
{
	WITH_LOCK(&t->mutex);
	t->stage = stage;
	clock_utc_text(time(NULL), t->stage_since);
	tell(t);
}

static bool find_credentials(void *context, const char *name, struct tls_options *found)
{
	const struct telling *t = context;
	const json_t *one = worker_credentials(t->worker, name);
	found->certificates = json_string_value(json_object_get(one, "certificates"));
	found->psk_file = json_string_value(json_object_get(one, "psk_file"));
	found->username = json_string_value(json_object_get(one, "username"));
	return one != NULL;
}

static int run(struct telling *t)
{
	const struct cli_hooks hooks = {log_to_worker, keep_error, t, worker_job(t->worker)};
	set_stage(t, "start");
	set_stage(t, "check");
	log_set_sink(log_to_worker, t, LOG_LEVEL_INFO);
	char **words = worker_words(t->worker, &t->why);
	if (!words)
		return t->why.code == ERR_USAGE ? EXIT_USAGE : EXIT_FAILED;
	int nr = 0;
	while (words[nr])
		nr++;
	if (nr == 0)
		return 0;
	if (worker_begin_report(t->worker, &t->why) < 0)
		return EXIT_FAILED;
	const char **argv = calloc((size_t)nr + 2, sizeof *argv);
	if (!argv)
		return EXIT_FAILED;
	argv[0] = "sendense";
	memcpy(argv + 1, words, (size_t)nr * sizeof *argv);
	cli_set_hooks(&hooks);
	tls_options_otherwise(find_credentials, t);
	progress_watch(tell_at_once, t);
	int status = cli_main(nr + 1, argv);
	cli_set_hooks(NULL);
	tls_options_otherwise(NULL, NULL);
	free(argv);
	return status;
}

static void end_telling(struct telling *t)
{
	pthread_mutex_lock(&t->mutex);
	t->ending = true;
	pthread_cond_signal(&t->changed);
	pthread_mutex_unlock(&t->mutex);
	pthread_join(t->thread, NULL);
}

static int fail(const struct err *err)
{
	char line[ERR_TEXT_BYTES + 32];
	snprintf(line, sizeof line, "sendense: %s", err->text);
	console_line(line);
	return EXIT_FAILED;
}

int worker_main(const char *folder)
{
	struct err err = ERR_INIT;
	struct telling t = {.why = ERR_INIT};
	char software[128];
	snprintf(software, sizeof software, "sendense %s", version_text());
	t.worker = worker_open(folder, software, version_build(), &err);
	if (!t.worker)
		return fail(&err);
	pthread_mutex_init(&t.mutex, NULL);
	thread_cond_init(&t.changed);
	int status = EXIT_FAILED;
	if (thread_start(&t.thread, "tell", tell_main, &t, &t.why) == 0) {
		status = run(&t);
		end_telling(&t);
	}
	if (worker_end(t.worker, status, &t.why, &err) < 0)
		status = fail(&err);
	log_set_sink(NULL, NULL, LOG_LEVEL_ERROR);
	worker_close(t.worker);
	json_decref(t.last);
	pthread_cond_destroy(&t.changed);
	pthread_mutex_destroy(&t.mutex);
	return status;
}
