/*
 * proc: what the kernel tells of processes, so that one can be known again: a pid is given out
 * anew, a pid with its start time is not before the next boot.
 */
#ifndef SENDENSE_PROC_H
#define SENDENSE_PROC_H

#include "clock.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define PROC_BOOT_BYTES 40

struct proc_stat {
	char state; /* 'R', 'S', ...; 'Z' and 'X': only the exit status is left of it */
	uint64_t start; /* in clock ticks since the boot */
};

/* False when there is no such process. */
bool proc_stat(int64_t pid, struct proc_stat *stat);

/* The first word of a small file; "" when it cannot be read. */
void proc_word(const char *path, char *out, size_t room);

/* A new one for each boot; "" when it cannot be told. */
void proc_boot(char boot[PROC_BOOT_BYTES]);

/*
 * Waits for the end of a child, kills it after the deadline, and reaps it.  pidfd: of
 * pidfd_open().  how tells people of it: "ended with status 1".  True unless it ended by itself
 * with status 0.  What the kernel does not let go within 10 s more is left alone, and told.
 */
bool proc_end(pid_t pid, int pidfd, struct deadline until, char *how, size_t room);
/* The same words for a child that has ended, which is not reaped; false: it runs. */
bool proc_ended(pid_t pid, char *how, size_t room);

#endif
