/*
 * metrics: text for Prometheus (exposition format 0.0.4), and the counters that nothing else
 * keeps.  Names by convention: sendense_, the unit in the name, _total for what only grows.
 *
 * Thread rule: any thread.
 */
#ifndef SENDENSE_HUB_METRICS_H
#define SENDENSE_HUB_METRICS_H

#include "job.h"

#include <stdio.h>

struct hub_time;
struct metrics;

struct metrics *metrics_new(struct err *err);
/* NULL is harmless. */
void metrics_free(struct metrics *metrics);

/* A job has ended; job: as the API shows it. */
void metrics_job_ended(struct metrics *metrics, enum job_state state, const json_t *job);

/* All of it; the caller's.  Takes time's mutex. */
char *metrics_text(struct hub_time *time, struct err *err);

/* One line: name, labels (name, value, ..., NULL), value.  Values of labels may be anything. */
void metrics_put(FILE *out, const char *name, const char *const *labels, double value);
/* # HELP and # TYPE; type: "gauge", "counter", "histogram". */
void metrics_head(FILE *out, const char *name, const char *type, const char *help);

#endif
