/* The command line of "sendense backup"; see backup.h. */
#include "backup.h"

#include "locator.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <string.h>

/* As in a list of changes. */
#define CHANGE_ID_BYTES_MOST 1023u

/* --- disks ------------------------------------------------------------------------ */

static int add_disk(struct backup *b, const char *key, const char *name, struct err *err)
{
	if (repository_name_check_key(key, err) < 0)
		return -1;
	for (size_t i = 0; i < b->nr_disks; i++) {
		if (strcmp(b->disks[i].key, key) == 0)
			return err_set(err, ERR_USAGE, "disk key %s is given twice", key);
		if (locator_same(b->disks[i].name, name))
			return err_set(err, ERR_USAGE, "disks %s and %s are the same source: %s",
				b->disks[i].key, key, name);
	}
	if (!b->qemu && !b->vmware && (qemu_source_is(name) || vmware_source_is(name)))
		return err_set(err, ERR_USAGE,
			"%s: a machine's disks have keys of their own (sendense %s ... %s, without "
			"--disk)",
			name, b->is_replica ? "replicate" : "backup", name);
	struct backup_disk *disk = &b->disks[b->nr_disks++];
	snprintf(disk->key, sizeof disk->key, "%s", key);
	snprintf(disk->label, sizeof disk->label, "disk %s", key);
	disk->name = name;
	return 0;
}

/* KEY of KEY=SOURCE as it was written, also when it is no good key. */
static int add_keyed_disk(struct backup *b, const char *text, struct err *err)
{
	size_t length = strcspn(text, "=:");
	if (text[length] != '=')
		return err_set(err, ERR_USAGE, "--disk %s: no key (--disk KEY=SOURCE)", text);
	/* One more than a key may have: a longer one is refused, not cut. */
	char key[REPOSITORY_KEY_BYTES + 1];
	snprintf(key, sizeof key, "%.*s", (int)min_size(length, sizeof key - 1), text);
	return add_disk(b, key, text + length + 1, err);
}

/* The machine tells its disks. */
static int open_machine(struct backup *b, struct err *err)
{
	const struct backup_values *v = b->values;
	const char *name = b->cli->arguments.items[0];
	if (vmware_source_is(name)) {
		const char *repo = v->store.repo ? v->store.repo : "";
		char purpose[512] = "a replica";
		if (!b->is_replica)
			snprintf(purpose, sizeof purpose, "repository %s", repo);
		b->vmware = vmware_source_open(b->cli, name, &v->vmware, &v->machine, purpose, err);
		return b->vmware ? 0 : -1;
	}
	struct qemu_source_options options = {
		.name = name,
		.agent = v->agent,
		.bitmaps = b->is_replica ? "sendense.replica-" : "sendense-",
		.scratch = v->scratch,
		.no_freeze = v->no_freeze,
		.cancel = b->cli->cancel,
	};
	b->qemu = qemu_source_open(&options, err);
	return b->qemu ? 0 : -1;
}

static size_t nr_machine_disks(const struct backup *b)
{
	return b->vmware ? vmware_nr_disks(b->vmware) : qemu_source_nr_disks(b->qemu);
}

static int add_machine_disks(struct backup *b, struct err *err)
{
	for (size_t i = 0; b->vmware && i < vmware_nr_disks(b->vmware); i++) {
		const struct vmware_disk *disk = vmware_disk(b->vmware, i);
		if (add_disk(b, disk->key, disk->name, err) < 0)
			return -1;
		b->disks[i].vmware = disk;
	}
	if (b->vmware)
		return 0;
	for (size_t i = 0; i < qemu_source_nr_disks(b->qemu); i++) {
		const struct qemu_source_disk *disk = qemu_source_disk(b->qemu, i);
		if (add_disk(b, disk->key, disk->name, err) < 0)
			return -1;
		b->disks[i].qemu = disk;
	}
	return 0;
}

/* Options that are for sources of another kind. */
static int check_kind(const struct backup *b, const char *source, struct err *err)
{
	const struct backup_values *v = b->values;
	const char *given = vmware_source_given(
		&v->vmware, &v->machine, b->is_replica ? "vmware-state-dir" : "state-dir");
	bool is_vmware = source && vmware_source_is(source);
	if (!(source && qemu_source_is(source)) && (v->agent || v->scratch || v->no_freeze))
		return err_set(err, ERR_USAGE,
			"--agent, --no-freeze and --scratch are for a machine in QEMU "
			"(qemu:SOCKET)");
	if (!is_vmware && given)
		return err_set(err, ERR_USAGE,
			"--%s is for a machine of a vCenter (vmware://USER@HOST/VM)", given);
	if (is_vmware && v->store.ca_file && v->store.repo && !store_is_url(v->store.repo))
		return err_set(err, ERR_USAGE,
			"--ca-file is a hub's, and %s is a folder (--vcenter-ca-file is the "
			"vCenter's)",
			v->store.repo);
	if (is_vmware && (v->change_ids.nr > 0 || v->bitmaps.nr > 0 || v->source_ids.nr > 0))
		return err_set(err, ERR_USAGE,
			"--change-id, --bitmap and --source-id: a machine of a vCenter tells "
			"these by itself");
	return 0;
}

