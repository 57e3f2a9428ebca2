/* The targets of "sendense replicate"; see replicate.h. */
#include "replicate.h"

#include "locator.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>

#define BY_ID "/dev/disk/by-id"

/* --- the mapping ------------------------------------------------------------------------ */

static int check_distinct(
	const struct replicate *r, const char *option, size_t at, const char *name, struct err *err)
{
	const struct backup *sources = &r->sources;
	for (size_t i = 0; i < r->nr_targets; i++) {
		if (i != at && r->targets[i].name && locator_same(r->targets[i].name, name))
			return err_set(err, ERR_USAGE,
				"%s: disks %s and %s would go to the same target: %s", option,
				sources->disks[i].key, sources->disks[at].key, name);
		if (locator_same(sources->disks[i].name, name))
			return err_set(err, ERR_USAGE, "%s: %s is the source of disk %s", option,
				name, sources->disks[i].key);
	}
	return 0;
}

static int add_target(struct replicate *r, const char *option, const char *key, const char *name,
	size_t *at, struct err *err)
{
	enum locator_kind kind;
	const char *rest;
	for (*at = 0; *at < r->nr_targets; (*at)++)
		if (strcmp(r->sources.disks[*at].key, key) == 0)
			break;
	if (*at == r->nr_targets)
		return err_set(err, ERR_USAGE, "%s: there is no disk %s to replicate (%s)", option,
			key, name);
	if (r->targets[*at].name)
		return err_set(err, ERR_USAGE, "%s: disk %s has a target already: %s", option, key,
			r->targets[*at].name);
	if (locator_parse(name, &kind, &rest, err) < 0)
		return -1;
	if (kind != LOCATOR_RAW && kind != LOCATOR_NBD)
		return err_set(err, ERR_USAGE,
			"%s: disk %s: a replica is raw (raw:PATH, nbd://...), not %s", option, key,
			name);
	if (check_distinct(r, option, *at, name, err) < 0)
		return -1;
	r->targets[*at].name = name;
	return 0;
}

static int read_targets(struct replicate *r, struct err *err)
{
	const struct option_list *list = &r->values->targets;
	for (size_t i = 0; i < list->nr; i++) {
		char key[REPOSITORY_KEY_BYTES];
		const char *name;
		size_t at;
		disks_split_key(list->items[i], key, &name);
		if (name == list->items[i])
			return err_set(err, ERR_USAGE,
				"--target %s: of which disk? (--target KEY=TARGET)", name);
		if (add_target(r, "--target", key, name, &at, err) < 0)
			return -1;
	}
	return 0;
}

/* KEY:URI,KEY:URI: a URI holds no comma. */
static int read_nbd_targets(struct replicate *r, struct err *err)
{
	const char *text = r->values->nbd_targets;
	while (text && *text) {
		size_t length = strcspn(text, ","), key_length = strcspn(text, ":,"), at;
		char key[REPOSITORY_KEY_BYTES + 1];
		if (text[key_length] != ':')
			return err_set(err, ERR_USAGE, "--nbd-targets: %.*s is not KEY:URI",
				(int)length, text);
		snprintf(key, sizeof key, "%.*s", (int)min_size(key_length, sizeof key - 1), text);
		char *uri = strndup(text + key_length + 1, length - key_length - 1);
		if (!uri)
			return err_errno(err, ENOMEM, "cannot read --nbd-targets");
		if (strncmp(uri, "nbd", 3) != 0 ||
			add_target(r, "--nbd-targets", key, uri, &at, err) < 0) {
			if (strncmp(uri, "nbd", 3) != 0)
				err_set(err, ERR_USAGE, "--nbd-targets: disk %s: %s is no nbd URI",
					key, uri);
			free(uri);
			return -1;
		}
		r->targets[at].owned = uri;
		text += length;
		text += *text == ',';
	}
	return 0;
}

int replicate_targets_read(struct replicate *r, struct err *err)
{
	size_t nr = r->sources.nr_disks;
	r->targets = calloc(nr, sizeof *r->targets);
	if (!r->targets)
		return err_errno(err, ENOMEM, "cannot replicate");
	r->nr_targets = nr;
	if (read_targets(r, err) < 0 || read_nbd_targets(r, err) < 0)
		return -1;
	for (size_t i = 0; i < nr; i++)
		if (!r->targets[i].name)
			return err_set(err, ERR_USAGE, "disk %s has no target (--target %s=TARGET)",
				r->sources.disks[i].key, r->sources.disks[i].key);
	return 0;
}

