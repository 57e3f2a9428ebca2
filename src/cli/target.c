/* Targets; see target.h. */
#include "target.h"

#include "repository.h"

#include <string.h>
#include <sys/stat.h>

const char *const target_compressions[] = {"none", "zlib", "zstd", NULL};

static int check_options(const char *name, const struct target_options *options, struct err *err)
{
	enum locator_kind kind;
	const char *rest;
	if (locator_parse(name, &kind, &rest, err) < 0)
		return -1;
	bool for_image = options->compression || options->cluster_bytes.given;
	if (for_image && kind != LOCATOR_QCOW2)
		return err_set(err, ERR_USAGE,
			"--compression and --cluster-size are for qcow2: targets, not for %s",
			name);
	uint64_t cluster = options->cluster_bytes.value;
	if (options->cluster_bytes.given && (cluster & (cluster - 1)) != 0)
		return err_set(err, ERR_USAGE, "--cluster-size: %llu is not a power of two",
			(unsigned long long)cluster);
	return 0;
}

int target_open(struct target *target, const char *name, const struct target_options *options,
	const struct tls_options *tls, uint64_t size_bytes, struct cancel *cancel, struct err *err)
{
	*target = (struct target){.name = name};
	if (check_options(name, options, err) < 0)
		return -1;
	const char *path = locator_path(name);
	if (path && repository_path_guard(path, err) < 0)
		return err_hint(err, "restore points are made by \"sendense backup\" alone");
	const char *compression = options->compression ? options->compression : "none";
	struct locator_create_options create = {
		.size_bytes = size_bytes,
		.replace = options->force,
		.compress = strcmp(compression, "none") != 0,
		.compression = strcmp(compression, "zstd") == 0 ? QCOW2_ZSTD : QCOW2_ZLIB,
		.cluster_bytes = (uint32_t)options->cluster_bytes.value,
		.cancel = cancel,
	};
	tls_options_set(&create.nbd, name, tls);
	target->block = locator_create(name, &create, &target->created, err);
	if (target->block)
		return 0;
	if (err && err->code == ERR_EXISTS)
		err_hint(err, "--force overwrites it");
	return -1;
}

int target_finish(struct target *target, uint64_t *stored_bytes, struct err *err)
{
	uint64_t stored = block_stored_bytes(target->block);
	int rc = block_close(target->block, err);
	target->block = NULL;
	if (rc == 0 && target->created)
		rc = locator_settle(target->name, err);
	if (rc < 0) {
		target_discard(target, err);
		return -1;
	}
	struct stat st;
	if (target->created && stat(locator_path(target->name), &st) == 0)
		stored = (uint64_t)st.st_blocks * 512;
	if (stored_bytes)
		*stored_bytes = stored;
	target->created = false;
	return 0;
}

void target_discard(struct target *target, struct err *err)
{
	bool was_written = target->block != NULL;
	block_close(target->block, NULL);
	target->block = NULL;
	if (target->created) {
		locator_discard(target->name);
		err_hint(err, "the unfinished %s was removed", target->name);
	} else if (was_written) {
		err_hint(err, "%s may hold a part of the new content now", target->name);
	}
	target->created = false;
}
