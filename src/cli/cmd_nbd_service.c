/* sendense nbd-service: what the hub starts for pushes and serves; not for people. */
#include "commands.h"
#include "job.h"
#include "version.h"

#include <stdio.h>

/* For the file that the hub made of stderr: each line has its time. */
static void log_to_file(void *context, enum log_level level, const char *text)
{
	char now[CLOCK_UTC_BYTES];
	(void)context;
	clock_utc_text(time(NULL), now);
	fprintf(stderr, "%s %s: %s\n", now, log_level_name(level), text);
}

static int run(struct cli *cli, const void *values, struct err *err)
{
	(void)values;
	char *AUTO_FREE software = NULL;
	if (asprintf(&software, "sendense %s", version_text()) < 0)
		return err_set(err, ERR_NO_MEMORY, "cannot serve NBD: out of memory");
	log_set_sink(log_to_file, NULL, LOG_LEVEL_INFO);
	return host_run(cli->arguments.items[0], software, cli->cancel, err);
}

const struct command command_nbd_service = {
	.name = "nbd-service",
	.arguments = "RUNTIME",
	.summary = "Serve NBD for a hub (which starts it)",
	.min_arguments = 1,
	.max_arguments = 1,
	.run = run,
};
