/* What is done once a day: ended jobs with their logs, and old lines of the audit log, are
 * forgotten when their time has passed. */
#include "node_internal.h"

#include "log.h"
#include "thread.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

#define FORGET_MS (INT64_C(1000) * 60 * 60 * 24)

struct node_keeper {
	pthread_t thread;
	struct cancel *ends;
};

static void *keep(void *context)
{
	struct node *node = context;
	do {
		const struct node_config *c = node_config(node);
		struct err err = ERR_INIT;
		int64_t now = time(NULL);
		if (jobs_forget(node->jobs, now - (int64_t)c->keep_jobs_s, &err) < 0)
			log_warning("old jobs are not forgotten: %s", err.text);
		if (state_events_forget(node->state, now - (int64_t)c->keep_events_s, &err) < 0)
			log_warning("the audit log is not shortened: %s", err.text);
	} while (cancel_sleep(node->keeper->ends, deadline_after_ms(FORGET_MS), NULL) == 0);
	return NULL;
}

int node_keeper_start(struct node *node, struct err *err)
{
	struct node_keeper *keeper = calloc(1, sizeof *keeper);
	if (!keeper)
		return err_errno(err, ENOMEM, "cannot forget old jobs");
	keeper->ends = cancel_new(err);
	node->keeper = keeper;
	if (keeper->ends && thread_start(&keeper->thread, "keeper", keep, node, err) == 0)
		return 0;
	node->keeper = NULL;
	cancel_free(keeper->ends);
	free(keeper);
	return -1;
}

void node_keeper_stop(struct node *node)
{
	struct node_keeper *keeper = node->keeper;
	if (!keeper)
		return;
	cancel_request(keeper->ends);
	pthread_join(keeper->thread, NULL);
	cancel_free(keeper->ends);
	free(keeper);
	node->keeper = NULL;
}
