/* From what is asked for to the words of a command line; see jobplan.h. */
#include "jobplan.h"

#include "allow.h"
#include "jobfields.h"
#include "jobplan_vmware.h"
#include "jobwords.h"
#include "repository.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define DISKS_MOST REPOSITORY_DISKS_MAX

#define ALL_KINDS                                                                             \
	{"kind", FIELD_TEXT, true, 0, 0, NULL}, {"repository", FIELD_TEXT, true, 0, 0, NULL}, \
	{                                                                                     \
		"reserve_bytes", FIELD_INTEGER, false, 0, INT64_MAX, NULL                     \
	}

static const char *const modes[] = {"auto", "full", "incremental", NULL};
static const char *const compressions[] = {"none", "zlib", "zstd", NULL};

static const struct jobfield backup_fields[] = {ALL_KINDS, {"vm", FIELD_VM, true, 0, 0, NULL},
	{"disks", FIELD_ARRAY, true, 1, DISKS_MOST, NULL}, {"mode", FIELD_TEXT, false, 0, 0, modes},
	{"audit", FIELD_NUMBER, false, 0, 0, NULL},
	{"limit_rate", FIELD_INTEGER, false, 1, INT64_MAX, NULL},
	{"parallel", FIELD_INTEGER, false, 1, 16, NULL}, {"resume", FIELD_BOOL, false, 0, 0, NULL},
	{"no_freeze", FIELD_BOOL, false, 0, 0, NULL}, JOBFIELDS_END};
static const struct jobfield disk_fields[] = {{"key", FIELD_KEY, false, 0, 0, NULL},
	{"source", FIELD_TEXT, true, 0, 0, NULL}, {"changed_by", FIELD_TEXT, false, 0, 0, NULL},
	{"change_id", FIELD_TEXT, false, 0, 0, NULL}, {"bitmap", FIELD_TEXT, false, 0, 0, NULL},
	{"source_id", FIELD_TEXT, false, 0, 0, NULL}, JOBFIELDS_END};
static const struct jobfield restore_fields[] = {ALL_KINDS, {"vm", FIELD_VM, true, 0, 0, NULL},
	{"point", FIELD_POINT, false, 0, 0, NULL},
	{"targets", FIELD_ARRAY, true, 1, DISKS_MOST, NULL},
	{"force", FIELD_BOOL, false, 0, 0, NULL},
	{"compression", FIELD_TEXT, false, 0, 0, compressions},
	{"limit_rate", FIELD_INTEGER, false, 1, INT64_MAX, NULL}, JOBFIELDS_END};
static const struct jobfield target_fields[] = {{"key", FIELD_KEY, false, 0, 0, NULL},
	{"target", FIELD_TEXT, true, 0, 0, NULL}, JOBFIELDS_END};
static const struct jobfield verify_fields[] = {ALL_KINDS, {"vm", FIELD_VM, false, 0, 0, NULL},
	{"point", FIELD_POINT, false, 0, 0, NULL},
	{"time_box_s", FIELD_INTEGER, false, 1, 31536000, NULL}, JOBFIELDS_END};
static const struct jobfield prune_fields[] = {ALL_KINDS, {"vm", FIELD_VM, false, 0, 0, NULL},
	{"keep", FIELD_OBJECT, true, 0, 0, NULL}, {"timezone", FIELD_TEXT, false, 0, 0, NULL},
	{"dry_run", FIELD_BOOL, false, 0, 0, NULL}, {"trust_clock", FIELD_BOOL, false, 0, 0, NULL},
	JOBFIELDS_END};
static const struct jobfield keep_fields[] = {{"last", FIELD_INTEGER, false, 1, 1000000, NULL},
	{"hourly", FIELD_INTEGER, false, 1, 1000000, NULL},
	{"daily", FIELD_INTEGER, false, 1, 1000000, NULL},
	{"weekly", FIELD_INTEGER, false, 1, 1000000, NULL},
	{"monthly", FIELD_INTEGER, false, 1, 1000000, NULL},
	{"yearly", FIELD_INTEGER, false, 1, 1000000, NULL},
	{"within_s", FIELD_INTEGER, false, 1, 1000LL * 366 * 86400, NULL}, JOBFIELDS_END};
static const struct jobfield reindex_fields[] = {ALL_KINDS, JOBFIELDS_END};

/* --- kinds ---------------------------------------------------------------------------- */

static void add_point(json_t *argv, const json_t *spec)
{
	const char *vm = jobwords_text(spec, "vm"), *point = jobwords_text(spec, "point");
	if (!vm)
		return;
	jobwords_add(argv, "--");
	jobwords_add(argv, "%s%s%s", vm, point ? "@" : "", point ? point : "");
}