/* --- opening -------------------------------------------------------------------------------- */

/* A device must be nobody else's: mounted, or part of another one.  It is not held so: the kernel
 * would let nobody punch holes then, through another descriptor. */
static int check_device(const char *name, const char *path, struct err *err)
{
	int AUTO_CLOSE fd = open(path, O_RDONLY | O_EXCL | O_CLOEXEC);
	if (fd >= 0)
		return 0;
	if (errno == EBUSY)
		return err_set(
			err, ERR_BUSY, "%s is in use (mounted, or part of another device)", name);
	return err_errno(err, errno, "cannot open %s", name);
}

static struct block *open_target(const struct replicate *r, const char *name, struct err *err)
{
	const char *path = locator_path(name);
	struct stat st;
	struct locator_options open = {.read_only = false, .cancel = r->cli->cancel};
	if (path && repository_path_guard(path, err) < 0)
		return NULL;
	if (path && stat(path, &st) == 0 && S_ISBLK(st.st_mode) &&
		check_device(name, path, err) < 0)
		return NULL;
	tls_options_set(&open.nbd, name, &r->values->source.tls);
	struct block *block = locator_open(name, &open, err);
	if (!block && path && err && err->code == ERR_NOT_FOUND)
		err_hint(err, "a file must be there and have the disk's size: truncate -s SIZE");
	return block;
}

struct block *replicate_targets_again(void *context, const char *target, struct err *err)
{
	return open_target(context, target, err);
}

/* --- what a target is known by -----------------------------------------------------------------
 */

/* The first name in by-id that leads to the device; names there stay, whatever the order in which
 * devices come up. */
static bool find_by_id(dev_t device, char out[NAME_MAX + 1])
{
	DIR *folder = opendir(BY_ID);
	struct dirent *entry;
	out[0] = '\0';
	while (folder && (entry = readdir(folder))) {
		struct stat st;
		if (fstatat(dirfd(folder), entry->d_name, &st, 0) == 0 && S_ISBLK(st.st_mode) &&
			st.st_rdev == device && (!out[0] || strcmp(entry->d_name, out) < 0))
			snprintf(out, NAME_MAX + 1, "%s", entry->d_name);
	}
	if (folder)
		closedir(folder);
	return out[0] != '\0';
}

static char *device_id(const char *path, dev_t device)
{
	char by_id[NAME_MAX + 1], *id = NULL;
	bool found = find_by_id(device, by_id);
	if (!found && strncmp(path, "/dev/disk/", 10) != 0 &&
		strncmp(path, "/dev/mapper/", 12) != 0)
		log_warning("raw:%s: that name may be another device's after a boot, and there is "
			    "none in %s for it",
			path, BY_ID);
	if (asprintf(&id, "device %s", found ? by_id : path) < 0)
		return NULL;
	return id;
}

static char *file_id(const char *path, const struct stat *st)
{
	char *AUTO_FREE real = realpath(path, NULL);
	char *id = NULL;
	if (!real || asprintf(&id, "file %s (inode %" PRIu64 ")", real, (uint64_t)st->st_ino) < 0)
		return NULL;
	return id;
}

static int find_id(struct replicate_target *target, struct err *err)
{
	const char *path = locator_path(target->name);
	struct stat st;
	if (path && stat(path, &st) < 0)
		return err_errno(err, errno, "cannot stat %s", target->name);
	if (!path)
		target->id = strdup(target->name);
	else if (S_ISBLK(st.st_mode))
		target->id = device_id(path, st.st_rdev);
	else
		target->id = file_id(path, &st);
	return target->id ? 0 : err_errno(err, ENOMEM, "cannot note the target %s", target->name);
}

int replicate_targets_open(struct replicate *r, struct err *err)
{
	for (size_t i = 0; i < r->nr_targets; i++) {
		struct replicate_target *target = &r->targets[i];
		target->block = open_target(r, target->name, err);
		if (!target->block || find_id(target, err) < 0)
			return err_context(err, "target of disk %s", r->sources.disks[i].key);
	}
	return 0;
}

void replicate_targets_close(struct replicate *r)
{
	for (size_t i = 0; i < r->nr_targets; i++) {
		struct replicate_target *target = &r->targets[i];
		struct err err = ERR_INIT;
		/* What was copied is synced before the commit. */
		if (block_close(target->block, &err) < 0)
			log_warning("%s", err.text);
		free(target->owned);
		free(target->id);
	}
	free(r->targets);
	r->targets = NULL;
	r->nr_targets = 0;
}
