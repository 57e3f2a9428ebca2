/* sendense ls: what a repository holds. */
#include "commands.h"
#include "disks.h"

#include <string.h>

struct values {
	const char *repo;
};

static const struct option_spec option_table[] = {
	REPO_OPTION_ROW(struct values, repo),
};

static const char *verified_text(const struct repository_point *point)
{
	static const char *const texts[] = {
		[REPOSITORY_NEVER_VERIFIED] = "never",
		[REPOSITORY_GOOD] = "good",
		[REPOSITORY_DAMAGED] = "damaged",
	};
	return texts[point->verified];
}

/* --- one restore point ------------------------------------------------------------ */

static json_t *disk_json(const struct repository_disk_info *disk)
{
	json_t *object = json_pack("{s:s, s:I, s:s, s:s, s:s, s:I, s:s, s:s, s:s}", "key",
		disk->key, "size", (json_int_t)disk->size_bytes, "mode",
		disk->mode == REPOSITORY_FULL ? "full" : "incremental", "reason", disk->reason,
		"root", disk->root_hex, "stored", (json_int_t)disk->figures.stored_bytes, "image",
		disk->image, "source_kind", disk->source.kind, "source", disk->source.label);
	if (disk->backing)
		json_object_set_new(object, "backing", json_string(disk->backing));
	return object;
}

static json_t *point_json(const struct repository_point *point)
{
	json_t *object = json_pack("{s:s, s:s}", "vm", point->vm, "point", point->id);
	if (point->damage) {
		json_object_set_new(object, "damage", json_string(point->damage));
		return object;
	}
	json_t *disks = json_array();
	for (size_t i = 0; i < point->nr_disks; i++)
		json_array_append_new(disks, disk_json(&point->disks[i]));
	json_object_set_new(object, "started", json_string(point->started));
	json_object_set_new(object, "finished", json_string(point->finished));
	json_object_set_new(object, "stored", json_integer((json_int_t)point->stored_bytes));
	json_object_set_new(object, "verified", json_string(verified_text(point)));
	if (point->verified_at[0])
		json_object_set_new(object, "verified_at", json_string(point->verified_at));
	json_object_set_new(object, "protected", json_boolean(point->is_protected));
	json_object_set_new(object, "disks", disks);
	return object;
}

static void print_point(const struct repository_point *point)
{
	char size[SIZE_TEXT_BYTES], stored[SIZE_TEXT_BYTES];
	printf("Restore point %s@%s\n", point->vm, point->id);
	printf("  started    %s\n  finished   %s\n", point->started, point->finished);
	printf("  made by    %s\n", point->software);
	printf("  verified   %s%s%s\n", verified_text(point), point->verified_at[0] ? ", " : "",
		point->verified_at);
	for (size_t i = 0; i < point->nr_disks; i++) {
		const struct repository_disk_info *disk = &point->disks[i];
		printf("  disk %s\n", disk->key);
		printf("    size     %s (%llu bytes)\n", cli_size_text(disk->size_bytes, size),
			(unsigned long long)disk->size_bytes);
		printf("    stored   %s\n", cli_size_text(disk->figures.stored_bytes, stored));
		printf("    mode     %s (%s)\n",
			disk->mode == REPOSITORY_FULL ? "full" : "incremental", disk->reason);
		printf("    source   %s\n", disk->source.label);
		printf("    digest   %s\n", disk->root_hex);
		printf("    image    %s\n", disk->image);
	}
}

static int list_point(
	struct cli *cli, struct repository *repo, const char *vm, const char *id, struct err *err)
{
	struct repository_point *point = repository_point_load(repo, vm, id, err);
	if (!point)
		return -1;
	int rc;
	if (cli->common.json) {
		rc = cli_print_json(point_json(point), err);
	} else {
		print_point(point);
		rc = cli_flush(err);
	}
	repository_point_free(point);
	return rc;
}

/* --- the restore points of a VM ------------------------------------------------------ */

struct point_list {
	json_t *points; /* NULL: as text */
	bool has_heading;
};

static void print_points_heading(struct point_list *list)
{
	if (!list->has_heading)
		printf("%-24s %-12s %5s %12s %12s  %s\n", "restore point", "mode", "disks", "size",
			"stored", "verified");
	list->has_heading = true;
}

