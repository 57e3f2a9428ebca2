/* sendense repo init, info, check. */
#include "commands.h"
#include "disks.h"
#include "findings.h"

#include <string.h>

/* --- init --------------------------------------------------------------------------- */

struct init_values {
	const char *compression, *digest;
	struct option_number level, cluster, chain, keep;
};

static const char *const compressions[] = {"none", "zlib", "zstd", NULL};
static const char *const digests[] = {"xxh3-128", "sha256", NULL};

static const struct option_spec init_options[] = {
	{.name = "compression",
		.kind = OPTION_CHOICE,
		.offset = offsetof(struct init_values, compression),
		.argument = "none|zlib|zstd",
		.choices = compressions,
		.help = "of the images (default: zstd)"},
	{.name = "compression-level",
		.kind = OPTION_NUMBER,
		.offset = offsetof(struct init_values, level),
		.argument = "N",
		.minimum = 1,
		.maximum = 19,
		.help = "1 to 9 for zlib, 1 to 19 for zstd (default: the library's)"},
	{.name = "cluster-size",
		.kind = OPTION_SIZE,
		.offset = offsetof(struct init_values, cluster),
		.argument = "SIZE",
		.minimum = 4096,
		.maximum = 2097152,
		.help = "of the images, a power of two (default: 64KiB)"},
	{.name = "digest",
		.kind = OPTION_CHOICE,
		.offset = offsetof(struct init_values, digest),
		.argument = "xxh3-128|sha256",
		.choices = digests,
		.help = "of chunks, for the life of the repository (default: xxh3-128, keyed)"},
	{.name = "chain-length",
		.kind = OPTION_NUMBER,
		.offset = offsetof(struct init_values, chain),
		.argument = "N",
		.minimum = 1,
		.maximum = 500,
		.help = "longest chain of incremental backups (default: 60)"},
	{.name = "keep-unfinished",
		.kind = OPTION_DURATION,
		.offset = offsetof(struct init_values, keep),
		.argument = "TIME",
		.maximum = 31622400,
		.help = "keep what a dead job left for so long, or until the next backup of its "
			"machine (default: 1d)"},
};

static void settings_of(const struct init_values *v, struct repository_settings *settings)
{
	repository_settings_default(settings);
	if (v->compression)
		repository_compression_parse(v->compression, &settings->compression);
	if (v->level.given)
		settings->compress_level = (int)v->level.value;
	if (v->cluster.given)
		settings->cluster_bytes = (uint32_t)v->cluster.value;
	if (v->digest)
		digest_algorithm_parse(v->digest, &settings->digest);
	if (v->chain.given)
		settings->chain_length_max = (unsigned)v->chain.value;
	if (v->keep.given)
		settings->keep_unfinished_s = (unsigned)v->keep.value;
}

static json_t *info_json(const struct repository_info *info)
{
	const struct repository_settings *s = &info->settings;
	return json_pack("{s:s, s:s, s:i, s:s, s:b, s:s, s:i, s:I, s:s, s:i, s:I, s:I, s:I}",
		"path", info->path, "id", info->id, "format", (int)info->format, "created",
		info->created, "read_only", info->read_only, "compression",
		repository_compression_name(s->compression), "compression_level", s->compress_level,
		"cluster_size", (json_int_t)s->cluster_bytes, "digest",
		digest_algorithm_name(s->digest), "chain_length", (int)s->chain_length_max,
		"keep_unfinished_seconds", (json_int_t)s->keep_unfinished_s, "free",
		(json_int_t)info->free_bytes, "total", (json_int_t)info->total_bytes);
}

static void print_info(const struct repository_info *info)
{
	const struct repository_settings *s = &info->settings;
	char size[SIZE_TEXT_BYTES], total[SIZE_TEXT_BYTES];
	printf("Repository %s\n", info->path);
	printf("  id               %s\n", info->id);
	printf("  format           %u, made %s%s\n", info->format, info->created,
		info->read_only ? ", read-only here" : "");
	printf("  compression      %s", repository_compression_name(s->compression));
	if (s->compress_level > 0)
		printf(", level %d", s->compress_level);
	printf("\n  clusters         %s\n", cli_size_text(s->cluster_bytes, size));
	printf("  digest           %s\n", digest_algorithm_name(s->digest));
	printf("  longest chain    %u\n", s->chain_length_max);
	printf("  unfinished jobs  kept %s\n",
		cli_duration_text((int64_t)s->keep_unfinished_s * 1000000000, size));
	printf("  space            %s free of %s\n", cli_size_text(info->free_bytes, size),
		cli_size_text(info->total_bytes, total));
}

