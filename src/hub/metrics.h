/*
 * metrics: what the hub tells Prometheus, and the counters that nothing else keeps.
 *
 * Thread rule: any thread.
 */
#ifndef SENDENSE_HUB_METRICS_H
#define SENDENSE_HUB_METRICS_H

#include "job.h"

struct hub_time;
struct metrics;

struct metrics *metrics_new(struct err *err);
/* NULL is harmless. */
void metrics_free(struct metrics *metrics);

/* A job has ended; job: as the API shows it. */
void metrics_job_ended(struct metrics *metrics, enum job_state state, const json_t *job);

/* All of it; the caller's.  Takes time's mutex. */
char *metrics_text(struct hub_time *time, struct err *err);

#endif
