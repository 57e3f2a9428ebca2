/*
 * life: a daemon's life: its steps are started in order, it is ready, it heeds signals and the
 * watchdog until it is asked to stop, and the steps are stopped in reverse.
 *
 * Thread rule: one at a time in a process, since SIGHUP is the process's.
 */
#ifndef SENDENSE_DAEMON_LIFE_H
#define SENDENSE_DAEMON_LIFE_H

#include "base.h"

struct life_step {
	const char *name; /* for the log */
	int (*start)(void *context, struct err *err);
	/* Also called when its start failed half-way.  NULL: there is nothing to stop. */
	void (*stop)(void *context);
};

struct life {
	const struct life_step *steps;
	size_t nr_steps;
	void *context;
	struct cancel *cancel; /* asks for the stop; borrowed */
	/* All steps have been started; when it is 0, systemd is told. */
	int (*ready)(void *context, struct err *err);
	/* SIGHUP; systemd is told before and after. */
	void (*reload)(void *context);
	/* Before the first step is stopped, however far it came; systemd has been told. */
	void (*stopping)(void *context);
};

/* 0 when it was asked to stop; -1 when a step, or ready, failed.  All that was started has been
 * stopped when it returns, and SIGHUP is ignored from then on. */
int life_run(const struct life *life, struct err *err);

#endif
