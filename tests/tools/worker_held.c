/*
 * A worker that stands still in the stage that the file $WORKER_HOLD names ("copy stop", "copy
 * hold"), once: stopped like a process that the kernel holds, or for as long as
 * $WORKER_HOLD.held is there.  Linked with --wrap=worker_status, which each stage goes through.
 */
#include "worker.h"
#include "worker_main.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#define HOLD_STEP_MS 10
#define HOLD_MOST_MS 60000

void __real_worker_status(struct worker *worker, const json_t *now);
void __wrap_worker_status(struct worker *worker, const json_t *now);

void __wrap_worker_status(struct worker *worker, const json_t *now)
{
	const char *stage = json_string_value(json_object_get(now, "stage"));
	const char *path = getenv("WORKER_HOLD");
	char held[4096], *AUTO_FREE text = NULL;
	__real_worker_status(worker, now);
	if (!path || !stage || file_load(AT_FDCWD, path, 128, &text, NULL, NULL) < 0)
		return;
	size_t length = strlen(stage);
	if (strncmp(text, stage, length) != 0 || text[length] != ' ')
		return;
	snprintf(held, sizeof held, "%s.held", path);
	if (rename(path, held) < 0)
		return;
	if (strcmp(text + length, " stop") == 0)
		raise(SIGSTOP);
	if (strcmp(text + length, " crash") == 0)
		abort();
	struct deadline until = deadline_after_ms(HOLD_MOST_MS);
	while (access(held, F_OK) == 0 && !deadline_passed(until))
		cancel_sleep(NULL, deadline_after_ms(HOLD_STEP_MS), NULL);
}

int main(int argc, char **argv)
{
	return argc == 3 && strcmp(argv[1], "worker") == 0 ? worker_main(argv[2]) : 2;
}
