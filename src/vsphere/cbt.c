/* Changed-block tracking: switched on, and made effective by a stun. */
#include "task.h"

#include <stdio.h>

#define HARDWARE_LEAST 7u
#define NAMES_MOST 5
#define REMOVE_MS 600000 /* the stun's snapshot goes, also after a cancel */

bool vsphere_same_epoch(const char *change_id, const char *other)
{
	const char *slash = strrchr(change_id, '/');
	size_t length = slash ? (size_t)(slash - change_id) + 1 : 0;
	return length > 1 && !strncmp(change_id, other, length) && other[length] &&
	       !strchr(other + length, '/');
}

/* --- may it be? --------------------------------------------------------------------------------
 */

static int refuse_snapshots(const struct vsphere_vm *vm, struct err *err)
{
	char names[ERR_TEXT_BYTES / 2] = "";
	size_t length = 0;
	for (size_t i = 0; i < vm->nr_snapshots && i < NAMES_MOST && length < sizeof names; i++) {
		int more = snprintf(names + length, sizeof names - length, "%s\"%s\"",
			i ? ", " : "", vm->snapshots[i].name);
		length += more > 0 ? (size_t)more : 0;
	}
	return err_set(err, ERR_REFUSED,
		"%s has %zu snapshot%s (%s%s): changes can be tracked only from a state without "
		"any (remove them first)",
		vm->path, vm->nr_snapshots, vm->nr_snapshots == 1 ? "" : "s", names,
		vm->nr_snapshots > NAMES_MOST ? ", ..." : "");
}

static int may_track(const struct vsphere_vm *vm, struct err *err)
{
	const struct vsphere_config *config = vm->config;
	if (config->template)
		return err_set(
			err, ERR_REFUSED, "%s is a template: its disks do not change", vm->path);
	if (config->hardware_version && config->hardware_version < HARDWARE_LEAST)
		return err_set(err, ERR_REFUSED,
			"%s has hardware version %u: changes can be tracked from %u on (upgrade "
			"its "
			"virtual hardware)",
			vm->path, config->hardware_version, HARDWARE_LEAST);
	if (!vm->cbt_supported)
		return err_set(err, ERR_REFUSED,
			"the server says that changes of %s cannot be tracked", vm->path);
	if (*vm->migration)
		return err_set(err, ERR_BUSY, "%s is being moved: %s (wait until it has arrived)",
			vm->path, vm->migration);
	return vm->nr_snapshots ? refuse_snapshots(vm, err) : 0;
}

/* --- doing it ----------------------------------------------------------------------------------
 */

static void count(const struct vsphere_vm *vm, struct vsphere_cbt *found)
{
	found->nr_disks = found->nr_tracked = 0;
	for (size_t i = 0; i < vm->config->nr_disks; i++) {
		const struct vsphere_disk *disk = &vm->config->disks[i];
		found->nr_disks += !disk->unsupported;
		found->nr_tracked += !disk->unsupported && *disk->change_id;
	}
}

static int switch_on(
	struct vsphere *vsphere, const char *vm, struct deadline until, struct err *err)
{
	struct soap soap;
	soap_begin(&soap, "ReconfigVM_Task", "VirtualMachine", vm);
	soap_open(&soap, "spec", NULL);
	soap_bool(&soap, "changeTrackingEnabled", true);
	soap_close(&soap, "spec");
	return task_run(vsphere, &soap, "switching change tracking on", until, err);
}

static int stun(struct vsphere *vsphere, const char *vm, const char *name, struct deadline until,
	struct err *err)
{
	char moref[VSPHERE_MOREF_BYTES];
	struct vsphere_taken taken;
	struct err gone = ERR_INIT;
	int rc = vsphere_snapshot_create(vsphere, vm, name,
		"Made by Sendense to begin change tracking; it is removed at once.", false, until,
		&taken, err);
	const struct cancel *cancel = vsphere->cancel;
	vsphere->cancel = NULL;
	if (rc && vsphere_snapshot_settle(
			  vsphere, vm, name, deadline_after_ms(REMOVE_MS), moref, &gone) == 1)
		snprintf(taken.moref, sizeof taken.moref, "%s", moref);
	if (taken.moref[0] && vsphere_snapshot_remove(vsphere, vm, taken.moref,
				      deadline_after_ms(REMOVE_MS), NULL, rc ? &gone : err)) {
		log_warning("the snapshot %s was not removed: please remove it", name);
		rc = -1;
	}
	vsphere->cancel = cancel;
	return rc;
}

static int look_again(
	struct vsphere *vsphere, const char *moref, struct vsphere_cbt *found, struct err *err)
{
	struct vsphere_vm *vm = vsphere_vm(vsphere, moref, err);
	if (!vm)
		return -1;
	count(vm, found);
	int rc = vm->config->cbt_enabled
			 ? 0
			 : err_set(err, ERR_REFUSED,
				   "the server says that it was switched on, but it is still off");
	vsphere_vm_free(vm);
	return rc;
}

static int enable(struct vsphere *vsphere, const struct vsphere_vm *vm, const char *name,
	struct deadline until, struct vsphere_cbt *found, struct err *err)
{
	count(vm, found);
	found->was_enabled = vm->config->cbt_enabled;
	bool untracked = found->nr_tracked < found->nr_disks;
	if (found->was_enabled && (!untracked || vm->power != VSPHERE_POWER_ON))
		return 0;
	if (may_track(vm, err))
		return -1;
	if (!found->was_enabled && switch_on(vsphere, vm->moref, until, err))
		return -1;
	if (vm->power == VSPHERE_POWER_ON && found->nr_disks) {
		if (stun(vsphere, vm->moref, name, until, err))
			return -1;
		found->stunned = true;
	}
	return look_again(vsphere, vm->moref, found, err);
}

int vsphere_cbt_enable(struct vsphere *vsphere, const char *moref, const char *name,
	struct deadline until, struct vsphere_cbt *found, struct err *err)
{
	*found = (struct vsphere_cbt){.stunned = false};
	struct vsphere_vm *vm = vsphere_vm(vsphere, moref, err);
	int rc = vm ? enable(vsphere, vm, name, until, found, err) : -1;
	vsphere_vm_free(vm);
	return rc;
}
