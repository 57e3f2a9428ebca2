/* Debts, paid: by the next session of the machine, or by whoever collects them. */
#include "pay.h"

#include "vmware_internal.h"

#include <errno.h>
#include <string.h>

bool pay_is_at(const struct vmware_debt *debt, const struct debts_place *place)
{
	const char *server = place->vcenter_uuid[0] ? place->vcenter_uuid : place->host;
	const char *its = debt->vcenter_uuid[0] ? debt->vcenter_uuid : debt->host;
	return strcmp(its, server) == 0;
}

int pay_snapshot(struct vsphere *vsphere, const struct debts_place *place, const char *snapshot,
	struct deadline until, struct err *err)
{
	char moref[VSPHERE_MOREF_BYTES];
	bool consolidation_needed = false;
	int64_t began_ns = clock_now_ns();
	/* First a look, whose deadline is short: the server may be gone. */
	int rc = vsphere_snapshot_find(vsphere, place->vm, snapshot, moref, err);
	if (rc == 0)
		rc = vsphere_snapshot_settle(vsphere, place->vm, snapshot, until, moref, err);
	if (rc > 0)
		rc = vsphere_snapshot_remove(
			vsphere, place->vm, moref, until, &consolidation_needed, err);
	if (rc < 0)
		return -1;
	log_info("%s: the snapshot %s is gone, after %.1f s", place->path, snapshot,
		vmware_seconds_since(began_ns));
	if (consolidation_needed)
		log_warning("%s: its disks need consolidation, says the server (vSphere client: "
			    "Snapshots, Consolidate)",
			place->path);
	return debts_drop(place->folder, snapshot, err);
}

int pay_hint(const struct debts_place *place, const char *snapshot, struct err *err)
{
	char file[DEBTS_PATH_BYTES];
	debts_file(place->folder, snapshot, file);
	err_context(err, "the snapshot %s of %s is still there", snapshot, place->path);
	return err_hint(err,
		"the next backup of this machine removes it, as %s says; or remove it in the "
		"vSphere client",
		file);
}

/* --- all of a server's -------------------------------------------------------------------------
 */

struct collection {
	struct vsphere *vsphere;
	const struct vmware_options *options;
	char folder[STATEDIR_BYTES];
	struct debts_place server; /* of the server alone */
	char *vm_uuid; /* the one machine that is meant; NULL: all */
	vmware_tell_debt *tell;
	void *context;
	bool is_held; /* the machine of the debt that is just looked at, by a session */
	unsigned nr_left;
	struct err first; /* why the first one is left */
};

static int pay_at(struct collection *c, const struct vmware_debt *debt, const struct vsphere_vm *vm,
	struct err *err)
{
	struct debts_place place = c->server;
	unsigned most_ms =
		c->options->remove_timeout_ms ? c->options->remove_timeout_ms : PAY_MOST_MS;
	place.vm_uuid = debt->vm_uuid;
	place.vm = vm->moref;
	place.path = vm->path;
	struct err why = ERR_INIT;
	int fd = debts_lock(&place, &why);
	c->is_held = fd < 0 && why.code == ERR_BUSY;
	if (fd < 0)
		return err_copy(err, &why);
	int rc = pay_snapshot(c->vsphere, &place, debt->snapshot, deadline_after_ms(most_ms), err);
	if (rc < 0)
		pay_hint(&place, debt->snapshot, err);
	debts_unlock(&place, fd);
	return rc;
}

static int pay_one(struct collection *c, const struct vmware_debt *debt, struct err *err)
{
	c->is_held = debt->alive;
	if (debt->alive)
		return err_set(err, ERR_BUSY,
			"the snapshot %s of %s: its session runs (process %lld)", debt->snapshot,
			debt->path, (long long)debt->pid);
	struct vsphere_vm *vm = vsphere_find_vm(c->vsphere, debt->vm_uuid, err);
	if (!vm) {
		err_context(err, "the snapshot %s of %s", debt->snapshot, debt->path);
		return err_hint(err,
			"if the machine was deleted, its snapshots are gone too: remove %s then",
			debt->file);
	}
	int rc = pay_at(c, debt, vm, err);
	vsphere_vm_free(vm);
	return rc;
}

static int collect_debt(void *context, const struct vmware_debt *debt, struct err *err)
{
	struct collection *c = context;
	struct err why = ERR_INIT;
	if (!pay_is_at(debt, &c->server) || (c->vm_uuid && strcmp(c->vm_uuid, debt->vm_uuid) != 0))
		return 0;
	int rc = pay_one(c, debt, &why);
	c->tell(c->context, debt, rc < 0 ? &why : NULL);
	if (rc == 0 || c->is_held)
		return 0; /* who has the machine pays what is owed for it */
	if (c->nr_left++ == 0)
		c->first = why;
	/* The others would meet the same. */
	return why.code == ERR_CANCELLED || why.code == ERR_DISCONNECTED ? err_copy(err, &why) : 0;
}

static int find_machine(struct collection *c, struct err *err)
{
	const char *what = c->options->what;
	if (!what || !what[strspn(what, "/")])
		return 0;
	struct vsphere_vm *vm = vsphere_find_vm(c->vsphere, what, err);
	if (!vm)
		return -1;
	c->vm_uuid = strdup(vm->config->instance_uuid);
	vsphere_vm_free(vm);
	return c->vm_uuid ? 0 : err_errno(err, ENOMEM, "cannot remove snapshots");
}

static int collect(struct collection *c, struct err *err)
{
	c->server = (struct debts_place){
		.folder = c->folder,
		.vcenter_uuid = vsphere_about(c->vsphere)->instance_uuid,
		.host = c->options->server.host,
	};
	if (find_machine(c, err) < 0 || vmware_debts(c->folder, collect_debt, c, err) < 0)
		return -1;
	if (c->nr_left == 0)
		return 0;
	err_copy(err, &c->first);
	return c->nr_left == 1 ? -1 : err_hint(err, "%u are left in all", c->nr_left);
}

int vmware_collect(const struct vmware_options *options, vmware_tell_debt *tell, void *context,
	struct err *err)
{
	struct collection c = {.options = options, .tell = tell, .context = context};
	if (vmware_state_folder(options->state_folder, c.folder, err) < 0)
		return -1;
	c.vsphere = vsphere_open(&options->server, err);
	int rc = c.vsphere ? collect(&c, err) : -1;
	vsphere_close(c.vsphere);
	free(c.vm_uuid);
	return rc;
}
