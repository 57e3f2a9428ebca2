/*
 * prometheus: text for Prometheus (exposition format 0.0.4).  Names by convention: sendense_, the
 * unit in the name, _total for what only grows.
 */
#ifndef SENDENSE_DAEMON_PROMETHEUS_H
#define SENDENSE_DAEMON_PROMETHEUS_H

#include <stdio.h>

#define PROMETHEUS_TYPE "text/plain; version=0.0.4; charset=utf-8"
#define PROMETHEUS_LABELS(...) ((const char *const[]){__VA_ARGS__, NULL})

/* # HELP and # TYPE; type: "gauge", "counter", "histogram". */
void prometheus_head(FILE *out, const char *name, const char *type, const char *help);
/* One line: name, labels (name, value, ..., NULL), value.  Values of labels may be anything. */
void prometheus_put(FILE *out, const char *name, const char *const *labels, double value);
/* Both, of a figure without labels. */
void prometheus_one(FILE *out, const char *name, const char *type, const char *help, double value);

#endif
