/* States of a job: their names, which may follow which, and which stages they hold. */
#include "job_internal.h"

#include <string.h>

#define TO(state) (1u << (state))
#define AT_WORK (TO(JOB_RUNNING) | TO(JOB_VERIFYING) | TO(JOB_COMMITTING))
#define ENDS (TO(JOB_DONE) | TO(JOB_FAILED) | TO(JOB_CANCELLED))

/*
 *   queued ─► starting ─► running ⇄ verifying ⇄ committing ─► done | failed | cancelled
 *      ▲          │          │          │            │
 *      └──────────┴──────────┴──────────┴────────────┘  to be tried again
 */
static const struct {
	const char *name;
	unsigned may; /* which states may follow */
} states[] = {
	[JOB_QUEUED] = {"queued", TO(JOB_STARTING) | ENDS | AT_WORK /* foreign ones */},
	[JOB_STARTING] = {"starting", TO(JOB_QUEUED) | AT_WORK | ENDS},
	[JOB_RUNNING] = {"running", TO(JOB_QUEUED) | AT_WORK | ENDS},
	[JOB_VERIFYING] = {"verifying", TO(JOB_QUEUED) | AT_WORK | ENDS},
	[JOB_COMMITTING] = {"committing", TO(JOB_QUEUED) | AT_WORK | ENDS},
	[JOB_DONE] = {"done", 0},
	[JOB_FAILED] = {"failed", 0},
	[JOB_CANCELLED] = {"cancelled", 0},
};

#define MINUTES 60000u
#define STILL_OTHERWISE_MS (15 * MINUTES)

/* still_ms: nothing may move for so long.  Stages that are not here belong to JOB_RUNNING, and
 * have STILL_OTHERWISE_MS. */
static const struct {
	const char *stage;
	enum job_state state;
	unsigned still_ms;
} stages[] = {
	{"start", JOB_STARTING, 15 * MINUTES}, {"check", JOB_STARTING, 15 * MINUTES},
	{"prepare", JOB_STARTING, 15 * MINUTES}, {"begin", JOB_STARTING, 20 * MINUTES},
	{"create", JOB_STARTING, 15 * MINUTES},
	{"snapshot", JOB_STARTING, 20 * MINUTES}, /* its merging may hold another one up */
	{"copy", JOB_RUNNING, 5 * MINUTES}, {"audit", JOB_VERIFYING, 15 * MINUTES},
	{"verify", JOB_VERIFYING, 15 * MINUTES}, {"settle", JOB_VERIFYING, 15 * MINUTES},
	{"sync-data", JOB_COMMITTING, 30 * MINUTES}, {"close-data", JOB_COMMITTING, 30 * MINUTES},
	{"sync-sums", JOB_COMMITTING, 30 * MINUTES}, {"rename-data", JOB_COMMITTING, 30 * MINUTES},
	{"sync-folders", JOB_COMMITTING, 30 * MINUTES},
	{"rename-manifest", JOB_COMMITTING, 30 * MINUTES}, {"commit", JOB_COMMITTING, 30 * MINUTES},
	{"log", JOB_COMMITTING, 15 * MINUTES}, {"drop-plan", JOB_COMMITTING, 15 * MINUTES},
	{"finish", JOB_COMMITTING, 30 * MINUTES}, {"look", JOB_COMMITTING, 15 * MINUTES},
	{"give-back", JOB_COMMITTING, 40 * MINUTES}, /* a snapshot is merged: 30 at most */
};

const char *job_state_name(enum job_state state)
{
	return states[state].name;
}

bool job_state_parse(const char *name, enum job_state *state)
{
	for (size_t i = 0; i < ARRAY_LENGTH(states); i++) {
		if (strcmp(states[i].name, name) == 0) {
			*state = (enum job_state)i;
			return true;
		}
	}
	return false;
}

bool job_state_is_end(enum job_state state)
{
	return TO(state) & ENDS;
}

bool job_state_may(enum job_state from, enum job_state to)
{
	return from == to || states[from].may & TO(to);
}

enum job_state job_state_of_stage(const char *stage)
{
	for (size_t i = 0; i < ARRAY_LENGTH(stages); i++)
		if (strcmp(stages[i].stage, stage) == 0)
			return stages[i].state;
	return JOB_RUNNING;
}

unsigned job_state_still_ms(const char *stage)
{
	for (size_t i = 0; i < ARRAY_LENGTH(stages); i++)
		if (strcmp(stages[i].stage, stage) == 0)
			return stages[i].still_ms;
	return STILL_OTHERWISE_MS;
}
