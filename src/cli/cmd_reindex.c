/* sendense repo reindex: the index of a hub, filled anew from a repository. */
#include "commands.h"
#include "disks.h"
#include "remote.h"

#include "hub.h"
#include "job.h"

#include <errno.h>
#include <string.h>

struct values {
	struct store_values store;
	const char *config, *index, *name;
	bool all, dry_run;
};

static const struct option_spec option_table[] = {
	{.name = "config",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct values, config),
		.argument = "FILE",
		.words = WORDS_FILE,
		.help = "the settings of the hub whose index it is (default: " HUB_CONFIG_FILE ")"},
	{.name = "index",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct values, index),
		.argument = "FILE",
		.words = WORDS_FILE,
		.help = "the index itself, made when it is not there; with --name"},
	{.name = "name",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct values, name),
		.argument = "NAME",
		.help = "of the repository in the index"},
	{.name = "all",
		.kind = OPTION_FLAG,
		.offset = offsetof(struct values, all),
		.help = "read every manifest, also of restore points that did not change"},
	{.name = "dry-run",
		.kind = OPTION_FLAG,
		.offset = offsetof(struct values, dry_run),
		.help = "read everything, and change no index"},
	HUB_OPTION_ROWS(struct values),
};

static const char *plural(unsigned nr)
{
	return nr == 1 ? "" : "s";
}

/* --- a folder ---------------------------------------------------------------------------- */

struct place {
	char index[4096 + 16], name[128];
};

/* The repository of a hub's settings that lies in that folder. */
static int find_in_config(
	const struct values *v, const char *folder, struct place *place, struct err *err)
{
	const char *path = v->config ? v->config : HUB_CONFIG_FILE;
	if (!v->config && access(path, F_OK) < 0)
		return err_set(err, ERR_USAGE,
			"which index? (--config FILE: a hub's settings, or --index FILE --name "
			"NAME; a running hub does it itself when it is named instead of the "
			"folder)");
	struct hub_config *config = hub_config_load(path, NULL, NULL, err);
	if (!config)
		return -1;
	int rc = -1;
	for (size_t i = 0; rc < 0 && i < config->nr_repositories; i++) {
		char *AUTO_FREE real = realpath(config->repositories[i].path, NULL);
		if (!real || strcmp(real, folder) != 0)
			continue;
		snprintf(place->index, sizeof place->index, "%s/index.db", config->state_dir);
		snprintf(place->name, sizeof place->name, "%s", config->repositories[i].name);
		rc = 0;
	}
	hub_config_free(config);
	return rc < 0 ? err_set(err, ERR_USAGE, "%s names no repository in %s", path, folder) : 0;
}

static int find_place(
	const struct values *v, const char *folder, struct place *place, struct err *err)
{
	memset(place, 0, sizeof *place);
	if (v->dry_run) {
		if (v->index || v->config)
			return err_set(err, ERR_USAGE, "--dry-run needs no index");
		snprintf(place->name, sizeof place->name, "%s", "repository");
		return 0;
	}
	if (!v->index && !v->name)
		return find_in_config(v, folder, place, err);
	if (!v->index || !v->name || v->config)
		return err_set(
			err, ERR_USAGE, "--index and --name belong together, and not to --config");
	if (strlen(v->name) >= sizeof place->name || strlen(v->index) >= sizeof place->index)
		return err_set(err, ERR_USAGE, "--index or --name is too long");
	snprintf(place->index, sizeof place->index, "%s", v->index);
	snprintf(place->name, sizeof place->name, "%s", v->name);
	return 0;
}

