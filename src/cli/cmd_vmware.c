/*
 * sendense vmware ls: which virtual machines there are.
 * sendense vmware info: what one of them has, and what would keep a backup from being good.
 * sendense vmware cbt: whether its changes are tracked, and switching that on.
 * sendense vmware debts: which snapshots backups have not removed yet.
 * sendense vmware collect: removes them.
 */
#include "commands.h"
#include "progress.h"
#include "vmware_options.h"

#include "vmware.h"

#include <string.h>

struct vmware_values {
	struct vmware_access vmware;
	bool enable;
	const char *state_folder;
};

/* --- ls ------------------------------------------------------------------------------------- */

struct listing {
	const char *below; /* "" or "/Datacenter/vm/folder": only what is in it */
	json_t *vms; /* NULL: text is printed as they come */
	size_t nr;
};

static bool is_below(const char *path, const char *folder)
{
	size_t length = strlen(folder);
	while (length > 0 && folder[length - 1] == '/')
		length--;
	return strncmp(path, folder, length) == 0 && (path[length] == '/' || path[length] == '\0');
}

static void print_listed(const struct vsphere_listed *vm, bool first)
{
	char size[SIZE_TEXT_BYTES];
	if (first)
		printf("%-9s %-4s %5s %10s  %s\n", "POWER", "CBT", "DISKS", "USED", "PATH");
	printf("%-9s %-4s %5u %10s  %s\n",
		vm->template ? "template" : vsphere_power_name(vm->power),
		vm->cbt_enabled ? "on" : "off", vm->nr_disks, cli_size_text(vm->used_bytes, size),
		vm->path);
}

static int take_listed(void *context, const struct vsphere_listed *vm, struct err *err)
{
	struct listing *listing = context;
	(void)err;
	if (!is_below(vm->path, listing->below))
		return 0;
	if (!listing->vms)
		print_listed(vm, listing->nr == 0);
	else
		json_array_append_new(listing->vms, vsphere_listed_json(vm));
	listing->nr++;
	return 0;
}

static int list(struct cli *cli, struct vsphere *vsphere, const char *below, struct err *err)
{
	struct listing listing = {.below = below, .vms = cli->common.json ? json_array() : NULL};
	int rc = vsphere_list_vms(vsphere, take_listed, &listing, err);
	if (rc == 0 && listing.nr == 0 && below[0] != '\0' && below[1] != '\0')
		rc = err_set(err, ERR_NOT_FOUND, "there is no VM below %s", below);
	if (rc < 0) {
		json_decref(listing.vms);
		return -1;
	}
	if (listing.vms)
		return cli_print_json(json_pack("{s:o, s:o}", "server", vsphere_about_json(vsphere),
					      "vms", listing.vms),
			err);
	if (listing.nr == 0 && !cli->common.quiet)
		printf("no VM that this user may see\n");
	return cli_flush(err);
}

static int run_ls(struct cli *cli, const void *values, struct err *err)
{
	const struct vmware_values *v = values;
	char *path;
	struct vsphere *vsphere =
		vmware_options_open(cli, cli->arguments.items[0], &v->vmware, &path, err);
	int rc = vsphere ? list(cli, vsphere, path, err) : -1;
	if (vsphere)
		free(path);
	vsphere_close(vsphere);
	return rc < 0 ? err_context(err, "cannot list virtual machines") : 0;
}

/* --- disks ------------------------------------------------------------------------------------ */

static void print_disks(const struct vsphere_config *config)
{
	char size[SIZE_TEXT_BYTES];
	printf("%-10s %10s %-14s %s\n", "DISK", "SIZE", "CHANGES", "LABEL AND FILE");
	for (size_t i = 0; i < config->nr_disks; i++) {
		const struct vsphere_disk *d = &config->disks[i];
		printf("%-10d %10s %-14s %s, %s\n", (int)d->key,
			cli_size_text(d->capacity_bytes, size),
			d->unsupported    ? "not supported"
			: d->change_id[0] ? "tracked"
					  : "not tracked",
			d->label, d->file);
		if (d->unsupported)
			printf("%-10s %s\n", "", d->unsupported);
	}
}

/* --- info ------------------------------------------------------------------------------------- */

