/* sendense nbd-service: what the hub starts for pushes and serves; not for people. */
#include "commands.h"
#include "host.h"
#include "version.h"

static int run(struct cli *cli, const void *values, struct err *err)
{
	(void)values;
	char *AUTO_FREE software = NULL;
	if (asprintf(&software, "sendense %s", version_text()) < 0)
		return err_set(err, ERR_NO_MEMORY, "cannot serve NBD: out of memory");
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