/* "extents:FILE" names a file of ours.  Nothing unknown is passed on: the command line might
 * find a key and such a file in it. */
static int add_changed_by(json_t *argv, const char *where, const json_t *disk, struct err *err)
{
	const char *key = jobwords_text(disk, "key"), *text = jobwords_text(disk, "changed_by");
	if (!text)
		return 0;
	if (strcmp(text, "compare") == 0 || strncmp(text, "bitmap:", 7) == 0) {
		jobwords_add_keyed(argv, "changed-by", disk, "changed_by");
		return 0;
	}
	if (strncmp(text, "extents:", 8) != 0)
		return err_set(err, ERR_USAGE,
			"%schanged_by: it is none of compare, bitmap:NAME, extents:FILE", where);
	if (!key)
		return err_set(err, ERR_USAGE, "%schanged_by: a list needs the disk's key", where);
	char before[160];
	snprintf(before, sizeof before, "--changed-by=%s=", key);
	json_array_append_new(
		argv, json_pack("{s:s, s:s, s:s}", "text", before, "use", "source", "name", text));
	return 0;
}

static int backup_argv(json_t *argv, const json_t *spec, struct err *err)
{
	const json_t *disks = json_object_get(spec, "disks"),
		     *audit = json_object_get(spec, "audit");
	const json_t *disk, *resume = json_object_get(spec, "resume");
	size_t i;
	jobwords_add(argv, "--vm=%s", jobwords_text(spec, "vm"));
	if (jobwords_text(spec, "mode"))
		jobwords_add(argv, "--mode=%s", jobwords_text(spec, "mode"));
	if (json_number_value(audit) > 0)
		jobwords_add(argv, "--audit=%.1f%%", json_number_value(audit));
	jobwords_add_number(argv, "limit-rate", spec, "limit_rate");
	jobwords_add_number(argv, "parallel", spec, "parallel");
	jobwords_add_flag(argv, "no-freeze", spec, "no_freeze");
	if (json_is_boolean(resume))
		jobwords_add(argv, "%s", json_is_true(resume) ? "--resume" : "--no-resume");
	const json_t *alone = NULL;
	json_array_foreach(disks, i, disk)
	{
		char where[32];
		snprintf(where, sizeof where, "disks[%zu].", i);
		if (jobfields_check(disk_fields, where, disk, err) < 0 ||
			add_changed_by(argv, where, disk, err) < 0)
			return -1;
		jobwords_add_keyed(argv, "change-id", disk, "change_id");
		jobwords_add_keyed(argv, "bitmap", disk, "bitmap");
		jobwords_add_keyed(argv, "source-id", disk, "source_id");
		const char *source = jobwords_text(disk, "source");
		if (jobwords_text(disk, "key") && source && strncmp(source, "qemu:", 5) == 0)
			return err_set(err, ERR_USAGE,
				"%skey: a machine's disks have keys of their own (leave it out)",
				where);
		if (jobwords_text(disk, "key"))
			jobwords_add_disk(argv, "--disk=", disk, "source");
		else if (json_array_size(disks) == 1)
			alone = disk;
		else
			return err_set(err, ERR_USAGE,
				"%skey: it is missing (of several disks each needs one)", where);
	}
	if (alone) {
		jobwords_add(argv, "--");
		jobwords_add_disk(argv, "", alone, "source");
	}
	return 0;
}

static int restore_argv(json_t *argv, const json_t *spec, struct err *err)
{
	const json_t *targets = json_object_get(spec, "targets"), *target;
	size_t i;
	json_array_foreach(targets, i, target)
	{
		char where[32];
		snprintf(where, sizeof where, "targets[%zu].", i);
		if (jobfields_check(target_fields, where, target, err) < 0)
			return -1;
		jobwords_add_disk(argv, "--to=", target, "target");
	}
	jobwords_add_flag(argv, "force", spec, "force");
	if (jobwords_text(spec, "compression"))
		jobwords_add(argv, "--compression=%s", jobwords_text(spec, "compression"));
	jobwords_add_number(argv, "limit-rate", spec, "limit_rate");
	add_point(argv, spec);
	return 0;
}

static int verify_argv(json_t *argv, const json_t *spec, struct err *err)
{
	if (jobwords_text(spec, "point") && !jobwords_text(spec, "vm"))
		return err_set(err, ERR_USAGE, "vm: it is missing (whose restore point is it?)");
	jobwords_add_number(argv, "time-box", spec, "time_box_s");
	add_point(argv, spec);
	return 0;
}

