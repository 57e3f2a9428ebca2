/* Configurations of restored machines; see machine_config.h. */
#include "machine_config.h"

#include "locator.h"
#include "rebuild.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

const char *const machine_config_kinds[] = {"libvirt", "ovf", NULL};
const char *const machine_config_firmwares[] = {"bios", "efi", NULL};

int machine_config_check(const struct machine_values *values, struct err *err)
{
	const struct {
		const char *name;
		bool given;
	} options[] = {
		{"config-out", values->out},
		{"config-only", values->only},
		{"cpus", values->cpus.given},
		{"memory", values->memory.given},
		{"firmware", values->firmware},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(options) && !values->kind; i++)
		if (options[i].given)
			return err_set(err, ERR_USAGE, "--%s is of no use without --config",
				options[i].name);
	return 0;
}

/* --- paths ------------------------------------------------------------------------------------ */

/* The folder must be there, the file need not.  Names that are links, as those below
 * /dev/disk/by-id, are kept.  NULL with err. */
static char *absolute(const char *path, struct err *err)
{
	const char *slash = strrchr(path, '/');
	const char *name = slash ? slash + 1 : path;
	char given[PATH_MAX], *whole = NULL;
	int length = snprintf(given, sizeof given, "%.*s", slash ? (int)(slash - path) + 1 : 1,
		slash ? path : ".");
	if (length >= (int)sizeof given) {
		err_errno(err, ENAMETOOLONG, "%s", path);
		return NULL;
	}
	char *AUTO_FREE folder = realpath(given, NULL);
	if (!folder) {
		err_errno(err, errno, "%s", path);
		return NULL;
	}
	if (!name[0]) {
		err_set(err, ERR_USAGE, "%s is a folder", path);
		return NULL;
	}
	if (asprintf(&whole, "%s/%s", strcmp(folder, "/") == 0 ? "" : folder, name) >= 0)
		return whole;
	err_errno(err, ENOMEM, "%s", path);
	return NULL;
}

static bool same_folder(const char *a, const char *b)
{
	size_t length = (size_t)(strrchr(a, '/') - a);
	return length == (size_t)(strrchr(b, '/') - b) && strncmp(a, b, length) == 0;
}

static int make_path(struct machine_config *config, const struct machine_values *values,
	const char *vm, const struct rebuild_target *targets, size_t nr, struct err *err)
{
	bool is_ovf = strcmp(values->kind, "ovf") == 0;
	char *AUTO_FREE beside = NULL;
	for (size_t i = 0; i < nr && !values->out && !beside; i++) {
		int length = (int)(strrchr(targets[i].path, '/') - targets[i].path);
		if (!targets[i].is_device &&
			asprintf(&beside, "%.*s/%s.%s", length, targets[i].path, vm,
				is_ovf ? "ovf" : "xml") < 0)
			return err_errno(err, ENOMEM, "cannot name the configuration's file");
	}
	if (!values->out && !beside)
		return err_set(
			err, ERR_USAGE, "where is the configuration to go? (--config-out FILE)");
	config->path = absolute(values->out ? values->out : beside, err);
	return config->path ? 0 : -1;
}

static int check_path(const struct machine_config *config, const struct machine_values *values,
	const struct rebuild_target *targets, size_t nr, bool force, struct err *err)
{
	struct stat st;
	for (size_t i = 0; i < nr; i++) {
		if (strcmp(targets[i].path, config->path) == 0)
			return err_set(err, ERR_USAGE, "a disk goes there");
		if (strcmp(values->kind, "ovf") == 0 && !same_folder(targets[i].path, config->path))
			return err_set(err, ERR_USAGE,
				"an OVF names the files beside it, and %s is not (--config-out)",
				targets[i].path);
	}
	if (repository_path_guard(config->path, err) < 0)
		return -1;
	if (lstat(config->path, &st) < 0)
		return errno == ENOENT ? 0 : err_errno(err, errno, "it cannot be looked at");
	if (!S_ISREG(st.st_mode))
		return err_set(err, ERR_EXISTS, "it is there, and is no file");
	return force ? 0 : err_set(err, ERR_EXISTS, "it is there (--force overwrites it)");
}

/* --- targets ---------------------------------------------------------------------------------- */