static int print_result(struct cli *cli, const struct reindex_result *result, struct err *err)
{
	if (cli->common.json)
		return cli_print_json(
			json_pack("{s:i, s:i, s:i, s:i, s:i}", "vms", (int)result->nr_vms, "points",
				(int)result->nr_points, "read", (int)result->nr_read, "gone",
				(int)result->nr_gone, "damaged", (int)result->nr_damaged),
			err);
	if (!cli->common.quiet)
		printf("%u machine%s, %u restore point%s: %u read, %u gone, %u damaged.\n",
			result->nr_vms, plural(result->nr_vms), result->nr_points,
			plural(result->nr_points), result->nr_read, result->nr_gone,
			result->nr_damaged);
	return cli_flush(err);
}

static int reindex_folder(
	struct cli *cli, const struct values *v, struct repository *repo, struct err *err)
{
	struct place place;
	struct repository_info info;
	struct reindex_result result;
	struct err why = ERR_INIT;
	if (repository_info(repo, &info, err) < 0 || find_place(v, info.path, &place, err) < 0)
		return -1;
	if (!v->dry_run && repository_path_guard(place.index, err) < 0)
		return -1;
	struct index *index = index_open(v->dry_run ? NULL : place.index, NULL, &why);
	if (!index) {
		if (why.code == ERR_BUSY)
			err_hint(&why,
				"a hub that runs does it itself, when its URL is given instead of "
				"the folder");
		return err_copy(err, &why);
	}
	const struct reindex_options options = {.index = index,
		.repository = repo,
		.name = place.name,
		.all = v->all,
		.cancel = cli->cancel};
	int rc = reindex_run(&options, &result, err);
	index_close(index);
	if (rc == 0)
		rc = print_result(cli, &result, err);
	return rc < 0 ? -1 : result.nr_damaged ? EXIT_DAMAGE : 0;
}

/* --- a hub --------------------------------------------------------------------------------- */

static int reindex_hub(
	struct cli *cli, const struct values *v, struct store *store, struct err *err)
{
	struct reindex_result result = {0};
	json_t *report;
	if (v->config || v->index || v->name || v->all || v->dry_run)
		return err_set(err, ERR_USAGE,
			"a hub knows its index (--config, --index, --name, --all and --dry-run are "
			"for folders)");
	if (store_reindex(store, &report, err) < 0)
		return -1;
	const struct {
		const char *name;
		unsigned *value;
	} members[] = {{"vms", &result.nr_vms}, {"points", &result.nr_points},
		{"read", &result.nr_read}, {"gone", &result.nr_gone},
		{"damaged", &result.nr_damaged}};
	for (size_t i = 0; i < ARRAY_LENGTH(members); i++)
		*members[i].value =
			(unsigned)json_integer_value(json_object_get(report, members[i].name));
	json_decref(report);
	if (print_result(cli, &result, err) < 0)
		return -1;
	return result.nr_damaged ? EXIT_DAMAGE : 0;
}

static int run(struct cli *cli, const void *values, struct err *err)
{
	struct values v = *(const struct values *)values;
	v.store.repo = cli->arguments.items[0];
	struct store *store = disks_open_store(cli, &v.store, REPOSITORY_READ, err);
	if (!store)
		return -1;
	int rc = store_local(store) ? reindex_folder(cli, &v, store_local(store), err)
				    : reindex_hub(cli, &v, store, err);
	store_close(store);
	return rc;
}

const struct command command_repo_reindex = {
	.name = "repo reindex",
	.arguments = "DIR|URL",
	.summary = "Bring a hub's index up to date with what a repository holds",
	.details = "A hub answers from an index of its repositories. The index is no truth of its "
		   "own: it may\n"
		   "be removed, and is made again from the repositories. A hub does so by itself; "
		   "this\n"
		   "command does it for a hub that does not run, or asks the one whose URL is "
		   "given.\n"
		   "Ends with status 3 when the manifest of a restore point is damaged.",
	COMMAND_OPTIONS(option_table),
	.common = COMMON_JSON,
	.min_arguments = 1,
	.max_arguments = 1,
	.words = WORDS_FOLDER,
	.values_bytes = sizeof(struct values),
	.run = run,
};
