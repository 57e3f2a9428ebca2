/* From what is asked for to the words of a command line; see jobplan.h. */
#include "jobplan.h"

#include "allow.h"
#include "repository.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define DISKS_MOST REPOSITORY_DISKS_MAX
#define TEXT_MOST 4096u

/* --- fields -------------------------------------------------------------------------- */

enum field_type { TEXT, BOOL, INTEGER, NUMBER, ARRAY, OBJECT, VM, KEY, POINT };

struct field {
	const char *name;
	enum field_type type;
	bool required;
	json_int_t least, most; /* INTEGER */
	const char *const *choices; /* TEXT */
};

#define ALL_KINDS                                                                 \
	{"kind", TEXT, true, 0, 0, NULL}, {"repository", TEXT, true, 0, 0, NULL}, \
	{                                                                         \
		"reserve_bytes", INTEGER, false, 0, INT64_MAX, NULL               \
	}

static const char *const modes[] = {"auto", "full", "incremental", NULL};
static const char *const compressions[] = {"none", "zlib", "zstd", NULL};

static const struct field backup_fields[] = {ALL_KINDS, {"vm", VM, true, 0, 0, NULL},
	{"disks", ARRAY, true, 1, DISKS_MOST, NULL}, {"mode", TEXT, false, 0, 0, modes},
	{"audit", NUMBER, false, 0, 0, NULL}, {"limit_rate", INTEGER, false, 1, INT64_MAX, NULL},
	{"parallel", INTEGER, false, 1, 16, NULL}, {"resume", BOOL, false, 0, 0, NULL},
	{"no_freeze", BOOL, false, 0, 0, NULL}, {NULL, TEXT, false, 0, 0, NULL}};
static const struct field disk_fields[] = {{"key", KEY, false, 0, 0, NULL},
	{"source", TEXT, true, 0, 0, NULL}, {"changed_by", TEXT, false, 0, 0, NULL},
	{"change_id", TEXT, false, 0, 0, NULL}, {"bitmap", TEXT, false, 0, 0, NULL},
	{"source_id", TEXT, false, 0, 0, NULL}, {NULL, TEXT, false, 0, 0, NULL}};
static const struct field restore_fields[] = {ALL_KINDS, {"vm", VM, true, 0, 0, NULL},
	{"point", POINT, false, 0, 0, NULL}, {"targets", ARRAY, true, 1, DISKS_MOST, NULL},
	{"force", BOOL, false, 0, 0, NULL}, {"compression", TEXT, false, 0, 0, compressions},
	{"limit_rate", INTEGER, false, 1, INT64_MAX, NULL}, {NULL, TEXT, false, 0, 0, NULL}};
static const struct field target_fields[] = {{"key", KEY, false, 0, 0, NULL},
	{"target", TEXT, true, 0, 0, NULL}, {NULL, TEXT, false, 0, 0, NULL}};
static const struct field verify_fields[] = {ALL_KINDS, {"vm", VM, false, 0, 0, NULL},
	{"point", POINT, false, 0, 0, NULL}, {"time_box_s", INTEGER, false, 1, 31536000, NULL},
	{NULL, TEXT, false, 0, 0, NULL}};
static const struct field prune_fields[] = {ALL_KINDS, {"vm", VM, false, 0, 0, NULL},
	{"keep", OBJECT, true, 0, 0, NULL}, {"timezone", TEXT, false, 0, 0, NULL},
	{"dry_run", BOOL, false, 0, 0, NULL}, {"trust_clock", BOOL, false, 0, 0, NULL},
	{NULL, TEXT, false, 0, 0, NULL}};
static const struct field keep_fields[] = {{"last", INTEGER, false, 1, 1000000, NULL},
	{"hourly", INTEGER, false, 1, 1000000, NULL}, {"daily", INTEGER, false, 1, 1000000, NULL},
	{"weekly", INTEGER, false, 1, 1000000, NULL}, {"monthly", INTEGER, false, 1, 1000000, NULL},
	{"yearly", INTEGER, false, 1, 1000000, NULL},
	{"within_s", INTEGER, false, 1, 1000LL * 366 * 86400, NULL},
	{NULL, TEXT, false, 0, 0, NULL}};
static const struct field reindex_fields[] = {ALL_KINDS, {NULL, TEXT, false, 0, 0, NULL}};

static bool is_choice(const char *const *choices, const char *text)
{
	for (size_t i = 0; choices && choices[i]; i++)
		if (strcmp(choices[i], text) == 0)
			return true;
	return !choices;
}

