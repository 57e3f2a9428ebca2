/* What a rebuild of the machine needs, as files beside the restore point. */
#include "vmware_internal.h"

#include <errno.h>
#include <jansson.h>
#include <string.h>

#define NVRAM_MOST (4u << 20)

static json_t *disks_json(const struct vmware_session *session)
{
	const struct vsphere_config *config = session->config;
	json_t *disks = json_array();
	for (size_t i = 0; i < config->nr_disks; i++) {
		const struct vsphere_disk *d = &config->disks[i];
		char key[VMWARE_KEY_BYTES];
		const char *skipped = NULL;
		snprintf(key, sizeof key, "%d", (int)d->key);
		for (size_t k = 0; k < session->nr_skipped; k++)
			if (strcmp(session->skipped[k].key, key) == 0)
				skipped = session->skipped[k].why;
		json_array_append_new(disks,
			json_pack("{s:s, s:s, s:I, s:i, s:i, s:s, s:s, s:s, s:s, s:s, s:b, s:s?}",
				"key", key, "label", d->label, "size",
				(json_int_t)d->capacity_bytes, "controller", (int)d->controller_key,
				"unit", (int)d->unit, "file", d->file, "uuid", d->uuid, "mode",
				d->mode, "sharing", d->sharing, "backing", d->backing, "thin",
				(int)d->thin, "left_out", skipped));
	}
	return disks;
}

static json_t *controllers_json(const struct vsphere_config *config)
{
	json_t *controllers = json_array();
	for (size_t i = 0; i < config->nr_controllers; i++) {
		const struct vsphere_controller *c = &config->controllers[i];
		json_array_append_new(
			controllers, json_pack("{s:i, s:i, s:s, s:s}", "key", (int)c->key, "bus",
					     (int)c->bus, "type", c->type, "sharing", c->sharing));
	}
	return controllers;
}

static json_t *nics_json(const struct vsphere_config *config)
{
	json_t *nics = json_array();
	for (size_t i = 0; i < config->nr_nics; i++) {
		const struct vsphere_nic *n = &config->nics[i];
		json_array_append_new(
			nics, json_pack("{s:i, s:s, s:s, s:s, s:s, s:b}", "key", (int)n->key,
				      "label", n->label, "type", n->type, "mac", n->mac, "network",
				      n->network, "connected", (int)n->connected));
	}
	return nics;
}

static json_t *machine_json(const struct vmware_session *session)
{
	const struct vsphere_config *c = session->config;
	const struct vsphere_about *about = vsphere_about(session->vsphere);
	return json_pack("{s:i, s:{s:s, s:s, s:s}, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:b,"
			 " s:i, s:i, s:I, s:s, s:s, s:o, s:o, s:o}",
		"sendense-vsphere", 1, "server", "host", session->host, "name", about->full_name,
		"instance_uuid", about->instance_uuid, "path", session->vm->path, "name", c->name,
		"instance_uuid", c->instance_uuid, "bios_uuid", c->bios_uuid, "guest_id",
		c->guest_id, "guest", c->guest_name, "hardware", c->hardware, "firmware",
		c->firmware, "secure_boot", (int)c->secure_boot, "cpus", (int)c->nr_cpus,
		"cores_per_socket", (int)c->cores_per_socket, "memory_bytes",
		(json_int_t)c->memory_bytes, "vmx_file", c->vmx_file, "nvram_file", c->nvram_file,
		"disks", disks_json(session), "controllers", controllers_json(c), "nics",
		nics_json(c));
}

/* Without it the machine can still be rebuilt: its boot entries are made anew. */
static int give_nvram(
	struct vmware_session *session, vmware_take_file *take, void *context, struct err *err)
{
	struct err why = ERR_INIT;
	char *AUTO_FREE bytes = NULL;
	size_t length;
	const char *file = session->config->nvram_file;
	if (!file[0])
		return 0;
	if (vsphere_load_file(
		    session->vsphere, session->vm, file, NVRAM_MOST, &bytes, &length, &why) < 0) {
		if (why.code == ERR_CANCELLED)
			return err_copy(err, &why);
		log_warning("the restore point is without the machine's nvram: %s", why.text);
		return 0;
	}
	return length > 0 ? take(context, "nvram", bytes, length, err) : 0;
}

int vmware_config(
	struct vmware_session *session, vmware_take_file *take, void *context, struct err *err)
{
	json_t *machine = machine_json(session);
	char *AUTO_FREE text = machine ? json_dumps(machine, JSON_INDENT(2)) : NULL;
	json_decref(machine);
	if (!text)
		return err_errno(err, ENOMEM, "cannot describe %s", session->vm->path);
	if (take(context, "vsphere.json", text, strlen(text), err) < 0)
		return -1;
	return give_nvram(session, take, context, err);
}