static int prune_argv(json_t *argv, const json_t *spec, struct err *err)
{
	static const char *const rules[] = {
		"last", "hourly", "daily", "weekly", "monthly", "yearly"};
	const json_t *keep = json_object_get(spec, "keep");
	if (jobfields_check(keep_fields, "keep.", keep, err) < 0)
		return -1;
	if (json_object_size(keep) == 0)
		return err_set(
			err, ERR_USAGE, "keep: no rule says which restore points are to be kept");
	for (size_t i = 0; i < ARRAY_LENGTH(rules); i++) {
		char option[32];
		snprintf(option, sizeof option, "keep-%s", rules[i]);
		jobwords_add_number(argv, option, keep, rules[i]);
	}
	jobwords_add_number(argv, "keep-within", keep, "within_s");
	if (jobwords_text(spec, "timezone"))
		jobwords_add(argv, "--timezone=%s", jobwords_text(spec, "timezone"));
	jobwords_add_flag(argv, "dry-run", spec, "dry_run");
	jobwords_add_flag(argv, "trust-clock", spec, "trust_clock");
	add_point(argv, spec);
	return 0;
}

/* The hub alone writes its index: a worker reads everything, and tells what there is. */
static int reindex_argv(json_t *argv, const json_t *spec, struct err *err)
{
	(void)spec;
	(void)err;
	jobwords_add(argv, "--dry-run");
	return 0;
}

static const struct kind {
	const char *kind, *command, *second; /* words of the command; with the second one the
						repository is an argument */
	const struct jobfield *fields;
	int (*argv)(json_t *argv, const json_t *spec, struct err *err);
} kinds[] = {
	{"backup", "backup", NULL, backup_fields, backup_argv},
	{"restore", "restore", NULL, restore_fields, restore_argv},
	{"verify", "verify", NULL, verify_fields, verify_argv},
	{"prune", "prune", NULL, prune_fields, prune_argv},
	{"reindex", "repo", "reindex", reindex_fields, reindex_argv},
};

/* --- places --------------------------------------------------------------------------- */

const struct job_repository *jobplan_repository(
	const struct jobs_options *options, const char *name)
{
	for (size_t i = 0; name && i < options->nr_repositories; i++)
		if (strcmp(options->repositories[i].name, name) == 0)
			return &options->repositories[i];
	return NULL;
}

const char *jobplan_place(const struct job_repository *repository)
{
	return repository->url ? repository->url : repository->path;
}

void jobplan_add_repository(json_t *argv, const struct job_repository *r)
{
	jobwords_add(argv, "--repo=%s", jobplan_place(r));
	if (r->url && r->token_file)
		jobwords_add(argv, "--token-file=%s", r->token_file);
	if (r->url && r->ca_file)
		jobwords_add(argv, "--ca-file=%s", r->ca_file);
}

int jobplan_no_repository(const json_t *spec, struct err *err)
{
	return err_set(err, ERR_USAGE, "repository: there is none of the name %.64s",
		jobwords_text(spec, "repository"));
}

/* --- all together --------------------------------------------------------------------- */

static int argv_of(const struct kind *kind, const struct job_repository *r, const json_t *spec,
	json_t *argv, struct err *err)
{
	if (kind->second && r->url)
		return err_set(err, ERR_USAGE,
			"repository: %s is behind a hub, which does this itself", r->name);
	jobwords_add(argv, "%s", kind->command);
	if (kind->second)
		jobwords_add(argv, "%s", kind->second);
	jobwords_add(argv, "--json");
	if (!kind->second)
		jobplan_add_repository(argv, r);
	if (kind->argv(argv, spec, err) < 0)
		return -1;
	if (kind->second) {
		jobwords_add(argv, "--");
		jobwords_add(argv, "%s", r->path);
	}
	return 0;
}

static int local_argv(
	const struct jobs_options *options, const json_t *spec, json_t *argv, struct err *err)
{
	const char *name = jobwords_text(spec, "kind");
	const struct kind *kind = NULL;
	for (size_t i = 0; i < ARRAY_LENGTH(kinds) && !kind; i++)
		if (strcmp(kinds[i].kind, name) == 0)
			kind = &kinds[i];
	if (!kind)
		return err_set(err, ERR_UNSUPPORTED,
			"kind: this build has no jobs of the kind %.64s", name);
	if (jobfields_check(kind->fields, "", spec, err) < 0)
		return -1;
	const struct job_repository *r =
		jobplan_repository(options, jobwords_text(spec, "repository"));
	return r ? argv_of(kind, r, spec, argv, err) : jobplan_no_repository(spec, err);
}

