/*
 * A VM's configuration: its disks with what says whether a snapshot and change tracking cover
 * them, and what a rebuild needs.  Names of types are VMware's; those that we do not know are
 * passed on as they are.
 */
#include "config.h"
#include "memo.h"

#include <stdio.h>

#define SECTOR 512u

struct owned {
	struct vsphere_config config;
	struct memo memo;
};

struct reading {
	struct owned *owned;
	struct vsphere_disk *disks;
	struct vsphere_controller *controllers;
	struct vsphere_nic *nics;
	struct err *err;
};

void vsphere_config_free(struct vsphere_config *config)
{
	if (!config)
		return;
	struct owned *owned = (struct owned *)config;
	struct memo memo = owned->memo;
	memo_free(&memo);
	free(owned);
}

const struct vsphere_disk *vsphere_config_disk(const struct vsphere_config *config, int32_t key)
{
	for (size_t i = 0; i < config->nr_disks; i++)
		if (config->disks[i].key == key)
			return &config->disks[i];
	return NULL;
}

/* -1 when it is not there. */
static int read_key(const struct xml *device, const char *name, int32_t *key, struct err *err)
{
	int64_t value = -1;
	int rc = xml_number(device, name, -1, INT32_MAX, &value, err);
	*key = (int32_t)value;
	return rc < 0 ? -1 : 0;
}

/* --- disks -------------------------------------------------------------------------------------
 */

static int read_capacity(const struct xml *device, uint64_t *bytes, struct err *err)
{
	int64_t value = 0;
	int rc = xml_number(device, "capacityInBytes", 0, INT64_MAX, &value, err);
	if (!rc || (rc > 0 && !value)) {
		rc = xml_number(device, "capacityInKB", 0, INT64_MAX / 1024, &value, err);
		value *= 1024;
	}
	if (rc < 0)
		return -1;
	if (!value || value % SECTOR)
		return err_set(err, ERR_PROTOCOL, "the disk %s has a size of %lld bytes",
			xml_text(device, "key"), (long long)value);
	*bytes = (uint64_t)value;
	return 0;
}

static bool starts_with(const char *text, const char *start)
{
	return !strncmp(text, start, strlen(start));
}

/* What a snapshot or change tracking does not cover, whatever else is right. */
static const char *why_unsupported(const struct vsphere_disk *disk, const struct xml *backing)
{
	if (starts_with(disk->mode, "independent"))
		return "it is independent: no snapshot holds it";
	if (*disk->mode && strcmp(disk->mode, "persistent") != 0)
		return "its mode is not persistent: no snapshot holds it";
	if (!strcmp(xml_text(backing, "compatibilityMode"), "physicalMode"))
		return "it is a raw device in physical mode: no snapshot holds it";
	if (starts_with(disk->backing, "VirtualDiskRawDiskVer") ||
		starts_with(disk->backing, "VirtualDiskPartitionedRawDiskVer"))
		return "it is a raw device: no snapshot holds it";
	if (starts_with(disk->backing, "VirtualDiskLocalPMem"))
		return "it is persistent memory: no snapshot holds it";
	if (!strcmp(disk->sharing, "sharingMultiWriter"))
		return "several VMs write to it: no snapshot holds it";
	if (!*disk->file)
		return "the server does not tell where it is stored";
	return NULL;
}

static int read_disk(struct reading *r, const struct xml *device)
{
	struct memo *memo = &r->owned->memo;
	struct vsphere_disk *disk = &r->disks[r->owned->config.nr_disks];
	const struct xml *backing = xml_child(device, "backing");
	if (read_key(device, "key", &disk->key, r->err) ||
		read_key(device, "controllerKey", &disk->controller_key, r->err) ||
		read_key(device, "unitNumber", &disk->unit, r->err) ||
		read_capacity(device, &disk->capacity_bytes, r->err))
		return -1;
	disk->label = memo_text(memo, xml_text(device, "deviceInfo/label"));
	disk->file = memo_text(memo, xml_text(backing, "fileName"));
	disk->uuid = memo_text(memo, xml_text(backing, "uuid"));
	disk->change_id = memo_text(memo, xml_text(backing, "changeId"));
	disk->mode = memo_text(memo, xml_text(backing, "diskMode"));
	disk->sharing = memo_text(memo, xml_text(backing, "sharing"));
	disk->backing = memo_text(memo, backing ? backing->type : "");
	disk->thin = xml_is_true(backing, "thinProvisioned");
	disk->unsupported = why_unsupported(disk, backing);
	r->owned->config.nr_disks++;
	return 0;
}

