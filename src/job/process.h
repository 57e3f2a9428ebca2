/*
 * process: a worker's process: started with nothing but what it needs, known by pid, start
 * time and boot, so that a later hub can tell whether it still lives.
 *
 * Thread rule: any thread; a struct process belongs to its user.
 */
#ifndef SENDENSE_JOB_PROCESS_H
#define SENDENSE_JOB_PROCESS_H

#include "base.h"

#include <jansson.h>
#include <sys/types.h>

struct process {
	pid_t pid; /* 0: none */
	uint64_t start; /* in clock ticks since the boot */
	char boot[PROC_BOOT_BYTES];
	int pidfd; /* -1: none */
	int gate, report; /* of one that was started and does nothing yet; -1: none */
};
#define PROCESS_NONE ((struct process){.pidfd = -1, .gate = -1, .report = -1})

struct process_options {
	const char *program; /* path; NULL: /proc/self/exe */
	const char *const *argv; /* ended by NULL */
	const char *stderr_path; /* made new, 0600 */
	uint64_t memory_bytes; /* of data; 0: no limit.  None in builds with sanitizers */
};

/*
 * Forks: own session, standard input and output /dev/null, all other descriptors closed, signals
 * as usual, first to go when memory runs out.  It waits before exec, until process_let_go(): by
 * then its caller has written down who it is.  When the caller dies before, it ends.
 */
int process_start(struct process *process, const struct process_options *options, struct err *err);
/* -1 when the program could not be executed; it has ended then, and is reaped. */
int process_let_go(struct process *process, struct err *err);

/* Instead of letting it go: it ends, and is reaped. */
void process_abandon(struct process *process);

json_t *process_to_json(const struct process *process);
/* Finds it again: pidfd open and true when it lives, else false. */
bool process_find(struct process *process, const json_t *object);

/* Sends a signal; that it is gone already is no error. */
int process_signal(const struct process *process, int number, struct err *err);
/* Whether it has ended; then its descriptors are closed and pid is 0.  *status (may be NULL): as
 * of waitpid(), -1 when it is not ours to know (no child of this process). */
bool process_has_ended(struct process *process, int *status);
/* Closes descriptors; the process itself lives on. */
void process_drop(struct process *process);

/* "killed by signal 9 (Killed)", "ended with status 3", "ended" */
#define PROCESS_END_BYTES 96
const char *process_end_text(int status, char out[PROCESS_END_BYTES]);

#endif
