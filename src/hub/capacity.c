/* Free space; see capacity.h. */
#include "capacity.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#define PAUSE_MS 20000
#define SILENT_NS (INT64_C(90) * 1000000000)

/* Held by the capacity and by its thread; the last one frees. */
struct watch {
	atomic_int holders;
	char *name, *path;
	uint64_t warn_free_bytes, stop_free_bytes;
	pthread_mutex_t mutex;
	pthread_cond_t wake;
	bool stop;
	bool answered;
	int64_t answered_ns, began_ns;
	int error; /* errno; 0: it is there */
	uint64_t free_bytes, total_bytes;
};

struct capacity {
	struct watch **watches;
	size_t nr_watches;
};

static const char *const state_names[] = {
	[CAPACITY_UNKNOWN] = "unknown",
	[CAPACITY_GOOD] = "ok",
	[CAPACITY_LITTLE] = "low",
	[CAPACITY_FULL] = "full",
	[CAPACITY_GONE] = "unavailable",
	[CAPACITY_SILENT] = "unavailable",
};

const char *capacity_state_name(enum capacity_state state)
{
	return state_names[state];
}

static void let_go(struct watch *watch)
{
	if (atomic_fetch_sub(&watch->holders, 1) > 1)
		return;
	pthread_cond_destroy(&watch->wake);
	pthread_mutex_destroy(&watch->mutex);
	free(watch->name);
	free(watch->path);
	free(watch);
}

/* May hang. */
static int ask(const struct watch *watch, uint64_t *free_bytes, uint64_t *total_bytes)
{
	struct statvfs fs;
	struct stat st;
	char *AUTO_FREE path = NULL;
	if (asprintf(&path, "%s/repository.json", watch->path) < 0) {
		path = NULL;
		return ENOMEM;
	}
	if (stat(path, &st) < 0 || statvfs(watch->path, &fs) < 0)
		return errno;
	*free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
	*total_bytes = (uint64_t)fs.f_blocks * fs.f_frsize;
	return 0;
}

static void *watch_main(void *arg)
{
	struct watch *watch = arg;
	bool stop = false;
	while (!stop) {
		uint64_t free_bytes = 0, total_bytes = 0;
		int error = ask(watch, &free_bytes, &total_bytes);
		WITH_LOCK(&watch->mutex);
		watch->answered = true;
		watch->answered_ns = clock_now_ns();
		watch->error = error;
		if (error == 0) {
			watch->free_bytes = free_bytes;
			watch->total_bytes = total_bytes;
		}
		struct deadline until = deadline_after_ms(PAUSE_MS);
		while (!watch->stop && thread_cond_wait(&watch->wake, &watch->mutex, until))
			continue;
		stop = watch->stop;
	}
	let_go(watch);
	return NULL;
}

static struct watch *watch_start(const struct job_repository *repository, struct err *err)
{
	pthread_t thread;
	struct watch *watch = calloc(1, sizeof *watch);
	if (!watch) {
		err_errno(err, ENOMEM, "cannot watch repository %s", repository->name);
		return NULL;
	}
	pthread_mutex_init(&watch->mutex, NULL);
	thread_cond_init(&watch->wake);
	atomic_init(&watch->holders, 1);
	watch->name = strdup(repository->name);
	watch->path = strdup(repository->path);
	watch->warn_free_bytes = repository->warn_free_bytes;
	watch->stop_free_bytes = repository->stop_free_bytes;
	watch->began_ns = clock_now_ns();
	if (!watch->name || !watch->path) {
		err_errno(err, ENOMEM, "cannot watch repository %s", repository->name);
		goto failed;
	}
	atomic_fetch_add(&watch->holders, 1);
	if (thread_start(&thread, "space", watch_main, watch, err) < 0) {
		atomic_fetch_sub(&watch->holders, 1);
		goto failed;
	}
	/* It may hang in the kernel: nobody joins it. */
	pthread_detach(thread);
	return watch;
failed:
	let_go(watch);
	return NULL;
}

struct capacity *capacity_start(
	const struct job_repository *repositories, size_t nr_repositories, struct err *err)
{
	struct capacity *capacity = calloc(1, sizeof *capacity);
	if (!capacity || !(capacity->watches = calloc(nr_repositories + 1, sizeof(void *)))) {
		free(capacity);
		err_errno(err, ENOMEM, "cannot watch the repositories");
		return NULL;
	}
	for (size_t i = 0; i < nr_repositories; i++) {
		capacity->watches[i] = watch_start(&repositories[i], err);
		if (!capacity->watches[i]) {
			capacity_stop(capacity);
			return NULL;
		}
		capacity->nr_watches++;
	}
	return capacity;
}

void capacity_stop(struct capacity *capacity)
{
	if (!capacity)
		return;
	for (size_t i = 0; i < capacity->nr_watches; i++) {
		struct watch *watch = capacity->watches[i];
		pthread_mutex_lock(&watch->mutex);
		watch->stop = true;
		pthread_cond_signal(&watch->wake);
		pthread_mutex_unlock(&watch->mutex);
		let_go(watch);
	}
	free(capacity->watches);
	free(capacity);
}

/* 12.3 GiB */
static void size_text(uint64_t bytes, char out[32])
{
	snprintf(out, 32, "%.1f GiB", (double)bytes / (double)(UINT64_C(1) << 30));
}

/* Without the path: whoever may read the status may read this. */
static void judge(
	const struct watch *watch, struct capacity_report *report, char *text, size_t bytes)
{
	int64_t now = clock_now_ns(), last = watch->answered ? watch->answered_ns : watch->began_ns;
	char free_text[32], limit_text[32];
	report->state = watch->answered ? CAPACITY_GOOD : CAPACITY_UNKNOWN;
	text[0] = '\0';
	if (now - last > SILENT_NS) {
		report->state = CAPACITY_SILENT;
		snprintf(text, bytes, "its file system does not answer");
		return;
	}
	if (!watch->answered)
		return;
	if (watch->error) {
		report->state = CAPACITY_GONE;
		snprintf(text, bytes, "there is no repository in its folder: %s (is it mounted?)",
			strerrordesc_np(watch->error));
		return;
	}
	uint64_t limit = watch->warn_free_bytes;
	if (watch->free_bytes < watch->warn_free_bytes)
		report->state = CAPACITY_LITTLE;
	if (watch->free_bytes < watch->stop_free_bytes) {
		report->state = CAPACITY_FULL;
		limit = watch->stop_free_bytes;
	}
	if (report->state == CAPACITY_GOOD)
		return;
	size_text(watch->free_bytes, free_text);
	size_text(limit, limit_text);
	snprintf(text, bytes, "%s are free, less than %s%s", free_text, limit_text,
		report->state == CAPACITY_FULL ? ": no backups are begun" : "");
}

void capacity_look(struct capacity *capacity,
	void (*callback)(void *context, const struct capacity_report *report), void *context)
{
	for (size_t i = 0; i < capacity->nr_watches; i++) {
		struct watch *watch = capacity->watches[i];
		char text[5000];
		struct capacity_report report = {.name = watch->name, .text = text};
		pthread_mutex_lock(&watch->mutex);
		judge(watch, &report, text, sizeof text);
		report.free_bytes = watch->free_bytes;
		report.total_bytes = watch->total_bytes;
		pthread_mutex_unlock(&watch->mutex);
		callback(context, &report);
	}
}