static int by_key(const void *a, const void *b)
{
	int32_t left = ((const struct vsphere_disk *)a)->key;
	int32_t right = ((const struct vsphere_disk *)b)->key;
	return (left > right) - (left < right);
}

/* Keys are what disks are told apart by, end to end. */
static int finish_disks(struct reading *r)
{
	struct vsphere_config *config = &r->owned->config;
	qsort(r->disks, config->nr_disks, sizeof *r->disks, by_key);
	for (size_t i = 0; i < config->nr_disks; i++) {
		struct vsphere_disk *disk = &r->disks[i];
		if (disk->key < 0)
			return err_set(r->err, ERR_PROTOCOL, "a disk has no key");
		if (i && disk->key == disk[-1].key)
			return err_set(
				r->err, ERR_PROTOCOL, "two disks have the key %d", (int)disk->key);
		for (size_t j = 0; j < config->nr_controllers && !disk->unsupported; j++)
			if (r->controllers[j].key == disk->controller_key &&
				strstr(r->controllers[j].sharing, "Sharing") &&
				strcmp(r->controllers[j].sharing, "noSharing") != 0)
				disk->unsupported = "its controller's bus is shared with other "
						    "VMs: no snapshot holds it";
	}
	return 0;
}

/* --- other devices -----------------------------------------------------------------------------
 */

/* Those that disks can hang on. */
static bool is_controller(const char *type)
{
	static const char *const others[] = {"VirtualPCIController", "VirtualPS2Controller",
		"VirtualSIOController", "VirtualUSBController", "VirtualUSBXHCIController"};
	static const char tail[] = "Controller";
	size_t length = strlen(type);
	for (size_t i = 0; i < ARRAY_LENGTH(others); i++)
		if (!strcmp(type, others[i]))
			return false;
	return length > strlen(tail) && !strcmp(type + length - strlen(tail), tail);
}

static int read_controller(struct reading *r, const struct xml *device)
{
	struct vsphere_controller *controller = &r->controllers[r->owned->config.nr_controllers];
	if (read_key(device, "key", &controller->key, r->err) ||
		read_key(device, "busNumber", &controller->bus, r->err))
		return -1;
	controller->type = memo_text(&r->owned->memo, device->type);
	controller->sharing = memo_text(&r->owned->memo, xml_text(device, "sharedBus"));
	r->owned->config.nr_controllers++;
	return 0;
}

static const char *network_of(const struct xml *backing)
{
	static const char *const paths[] = {"deviceName", "port/portgroupKey", "opaqueNetworkId"};
	for (size_t i = 0; i < ARRAY_LENGTH(paths); i++)
		if (*xml_text(backing, paths[i]))
			return xml_text(backing, paths[i]);
	return "";
}

static int read_nic(struct reading *r, const struct xml *device)
{
	struct memo *memo = &r->owned->memo;
	struct vsphere_nic *nic = &r->nics[r->owned->config.nr_nics];
	if (read_key(device, "key", &nic->key, r->err))
		return -1;
	nic->label = memo_text(memo, xml_text(device, "deviceInfo/label"));
	nic->type = memo_text(memo, device->type);
	nic->mac = memo_text(memo, xml_text(device, "macAddress"));
	nic->network = memo_text(memo, network_of(xml_child(device, "backing")));
	nic->connected = xml_is_true(device, "connectable/startConnected");
	r->owned->config.nr_nics++;
	return 0;
}