static int check_text(
	const struct field *f, const char *where, const json_t *value, struct err *err)
{
	const char *text = json_string_value(value);
	size_t length = text ? strlen(text) : 0;
	if (!text || length != json_string_length(value) || length == 0 || length > TEXT_MOST)
		return err_set(err, ERR_USAGE, "%s%s: it is no text of 1 to %u bytes", where,
			f->name, TEXT_MOST);
	for (size_t i = 0; i < length; i++)
		if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f)
			return err_set(err, ERR_USAGE, "%s%s: it holds a control character", where,
				f->name);
	int rc = 0;
	if (f->type == VM)
		rc = repository_name_check_vm(text, err);
	else if (f->type == KEY)
		rc = repository_name_check_key(text, err);
	else if (f->type == POINT && !repository_name_is_point(text))
		rc = err_set(err, ERR_USAGE, "%s is no restore point's id", text);
	else if (!is_choice(f->choices, text))
		rc = err_set(err, ERR_USAGE, "%s is none of those that there are", text);
	return rc < 0 ? err_context(err, "%s%s", where, f->name) : 0;
}

static int check_value(
	const struct field *f, const char *where, const json_t *value, struct err *err)
{
	static const char *const names[] = {[BOOL] = "neither true nor false",
		[INTEGER] = "no whole number",
		[NUMBER] = "no number",
		[ARRAY] = "no list",
		[OBJECT] = "no object"};
	bool good = true;
	switch (f->type) {
	case BOOL:
		good = json_is_boolean(value);
		break;
	case INTEGER:
		good = json_is_integer(value);
		break;
	case NUMBER:
		good = json_is_number(value);
		break;
	case ARRAY:
		good = json_is_array(value);
		break;
	case OBJECT:
		good = json_is_object(value);
		break;
	default:
		return check_text(f, where, value, err);
	}
	if (!good)
		return err_set(err, ERR_USAGE, "%s%s: it is %s", where, f->name, names[f->type]);
	json_int_t nr = f->type == INTEGER ? json_integer_value(value)
			: f->type == ARRAY ? (json_int_t)json_array_size(value)
					   : f->least;
	if (nr < f->least || (f->most > 0 && nr > f->most))
		return err_set(err, ERR_USAGE,
			"%s%s: must be %" JSON_INTEGER_FORMAT " to %" JSON_INTEGER_FORMAT
			"%s, not %" JSON_INTEGER_FORMAT,
			where, f->name, f->least, f->most, f->type == ARRAY ? " members" : "", nr);
	return 0;
}

/* where: "disks[0]." */
static int check_fields(
	const struct field *fields, const char *where, const json_t *object, struct err *err)
{
	const char *name;
	json_t *value;
	if (!json_is_object(object))
		return err_set(err, ERR_USAGE, "%sit is no object", where);
	json_object_foreach((json_t *)object, name, value)
	{
		const struct field *f = fields;
		while (f->name && strcmp(f->name, name) != 0)
			f++;
		if (!f->name)
			return err_set(
				err, ERR_USAGE, "%s%.64s: there is no such field", where, name);
		if ((f->required || !json_is_null(value)) && check_value(f, where, value, err) < 0)
			return -1;
	}
	for (const struct field *f = fields; f->name; f++)
		if (f->required && !json_object_get(object, f->name))
			return err_set(err, ERR_USAGE, "%s%s: it is missing", where, f->name);
	return 0;
}

/* --- words --------------------------------------------------------------------------- */

static const char *text_of(const json_t *object, const char *name)
{
	return json_string_value(json_object_get(object, name));
}