static int run_init(struct cli *cli, const void *values, struct err *err)
{
	const char *path = cli->arguments.items[0];
	struct repository_settings settings;
	settings_of(values, &settings);
	if (repository_init(path, &settings, err) < 0)
		return -1;
	struct repository *repo = repository_open(path, REPOSITORY_WRITE, err);
	if (!repo)
		return -1;
	struct repository_info info;
	int rc = repository_info(repo, &info, err);
	if (rc == 0 && cli->common.json)
		rc = cli_print_json(info_json(&info), err);
	else if (rc == 0 && !cli->common.quiet)
		print_info(&info);
	repository_close(repo);
	return rc < 0 ? -1 : cli_flush(err);
}

const struct command command_repo_init = {
	.name = "repo init",
	.arguments = "DIR",
	.summary = "Make a repository in a new or empty folder",
	COMMAND_OPTIONS(init_options),
	.common = COMMON_JSON,
	.min_arguments = 1,
	.max_arguments = 1,
	.words = WORDS_FOLDER,
	.values_bytes = sizeof(struct init_values),
	.run = run_init,
};

/* --- info ------------------------------------------------------------------------------ */

struct job_list {
	json_t *list; /* NULL: as text */
	bool has_heading;
};

static int tell_job(void *context, const struct repository_job *job)
{
	struct job_list *jobs = context;
	if (jobs->list) {
		json_t *object = json_pack("{s:s, s:b, s:b, s:I}", "job", job->id, "alive",
			job->alive, "committed", job->committed, "stored",
			(json_int_t)job->stored_bytes);
		const struct {
			const char *name, *text;
		} members[] = {{"vm", job->vm}, {"point", job->point}, {"host", job->host},
			{"kind", job->damage ? "" : repository_job_kind_name(job->kind)},
			{"started", job->started}, {"stage", job->stage},
			{"stage_since", job->stage_since}, {"keep_until", job->keep_until},
			{"damage", job->damage ? job->damage : ""}};
		for (size_t i = 0; i < ARRAY_LENGTH(members); i++)
			if (members[i].text[0])
				json_object_set_new(
					object, members[i].name, json_string(members[i].text));
		json_object_set_new(object, "pid", json_integer(job->pid));
		json_array_append_new(jobs->list, object);
		return 0;
	}
	if (!jobs->has_heading)
		printf("Jobs\n");
	jobs->has_heading = true;
	char stored[SIZE_TEXT_BYTES];
	if (job->damage) {
		printf("  %s  its plan cannot be read: %s\n", job->id, job->damage);
		return 0;
	}
	printf("  %s  %s %s of %s, stage %s since %s, pid %lld on %s, %s", job->id,
		job->alive ? "running" : "unfinished", repository_job_kind_name(job->kind), job->vm,
		job->stage, job->stage_since, (long long)job->pid, job->host,
		cli_size_text(job->stored_bytes, stored));
	if (!job->alive && job->kind == REPOSITORY_JOB_PRUNE)
		printf(", finished by the next backup or prune of it");
	if (!job->alive && job->keep_until[0])
		printf(", kept until %s or the next backup of it", job->keep_until);
	putchar('\n');
	return 0;
}

static int count_vm(void *context, const char *vm)
{
	(void)vm;
	++*(unsigned *)context;
	return 0;
}

static int tell_info(struct cli *cli, struct repository *repo, struct err *err)
{
	struct repository_info info;
	unsigned nr_vms = 0;
	struct job_list jobs = {0};
	if (repository_info(repo, &info, err) < 0 ||
		repository_list_vms(repo, count_vm, &nr_vms, err) < 0)
		return -1;
	if (!cli->common.json) {
		print_info(&info);
		printf("  machines         %u\n", nr_vms);
		return repository_jobs(repo, tell_job, &jobs, err) < 0 ? -1 : cli_flush(err);
	}
	json_t *object = info_json(&info);
	jobs.list = json_array();
	int rc = repository_jobs(repo, tell_job, &jobs, err);
	json_object_set_new(object, "vms", json_integer(nr_vms));
	json_object_set_new(object, "jobs", jobs.list);
	if (rc < 0) {
		json_decref(object);
		return -1;
	}
	return cli_print_json(object, err);
}

/* The repository is the argument, not an option. */
struct info_values {
	struct store_values store;
};

static const struct option_spec info_options[] = {HUB_OPTION_ROWS(struct info_values)};

static const char *told_text(const json_t *info, const char *name)
{
	const char *text = json_string_value(json_object_get(info, name));
	return text ? text : "-";
}

static uint64_t told_bytes(const json_t *info, const char *name)
{
	json_int_t bytes = json_integer_value(json_object_get(info, name));
	return bytes > 0 ? (uint64_t)bytes : 0;
}