static const char *tracking(const struct vsphere_vm *vm)
{
	return vm->config->cbt_enabled ? "on" : vm->cbt_supported ? "off" : "not possible";
}

static void print_vm(const struct vsphere_vm *vm)
{
	const struct vsphere_config *c = vm->config;
	char size[SIZE_TEXT_BYTES];
	printf("%s (%s)%s\n", vm->path, vm->moref, c->template ? ", a template" : "");
	printf("power %s, %s, guest tools: %s\n", vsphere_power_name(vm->power), vm->connection,
		vm->tools[0] ? vm->tools : "not told");
	printf("%s, %s, %s, %u CPU%s, %s of memory\n", c->guest_name, c->hardware, c->firmware,
		c->nr_cpus, c->nr_cpus == 1 ? "" : "s", cli_size_text(c->memory_bytes, size));
	printf("instance uuid %s, BIOS uuid %s\n", c->instance_uuid, c->bios_uuid);
	printf("change tracking: %s\n", tracking(vm));
	if (vm->migration[0])
		printf("is being moved: %s\n", vm->migration);
	if (vm->consolidation_needed)
		printf("its disks need consolidation\n");
	print_disks(c);
	for (size_t i = 0; i < c->nr_nics; i++)
		printf("%s: %s, %s, network %s\n", c->nics[i].label, c->nics[i].type,
			c->nics[i].mac, c->nics[i].network);
	for (size_t i = 0; i < vm->nr_snapshots; i++)
		printf("%*ssnapshot \"%s\" of %s (%s)\n", (int)(2 * vm->snapshots[i].depth), "",
			vm->snapshots[i].name, vm->snapshots[i].created, vm->snapshots[i].moref);
}

static int info(struct cli *cli, const struct vsphere_vm *vm, struct err *err)
{
	if (cli->common.json)
		return cli_print_json(vsphere_vm_json(vm), err);
	print_vm(vm);
	return cli_flush(err);
}

/* --- cbt ----------------------------------------------------------------------------------------
 */

static int report_cbt(struct cli *cli, const struct vsphere_vm *vm, const struct vsphere_cbt *done,
	struct err *err)
{
	if (cli->common.json)
		return cli_print_json(
			json_pack("{s:s, s:b, s:b, s:b, s:b, s:o}", "path", vm->path, "supported",
				vm->cbt_supported, "enabled", vm->config->cbt_enabled,
				"was_enabled", done->was_enabled && vm->config->cbt_enabled,
				"stunned", done->stunned, "disks", vsphere_disks_json(vm->config)),
			err);
	if (cli->common.quiet)
		return 0;
	printf("%s: change tracking is %s%s%s\n", vm->path, tracking(vm),
		!done->was_enabled && vm->config->cbt_enabled ? ", from now on" : "",
		done->stunned ? " (a snapshot was made and removed for it)" : "");
	print_disks(vm->config);
	return cli_flush(err);
}

static int enable(
	struct cli *cli, const struct vmware_values *v, struct vsphere_cbt *done, struct err *err)
{
	struct vmware_login login;
	if (vmware_options_login(cli, cli->arguments.items[0], &v->vmware, &login, err) < 0)
		return -1;
	const struct vmware_options options = {
		.server = login.session,
		.cancel = cli->cancel,
		.what = login.url.path,
		.state_folder = v->state_folder,
	};
	int rc = vmware_track(&options, done, err);
	vmware_options_forget(&login);
	return rc;
}

/* --- one machine ---------------------------------------------------------------------------------
 */

/* done: what was switched on, to be told with its tracking; NULL: all that it has is told. */
static int with_vm(struct cli *cli, const struct vmware_values *v, const struct vsphere_cbt *done,
	struct err *err)
{
	char *path;
	struct vsphere *vsphere =
		vmware_options_open(cli, cli->arguments.items[0], &v->vmware, &path, err);
	if (!vsphere)
		return -1;
	struct vsphere_vm *vm = vsphere_find_vm(vsphere, path, err);
	int rc = -1;
	if (vm)
		rc = done ? report_cbt(cli, vm, done, err) : info(cli, vm, err);
	vsphere_vm_free(vm);
	free(path);
	vsphere_close(vsphere);
	return rc;
}