static int check_size(const struct machine_disk *disk, struct err *err)
{
	const struct locator_options options = {.read_only = true};
	struct block *block = locator_open(disk->name, &options, err);
	if (!block)
		return -1;
	uint64_t size_bytes = block_info(block)->size_bytes;
	block_close(block, NULL);
	/* QCOW2 counts in sectors. */
	if (size_bytes < disk->size_bytes || size_bytes - disk->size_bytes >= 512)
		return err_set(err, ERR_RANGE,
			"%s has %llu bytes, and disk %s of the restore point %llu", disk->name,
			(unsigned long long)size_bytes, disk->key,
			(unsigned long long)disk->size_bytes);
	return 0;
}

static int make_target(struct rebuild_target *target, const struct machine_disk *disk,
	bool is_there, struct err *err)
{
	enum locator_kind kind;
	const char *rest;
	struct stat st;
	if (locator_parse(disk->name, &kind, &rest, err) < 0)
		return -1;
	if (kind != LOCATOR_RAW && kind != LOCATOR_QCOW2)
		return err_set(err, ERR_USAGE,
			"--config names files and devices, and %s is neither (raw:PATH, "
			"qcow2:PATH)",
			disk->name);
	if (is_there && check_size(disk, err) < 0)
		return -1;
	*target = (struct rebuild_target){
		.key = disk->key,
		.path = absolute(rest, err),
		.format = kind == LOCATOR_QCOW2 ? REBUILD_QCOW2 : REBUILD_RAW,
		.is_device = stat(rest, &st) == 0 && S_ISBLK(st.st_mode),
		.size_bytes = disk->size_bytes,
	};
	return target->path ? 0 : -1;
}

/* --- the whole -------------------------------------------------------------------------------- */

/* What the restore point keeps of its machine; NULL without an error: nothing. */
static struct rebuild_machine *load_machine(const struct machine_values *values,
	struct store *store, const char *vm, const char *point, struct err *err)
{
	const struct rebuild_wishes wishes = {
		.name = vm,
		.nr_cpus = (unsigned)values->cpus.value,
		.memory_bytes = values->memory.value,
		.firmware = values->firmware,
	};
	char *AUTO_FREE text = NULL;
	size_t length = 0;
	struct err why = ERR_INIT;
	if (store_config_load(store, vm, point, REBUILD_FILE, &text, &length, &why) < 0 &&
		why.code != ERR_NOT_FOUND) {
		err_copy(err, &why);
		return NULL;
	}
	struct rebuild_machine *machine = rebuild_machine(text, length, &wishes, err);
	if (machine && !text)
		log_warning("%s: the machine is described without networks, its disks on SATA",
			why.text);
	return machine;
}

static int make_text(struct machine_config *config, const struct machine_values *values,
	struct store *store, const char *vm, const char *point,
	const struct rebuild_target *targets, size_t nr, struct err *err)
{
	struct rebuild_machine *machine = load_machine(values, store, vm, point, err);
	if (!machine)
		return -1;
	config->text = strcmp(values->kind, "ovf") == 0 ? rebuild_ovf(machine, targets, nr, err)
							: rebuild_domain(machine, targets, nr, err);
	rebuild_free(machine);
	return config->text ? 0 : -1;
}

int machine_config_make(struct machine_config *config, const struct machine_values *values,
	struct store *store, const char *vm, const char *point, const struct machine_disk *disks,
	size_t nr_disks, bool force, struct err *err)
{
	if (!values->kind)
		return 0;
	struct rebuild_target *targets = calloc(nr_disks, sizeof *targets);
	int rc = targets ? 0 : err_errno(err, ENOMEM, "cannot describe the machine");
	for (size_t i = 0; i < nr_disks && rc == 0; i++)
		rc = make_target(&targets[i], &disks[i], values->only, err);
	if (rc == 0)
		rc = make_path(config, values, vm, targets, nr_disks, err);
	if (rc == 0 && check_path(config, values, targets, nr_disks, force, err) < 0)
		rc = err_context(err, "cannot write %s", config->path);
	if (rc == 0)
		rc = make_text(config, values, store, vm, point, targets, nr_disks, err);
	for (size_t i = 0; targets && i < nr_disks; i++)
		free((char *)targets[i].path);
	free(targets);
	return rc;
}

int machine_config_write(const struct machine_config *config, struct err *err)
{
	if (!config->text)
		return 0;
	if (file_replace(AT_FDCWD, config->path, config->text, strlen(config->text), 0600, err) < 0)
		return err_hint(
			err, "the disks are restored; \"restore --config-only\" writes it alone");
	return 0;
}

void machine_config_free(struct machine_config *config)
{
	free(config->text);
	free(config->path);
}
