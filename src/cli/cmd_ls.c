/* sendense ls: what a repository holds. */
#include "commands.h"
#include "disks.h"
#include "repository.h"

#include <errno.h>
#include <string.h>

struct values {
	struct store_values store;
};

static const struct option_spec option_table[] = {
	STORE_OPTION_ROWS(struct values),
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

/* --- lengths of chains -------------------------------------------------------------- */

/* Of each disk, how many images the chain of the point told last has.  Points are told by
 * time, and what stands beneath a point is the one that the disk had before. */
struct chains {
	struct chain {
		char key[REPOSITORY_KEY_BYTES];
		char point[REPOSITORY_POINT_BYTES];
		unsigned length; /* 0: not known */
	} chain[REPOSITORY_DISKS_MAX];
	size_t nr;
};

static struct chain *chain_of(struct chains *chains, const char *key)
{
	for (size_t i = 0; i < chains->nr; i++)
		if (strcmp(chains->chain[i].key, key) == 0)
			return &chains->chain[i];
	return NULL;
}

/* NULL: more keys over the years than this follows; their chains' lengths are not told. */
static struct chain *chain_new(struct chains *chains, const char *key)
{
	if (chains->nr == ARRAY_LENGTH(chains->chain))
		return NULL;
	struct chain *chain = &chains->chain[chains->nr++];
	snprintf(chain->key, sizeof chain->key, "%s", key);
	return chain;
}

static void chains_follow(struct chains *chains, const struct repository_point *point)
{
	for (size_t i = 0; !point->damage && i < point->nr_disks; i++) {
		const struct repository_disk_info *disk = &point->disks[i];
		struct chain *chain = chain_of(chains, disk->key);
		unsigned length = 1;
		if (disk->backing)
			length = chain && chain->length > 0 &&
						 strcmp(chain->point, disk->backing) == 0
					 ? chain->length + 1
					 : 0;
		if (!chain)
			chain = chain_new(chains, disk->key);
		if (!chain)
			continue;
		snprintf(chain->point, sizeof chain->point, "%s", point->id);
		chain->length = length;
	}
}

/* Of the point that was followed last; 0 when it cannot be told. */
static unsigned chain_length(struct chains *chains, const char *key)
{
	const struct chain *chain = chain_of(chains, key);
	return chain ? chain->length : 0;
}

/* --- one restore point ------------------------------------------------------------ */

/* The lengths of its chains belong to the list, not to the point. */
static json_t *list_json(const struct repository_point *point, struct chains *chains)
{
	json_t *object = point_json(point);
	size_t i;
	json_t *disk;
	json_array_foreach(json_object_get(object, "disks"), i, disk)
	{
		unsigned length = chain_length(chains, point->disks[i].key);
		if (length > 0)
			json_object_set_new(disk, "chain_length", json_integer(length));
	}
	return object;
}

static void print_disk(const struct repository_disk_info *disk, unsigned length)
{
	char size[SIZE_TEXT_BYTES];
	printf("  disk %s\n", disk->key);
	printf("    size     %s (%llu bytes)\n", cli_size_text(disk->size_bytes, size),
		(unsigned long long)disk->size_bytes);
	printf("    stored   %s\n", cli_size_text(disk->figures.stored_bytes, size));
	printf("    mode     %s (%s)\n", disks_mode_name(disk->mode), disk->reason);
	if (disk->parent)
		printf("    parent   %s, changes known by %s\n", disk->parent,
			repository_change_name(disk->change));
	if (disk->audited_bytes > 0)
		printf("    audited  %s\n", cli_size_text(disk->audited_bytes, size));
	if (length > 0)
		printf("    chain    %u image%s\n", length, length == 1 ? "" : "s");
	if (disk->backing)
		printf("    on       %s\n", disk->backing);
	if (disk->change_id)
		printf("    state    %s\n", disk->change_id);
	if (disk->bitmap)
		printf("    bitmap   %s\n", disk->bitmap);
	printf("    source   %s\n", disk->source.label);
	printf("    digest   %s%s\n", disk->root_hex,
		!disk->checked                         ? ""
		: strcmp(disk->checked, "absent") == 0 ? " (its client gave none to compare)"
						       : " (as its client's)");
	printf("    image    %s\n", disk->image);
}

static void print_point(const struct repository_point *point, struct chains *chains)
{
	printf("Restore point %s@%s\n", point->vm, point->id);
	printf("  started    %s\n  finished   %s\n", point->started, point->finished);
	printf("  made by    %s\n", point->software);
	if (point->client)
		printf("  sent by    %s\n", point->client);
	printf("  mode       %s\n", point_json_mode(point));
	if (point->consistency)
		printf("  consistent %s%s%s\n",
			strcmp(point->consistency, "application") == 0
				? "for applications: the guest's file systems were frozen"
				: "as after a crash: nothing was frozen",
			point->consistency_reason ? ", " : "",
			point->consistency_reason ? point->consistency_reason : "");
	printf("  verified   %s%s%s\n", verified_text(point), point->verified_at[0] ? ", " : "",
		point->verified_at);
	if (point->is_protected)
		printf("  protected  %s%s\n", point->protected_until[0] ? "until " : "without end",
			point->protected_until);
	for (size_t i = 0; i < point->nr_disks; i++)
		print_disk(&point->disks[i], chain_length(chains, point->disks[i].key));
}

struct search {
	const char *id;
	struct chains chains;
};

static int follow_to(void *context, const struct repository_point *point)
{
	struct search *search = context;
	chains_follow(&search->chains, point);
	return strcmp(point->id, search->id) == 0;
}

static int list_point(
	struct cli *cli, struct store *store, const char *vm, const char *id, struct err *err)
{
	struct repository_point *point = store_point_load(store, vm, id, err);
	if (!point)
		return -1;
	struct search *search = calloc(1, sizeof *search);
	if (!search) {
		repository_point_free(point);
		return err_errno(err, ENOMEM, "cannot list %s@%s", vm, id);
	}
	search->id = id;
	int rc = store_list_points(store, vm, follow_to, search, err);
	if (rc == 0 && cli->common.json) {
		rc = cli_print_json(list_json(point, &search->chains), err);
	} else if (rc == 0) {
		print_point(point, &search->chains);
		rc = cli_flush(err);
	}
	free(search);
	repository_point_free(point);
	return rc;
}

/* --- the restore points of a VM ------------------------------------------------------ */

struct point_list {
	json_t *points; /* NULL: as text */
	bool has_heading;
	struct chains chains;
};

static void print_points_heading(struct point_list *list)
{
	if (!list->has_heading)
		printf("%-24s %-12s %5s %5s %12s %12s  %s\n", "restore point", "mode", "chain",
			"disks", "size", "stored", "verified");
	list->has_heading = true;
}

static int print_row(void *context, const struct repository_point *point)
{
	struct point_list *list = context;
	chains_follow(&list->chains, point);
	if (list->points) {
		json_array_append_new(list->points, list_json(point, &list->chains));
		return 0;
	}
	print_points_heading(list);
	if (point->damage) {
		printf("%-24s damaged: %s\n", point->id, point->damage);
		return 0;
	}
	uint64_t size_bytes = 0;
	unsigned longest = 0;
	for (size_t i = 0; i < point->nr_disks; i++) {
		unsigned length = chain_length(&list->chains, point->disks[i].key);
		size_bytes += point->disks[i].size_bytes;
		longest = length > longest ? length : longest;
	}
	char size[SIZE_TEXT_BYTES], stored[SIZE_TEXT_BYTES], chain[16] = "-";
	if (longest > 0)
		snprintf(chain, sizeof chain, "%u", longest);
	printf("%-24s %-12s %5s %5zu %12s %12s  %s%s\n", point->id, point_json_mode(point), chain,
		point->nr_disks, cli_size_text(size_bytes, size),
		cli_size_text(point->stored_bytes, stored), verified_text(point),
		point->is_protected ? ", protected" : "");
	return 0;
}

static int list_points(struct cli *cli, struct store *store, const char *vm, struct err *err)
{
	struct point_list *list = calloc(1, sizeof *list);
	if (!list)
		return err_errno(err, ENOMEM, "cannot list %s", vm);
	list->points = cli->common.json ? json_array() : NULL;
	int rc = store_list_points(store, vm, print_row, list, err);
	if (rc < 0) {
		json_decref(list->points);
	} else if (list->points) {
		rc = cli_print_json(json_pack("{s:s, s:o}", "vm", vm, "points", list->points), err);
	} else {
		print_points_heading(list);
		rc = cli_flush(err);
	}
	free(list);
	return rc;
}

/* --- the VMs -------------------------------------------------------------------------- */

struct vm_sum {
	unsigned nr_points, nr_damaged;
	uint64_t stored_bytes;
	char latest[REPOSITORY_POINT_BYTES];
};

struct vm_list {
	struct store *store;
	json_t *vms; /* NULL: as text */
	bool headed; /* the columns are named */
	struct err err;
};

/* Not before the repository has answered: a refusal stands alone. */
static void print_vms_head(struct vm_list *list)
{
	if (!list->vms && !list->headed)
		printf("%-32s %6s %12s  %s\n", "virtual machine", "points", "stored", "latest");
	list->headed = true;
}

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
	if (store_list_points(list->store, vm, add_point, &sum, &list->err) < 0) {
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
	print_vms_head(list);
	printf("%s%*s %6u %12s  %s", vm, cli_padding(vm, 32), "", sum.nr_points,
		cli_size_text(sum.stored_bytes, stored), sum.latest[0] ? sum.latest : "-");
	if (sum.nr_damaged > 0)
		printf("  (%u damaged)", sum.nr_damaged);
	putchar('\n');
	return 0;
}

static int list_vms(struct cli *cli, struct store *store, struct err *err)
{
	struct vm_list list = {.store = store, .vms = cli->common.json ? json_array() : NULL};
	int rc = store_list_vms(store, print_vm, &list, err);
	if (rc == 0 && list.err.code != ERR_NONE)
		rc = err_copy(err, &list.err);
	if (rc < 0) {
		json_decref(list.vms);
		return -1;
	}
	print_vms_head(&list);
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
	struct store *store = disks_open_store(cli, &v->store, REPOSITORY_READ, err);
	if (!store)
		return -1;
	int rc;
	if (point[0])
		rc = list_point(cli, store, vm, point, err);
	else if (vm[0])
		rc = list_points(cli, store, vm, err);
	else
		rc = list_vms(cli, store, err);
	store_close(store);
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
