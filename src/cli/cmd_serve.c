/* sendense serve: the disks of a restore point over NBD, verified as they are read. */
#include "commands.h"
#include "disks.h"
#include "service.h"

#include <errno.h>
#include <string.h>

struct values {
	struct service_options service;
	struct store_values store;
	const char *disk, *scratch;
	struct option_number scratch_limit;
	bool writable;
};

static const struct option_spec option_table[] = {
	STORE_OPTION_ROWS(struct values),
	{.name = "disk",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct values, disk),
		.argument = "KEY",
		.help = "serve this disk alone (default: all, named by their keys)"},
	{.name = "writable",
		.kind = OPTION_FLAG,
		.offset = offsetof(struct values, writable),
		.help = "take writes; they go to a scratch file that is gone at the end"},
	{.name = "scratch",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct values, scratch),
		.argument = "DIR",
		.words = WORDS_FOLDER,
		.help = "with --writable: the scratch file's folder (default: TMPDIR or /var/tmp)"},
	{.name = "scratch-limit",
		.kind = OPTION_SIZE,
		.offset = offsetof(struct values, scratch_limit),
		.argument = "SIZE",
		.minimum = 1,
		.maximum = UINT64_MAX,
		.help = "with --writable: what a disk's scratch file may take (default: no limit)"},
	SERVICE_OPTION_ROWS(struct values),
};

struct served {
	struct store_disk *source;
	struct block *overlay; /* NULL without --writable */
	char *description;
};

struct serve {
	struct cli *cli;
	const struct values *values;
	struct store *store;
	struct repository_point *point;
	struct served *disks;
	struct nbd_export *exports; /* as many as disks, and the default one */
	size_t nr_disks, nr_exports;
};

static const char *scratch_folder(const struct values *v)
{
	const char *folder = v->scratch ? v->scratch : getenv("TMPDIR");
	return folder && folder[0] ? folder : "/var/tmp";
}

static int check_options(const struct values *v, struct err *err)
{
	if (!v->writable && (v->scratch || v->scratch_limit.given))
		return err_set(err, ERR_USAGE, "--scratch and --scratch-limit are for --writable");
	return service_check(&v->service, err);
}

static int open_disk(struct serve *s, const char *key, struct err *err)
{
	const struct values *v = s->values;
	struct served *disk = &s->disks[s->nr_disks];
	struct repository_disk_options options = {.verify = true};
	disk->source = store_disk_open(s->store, s->point->vm, s->point->id, key, &options, err);
	if (!disk->source)
		return -1;
	s->nr_disks++;
	struct block *block = store_disk_block(disk->source);
	if (v->writable) {
		const char *folder = scratch_folder(v);
		if (repository_path_guard(folder, err) < 0)
			return err_context(err, "--scratch");
		disk->overlay = block_overlay_open(block, folder, v->scratch_limit.value, err);
		if (!disk->overlay)
			return -1;
		block = disk->overlay;
	}
	const struct repository_disk_info *info = store_disk_info(disk->source);
	if (asprintf(&disk->description, "%s@%s disk %s", s->point->vm, s->point->id, info->key) <
		0) {
		disk->description = NULL;
		return err_errno(err, ENOMEM, "cannot serve %s", info->key);
	}
	s->exports[s->nr_exports++] = (struct nbd_export){
		.name = info->key,
		.description = disk->description,
		.block = block,
		.read_only = !v->writable,
	};
	return 0;
}

static int open_disks(struct serve *s, struct err *err)
{
	const char *wanted = s->values->disk;
	bool found = false;
	s->disks = calloc(s->point->nr_disks, sizeof *s->disks);
	s->exports = calloc(s->point->nr_disks + 1, sizeof *s->exports);
	if (!s->disks || !s->exports)
		return err_errno(err, ENOMEM, "cannot serve");
	for (size_t i = 0; i < s->point->nr_disks; i++) {
		const char *key = s->point->disks[i].key;
		if (wanted && strcmp(wanted, key) != 0)
			continue;
		found = true;
		if (open_disk(s, key, err) < 0)
			return -1;
	}
	if (!found && wanted)
		/* Its error lists the keys that there are. */
		return open_disk(s, wanted, err);
	if (s->nr_exports == 1) {
		/* A client that names no export means the only one. */
		struct nbd_export only = s->exports[0];
		only.name = "";
		only.hidden = true;
		s->exports[s->nr_exports++] = only;
	}
	return 0;
}

static int serve(struct serve *s, struct err *err)
{
	char vm[REPOSITORY_VM_BYTES], point[REPOSITORY_POINT_BYTES];
	if (check_options(s->values, err) < 0 ||
		repository_name_split(s->cli->arguments.items[0], vm, point, err) < 0)
		return -1;
	s->store = disks_open_store(s->cli, &s->values->store, REPOSITORY_READ, err);
	if (!s->store)
		return -1;
	s->point = store_point_load(s->store, vm, point, err);
	if (!s->point || open_disks(s, err) < 0)
		return err_context(err, "cannot serve %s", s->cli->arguments.items[0]);
	return service_run(s->cli, &s->values->service, s->exports, s->nr_exports, err);
}

static int run(struct cli *cli, const void *values, struct err *err)
{
	struct serve s = {.cli = cli, .values = values};
	int rc = serve(&s, err);
	for (size_t i = 0; i < s.nr_disks; i++) {
		block_close(s.disks[i].overlay, NULL);
		store_disk_close(s.disks[i].source);
		free(s.disks[i].description);
	}
	free(s.exports);
	free(s.disks);
	repository_point_free(s.point);
	store_close(s.store);
	return rc;
}

const struct command command_serve = {
	.name = "serve",
	.arguments = "VM[@POINT]",
	.summary = "Serve the disks of a restore point over NBD",
	.details = "Each disk is an export named by its key; a single one answers to the empty "
		   "name as\n"
		   "well. What is read is compared with its digest first: a damaged chunk is an "
		   "input\n"
		   "error that the log names. With --writable the restore point stays untouched. "
		   "When\n"
		   "it is ready it prints its URI in one line and stays until SIGTERM. It listens\n"
		   "on --socket or --port. What a hub holds is read through the hub, and served "
		   "here.",
	COMMAND_OPTIONS(option_table),
	.common = COMMON_JSON,
	.min_arguments = 1,
	.max_arguments = 1,
	.values_bytes = sizeof(struct values),
	.run = run,
};
