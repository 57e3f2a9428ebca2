/* worker_main: "sendense worker JOBDIR", one job of the hub's, run by the same commands. */
#ifndef SENDENSE_CLI_WORKER_MAIN_H
#define SENDENSE_CLI_WORKER_MAIN_H

/* Runs what JOBDIR/plan.json says; tells of it by files there (job/worker.h).  The exit
 * status. */
int worker_main(const char *folder);

#endif