static int read_disks(struct backup *b, struct err *err)
{
	const struct option_list *keyed = &b->values->disks, *sources = &b->cli->arguments;
	if (keyed->nr > 0 && sources->nr > 0)
		return err_set(err, ERR_USAGE,
			"%s has no key, but other disks have one (--disk KEY=%s)",
			sources->items[0], sources->items[0]);
	if (keyed->nr == 0 && sources->nr == 0)
		return err_set(
			err, ERR_USAGE, "which disk? (SOURCE, or --disk KEY=SOURCE for each)");
	size_t nr = keyed->nr + sources->nr;
	const char *source = sources->nr > 0 ? sources->items[0] : NULL;
	bool is_machine = source && (qemu_source_is(source) || vmware_source_is(source));
	if (check_kind(b, source, err) < 0 || (is_machine && open_machine(b, err) < 0))
		return -1;
	if (is_machine)
		nr = nr_machine_disks(b);
	if (nr > REPOSITORY_DISKS_MAX)
		return err_set(err, ERR_USAGE,
			"%zu disks are more than the %d of one restore point", nr,
			REPOSITORY_DISKS_MAX);
	b->disks = calloc(nr, sizeof *b->disks);
	b->offers = calloc(nr, sizeof *b->offers);
	b->decisions = calloc(nr, sizeof *b->decisions);
	b->copies = calloc(nr, sizeof *b->copies);
	if (!b->disks || !b->offers || !b->decisions || !b->copies)
		return err_errno(err, ENOMEM, "cannot back up");
	if (is_machine)
		return add_machine_disks(b, err);
	for (size_t i = 0; i < keyed->nr; i++)
		if (add_keyed_disk(b, keyed->items[i], err) < 0)
			return -1;
	return sources->nr > 0 ? add_disk(b, "disk0", sources->items[0], err) : 0;
}

/* --- what belongs to a disk --------------------------------------------------------- */

/*
 * Splits [KEY=]VALUE: *disk is that of the key, or, without a key, the only one; NULL
 * without a key when there are several.
 */
static int split(struct backup *b, const char *option, const char *text, struct backup_disk **disk,
	const char **value, struct err *err)
{
	char key[REPOSITORY_KEY_BYTES];
	disks_split_key(text, key, value);
	*disk = b->nr_disks == 1 ? b->disks : NULL;
	if (*value == text)
		return 0;
	for (size_t i = 0; i < b->nr_disks; i++) {
		*disk = &b->disks[i];
		if (strcmp(b->disks[i].key, key) == 0)
			return 0;
	}
	return err_set(
		err, ERR_USAGE, "--%s %s: there is no disk %s in this backup", option, text, key);
}

/* The options that give each disk a text. */
static int read_texts(struct backup *b, const char *option, const struct option_list *list,
	size_t member, struct err *err)
{
	for (size_t i = 0; i < list->nr; i++) {
		struct backup_disk *disk;
		const char *value;
		if (split(b, option, list->items[i], &disk, &value, err) < 0)
			return -1;
		if (!disk)
			return err_set(err, ERR_USAGE, "--%s %s: of which disk? (--%s KEY=%s)",
				option, value, option, value);
		const char **text = (const char **)((char *)disk + member);
		if (*text)
			return err_set(
				err, ERR_USAGE, "--%s: %s has one already", option, disk->label);
		size_t length = strlen(value);
		for (size_t k = 0; k < length; k++)
			if (iscntrl((unsigned char)value[k]))
				length = 0;
		if (length == 0 || length > CHANGE_ID_BYTES_MOST)
			return err_set(err, ERR_USAGE,
				"--%s: of %s: it needs 1 to %u bytes, none of them a control "
				"character",
				option, disk->label, CHANGE_ID_BYTES_MOST);
		*text = value;
	}
	return 0;
}

static int parse_change(
	const char *text, enum repository_change *change, const char **argument, struct err *err)
{
	static const struct {
		const char *scheme;
		enum repository_change change;
	} kinds[] = {
		{"bitmap:", REPOSITORY_CHANGE_BITMAP},
		{"extents:", REPOSITORY_CHANGE_EXTENTS},
	};
	*argument = NULL;
	*change = REPOSITORY_CHANGE_COMPARE;
	if (strcmp(text, "compare") == 0)
		return 0;
	for (size_t i = 0; i < ARRAY_LENGTH(kinds); i++) {
		size_t length = strlen(kinds[i].scheme);
		if (strncmp(text, kinds[i].scheme, length) == 0 && text[length]) {
			*argument = text + length;
			*change = kinds[i].change;
			return 0;
		}
	}
	return err_set(err, ERR_USAGE,
		"--changed-by %s: it is none of compare, bitmap:NAME, extents:FILE", text);
}

