/* What is known of servers and machines, as --json and REST show it. */
#include "vsphere.h"

#include <stdio.h>

json_t *vsphere_about_json(const struct vsphere *vsphere)
{
	const struct vsphere_about *about = vsphere_about(vsphere);
	return json_pack("{s:s, s:s, s:s, s:s}", "name", about->full_name, "api_version",
		about->api_version, "instance_uuid", about->instance_uuid, "fingerprint",
		about->sha256);
}

json_t *vsphere_listed_json(const struct vsphere_listed *vm)
{
	return json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:b, s:b, s:i, s:I, s:s}", "path",
		vm->path, "name", vm->name, "id", vm->moref, "instance_uuid", vm->instance_uuid,
		"bios_uuid", vm->bios_uuid, "power", vsphere_power_name(vm->power), "template",
		vm->template, "cbt", vm->cbt_enabled, "disks", (int)vm->nr_disks, "used_bytes",
		(json_int_t)vm->used_bytes, "guest", vm->guest_name);
}

json_t *vsphere_disks_json(const struct vsphere_config *config)
{
	json_t *disks = json_array();
	for (size_t i = 0; i < config->nr_disks; i++) {
		const struct vsphere_disk *d = &config->disks[i];
		char key[16];
		snprintf(key, sizeof key, "%d", (int)d->key);
		json_array_append_new(disks,
			json_pack("{s:s, s:s, s:I, s:s, s:s, s:s, s:s, s:b, s:s, s:s?}", "key", key,
				"label", d->label, "size", (json_int_t)d->capacity_bytes, "file",
				d->file, "uuid", d->uuid, "mode", d->mode, "backing", d->backing,
				"thin", d->thin, "change_id", d->change_id, "unsupported",
				d->unsupported));
	}
	return disks;
}

static json_t *snapshots_json(const struct vsphere_vm *vm)
{
	json_t *snapshots = json_array();
	for (size_t i = 0; i < vm->nr_snapshots; i++) {
		const struct vsphere_snapshot *s = &vm->snapshots[i];
		json_array_append_new(snapshots,
			json_pack("{s:s, s:s, s:s, s:s, s:i, s:b}", "id", s->moref, "name", s->name,
				"description", s->description, "created", s->created, "depth",
				(int)s->depth, "quiesced", s->quiesced));
	}
	return snapshots;
}

static json_t *nics_json(const struct vsphere_config *config)
{
	json_t *nics = json_array();
	for (size_t i = 0; i < config->nr_nics; i++) {
		const struct vsphere_nic *nic = &config->nics[i];
		json_array_append_new(
			nics, json_pack("{s:s, s:s, s:s, s:s, s:b}", "label", nic->label, "type",
				      nic->type, "mac", nic->mac, "network", nic->network,
				      "connected", nic->connected));
	}
	return nics;
}

json_t *vsphere_vm_json(const struct vsphere_vm *vm)
{
	const struct vsphere_config *c = vm->config;
	return json_pack(
		"{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:b, s:i, s:i, s:I,"
		" s:b, s:{s:b, s:b}, s:b, s:s, s:o, s:o, s:o}",
		"path", vm->path, "name", c->name, "id", vm->moref, "instance_uuid",
		c->instance_uuid, "bios_uuid", c->bios_uuid, "power", vsphere_power_name(vm->power),
		"connection", vm->connection, "tools", vm->tools, "guest", c->guest_name,
		"hardware", c->hardware, "firmware", c->firmware, "secure_boot", c->secure_boot,
		"cpus", (int)c->nr_cpus, "cores_per_socket", (int)c->cores_per_socket,
		"memory_bytes", (json_int_t)c->memory_bytes, "template", c->template, "cbt",
		"supported", vm->cbt_supported, "enabled", c->cbt_enabled, "consolidation_needed",
		vm->consolidation_needed, "migration", vm->migration, "snapshots",
		snapshots_json(vm), "disks", vsphere_disks_json(c), "nics", nics_json(c));
}
