/* Disks by their names; see locator.h. */
#include "locator_internal.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

/* --- opening ------------------------------------------------------------------- */

static int refuse_machine(const char *name, enum locator_kind kind, struct err *err)
{
	if (kind != LOCATOR_QEMU)
		return 0;
	return err_set(err, ERR_UNSUPPORTED,
		"%s is a running machine, not one disk (sendense backup reads from it)", name);
}

static struct block *open_null(const char *size, struct err *err)
{
	uint64_t bytes;
	if (locator_parse_size(size, &bytes, err) < 0)
		return NULL;
	if (bytes > INT64_MAX) {
		err_set(err, ERR_USAGE, "null:%s: a disk has at most 2^63 - 1 bytes", size);
		return NULL;
	}
	return block_null_open(bytes, err);
}

struct block *locator_open(const char *name, const struct locator_options *options, struct err *err)
{
	enum locator_kind kind;
	const char *rest;
	if (locator_parse(name, &kind, &rest, err) < 0 || refuse_machine(name, kind, err) < 0)
		return NULL;
	if (kind == LOCATOR_RAW)
		return block_raw_open(rest, options->read_only, err);
	if (kind == LOCATOR_NULL)
		return open_null(rest, err);
	if (kind == LOCATOR_QCOW2) {
		struct qcow2_open_options image = {
			.read_only = options->read_only,
			.allow_backing = options->allow_backing,
		};
		return qcow2_open(rest, &image, err);
	}
	struct nbd_client_options client = options->nbd;
	client.read_only = options->read_only;
	return nbd_client_open(rest, &client, options->cancel, err);
}

/* --- making a target ------------------------------------------------------------- */

/* Whether one of this process's descriptors is that file.  This finds the source
 * under another name, and every image of its backing chain. */
static bool is_open_here(const struct stat *file)
{
	DIR *folder = opendir("/proc/self/fd");
	if (!folder)
		return false;
	bool found = false;
	struct dirent *entry;
	while (!found && (entry = readdir(folder))) {
		struct stat st;
		if (isdigit((unsigned char)entry->d_name[0]) &&
			fstatat(dirfd(folder), entry->d_name, &st, 0) == 0)
			found = locator_same_file(file, &st);
	}
	closedir(folder);
	return found;
}

static int check_size(struct block *block, uint64_t size_bytes, struct err *err)
{
	uint64_t has = block_info(block)->size_bytes;
	if (has != size_bytes)
		return err_set(err, ERR_RANGE,
			"%s has %" PRIu64 " bytes, and %" PRIu64
			" are to be written (sizes must be equal)",
			block_label(block), has, size_bytes);
	if (block_info(block)->read_only)
		return err_set(err, ERR_DENIED, "%s is read-only", block_label(block));
	return 0;
}

static struct block *open_device(
	const char *path, const struct locator_create_options *options, struct err *err)
{
	if (!options->replace) {
		err_set(err, ERR_EXISTS, "raw:%s is a device and may hold data", path);
		return NULL;
	}
	/* O_EXCL on a device: fails while it is mounted or part of something. */
	int AUTO_CLOSE fd = open(path, O_RDONLY | O_EXCL | O_CLOEXEC);
	if (fd < 0 && errno == EBUSY) {
		err_set(err, ERR_BUSY, "raw:%s is in use (mounted, or part of another device)",
			path);
		return NULL;
	}
	return block_raw_open(path, false, err);
}

static struct block *make_file(enum locator_kind kind, const char *path,
	const struct locator_create_options *options, struct err *err)
{
	if (kind == LOCATOR_RAW)
		return block_raw_create(path, options->size_bytes, options->replace, err);
	struct qcow2_create_options create = {
		.size_bytes = options->size_bytes,
		.cluster_bytes = options->cluster_bytes,
		.compression = options->compression,
		.replace = options->replace,
	};
	struct qcow2_open_options open = {.compress = options->compress};
	if (qcow2_create(path, &create, err) < 0)
		return NULL;
	struct block *block = qcow2_open(path, &open, err);
	if (!block)
		unlink(path);
	return block;
}

static struct block *create_file(enum locator_kind kind, const char *name, const char *path,
	const struct locator_create_options *options, bool *created, struct err *err)
{
	struct stat st;
	bool exists = stat(path, &st) == 0;
	if (exists && (S_ISREG(st.st_mode) || S_ISBLK(st.st_mode)) && is_open_here(&st)) {
		err_set(err, ERR_BUSY, "%s is the source, or the source is built on it", name);
		return NULL;
	}
	if (exists && S_ISBLK(st.st_mode)) {
		if (kind == LOCATOR_RAW)
			return open_device(path, options, err);
		err_set(err, ERR_UNSUPPORTED, "%s is a device (images are made in files)", name);
		return NULL;
	}
	if (exists && !S_ISREG(st.st_mode)) {
		err_set(err, ERR_FORMAT, "%s is neither a file nor a block device", name);
		return NULL;
	}
	struct block *block = make_file(kind, path, options, err);
	*created = block != NULL;
	return block;
}

struct block *locator_create(const char *name, const struct locator_create_options *options,
	bool *created, struct err *err)
{
	enum locator_kind kind;
	const char *rest;
	*created = false;
	if (locator_parse(name, &kind, &rest, err) < 0 || refuse_machine(name, kind, err) < 0)
		return NULL;
	struct block *block;
	if (kind == LOCATOR_NULL)
		block = open_null(rest, err);
	else if (kind == LOCATOR_NBD)
		block = nbd_client_open(rest, &options->nbd, options->cancel, err);
	else
		block = create_file(kind, name, rest, options, created, err);
	if (block && !*created && check_size(block, options->size_bytes, err) < 0) {
		block_close(block, NULL);
		return NULL;
	}
	return block;
}

void locator_discard(const char *name)
{
	const char *path = locator_path(name);
	if (path && unlink(path) < 0 && errno != ENOENT)
		log_warning("cannot remove the unfinished %s: %s", path, strerror(errno));
}

int locator_settle(const char *name, struct err *err)
{
	const char *path = locator_path(name);
	const char *slash = path ? strrchr(path, '/') : NULL;
	if (!path)
		return 0;
	if (!slash)
		return file_sync_dir(AT_FDCWD, ".", err);
	char folder[PATH_MAX];
	snprintf(folder, sizeof folder, "%.*s", slash == path ? 1 : (int)(slash - path), path);
	return file_sync_dir(AT_FDCWD, folder, err);
}