static int take_change(struct backup_disk *disk, const char *text, struct err *err)
{
	assert(disk->name);
	if (parse_change(text, &disk->change, &disk->change_argument, err) < 0)
		return -1;
	if (disk->vmware && disk->change == REPOSITORY_CHANGE_EXTENTS)
		return err_set(err, ERR_USAGE,
			"--changed-by %s: a machine of a vCenter tells its changes by itself",
			text);
	if (disk->change == REPOSITORY_CHANGE_BITMAP && strncmp(disk->name, "nbd", 3) != 0)
		return err_set(err, ERR_USAGE,
			"--changed-by %s: %s is no NBD export, and only those have bitmaps: %s",
			text, disk->label, disk->name);
	return 0;
}

/* What is said of one disk goes before what is said of all. */
static int read_changes(struct backup *b, struct err *err)
{
	const struct option_list *list = &b->values->changed_by;
	const char *for_all = NULL;
	for (size_t i = 0; i < list->nr; i++) {
		struct backup_disk *disk;
		const char *value;
		if (split(b, "changed-by", list->items[i], &disk, &value, err) < 0)
			return -1;
		if (disk ? disk->change != REPOSITORY_CHANGE_NONE : for_all != NULL)
			return err_set(err, ERR_USAGE, "--changed-by: given twice for %s",
				disk ? disk->label : "all disks");
		if (!disk)
			for_all = value;
		else if (take_change(disk, value, err) < 0)
			return -1;
	}
	for (size_t i = 0; for_all && i < b->nr_disks; i++)
		if (b->disks[i].change == REPOSITORY_CHANGE_NONE &&
			take_change(&b->disks[i], for_all, err) < 0)
			return -1;
	return 0;
}

/* --- all of it ---------------------------------------------------------------------- */

/* "1%", "0.5": thousandths, of which there are whole ones alone. */
static int parse_audit(const char *text, unsigned *per_mille, struct err *err)
{
	char *end;
	unsigned long whole = strtoul(text, &end, 10), tenths = 0;
	bool good = isdigit((unsigned char)text[0]) && whole <= 100;
	if (good && end[0] == '.' && isdigit((unsigned char)end[1])) {
		tenths = (unsigned long)(end[1] - '0');
		end += 2;
	}
	if (*end == '%')
		end++;
	*per_mille = (unsigned)(whole * 10 + tenths);
	if (!good || *end != '\0' || *per_mille < 1 || *per_mille > 1000)
		return err_set(err, ERR_USAGE,
			"--audit %s: it is no part of the disk from 0.1%% to 100%%, in steps of "
			"0.1%%",
			text);
	return 0;
}

int backup_args_read(struct backup *b, struct err *err)
{
	const struct backup_values *v = b->values;
	bool is_named_by_itself =
		b->cli->arguments.nr > 0 && vmware_source_is(b->cli->arguments.items[0]);
	if (!v->vm && !is_named_by_itself)
		return err_set(err, ERR_USAGE, "of which virtual machine? (--vm NAME)");
	if (v->vm && repository_name_check_vm(v->vm, err) < 0)
		return -1;
	snprintf(b->vm, sizeof b->vm, "%s", v->vm ? v->vm : "");
	if (v->resume && v->no_resume)
		return err_set(err, ERR_USAGE, "--resume and --no-resume: only one of them");
	if (v->audit && parse_audit(v->audit, &b->audit_per_mille, err) < 0)
		return -1;
	if (read_disks(b, err) < 0 || read_changes(b, err) < 0)
		return -1;
	const struct {
		const char *option;
		const struct option_list *list;
		size_t member;
	} texts[] = {
		{"change-id", &v->change_ids, offsetof(struct backup_disk, change_id)},
		{"source-id", &v->source_ids, offsetof(struct backup_disk, source_id)},
		{"bitmap", &v->bitmaps, offsetof(struct backup_disk, bitmap)},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(texts); i++)
		if (read_texts(b, texts[i].option, texts[i].list, texts[i].member, err) < 0)
			return -1;
	return 0;
}

void backup_args_free(struct backup *b)
{
	for (size_t i = 0; i < b->nr_disks; i++)
		free(b->disks[i].since);
	free(b->copies);
	free(b->decisions);
	free(b->offers);
	free(b->disks);
}