/* What a hub tells of it; its folder is the hub's own business. */
static int tell_remote(struct cli *cli, struct store *store, struct err *err)
{
	char size[SIZE_TEXT_BYTES], total[SIZE_TEXT_BYTES];
	unsigned nr_vms = 0;
	json_t *info = store_info_json(store, err);
	if (!info || store_list_vms(store, count_vm, &nr_vms, err) < 0) {
		json_decref(info);
		return -1;
	}
	if (cli->common.json) {
		json_object_set_new(info, "vms", json_integer(nr_vms));
		return cli_print_json(info, err);
	}
	printf("Repository %s at %s\n", store_repository(store), store_name(store));
	printf("  id               %s\n", told_text(info, "id"));
	printf("  state            %s\n", told_text(info, "state"));
	printf("  space            %s free of %s\n", cli_size_text(told_bytes(info, "free"), size),
		cli_size_text(told_bytes(info, "total"), total));
	printf("  machines         %u\n", nr_vms);
	json_decref(info);
	return cli_flush(err);
}

static int run_info(struct cli *cli, const void *values, struct err *err)
{
	struct store_values where = ((const struct info_values *)values)->store;
	where.repo = cli->arguments.items[0];
	struct store *store = disks_open_store(cli, &where, REPOSITORY_READ, err);
	if (!store)
		return -1;
	int rc = store_local(store) ? tell_info(cli, store_local(store), err)
				    : tell_remote(cli, store, err);
	store_close(store);
	return rc;
}

const struct command command_repo_info = {
	.name = "repo info",
	.arguments = "DIR|URL",
	.summary = "Show a repository's settings, its space, and jobs that run or did not finish",
	.details = "Of a hub's repository it shows what the hub tells: its id, state and space.",
	COMMAND_OPTIONS(info_options),
	.values_bytes = sizeof(struct info_values),
	.common = COMMON_JSON,
	.min_arguments = 1,
	.max_arguments = 1,
	.words = WORDS_FOLDER,
	.run = run_info,
};

/* --- check ------------------------------------------------------------------------------- */

struct check_values {
	bool repair;
};

static const struct option_spec check_options[] = {
	{.name = "repair",
		.kind = OPTION_FLAG,
		.offset = offsetof(struct check_values, repair),
		.help = "clean what dead jobs left, and drop dead locks; nothing else is changed"},
};

static const char *plural(unsigned nr)
{
	return nr == 1 ? "" : "s";
}

static int print_check(struct cli *cli, const struct repository_check_result *result,
	struct findings *findings, struct err *err)
{
	bool good = result->damages + result->foreign == 0;
	int status = good ? 0 : EXIT_DAMAGE;
	if (findings->list) {
		json_t *object =
			json_pack("{s:b, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:O}", "good",
				good, "vms", (int)result->vms, "points", (int)result->points,
				"images", (int)result->images, "damages", (int)result->damages,
				"foreign", (int)result->foreign, "leaks", (int)result->leaks,
				"jobs", (int)result->jobs, "locks", (int)result->locks, "repaired",
				(int)result->repaired, "findings", findings->list);
		return cli_print_json(object, err) < 0 ? -1 : status;
	}
	if (!cli->common.quiet)
		printf("%u machine%s, %u restore point%s, %u image%s: %u damaged, %u foreign "
		       "file%s, %u leak%s, %u running or unfinished job%s, %u dead lock%s, "
		       "%u repaired.\n",
			result->vms, plural(result->vms), result->points, plural(result->points),
			result->images, plural(result->images), result->damages, result->foreign,
			plural(result->foreign), result->leaks, plural(result->leaks), result->jobs,
			plural(result->jobs), result->locks, plural(result->locks),
			result->repaired);
	return cli_flush(err) < 0 ? -1 : status;
}

static int run_check(struct cli *cli, const void *values, struct err *err)
{
	const struct check_values *v = values;
	struct repository *repo = disks_open_repository(
		cli->arguments.items[0], v->repair ? REPOSITORY_WRITE : REPOSITORY_READ, err);
	if (!repo)
		return -1;
	struct findings findings = {
		.list = cli->common.json ? json_array() : NULL, .quiet = cli->common.quiet};
	struct repository_check_options options = {
		.repair = v->repair,
		.cancel = cli->cancel,
		.finding = findings_tell,
		.context = &findings,
	};
	struct repository_check_result result = {0};
	int rc = repository_check(repo, &options, &result, err);
	if (rc == 0)
		rc = print_check(cli, &result, &findings, err);
	json_decref(findings.list);
	repository_close(repo);
	return rc;
}

const struct command command_repo_check = {
	.name = "repo check",
	.arguments = "DIR",
	.summary = "Check a repository's structure without reading the disks' content",
	.details =
		"Finds foreign files, unfinished jobs, dead locks, damaged records and images; "
		"ends\n"
		"with status 3 when something is damaged or missing, or a file is there that no\n"
		"restore point and no unfinished job knows; such a file is reported and kept.\n"
		"The disks' content is compared by \"sendense verify\".",
	COMMAND_OPTIONS(check_options),
	.common = COMMON_JSON,
	.min_arguments = 1,
	.max_arguments = 1,
	.words = WORDS_FOLDER,
	.values_bytes = sizeof(struct check_values),
	.run = run_check,
};
