/* A machine as an OVF 1.1 in VMware's dialect.  The members of an item are in alphabetical order,
 * as its schema wants them. */
#include "markup.h"
#include "rebuild_internal.h"
#include "slots.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define CIM "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/"
#define DMTF "http://schemas.dmtf.org/ovf/envelope/1"
#define HARDWARE "vmx-13"
#define AHCI_ROOM 30u

/* The first free ids of items; those of disks and networks follow. */
enum { ID_CPUS = 1, ID_MEMORY, ID_SATA, ID_NEXT };

/* CIM's numbers of resources. */
enum {
	RESOURCE_CPU = 3,
	RESOURCE_MEMORY,
	RESOURCE_IDE,
	RESOURCE_SCSI,
	RESOURCE_NIC = 10,
	RESOURCE_DISK = 17,
	RESOURCE_OTHER_STORAGE = 20
};

struct ovf {
	struct markup *x;
	const struct rebuild_machine *machine;
	const struct placed *placed;
	size_t nr;
	unsigned next_id;
};

struct kind {
	const char *type, *sub_type;
	int resource;
};

static const struct kind controller_kinds[] = {
	{"VirtualAHCIController", "vmware.sata.ahci", RESOURCE_OTHER_STORAGE},
	{"ParaVirtualSCSIController", "VirtualSCSI", RESOURCE_SCSI},
	{"VirtualLsiLogicSASController", "lsilogicsas", RESOURCE_SCSI},
	{"VirtualLsiLogicController", "lsilogic", RESOURCE_SCSI},
	{"VirtualBusLogicController", "buslogic", RESOURCE_SCSI},
	{"VirtualIDEController", "", RESOURCE_IDE},
	{"VirtualNVMEController", "vmware.nvme.controller", RESOURCE_OTHER_STORAGE},
};

/* NULL: not one that an OVF can name. */
static const struct kind *kind_of(const json_t *controller)
{
	const char *type = rebuild_text(controller, "type");
	for (size_t i = 0; i < ARRAY_LENGTH(controller_kinds); i++)
		if (strcmp(type, controller_kinds[i].type) == 0)
			return &controller_kinds[i];
	return NULL;
}

static bool keeps_place(const struct placed *placed)
{
	return placed->controller && kind_of(placed->controller) &&
	       rebuild_number(placed->disk, "unit") >= 0;
}

/* --- sections before the hardware ---------------------------------------------------------------
 */

static const char *file_name(const struct rebuild_target *target)
{
	return strrchr(target->path, '/') + 1;
}

static void write_files(const struct ovf *o)
{
	markup_open(o->x, "References");
	for (size_t i = 0; i < o->nr; i++) {
		markup_open(o->x, "File");
		markup_attribute(o->x, "ovf:href", "%s", file_name(o->placed[i].target));
		markup_attribute(o->x, "ovf:id", "file%zu", i + 1);
		markup_close(o->x);
	}
	markup_close(o->x);
	markup_open(o->x, "DiskSection");
	markup_element(o->x, "Info", "Virtual disks");
	for (size_t i = 0; i < o->nr; i++) {
		const struct rebuild_target *target = o->placed[i].target;
		markup_open(o->x, "Disk");
		markup_attribute(o->x, "ovf:capacity", "%" PRIu64, target->size_bytes);
		markup_attribute(o->x, "ovf:capacityAllocationUnits", "byte");
		markup_attribute(o->x, "ovf:diskId", "disk%zu", i + 1);
		markup_attribute(o->x, "ovf:fileRef", "file%zu", i + 1);
		markup_attribute(o->x, "ovf:format", "%s",
			target->format == REBUILD_QCOW2
				? "http://www.gnome.org/~markmc/qcow-image-format.html"
				: "http://en.wikipedia.org/wiki/Byte");
		markup_close(o->x);
	}
	markup_close(o->x);
}

static const char *network_of(const json_t *nic)
{
	const char *network = rebuild_text(nic, "network");
	return network[0] ? network : "VM Network";
}

static void write_networks(const struct ovf *o)
{
	const json_t *nics = json_object_get(o->machine->json, "nics"), *nic;
	size_t i;
	markup_open(o->x, "NetworkSection");
	markup_element(o->x, "Info", "Networks");
	json_array_foreach(nics, i, nic)
	{
		bool is_told = false;
		for (size_t k = 0; k < i; k++)
			is_told |=
				strcmp(network_of(json_array_get(nics, k)), network_of(nic)) == 0;
		if (is_told)
			continue;
		markup_open(o->x, "Network");
		markup_attribute(o->x, "ovf:name", "%s", network_of(nic));
		markup_close(o->x);
	}
	markup_close(o->x);
}

/* --- hardware -----------------------------------------------------------------------------------
 */