static void add(json_t *argv, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void add(json_t *argv, const char *format, ...)
{
	va_list list;
	char *word = NULL;
	va_start(list, format);
	if (vasprintf(&word, format, list) >= 0)
		json_array_append_new(argv, json_string(word));
	va_end(list);
	free(word);
}

/* --NAME=[KEY=]TEXT */
static void add_keyed(json_t *argv, const char *option, const json_t *disk, const char *member)
{
	const char *key = text_of(disk, "key"), *text = text_of(disk, member);
	if (text)
		add(argv, "--%s=%s%s%s", option, key ? key : "", key ? "=" : "", text);
}

static void add_number(json_t *argv, const char *option, const json_t *object, const char *member)
{
	const json_t *value = json_object_get(object, member);
	if (json_is_integer(value))
		add(argv, "--%s=%" JSON_INTEGER_FORMAT, option, json_integer_value(value));
}

static void add_flag(json_t *argv, const char *option, const json_t *object, const char *member)
{
	if (json_is_true(json_object_get(object, member)))
		add(argv, "--%s", option);
}

/* A word that names a disk. */
static void add_disk(json_t *argv, const char *before, const json_t *disk, const char *use)
{
	char text[160] = "";
	const char *key = text_of(disk, "key");
	if (before[0] || key)
		snprintf(text, sizeof text, "%s%s%s", before, key ? key : "", key ? "=" : "");
	json_array_append_new(argv,
		json_pack("{s:s, s:s, s:s}", "text", text, "use", use, "name", text_of(disk, use)));
}

static void add_point(json_t *argv, const json_t *spec)
{
	const char *vm = text_of(spec, "vm"), *point = text_of(spec, "point");
	if (!vm)
		return;
	add(argv, "--");
	add(argv, "%s%s%s", vm, point ? "@" : "", point ? point : "");
}

/* --- kinds ---------------------------------------------------------------------------- */

/* "extents:FILE" names a file of ours.  Nothing unknown is passed on: the command line might
 * find a key and such a file in it. */
static int add_changed_by(json_t *argv, const char *where, const json_t *disk, struct err *err)
{
	const char *key = text_of(disk, "key"), *text = text_of(disk, "changed_by");
	if (!text)
		return 0;
	if (strcmp(text, "compare") == 0 || strncmp(text, "bitmap:", 7) == 0) {
		add_keyed(argv, "changed-by", disk, "changed_by");
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
	add(argv, "--vm=%s", text_of(spec, "vm"));
	if (text_of(spec, "mode"))
		add(argv, "--mode=%s", text_of(spec, "mode"));
	if (json_number_value(audit) > 0)
		add(argv, "--audit=%.1f%%", json_number_value(audit));
	add_number(argv, "limit-rate", spec, "limit_rate");
	add_number(argv, "parallel", spec, "parallel");
	add_flag(argv, "no-freeze", spec, "no_freeze");
	if (json_is_boolean(resume))
		add(argv, "%s", json_is_true(resume) ? "--resume" : "--no-resume");
	const json_t *alone = NULL;
	json_array_foreach(disks, i, disk)
	{
		char where[32];
		snprintf(where, sizeof where, "disks[%zu].", i);
		if (check_fields(disk_fields, where, disk, err) < 0 ||
			add_changed_by(argv, where, disk, err) < 0)
			return -1;
		add_keyed(argv, "change-id", disk, "change_id");
		add_keyed(argv, "bitmap", disk, "bitmap");
		add_keyed(argv, "source-id", disk, "source_id");
		const char *source = text_of(disk, "source");
		if (text_of(disk, "key") && source && strncmp(source, "qemu:", 5) == 0)
			return err_set(err, ERR_USAGE,
				"%skey: a machine's disks have keys of their own (leave it out)",
				where);
		if (text_of(disk, "key"))
			add_disk(argv, "--disk=", disk, "source");
		else if (json_array_size(disks) == 1)
			alone = disk;
		else
			return err_set(err, ERR_USAGE,
				"%skey: it is missing (of several disks each needs one)", where);
	}
	if (alone) {
		add(argv, "--");
		add_disk(argv, "", alone, "source");
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
		if (check_fields(target_fields, where, target, err) < 0)
			return -1;
		add_disk(argv, "--to=", target, "target");
	}
	add_flag(argv, "force", spec, "force");
	if (text_of(spec, "compression"))
		add(argv, "--compression=%s", text_of(spec, "compression"));
	add_number(argv, "limit-rate", spec, "limit_rate");
	add_point(argv, spec);
	return 0;
}

static int verify_argv(json_t *argv, const json_t *spec, struct err *err)
{
	if (text_of(spec, "point") && !text_of(spec, "vm"))
		return err_set(err, ERR_USAGE, "vm: it is missing (whose restore point is it?)");
	add_number(argv, "time-box", spec, "time_box_s");
	add_point(argv, spec);
	return 0;
}

static int prune_argv(json_t *argv, const json_t *spec, struct err *err)
{
	static const char *const rules[] = {
		"last", "hourly", "daily", "weekly", "monthly", "yearly"};
	const json_t *keep = json_object_get(spec, "keep");
	if (check_fields(keep_fields, "keep.", keep, err) < 0)
		return -1;
	if (json_object_size(keep) == 0)
		return err_set(
			err, ERR_USAGE, "keep: no rule says which restore points are to be kept");
	for (size_t i = 0; i < ARRAY_LENGTH(rules); i++) {
		char option[32];
		snprintf(option, sizeof option, "keep-%s", rules[i]);
		add_number(argv, option, keep, rules[i]);
	}
	add_number(argv, "keep-within", keep, "within_s");
	if (text_of(spec, "timezone"))
		add(argv, "--timezone=%s", text_of(spec, "timezone"));
	add_flag(argv, "dry-run", spec, "dry_run");
	add_flag(argv, "trust-clock", spec, "trust_clock");
	add_point(argv, spec);
	return 0;
}

/* The hub alone writes its index: a worker reads everything, and tells what there is. */
static int reindex_argv(json_t *argv, const json_t *spec, struct err *err)
{
	(void)spec;
	(void)err;
	add(argv, "--dry-run");
	return 0;
}

static const struct {
	const char *kind, *command, *second; /* words of the command; with the second one the
						repository is an argument */
	const struct field *fields;
	int (*argv)(json_t *argv, const json_t *spec, struct err *err);
} kinds[] = {
	{"backup", "backup", NULL, backup_fields, backup_argv},
	{"restore", "restore", NULL, restore_fields, restore_argv},
	{"verify", "verify", NULL, verify_fields, verify_argv},
	{"prune", "prune", NULL, prune_fields, prune_argv},
	{"reindex", "repo", "reindex", reindex_fields, reindex_argv},
};

json_t *jobplan_argv(const json_t *spec, const char *repository_path, struct err *err)
{
	const char *kind = text_of(spec, "kind");
	if (!kind) {
		err_set(err, ERR_USAGE, "kind: it is missing");
		return NULL;
	}
	for (size_t i = 0; i < ARRAY_LENGTH(kinds); i++) {
		if (strcmp(kinds[i].kind, kind) != 0)
			continue;
		if (check_fields(kinds[i].fields, "", spec, err) < 0)
			return NULL;
		json_t *argv = json_array();
		add(argv, "%s", kinds[i].command);
		if (kinds[i].second)
			add(argv, "%s", kinds[i].second);
		add(argv, "--json");
		if (!kinds[i].second)
			add(argv, "--repo=%s", repository_path);
		int rc = kinds[i].argv(argv, spec, err);
		if (kinds[i].second) {
			add(argv, "--");
			add(argv, "%s", repository_path);
		}
		if (rc == 0)
			return argv;
		json_decref(argv);
		return NULL;
	}
	err_set(err, ERR_UNSUPPORTED, "kind: this build has no jobs of the kind %.64s", kind);
	return NULL;
}

bool jobplan_writes(const json_t *spec)
{
	const char *kind = text_of(spec, "kind");
	return kind && text_of(spec, "vm") &&
	       (strcmp(kind, "backup") == 0 || strcmp(kind, "push") == 0 ||
		       (strcmp(kind, "prune") == 0 &&
			       !json_is_true(json_object_get(spec, "dry_run"))));
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
	const char *use = text_of(word, "use"), *name = text_of(word, "name");
	bool is_source = use && strcmp(use, "source") == 0;
	if (!name || !text_of(word, "text")) {
		err_set(err, ERR_FORMAT, "the plan is not one: a word of argv is none");
		return NULL;
	}
	if (allow_check(is_source ? sources : targets, is_source ? ALLOW_SOURCE : ALLOW_TARGET,
		    name, checked, err) < 0)
		return NULL;
	if (asprintf(&text, "%s%s", text_of(word, "text"), checked) < 0) {
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
	const char *repository = text_of(json_object_get(plan, "repository"), "path");
	const char **AUTO_FREE sources = list_of(json_object_get(allow, "source"));
	const char **AUTO_FREE targets = list_of(json_object_get(allow, "target"));
	char *AUTO_FREE own = repository ? realpath(repository, NULL) : NULL;
	if (!sources || !targets || !own)
		return err_errno(err, own ? ENOMEM : errno, "cannot use %s", path);
	const struct allow_job job = {sources, targets, own};
	return allow_opened(&job, fd, path, above, err);
}

void jobplan_free(char **words)
{
	for (size_t i = 0; words && words[i]; i++)
		free(words[i]);
	free(words);
}
