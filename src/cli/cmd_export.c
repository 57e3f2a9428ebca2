/* sendense export: an NBD server of one disk. */
#include "commands.h"
#include "repository.h"
#include "service.h"
#include "source.h"

struct values {
	struct service_options service;
	const char *name, *description;
	bool read_only;
	struct option_list allow_backing;
};

static const struct option_spec option_table[] = {
	SERVICE_OPTION_ROWS(struct values),
	{.name = "name",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct values, name),
		.argument = "NAME",
		.help = "of the export (default: the empty name)"},
	{.name = "description",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct values, description),
		.argument = "TEXT",
		.help = "shown by clients that list exports"},
	{.name = "read-only",
		.kind = OPTION_FLAG,
		.offset = offsetof(struct values, read_only),
		.help = "refuse writing (always so for a path inside a repository)"},
	ALLOW_BACKING_ROW(struct values, allow_backing),
};

static int run(struct cli *cli, const void *values, struct err *err)
{
	const struct values *v = values;
	const char *name = cli->arguments.items[0];
	if (service_check(&v->service, err) < 0)
		return -1;
	bool read_only = v->read_only;
	const char *path = locator_path(name);
	if (path && repository_path_inside(path, NULL) && !read_only) {
		log_info("%s lies in a repository: exported read-only", name);
		read_only = true;
	}
	struct source_options open = {
		.read_only = read_only,
		.allow_backing = &v->allow_backing,
		.cancel = cli->cancel,
	};
	struct block *block = source_open(name, &open, err);
	if (!block)
		return err_context(err, "cannot export %s", name);
	struct nbd_export export = {
		.name = v->name ? v->name : "",
		.description = v->description,
		.block = block,
		.read_only = read_only,
	};
	int rc = service_run(cli, &v->service, &export, 1, err);
	/* The close writes what an image still holds in memory. */
	struct err close_err = ERR_INIT;
	if (block_close(block, &close_err) < 0 && rc == 0)
		rc = err_copy(err, &close_err);
	if (rc < 0)
		err_context(err, "cannot export %s", name);
	return rc;
}

const struct command command_export = {
	.name = "export",
	.arguments = "IMAGE",
	.summary = "Serve a disk over NBD",
	.details =
		"When it is ready, which a handshake has proven, it prints its URI in one line "
		"and\n"
		"stays until SIGTERM. Unix sockets get mode 0600; TCP is loopback only, save\n"
		"with TLS and clients who show who they are. A socket\n"
		"passed by systemd's LISTEN_FDS is taken instead of --socket or --port, so that\n"
		"nbdcopy's [ sendense export ... ] works.",
	COMMAND_OPTIONS(option_table),
	.common = COMMON_JSON,
	.min_arguments = 1,
	.max_arguments = 1,
	.words = WORDS_DISK,
	.values_bytes = sizeof(struct values),
	.run = run,
};
