/*
 * progress: tells how far a command is, from a thread of its own.
 *
 *   bar    one line on a terminal, drawn over and over
 *   json   a JSON object a line on stderr: a change of stage at once, figures
 *          twice a second, and always one last line with the outcome
 *
 *   {"event":"stage","stage":"copy"}
 *   {"event":"progress","stage":"copy","percent":41.5,"size":..,"logical":..,
 *    "read":..,"sent":..,"stored":..,"zeros_skipped":..,
 *    "rate_bytes_per_second":..,"seconds_left":..,
 *    "disks":[{"key":"2000","size":..,"logical":..,...},...]}
 *   {"event":"end","outcome":"done|failed|cancelled", and the figures}
 *
 * The figures are those that the copy engine counts, added up over the disks;
 * "rate" is of data read, "seconds_left" is missing while it is not known.
 */
#ifndef SENDENSE_CLI_PROGRESS_H
#define SENDENSE_CLI_PROGRESS_H

#include "cli.h"

struct progress;

/* As the command's options say; on a terminal a bar unless --quiet.  Gives an
 * object in any case, also when nothing is to be shown; NULL is an error. */
struct progress *progress_start(const struct cli_common *common, struct err *err);

/* A name for what is done now; a literal or living until the end.  Any thread. */
void progress_stage(struct progress *progress, const char *stage);

/* Which machine it is, where that was not given; copied.  Any thread. */
void progress_vm(struct progress *progress, const char *vm);

/* One more disk.  key is copied; NULL for a job of one nameless disk.  figures
 * live until progress_end() or progress_begin_again().  Any thread. */
int progress_add_disk(struct progress *progress, const char *key, uint64_t size_bytes,
	const struct copy_progress *figures, struct err *err);

/* Forgets all disks and their figures: the work begins again.  Any thread. */
void progress_begin_again(struct progress *progress);

/*
 * What the command that runs shows now, for whoever tells of it elsewhere:
 * {"stage", "stage_since", "vm"?, "progress": {"total", "logical", "read", "sent", "stored",
 * "zeros_skipped", "rate_bytes_per_second", "seconds_left"?}, "disks": [{"key"?, "size", ...}]};
 * the caller's.  NULL when no command is at it.  Any thread.
 */
json_t *progress_now(void);
/* Told of each new stage, and before the end; NULL: nobody.  Set before progress_start(). */
void progress_watch(void (*changed)(void *context), void *context);

/* Tells the outcome: err NULL or ERR_NONE is done.  Frees; NULL is harmless. */
void progress_end(struct progress *progress, const struct err *err);

#endif
