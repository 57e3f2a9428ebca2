/* A lease at the hub, renewed from a thread of its own at each third of its time. */
#include "remote_internal.h"

#include <errno.h>
#include <string.h>

struct keeper {
	struct store *store;
	char path[REMOTE_PATH_BYTES];
	char what[64];
	unsigned lease_s;
	pthread_t thread;
	pthread_mutex_t mutex; /* over all that follows */
	pthread_cond_t changed;
	bool ends;
};

/* False when it is to end. */
static bool wait_third(struct keeper *keeper)
{
	struct deadline until = deadline_after_ms((int64_t)keeper->lease_s * 1000 / 3);
	WITH_LOCK(&keeper->mutex);
	while (!keeper->ends && thread_cond_wait(&keeper->changed, &keeper->mutex, until))
		;
	return !keeper->ends;
}

static void *keep(void *arg)
{
	struct keeper *keeper = arg;
	bool failed = false;
	while (wait_third(keeper)) {
		struct err err = ERR_INIT;
		int rc = rest_call(keeper->store->closing, "POST", keeper->path, NULL, NULL, &err);
		/* Told once; whoever uses it notices what comes of it. */
		if (rc < 0 && !failed)
			log_warning("%s was not renewed: %s", keeper->what, err.text);
		failed = rc < 0;
		/* The hub does not know it any more. */
		if (rc < 0 && err.code == ERR_NOT_FOUND)
			return NULL;
	}
	return NULL;
}

struct keeper *keeper_start(
	struct store *store, const char *path, const char *what, unsigned lease_s, struct err *err)
{
	struct keeper *keeper = calloc(1, sizeof *keeper);
	if (!keeper) {
		err_errno(err, ENOMEM, "cannot keep %s", what);
		return NULL;
	}
	keeper->store = store;
	keeper->lease_s = lease_s;
	snprintf(keeper->path, sizeof keeper->path, "%.2000s/heartbeat", path);
	snprintf(keeper->what, sizeof keeper->what, "%s", what);
	pthread_mutex_init(&keeper->mutex, NULL);
	thread_cond_init(&keeper->changed);
	if (thread_start(&keeper->thread, "lease", keep, keeper, err) == 0)
		return keeper;
	pthread_cond_destroy(&keeper->changed);
	pthread_mutex_destroy(&keeper->mutex);
	free(keeper);
	return NULL;
}

void keeper_stop(struct keeper *keeper)
{
	if (!keeper)
		return;
	pthread_mutex_lock(&keeper->mutex);
	keeper->ends = true;
	pthread_cond_broadcast(&keeper->changed);
	pthread_mutex_unlock(&keeper->mutex);
	pthread_join(keeper->thread, NULL);
	pthread_cond_destroy(&keeper->changed);
	pthread_mutex_destroy(&keeper->mutex);
	free(keeper);
}
