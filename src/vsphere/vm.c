/* What the server says of one VM. */
#include "vm.h"
#include "config.h"
#include "places.h"
#include "props.h"

#include <stdio.h>

struct owned {
	struct vsphere_vm vm;
	struct vsphere_config *config;
	struct vsphere_snapshot *snapshots;
	struct memo memo;
};

const char *vsphere_power_name(enum vsphere_power power)
{
	static const char *const names[] = {"unknown", "off", "on", "suspended"};
	return names[power];
}

void vsphere_vm_free(struct vsphere_vm *vm)
{
	if (!vm)
		return;
	struct owned *owned = (struct owned *)vm;
	struct memo memo = owned->memo;
	vsphere_config_free(owned->config);
	memo_free(&memo);
	free(owned);
}

/* --- snapshots ---------------------------------------------------------------------------------
 */

/* The lists of roots and of children are elements side by side. */
static size_t count(const struct xml *tree)
{
	size_t nr = 0;
	for (; tree; tree = xml_again(tree))
		nr += 1 + count(xml_child(tree, "childSnapshotList"));
	return nr;
}

static void flatten(
	struct owned *owned, const struct xml *tree, unsigned depth, const char *current)
{
	struct memo *memo = &owned->memo;
	for (; tree; tree = xml_again(tree)) {
		struct vsphere_snapshot *snapshot = &owned->snapshots[owned->vm.nr_snapshots++];
		*snapshot = (struct vsphere_snapshot){
			.moref = memo_text(memo, xml_text(tree, "snapshot")),
			.name = memo_text(memo, xml_text(tree, "name")),
			.description = memo_text(memo, xml_text(tree, "description")),
			.created = memo_text(memo, xml_text(tree, "createTime")),
			.depth = depth,
			.quiesced = xml_is_true(tree, "quiesced"),
			.current = !strcmp(xml_text(tree, "snapshot"), current),
		};
		flatten(owned, xml_child(tree, "childSnapshotList"), depth + 1, current);
	}
}

static void read_snapshots(struct owned *owned, const struct xml *info)
{
	const struct xml *roots = xml_child(info, "rootSnapshotList");
	owned->snapshots = memo_take(&owned->memo, count(roots), sizeof *owned->snapshots);
	owned->vm.snapshots = owned->snapshots;
	if (owned->snapshots)
		flatten(owned, roots, 0, xml_text(info, "currentSnapshot"));
}

/* --- tasks -------------------------------------------------------------------------------------
 */

static bool has_word(const char *text, const char *const *words)
{
	for (; *words; words++)
		if (strcasestr(text, *words))
			return true;
	return false;
}

static int look_at_task(struct vsphere *vsphere, const char *task, const char *const *words,
	struct deadline until, char out[VM_TASK_BYTES], struct err *err)
{
	static const char *const paths[] = {
		"info.state", "info.descriptionId", "info.progress", NULL};
	static const struct props_spec spec = {"Task", paths};
	struct vim_answer answer;
	const struct xml *object;
	struct err why = ERR_INIT;
	int rc = props_get(vsphere, &spec, task, until, &answer, &object, &why);
	const char *description = rc ? "" : props_text(object, "info.descriptionId");
	const char *state = rc ? "" : props_text(object, "info.state");
	const char *percent = rc ? "" : props_text(object, "info.progress");
	if (rc && (why.code == ERR_NOT_FOUND || why.code == ERR_DENIED))
		rc = 0; /* it was recent and is gone, or it is somebody else's */
	else if (rc)
		err_copy(err, &why);
	if (has_word(description, words) && (!strcmp(state, "running") || !strcmp(state, "queued")))
		rc = snprintf(out, VM_TASK_BYTES, "%s %s, %s %%", task, description,
			     *percent ? percent : "0") > 0;
	vim_free(&answer);
	return rc;
}

int vm_running_task(struct vsphere *vsphere, const char *moref, const char *const *words,
	struct deadline until, char out[VM_TASK_BYTES], struct err *err)
{
	static const char *const paths[] = {"recentTask", NULL};
	static const struct props_spec spec = {"VirtualMachine", paths};
	struct vim_answer answer;
	const struct xml *object;
	out[0] = 0;
	int rc = props_get(vsphere, &spec, moref, until, &answer, &object, err);
	const struct xml *task =
		rc ? NULL : xml_child(props_value(object, "recentTask"), "ManagedObjectReference");
	for (; task && !rc; task = xml_again(task))
		rc = look_at_task(vsphere, task->text, words, until, out, err);
	vim_free(&answer);
	return rc;
}