static int print_row(void *context, const struct repository_point *point)
{
	struct point_list *list = context;
	if (list->points) {
		json_array_append_new(list->points, point_json(point));
		return 0;
	}
	print_points_heading(list);
	if (point->damage) {
		printf("%-24s damaged: %s\n", point->id, point->damage);
		return 0;
	}
	uint64_t size_bytes = 0;
	bool is_full = true;
	for (size_t i = 0; i < point->nr_disks; i++) {
		size_bytes += point->disks[i].size_bytes;
		is_full = is_full && point->disks[i].mode == REPOSITORY_FULL;
	}
	char size[SIZE_TEXT_BYTES], stored[SIZE_TEXT_BYTES];
	printf("%-24s %-12s %5zu %12s %12s  %s%s\n", point->id, is_full ? "full" : "incremental",
		point->nr_disks, cli_size_text(size_bytes, size),
		cli_size_text(point->stored_bytes, stored), verified_text(point),
		point->is_protected ? ", protected" : "");
	return 0;
}

static int list_points(struct cli *cli, struct repository *repo, const char *vm, struct err *err)
{
	struct point_list list = {.points = cli->common.json ? json_array() : NULL};
	if (repository_list_points(repo, vm, print_row, &list, err) < 0) {
		json_decref(list.points);
		return -1;
	}
	if (list.points)
		return cli_print_json(
			json_pack("{s:s, s:o}", "vm", vm, "points", list.points), err);
	print_points_heading(&list);
	return cli_flush(err);
}

/* --- the VMs -------------------------------------------------------------------------- */

struct vm_sum {
	unsigned nr_points, nr_damaged;
	uint64_t stored_bytes;
	char latest[REPOSITORY_POINT_BYTES];
};

struct vm_list {
	struct repository *repo;
	json_t *vms; /* NULL: as text */
	struct err err;
};

static int add_point(void *context, const struct repository_point *point)
{
	struct vm_sum *sum = context;
	sum->nr_points++;
	sum->nr_damaged += point->damage || point->verified == REPOSITORY_DAMAGED;
	if (!point->damage)
		sum->stored_bytes += point->stored_bytes;
	snprintf(sum->latest, sizeof sum->latest, "%s", point->id);
	return 0;
}

static int print_vm(void *context, const char *vm)
{
	struct vm_list *list = context;
	struct vm_sum sum = {0};
	/* A folder without a restore point (yet) is no error. */
	if (repository_list_points(list->repo, vm, add_point, &sum, &list->err) < 0) {
		if (list->err.code != ERR_NOT_FOUND)
			return 1;
		err_clear(&list->err);
	}
	if (list->vms) {
		json_t *object = json_pack("{s:s, s:i, s:i, s:I}", "vm", vm, "points",
			(int)sum.nr_points, "damaged", (int)sum.nr_damaged, "stored",
			(json_int_t)sum.stored_bytes);
		if (sum.latest[0])
			json_object_set_new(object, "latest", json_string(sum.latest));
		json_array_append_new(list->vms, object);
		return 0;
	}
	char stored[SIZE_TEXT_BYTES];
	printf("%s%*s %6u %12s  %s", vm, cli_padding(vm, 32), "", sum.nr_points,
		cli_size_text(sum.stored_bytes, stored), sum.latest[0] ? sum.latest : "-");
	if (sum.nr_damaged > 0)
		printf("  (%u damaged)", sum.nr_damaged);
	putchar('\n');
	return 0;
}

static int list_vms(struct cli *cli, struct repository *repo, struct err *err)
{
	struct vm_list list = {.repo = repo, .vms = cli->common.json ? json_array() : NULL};
	if (!list.vms)
		printf("%-32s %6s %12s  %s\n", "virtual machine", "points", "stored", "latest");
	int rc = repository_list_vms(repo, print_vm, &list, err);
	if (rc == 0 && list.err.code != ERR_NONE)
		rc = err_copy(err, &list.err);
	if (rc < 0) {
		json_decref(list.vms);
		return -1;
	}
	if (list.vms)
		return cli_print_json(json_pack("{s:o}", "vms", list.vms), err);
	return cli_flush(err);
}

static int run(struct cli *cli, const void *values, struct err *err)
{
	const struct values *v = values;
	char vm[REPOSITORY_VM_BYTES] = "", point[REPOSITORY_POINT_BYTES] = "";
	if (cli->arguments.nr > 0 &&
		repository_name_split(cli->arguments.items[0], vm, point, err) < 0)
		return -1;
	struct repository *repo = disks_open_repository(v->repo, REPOSITORY_READ, err);
	if (!repo)
		return -1;
	int rc;
	if (point[0])
		rc = list_point(cli, repo, vm, point, err);
	else if (vm[0])
		rc = list_points(cli, repo, vm, err);
	else
		rc = list_vms(cli, repo, err);
	repository_close(repo);
	return rc;
}

const struct command command_ls = {
	.name = "ls",
	.arguments = "[VM[@POINT]]",
	.summary = "List virtual machines, their restore points, or one restore point's disks",
	COMMAND_OPTIONS(option_table),
	.common = COMMON_JSON,
	.max_arguments = 1,
	.values_bytes = sizeof(struct values),
	.run = run,
};