static int run_info(struct cli *cli, const void *values, struct err *err)
{
	return with_vm(cli, values, NULL, err) < 0
		       ? err_context(err, "cannot tell of the virtual machine")
		       : 0;
}

static int run_cbt(struct cli *cli, const void *values, struct err *err)
{
	const struct vmware_values *v = values;
	struct vsphere_cbt done = {.was_enabled = true};
	int rc = v->enable ? enable(cli, v, &done, err) : 0;
	return rc < 0 || with_vm(cli, v, &done, err) < 0
		       ? err_context(err, v->enable ? "cannot switch change tracking on"
						    : "cannot tell of change tracking")
		       : 0;
}

/* --- debts --------------------------------------------------------------------------------------
 */

struct debts_values {
	const char *state_folder;
};

struct owed {
	json_t *debts; /* NULL: text is printed as they come */
	size_t nr;
};

static int take_debt(void *context, const struct vmware_debt *debt, struct err *err)
{
	struct owed *owed = context;
	(void)err;
	owed->nr++;
	if (owed->debts)
		json_array_append_new(owed->debts, vmware_debt_json(debt));
	else if (debt->alive)
		printf("%s of %s at %s: made at %s, its backup runs (process %lld)\n",
			debt->snapshot, debt->path, debt->host, debt->created,
			(long long)debt->pid);
	else
		printf("%s of %s at %s: left at %s, the next backup of this machine removes "
		       "it (%s)\n",
			debt->snapshot, debt->path, debt->host, debt->created, debt->file);
	return 0;
}

static int run_debts(struct cli *cli, const void *values, struct err *err)
{
	const struct debts_values *v = values;
	struct owed owed = {.debts = cli->common.json ? json_array() : NULL};
	if (vmware_debts(v->state_folder, take_debt, &owed, err) < 0) {
		json_decref(owed.debts);
		return err_context(err, "cannot tell which snapshots are left");
	}
	if (owed.debts)
		return cli_print_json(json_pack("{s:o}", "debts", owed.debts), err);
	if (owed.nr == 0 && !cli->common.quiet)
		printf("no snapshot is to be removed\n");
	return cli_flush(err);
}

/* --- collect ------------------------------------------------------------------------------------
 */

struct collect_values {
	struct vmware_access vmware;
	const char *state_folder;
};

struct collected {
	json_t *removed, *left; /* both NULL: text is printed as they come */
	bool quiet;
};

static void take_collected(void *context, const struct vmware_debt *debt, const struct err *why)
{
	struct collected *c = context;
	json_t *shown = c->left ? vmware_debt_json(debt) : NULL;
	if (why)
		log_warning("%s", why->text);
	else if (!c->left && !c->quiet)
		printf("removed %s of %s at %s, left at %s\n", debt->snapshot, debt->path,
			debt->host, debt->created);
	if (shown && why)
		json_object_set_new(shown, "why", json_string(why->text));
	if (shown)
		json_array_append_new(why ? c->left : c->removed, shown);
}

static int collect(struct cli *cli, const struct vmware_options *options, struct err *err)
{
	struct collected c = {.quiet = cli->common.quiet};
	if (cli->common.json) {
		c.removed = json_array();
		c.left = json_array();
	}
	int rc = vmware_collect(options, take_collected, &c, err);
	if (rc == 0 && c.left)
		return cli_print_json(
			json_pack("{s:o, s:o}", "removed", c.removed, "left", c.left), err);
	json_decref(c.removed);
	json_decref(c.left);
	return rc == 0 ? cli_flush(err) : -1;
}

static int run_collect(struct cli *cli, const void *values, struct err *err)
{
	const struct collect_values *v = values;
	struct vmware_login login;
	if (vmware_options_login(cli, cli->arguments.items[0], &v->vmware, &login, err) < 0)
		return err_context(err, "cannot remove snapshots that are left");
	const struct vmware_options options = {
		.server = login.session,
		.what = login.url.path,
		.state_folder = v->state_folder,
	};
	struct progress *progress = progress_start(&cli->common, err);
	int rc = -1;
	if (progress) {
		progress_stage(progress, "give-back");
		rc = collect(cli, &options, err);
		progress_end(progress, err);
	}
	vmware_options_forget(&login);
	return rc < 0 ? err_context(err, "cannot remove all snapshots that are left") : 0;
}