static void write_system(const struct ovf *o)
{
	const char *hardware = rebuild_text(o->machine->json, "hardware");
	markup_open(o->x, "System");
	markup_element(o->x, "vssd:ElementName", "Virtual Hardware Family");
	markup_element(o->x, "vssd:InstanceID", "0");
	markup_element(o->x, "vssd:VirtualSystemIdentifier", "%s", o->machine->name);
	markup_element(o->x, "vssd:VirtualSystemType", "%s",
		strncmp(hardware, "vmx-", 4) == 0 ? hardware : HARDWARE);
	markup_close(o->x);
}

static void write_processor(const struct ovf *o)
{
	markup_open(o->x, "Item");
	markup_element(o->x, "rasd:AllocationUnits", "hertz * 10^6");
	markup_element(o->x, "rasd:ElementName", "%u virtual CPUs", o->machine->nr_cpus);
	markup_element(o->x, "rasd:InstanceID", "%d", ID_CPUS);
	markup_element(o->x, "rasd:ResourceType", "%d", RESOURCE_CPU);
	markup_element(o->x, "rasd:VirtualQuantity", "%u", o->machine->nr_cpus);
	markup_open(o->x, "vmw:CoresPerSocket");
	markup_attribute(o->x, "ovf:required", "false");
	markup_text(o->x, "%u", o->machine->cores_per_socket);
	markup_close(o->x);
	markup_close(o->x);
}

static void write_memory(const struct ovf *o)
{
	uint64_t mib = o->machine->memory_bytes / MIB;
	markup_open(o->x, "Item");
	markup_element(o->x, "rasd:AllocationUnits", "byte * 2^20");
	markup_element(o->x, "rasd:ElementName", "%" PRIu64 " MiB of memory", mib);
	markup_element(o->x, "rasd:InstanceID", "%d", ID_MEMORY);
	markup_element(o->x, "rasd:ResourceType", "%d", RESOURCE_MEMORY);
	markup_element(o->x, "rasd:VirtualQuantity", "%" PRIu64, mib);
	markup_close(o->x);
}

static void write_controller(
	const struct ovf *o, const struct kind *kind, unsigned id, unsigned address)
{
	markup_open(o->x, "Item");
	markup_element(o->x, "rasd:Address", "%u", address);
	markup_element(o->x, "rasd:ElementName", "Controller %u", id);
	markup_element(o->x, "rasd:InstanceID", "%u", id);
	if (kind->sub_type[0])
		markup_element(o->x, "rasd:ResourceSubType", "%s", kind->sub_type);
	markup_element(o->x, "rasd:ResourceType", "%d", kind->resource);
	markup_close(o->x);
}

static void write_disk(const struct ovf *o, size_t nr, unsigned id, unsigned parent, unsigned unit)
{
	const char *label = rebuild_text(o->placed[nr].disk, "label");
	markup_open(o->x, "Item");
	markup_element(o->x, "rasd:AddressOnParent", "%u", unit);
	markup_element(o->x, "rasd:ElementName", "%s", label[0] ? label : "Hard disk");
	markup_element(o->x, "rasd:HostResource", "ovf:/disk/disk%zu", nr + 1);
	markup_element(o->x, "rasd:InstanceID", "%u", id);
	markup_element(o->x, "rasd:Parent", "%u", parent);
	markup_element(o->x, "rasd:ResourceType", "%d", RESOURCE_DISK);
	markup_close(o->x);
}

/* Disks with a stored place keep it; the others are put on SATA of their own. */
static int write_disks(struct ovf *o, struct err *err)
{
	const json_t *controllers = json_object_get(o->machine->json, "controllers"), *controller;
	unsigned nr_sata = 0;
	size_t i;
	json_array_foreach(controllers, i, controller)
	{
		const struct kind *kind = kind_of(controller);
		unsigned parent = o->next_id++;
		bool is_written = false;
		for (size_t k = 0; k < o->nr; k++) {
			if (o->placed[k].controller != controller || !keeps_place(&o->placed[k]))
				continue;
			if (!is_written)
				write_controller(o, kind, parent,
					(unsigned)rebuild_number(controller, "bus"));
			is_written = true;
			write_disk(o, k, o->next_id++, parent,
				(unsigned)rebuild_number(o->placed[k].disk, "unit"));
		}
	}
	for (size_t k = 0; k < o->nr; k++) {
		if (keeps_place(&o->placed[k]))
			continue;
		if (o->placed[k].disk)
			log_warning(
				"disk %s hung on a controller that an OVF cannot name: it is put "
				"on SATA",
				o->placed[k].target->key);
		/* Behind those that the machine has. */
		if (nr_sata == 0)
			write_controller(o, &controller_kinds[0], ID_SATA,
				(unsigned)json_array_size(controllers));
		if (nr_sata == AHCI_ROOM)
			return err_set(err, ERR_UNSUPPORTED,
				"an OVF can take no more than %u disks whose place is not known",
				AHCI_ROOM);
		write_disk(o, k, o->next_id++, ID_SATA, nr_sata++);
	}
	return 0;
}