json_t *jobplan_argv(const struct jobs_options *options, const json_t *spec, struct err *err)
{
	if (!jobwords_text(spec, "kind")) {
		err_set(err, ERR_USAGE, "kind: it is missing");
		return NULL;
	}
	json_t *argv = json_array();
	int rc = jobplan_vmware_is(spec) ? jobplan_vmware_argv(options, spec, argv, err)
					 : local_argv(options, spec, argv, err);
	if (rc == 0)
		return argv;
	json_decref(argv);
	return NULL;
}

bool jobplan_writes(const json_t *spec)
{
	const char *kind = jobwords_text(spec, "kind");
	if (!kind || !(jobwords_text(spec, "vm") || jobwords_text(spec, "machine")))
		return false;
	return strcmp(kind, "backup") == 0 || strcmp(kind, "push") == 0 ||
	       strcmp(kind, "replicate") == 0 ||
	       (strcmp(kind, "prune") == 0 && !json_is_true(json_object_get(spec, "dry_run")));
}

static bool same_text(const json_t *a, const json_t *b, const char *name)
{
	const char *one = jobwords_text(a, name), *other = jobwords_text(b, name);
	return one && other && strcmp(one, other) == 0;
}

bool jobplan_same_machine(const json_t *a, const json_t *b)
{
	return (same_text(a, b, "repository") && same_text(a, b, "vm")) ||
	       (same_text(a, b, "vcenter") && same_text(a, b, "machine"));
}

/* --- in the worker ------------------------------------------------------------------- */

static const char **list_of(const json_t *array)
{
	size_t i;
	const json_t *text;
	const char **list = calloc(json_array_size(array) + 1, sizeof *list);
	json_array_foreach(array, i, text)
	{
		if (list)
			list[i] = json_string_value(text);
	}
	return list;
}

static char *word_of(
	const json_t *word, const char *const *sources, const char *const *targets, struct err *err)
{
	char checked[ALLOW_NAME_BYTES], *text = NULL;
	if (json_is_string(word))
		return strdup(json_string_value(word));
	const char *use = jobwords_text(word, "use"), *name = jobwords_text(word, "name");
	bool is_source = use && strcmp(use, "source") == 0;
	if (!name || !jobwords_text(word, "text")) {
		err_set(err, ERR_FORMAT, "the plan is not one: a word of argv is none");
		return NULL;
	}
	if (allow_check(is_source ? sources : targets, is_source ? ALLOW_SOURCE : ALLOW_TARGET,
		    name, checked, err) < 0)
		return NULL;
	if (asprintf(&text, "%s%s", jobwords_text(word, "text"), checked) < 0) {
		err_errno(err, ENOMEM, "cannot read the plan");
		return NULL;
	}
	return text;
}

char **jobplan_words(const json_t *plan, struct err *err)
{
	const json_t *argv = json_object_get(plan, "argv"), *allow = json_object_get(plan, "allow");
	const char **AUTO_FREE sources = list_of(json_object_get(allow, "source"));
	const char **AUTO_FREE targets = list_of(json_object_get(allow, "target"));
	char **words = calloc(json_array_size(argv) + 1, sizeof *words);
	if (!words || !sources || !targets) {
		err_errno(err, ENOMEM, "cannot read the plan");
		free(words);
		return NULL;
	}
	size_t i;
	const json_t *word;
	json_array_foreach(argv, i, word)
	{
		words[i] = word_of(word, sources, targets, err);
		if (!words[i]) {
			jobplan_free(words);
			return NULL;
		}
	}
	return words;
}

int jobplan_may_open(void *plan, int fd, const char *path, const char *above, struct err *err)
{
	const json_t *allow = json_object_get(plan, "allow");
	const char *repository = jobwords_text(json_object_get(plan, "repository"), "path");
	const char **AUTO_FREE sources = list_of(json_object_get(allow, "source"));
	const char **AUTO_FREE targets = list_of(json_object_get(allow, "target"));
	char *AUTO_FREE own = repository ? realpath(repository, NULL) : NULL;
	if (!sources || !targets || (repository && !own))
		return err_errno(err, sources && targets ? errno : ENOMEM, "cannot use %s", path);
	const struct allow_job job = {sources, targets, own};
	return allow_opened(&job, fd, path, above, err);
}

void jobplan_free(char **words)
{
	for (size_t i = 0; words && words[i]; i++)
		free(words[i]);
	free(words);
}
