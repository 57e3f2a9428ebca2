/*
 * alarm: what somebody should know, from when it begins until it is over.
 *
 *   objective    a machine without a good restore point for longer than it may be
 *   damage       restore points of a machine that are damaged
 *   failed       a machine's last backup failed: a warning
 *   verification the last scheduled verification of a repository failed: a warning
 *   space        little free space in a repository: a warning, or no backups any more
 *   repository   a repository that is not there, or does not answer
 *   node         a node that is silent
 *
 * Kept in the state, so that each is told once, also over restarts.
 *
 * Thread rule: one thread at a time.
 */
#ifndef SENDENSE_HUB_ALARM_H
#define SENDENSE_HUB_ALARM_H

#include "catalogue.h"

enum alarm_kind {
	ALARM_OBJECTIVE,
	ALARM_DAMAGE,
	ALARM_FAILED,
	ALARM_VERIFICATION,
	ALARM_SPACE,
	ALARM_REPOSITORY,
	ALARM_NODE,
};

enum alarm_subject { ALARM_OF_MACHINE, ALARM_OF_REPOSITORY, ALARM_OF_NODE };

struct alarm {
	enum alarm_kind kind;
	bool severe; /* else a warning: "sendense status" ends with 0 */
	char *object; /* the machine's, the repository's or the node's name */
	int64_t since;
	char *text;
	char *job; /* "": none */
	bool seen; /* by the sweep that runs */
};

const char *alarm_kind_name(enum alarm_kind kind);
/* What its object is. */
enum alarm_subject alarm_subject(const struct alarm *alarm);
/* For people: "VM", "repository", "node". */
const char *alarm_subject_name(const struct alarm *alarm);

struct alarms;

struct alarms_options {
	struct state *state; /* lent */
	/* It began (or a warning became severe), or it is over. */
	void (*changed)(void *context, const struct alarm *alarm, bool over);
	void *context;
};

struct alarms *alarm_open(const struct alarms_options *options, struct err *err);
void alarm_close(struct alarms *alarms);

/* kind, severe, object, since, text, job (NULL: none) of what; copied.  One that stands keeps its
 * since. */
int alarm_raise(struct alarms *alarms, const struct alarm *what, struct err *err);
/* Harmless when there is none. */
int alarm_clear(struct alarms *alarms, enum alarm_kind kind, const char *object, struct err *err);

/* All of an object that is gone: nobody is told that it is well again. */
int alarm_forget(
	struct alarms *alarms, enum alarm_subject subject, const char *object, struct err *err);

/* Between both everything that stands of the kinds objective, damage, space, repository and
 * node is raised; the rest of them is over then. */
void alarm_sweep_begin(struct alarms *alarms);
int alarm_sweep_end(struct alarms *alarms, struct err *err);
/* Between both: those of such objects are as before. */
void alarm_sweep_keep(struct alarms *alarms, enum alarm_subject subject);

/* By kind and object; valid until the next change. */
const struct alarm *alarm_list(const struct alarms *alarms, size_t *nr);
const struct alarm *alarm_find(
	const struct alarms *alarms, enum alarm_kind kind, const char *object);

#endif