static const char *nic_type(const json_t *nic)
{
	static const char *const types[][2] = {
		{"VirtualVmxnet3", "VmxNet3"},
		{"VirtualVmxnet2", "VmxNet2"},
		{"VirtualE1000", "E1000"},
		{"VirtualE1000e", "E1000e"},
		{"VirtualPCNet32", "PCNet32"},
	};
	const char *type = rebuild_text(nic, "type");
	for (size_t i = 0; i < ARRAY_LENGTH(types); i++)
		if (strcmp(type, types[i][0]) == 0)
			return types[i][1];
	log_warning("%.128s was a %.64s, which an OVF cannot name: it becomes an E1000",
		rebuild_text(nic, "label"), type);
	return "E1000";
}

static void write_nic(struct ovf *o, const json_t *nic)
{
	markup_open(o->x, "Item");
	if (rebuild_mac(nic)[0])
		markup_element(o->x, "rasd:Address", "%s", rebuild_mac(nic));
	markup_element(o->x, "rasd:AutomaticAllocation", "%s",
		json_is_true(json_object_get(nic, "connected")) ? "true" : "false");
	markup_element(o->x, "rasd:Connection", "%s", network_of(nic));
	markup_element(o->x, "rasd:ElementName", "%s", rebuild_text(nic, "label"));
	markup_element(o->x, "rasd:InstanceID", "%u", o->next_id++);
	markup_element(o->x, "rasd:ResourceSubType", "%s", nic_type(nic));
	markup_element(o->x, "rasd:ResourceType", "%d", RESOURCE_NIC);
	markup_close(o->x);
}

static void write_setting(const struct ovf *o, const char *key, const char *value)
{
	markup_open(o->x, "vmw:Config");
	markup_attribute(o->x, "ovf:required", "false");
	markup_attribute(o->x, "vmw:key", "%s", key);
	markup_attribute(o->x, "vmw:value", "%s", value);
	markup_close(o->x);
}

static int write_hardware(struct ovf *o, struct err *err)
{
	const json_t *nic;
	size_t i;
	markup_open(o->x, "VirtualHardwareSection");
	markup_element(o->x, "Info", "Virtual hardware");
	write_system(o);
	write_processor(o);
	write_memory(o);
	if (write_disks(o, err) < 0)
		return -1;
	json_array_foreach(json_object_get(o->machine->json, "nics"), i, nic) write_nic(o, nic);
	write_setting(o, "firmware", o->machine->firmware);
	if (strcmp(o->machine->firmware, "efi") == 0 &&
		json_is_true(json_object_get(o->machine->json, "secure_boot")))
		write_setting(o, "bootOptions.efiSecureBootEnabled", "true");
	markup_close(o->x);
	return 0;
}

/* --- the whole ----------------------------------------------------------------------------------
 */

static int write_all(struct ovf *o, struct err *err)
{
	static const char *const names[][2] = {
		{"xmlns", DMTF},
		{"xmlns:ovf", DMTF},
		{"xmlns:rasd", CIM "CIM_ResourceAllocationSettingData"},
		{"xmlns:vssd", CIM "CIM_VirtualSystemSettingData"},
		{"xmlns:vmw", "http://www.vmware.com/schema/ovf"},
	};
	const char *guest = rebuild_text(o->machine->json, "guest_id");
	markup_open(o->x, "Envelope");
	for (size_t i = 0; i < ARRAY_LENGTH(names); i++)
		markup_attribute(o->x, names[i][0], "%s", names[i][1]);
	write_files(o);
	write_networks(o);
	markup_open(o->x, "VirtualSystem");
	markup_attribute(o->x, "ovf:id", "%s", o->machine->name);
	markup_element(o->x, "Info", "A virtual machine");
	markup_element(o->x, "Name", "%s", o->machine->name);
	markup_open(o->x, "OperatingSystemSection");
	markup_attribute(o->x, "ovf:id", "1"); /* other: vmw:osType says it */
	if (guest[0])
		markup_attribute(o->x, "vmw:osType", "%s", guest);
	markup_element(o->x, "Info", "The guest");
	markup_close(o->x);
	if (write_hardware(o, err) < 0)
		return -1;
	markup_close(o->x);
	markup_close(o->x);
	return 0;
}

char *rebuild_ovf(const struct rebuild_machine *machine, const struct rebuild_target *targets,
	size_t nr_targets, struct err *err)
{
	for (size_t i = 0; i < nr_targets; i++)
		if (targets[i].is_device) {
			err_set(err, ERR_USAGE, "an OVF names files, and %s is a device",
				targets[i].path);
			return NULL;
		}
	struct placed *AUTO_FREE placed = slots_place(machine, targets, nr_targets, err);
	if (!placed)
		return NULL;
	struct ovf o = {.x = markup_new(),
		.machine = machine,
		.placed = placed,
		.nr = nr_targets,
		.next_id = ID_NEXT};
	char *text = write_all(&o, err) == 0 ? markup_finish(o.x, err) : NULL;
	markup_free(o.x);
	return text;
}