static int read_devices(struct reading *r, const struct xml *hardware)
{
	struct memo *memo = &r->owned->memo;
	size_t nr = 0;
	const struct xml *first = xml_child(hardware, "device"), *device;
	for (device = first; device; device = xml_again(device))
		nr++;
	r->disks = memo_take(memo, nr, sizeof *r->disks);
	r->controllers = memo_take(memo, nr, sizeof *r->controllers);
	r->nics = memo_take(memo, nr, sizeof *r->nics);
	for (device = memo->failed ? NULL : first; device; device = xml_again(device)) {
		int rc = 0;
		if (!strcmp(device->type, "VirtualDisk"))
			rc = read_disk(r, device);
		else if (is_controller(device->type))
			rc = read_controller(r, device);
		else if (xml_child(device, "macAddress"))
			rc = read_nic(r, device);
		if (rc)
			return -1;
	}
	r->owned->config.disks = r->disks;
	r->owned->config.controllers = r->controllers;
	r->owned->config.nics = r->nics;
	return finish_disks(r);
}

/* --- the whole ---------------------------------------------------------------------------------
 */

/* It is told as a name beside the VM's own file. */
static const char *nvram_file(struct memo *memo, const struct xml *xml, const char *vmx)
{
	const char *slash = strrchr(vmx, '/');
	for (const struct xml *extra = xml_child(xml, "extraConfig"); extra;
		extra = xml_again(extra)) {
		const char *name = xml_text(extra, "value");
		if (strcmp(xml_text(extra, "key"), "nvram") != 0 || !*name)
			continue;
		if (*name == '[')
			return memo_text(memo, name);
		return slash && !strchr(name, '/')
			       ? memo_format(memo, "%.*s%s", (int)(slash - vmx + 1), vmx, name)
			       : "";
	}
	return "";
}

static int read_numbers(struct vsphere_config *config, const struct xml *xml, struct err *err)
{
	int64_t cpus = 0, cores = 0, memory_mb = 0;
	if (xml_number(xml, "hardware/numCPU", 0, 65536, &cpus, err) < 0 ||
		xml_number(xml, "hardware/numCoresPerSocket", 0, 65536, &cores, err) < 0 ||
		xml_number(xml, "hardware/memoryMB", 0, INT32_MAX, &memory_mb, err) < 0)
		return -1;
	config->nr_cpus = (unsigned)cpus;
	config->cores_per_socket = (unsigned)cores;
	config->memory_bytes = (uint64_t)memory_mb * MIB;
	if (starts_with(config->hardware, "vmx-"))
		config->hardware_version = (unsigned)strtoul(config->hardware + 4, NULL, 10);
	return 0;
}

static int read_config(struct owned *owned, const struct xml *xml, struct err *err)
{
	struct vsphere_config *config = &owned->config;
	struct memo *memo = &owned->memo;
	struct reading reading = {.owned = owned, .err = err};
	config->name = memo_text(memo, xml_text(xml, "name"));
	config->instance_uuid = memo_text(memo, xml_text(xml, "instanceUuid"));
	config->bios_uuid = memo_text(memo, xml_text(xml, "uuid"));
	config->guest_id = memo_text(memo, xml_text(xml, "guestId"));
	config->guest_name = memo_text(memo, xml_text(xml, "guestFullName"));
	config->hardware = memo_text(memo, xml_text(xml, "version"));
	config->firmware = memo_text(memo, xml_text(xml, "firmware"));
	config->secure_boot = xml_is_true(xml, "bootOptions/efiSecureBootEnabled");
	config->vmx_file = memo_text(memo, xml_text(xml, "files/vmPathName"));
	config->nvram_file = nvram_file(memo, xml, config->vmx_file);
	config->template = xml_is_true(xml, "template");
	config->cbt_enabled = xml_is_true(xml, "changeTrackingEnabled");
	config->xml = memo_adopt(memo, xml_print(xml, "config", &config->xml_length));
	if (read_numbers(config, xml, err) || read_devices(&reading, xml_child(xml, "hardware")))
		return -1;
	return memo->failed ? err_set(err, ERR_NO_MEMORY, "no memory") : 0;
}

struct vsphere_config *config_read(const struct xml *xml, struct err *err)
{
	struct owned *owned = calloc(1, sizeof *owned);
	if (!owned) {
		err_set(err, ERR_NO_MEMORY, "reading a VM's configuration: no memory");
		return NULL;
	}
	if (read_config(owned, xml, err)) {
		err_context(err, "reading the configuration of %s", xml_text(xml, "name"));
		vsphere_config_free(&owned->config);
		return NULL;
	}
	return &owned->config;
}