/* --- options
 * --------------------------------------------------------------------------------------- */

#define STATE_DIR_ROW(text, values)                                          \
	{                                                                    \
		.name = "state-dir", .kind = OPTION_TEXT,                    \
		.offset = offsetof(values, state_folder), .argument = "DIR", \
		.words = WORDS_FOLDER, .help = (text)                        \
	}

static const struct option_spec look_options[] = {
	VMWARE_OPTION_ROWS(struct vmware_values),
};

const struct command command_vmware_ls = {
	.name = "vmware ls",
	.arguments = "URL",
	.summary = "List the virtual machines of a vCenter or an ESXi host",
	.details = "The URL is vmware://USER@HOST[:PORT][/PATH]; with a path, those below that "
		   "folder.",
	COMMAND_OPTIONS(look_options),
	.common = COMMON_JSON,
	.min_arguments = 1,
	.max_arguments = 1,
	.values_bytes = sizeof(struct vmware_values),
	.run = run_ls,
};

const struct command command_vmware_info = {
	.name = "vmware info",
	.arguments = "URL",
	.summary = "Tell what a virtual machine has: disks, snapshots, networks",
	.details = "The URL is vmware://USER@HOST[:PORT]/VM, where VM is its inventory path, its "
		   "name\n"
		   "or its uuid.",
	COMMAND_OPTIONS(look_options),
	.common = COMMON_JSON,
	.min_arguments = 1,
	.max_arguments = 1,
	.values_bytes = sizeof(struct vmware_values),
	.run = run_info,
};

static const struct option_spec cbt_options[] = {
	VMWARE_OPTION_ROWS(struct vmware_values),
	{.name = "enable",
		.kind = OPTION_FLAG,
		.offset = offsetof(struct vmware_values, enable),
		.help = "switch it on; on a running machine a snapshot is made and removed"},
	STATE_DIR_ROW("of --enable: where it is kept which snapshots must be removed (default: as "
		      "of sendense backup)",
		struct vmware_values),
};

const struct command command_vmware_cbt = {
	.name = "vmware cbt",
	.arguments = "URL",
	.summary = "Tell whether the changes of a virtual machine's disks are tracked",
	.details = "Incremental backups need changed-block tracking (CBT). It is switched on by\n"
		   "--enable, for a machine without snapshots, and begins at the next stun: on a\n"
		   "running machine a snapshot is made and removed at once.",
	COMMAND_OPTIONS(cbt_options),
	.common = COMMON_JSON,
	.min_arguments = 1,
	.max_arguments = 1,
	.values_bytes = sizeof(struct vmware_values),
	.run = run_cbt,
};

static const struct option_spec debts_options[] = {
	STATE_DIR_ROW(
		"where backups keep it (default: as of sendense backup)", struct debts_values),
};

const struct command command_vmware_debts = {
	.name = "vmware debts",
	.summary = "List the snapshots that backups have not removed yet",
	.details = "Each backup writes its snapshot down before it is asked for, and drops that\n"
		   "record when the removal was confirmed. What a backup that was killed left is\n"
		   "removed by the next one of the same machine. No server is asked.",
	COMMAND_OPTIONS(debts_options),
	.common = COMMON_JSON,
	.values_bytes = sizeof(struct debts_values),
	.run = run_debts,
};

static const struct option_spec collect_options[] = {
	VMWARE_OPTION_ROWS(struct collect_values),
	STATE_DIR_ROW("where backups keep what they owe (default: as of sendense backup)",
		struct collect_values),
};

const struct command command_vmware_collect = {
	.name = "vmware collect",
	.arguments = "URL",
	.summary = "Remove the snapshots that dead backups left, without a backup",
	.details =
		"The URL is vmware://USER@HOST[:PORT][/VM]; without a machine, those of all that\n"
		"the state folder names. What \"vmware debts\" lists of this server is removed, "
		"by\n"
		"its exact name, unless a backup of that machine runs.",
	COMMAND_OPTIONS(collect_options),
	.common = COMMON_JSON,
	.min_arguments = 1,
	.max_arguments = 1,
	.values_bytes = sizeof(struct collect_values),
	.run = run_collect,
};