/* --- the whole ---------------------------------------------------------------------------------
 */

enum vsphere_power vm_power(const char *text)
{
	return !strcmp(text, "poweredOn")    ? VSPHERE_POWER_ON
	       : !strcmp(text, "poweredOff") ? VSPHERE_POWER_OFF
	       : !strcmp(text, "suspended")  ? VSPHERE_POWER_SUSPENDED
					     : VSPHERE_POWER_UNKNOWN;
}

static int read_config(struct owned *owned, const struct xml *object, struct err *err)
{
	const struct xml *config = props_value(object, "config");
	const struct vsphere_vm *vm = &owned->vm;
	struct soap_fault fault;
	if (config && config->first) {
		owned->config = config_read(config, err);
		owned->vm.config = owned->config;
		return owned->config ? 0 : -1;
	}
	if (props_fault(object, "config", &fault)) {
		soap_fault_set(&fault, err);
		return err_context(err, "asking for the configuration of %s", vm->path);
	}
	return err_set(err, ERR_REFUSED,
		"the server cannot tell the configuration of %s now: it is %s", vm->path,
		*vm->connection ? vm->connection : "not reachable");
}

static int read_path(struct vsphere *vsphere, struct owned *owned, const struct xml *object,
	struct deadline until, struct err *err)
{
	struct places places = {.nr = 0};
	int rc = places_climb(vsphere, &places, object, until, err);
	if (!rc)
		owned->vm.path = places_path(&places, vsphere, places_parent(object),
			props_text(object, "name"), &owned->memo, &owned->vm.datacenter);
	places_free(&places);
	return rc;
}

static int read_vm(struct vsphere *vsphere, struct owned *owned, const struct xml *object,
	struct deadline until, struct err *err)
{
	static const char *const migrations[] = {"relocate", "migrate", "vmotion", NULL};
	struct vsphere_vm *vm = &owned->vm;
	struct memo *memo = &owned->memo;
	char task[VM_TASK_BYTES];
	vm->moref = memo_text(memo, xml_text(object, "obj"));
	vm->power = vm_power(props_text(object, "runtime.powerState"));
	vm->connection = memo_text(memo, props_text(object, "runtime.connectionState"));
	vm->host = memo_text(memo, props_text(object, "runtime.host"));
	vm->tools = memo_text(memo, props_text(object, "guest.toolsRunningStatus"));
	vm->cbt_supported = props_is_true(object, "capability.changeTrackingSupported");
	vm->consolidation_needed = props_is_true(object, "runtime.consolidationNeeded");
	if (read_path(vsphere, owned, object, until, err) || read_config(owned, object, err))
		return -1;
	read_snapshots(owned, props_value(object, "snapshot"));
	if (vm_running_task(vsphere, vm->moref, migrations, until, task, err) < 0)
		return -1;
	vm->migration = memo_text(memo, task);
	return memo->failed ? err_set(err, ERR_NO_MEMORY, "no memory") : 0;
}

struct vsphere_vm *vsphere_vm(struct vsphere *vsphere, const char *moref, struct err *err)
{
	static const char *const paths[] = {"name", "parent", "parentVApp", "config", "snapshot",
		"runtime.powerState", "runtime.connectionState", "runtime.host",
		"runtime.consolidationNeeded", "guest.toolsRunningStatus",
		"capability.changeTrackingSupported", NULL};
	static const struct props_spec spec = {"VirtualMachine", paths};
	struct deadline until = vim_until(vsphere);
	struct vim_answer answer = {.parser = NULL};
	const struct xml *object;
	struct owned *owned = calloc(1, sizeof *owned);
	int rc = owned ? 0 : err_set(err, ERR_NO_MEMORY, "no memory");
	if (!rc)
		rc = props_get(vsphere, &spec, moref, until, &answer, &object, err);
	if (!rc)
		rc = read_vm(vsphere, owned, object, until, err);
	vim_free(&answer);
	if (!rc)
		return &owned->vm;
	vsphere_vm_free(owned ? &owned->vm : NULL);
	err_context(err, "asking for the VM %s", moref);
	return NULL;
}
