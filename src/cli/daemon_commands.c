/* What the commands of our daemons share; see daemon_commands.h. */
#include "daemon_commands.h"

void daemon_tell_step(void *context, const char *text)
{
	const struct daemon_steps *steps = context;
	if (steps->list)
		json_array_append_new(steps->list, json_string(text));
	else if (!steps->quiet)
		printf("%s\n", text);
}

struct findings_of_config {
	const char *path;
	json_t *list; /* NULL: as text */
	bool quiet;
};

static void tell_finding(void *context, const struct settings_finding *finding)
{
	const struct findings_of_config *f = context;
	const char *kind = finding->is_error ? "error" : "warning";
	if (f->list) {
		json_t *object = json_pack("{s:s, s:s}", "kind", kind, "text", finding->text);
		if (finding->line > 0)
			json_object_set_new(object, "line", json_integer(finding->line));
		json_array_append_new(f->list, object);
	} else if (finding->line > 0) {
		printf("%s:%u: %s: %s\n", f->path, finding->line, kind, finding->text);
	} else if (finding->is_error || !f->quiet) {
		printf("%s: %s: %s\n", f->path, kind, finding->text);
	}
}

int daemon_check(struct cli *cli, const char *path,
	unsigned (*check)(const char *path, settings_tell *tell, void *context),
	json_t *(*settings)(void), struct err *err)
{
	struct findings_of_config f = {.path = path, .quiet = cli->common.quiet};
	if (cli->common.json)
		f.list = json_array();
	unsigned nr_errors = check(path, tell_finding, &f);
	if (f.list &&
		cli_print_json(json_pack("{s:b, s:s, s:o, s:o}", "good", nr_errors == 0, "config",
				       path, "findings", f.list, "defaults", settings()),
			err) < 0)
		return -1;
	if (nr_errors > 0)
		return err_set(err, ERR_USAGE, "%s: %u error%s", path, nr_errors,
			nr_errors == 1 ? "" : "s");
	if (!f.list && !cli->common.quiet)
		printf("%s is good.\n", path);
	return cli_flush(err);
}
