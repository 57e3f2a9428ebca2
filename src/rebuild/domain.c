/* A machine as the XML of a libvirt domain for QEMU. */
#include "markup.h"
#include "rebuild_internal.h"
#include "slots.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define DEV_BYTES 8 /* "sdzz" */

static bool is_efi(const struct rebuild_machine *machine)
{
	return strcmp(machine->firmware, "efi") == 0;
}

static bool is_secure(const struct rebuild_machine *machine)
{
	return is_efi(machine) && json_is_true(json_object_get(machine->json, "secure_boot"));
}

/* libvirt's names have no slash and are one line. */
static void write_name(struct markup *x, const struct rebuild_machine *machine)
{
	char *AUTO_FREE name = strdup(machine->name);
	if (!name)
		return;
	for (char *at = name; *at; at++)
		if (*at == '/' || (unsigned char)*at < ' ')
			*at = '_';
	markup_element(x, "name", "%s", name);
}

static void write_head(struct markup *x, const struct rebuild_machine *machine)
{
	write_name(x, machine);
	if (rebuild_uuid(machine)[0])
		markup_element(x, "uuid", "%s", rebuild_uuid(machine));
	markup_open(x, "memory");
	markup_attribute(x, "unit", "KiB");
	markup_text(x, "%" PRIu64, machine->memory_bytes / KIB);
	markup_close(x);
	markup_element(x, "vcpu", "%u", machine->nr_cpus);
}

static void write_feature(struct markup *x, const char *name, bool on)
{
	markup_open(x, "feature");
	markup_attribute(x, "enabled", "%s", on ? "yes" : "no");
	markup_attribute(x, "name", "%s", name);
	markup_close(x);
}

/* The chipset with IDE is like VMware's; EFI's firmware is made for the newer one. */
static void write_os(struct markup *x, const struct rebuild_machine *machine)
{
	markup_open(x, "os");
	if (is_efi(machine))
		markup_attribute(x, "firmware", "efi");
	markup_open(x, "type");
	markup_attribute(x, "arch", "x86_64");
	markup_attribute(x, "machine", "%s", is_efi(machine) ? "q35" : "pc");
	markup_text(x, "hvm");
	markup_close(x);
	if (is_efi(machine)) {
		markup_open(x, "firmware");
		write_feature(x, "secure-boot", is_secure(machine));
		if (is_secure(machine))
			write_feature(x, "enrolled-keys", true);
		markup_close(x);
	}
	if (is_secure(machine)) {
		markup_open(x, "loader");
		markup_attribute(x, "secure", "yes");
		markup_close(x);
	}
	markup_close(x);
}

static void write_features(struct markup *x, const struct rebuild_machine *machine)
{
	markup_open(x, "features");
	markup_element(x, "acpi", "%s", "");
	markup_element(x, "apic", "%s", "");
	if (is_secure(machine)) {
		markup_open(x, "smm");
		markup_attribute(x, "state", "on");
		markup_close(x);
	}
	markup_close(x);
	markup_open(x, "cpu");
	markup_attribute(x, "mode", "host-model");
	markup_open(x, "topology");
	markup_attribute(x, "sockets", "%u", machine->nr_cpus / machine->cores_per_socket);
	markup_attribute(x, "cores", "%u", machine->cores_per_socket);
	markup_attribute(x, "threads", "1");
	markup_close(x);
	markup_close(x);
	/* Windows keeps local time in the clock. */
	bool is_windows = strncmp(rebuild_text(machine->json, "guest_id"), "win", 3) == 0;
	markup_open(x, "clock");
	markup_attribute(x, "offset", "%s", is_windows ? "localtime" : "utc");
	markup_close(x);
}

/* --- disks --------------------------------------------------------------------------------------
 */

/* "sda", "sdz", "sdaa" */
static void name_device(const char *prefix, unsigned nr, char name[DEV_BYTES])
{
	if (nr < 26)
		snprintf(name, DEV_BYTES, "%s%c", prefix, 'a' + nr);
	else
		snprintf(name, DEV_BYTES, "%s%c%c", prefix, 'a' + nr / 26 - 1, 'a' + nr % 26);
}

static void write_address(struct markup *x, const struct slot *slot)
{
	markup_open(x, "address");
	markup_attribute(x, "type", "drive");
	markup_attribute(x, "controller", "%u", slot->controller);
	markup_attribute(x, "bus", "%u", slot->bus);
	markup_attribute(x, "target", "%u", slot->target);
	markup_attribute(x, "unit", "%u", slot->unit);
	markup_close(x);
}

static void write_disk(
	struct markup *x, const struct placed *placed, const struct slot *slot, unsigned nr)
{
	const struct rebuild_target *target = placed->target;
	char device[DEV_BYTES];
	name_device(strcmp(slot->type, "ide") == 0 ? "hd" : "sd", nr, device);
	markup_open(x, "disk");
	markup_attribute(x, "type", "%s", target->is_device ? "block" : "file");
	markup_attribute(x, "device", "disk");
	markup_open(x, "driver");
	markup_attribute(x, "name", "qemu");
	markup_attribute(x, "type", "%s", target->format == REBUILD_QCOW2 ? "qcow2" : "raw");
	markup_close(x);
	markup_open(x, "source");
	markup_attribute(x, target->is_device ? "dev" : "file", "%s", target->path);
	markup_close(x);
	markup_open(x, "target");
	markup_attribute(x, "dev", "%s", device);
	markup_attribute(x, "bus", "%s", slot->type);
	markup_close(x);
	markup_open(x, "boot");
	markup_attribute(x, "order", "%u", nr + 1);
	markup_close(x);
	write_address(x, slot);
	markup_close(x);
}

static void write_controller(struct markup *x, const struct slot *slot)
{
	markup_open(x, "controller");
	markup_attribute(x, "type", "%s", slot->type);
	markup_attribute(x, "index", "%u", slot->controller);
	if (slot->model)
		markup_attribute(x, "model", "%s", slot->model);
	markup_close(x);
}

static int write_disks(struct markup *x, const struct rebuild_machine *machine,
	const struct rebuild_target *targets, size_t nr, struct err *err)
{
	struct placed *AUTO_FREE placed = slots_place(machine, targets, nr, err);
	if (!placed)
		return -1;
	struct slot *AUTO_FREE slots = calloc(nr, sizeof *slots);
	if (!slots)
		return err_errno(err, ENOMEM, "cannot describe the machine's disks");
	slots_assign(placed, nr, is_efi(machine), slots);
	for (size_t i = 0; i < nr; i++)
		write_disk(x, &placed[i], &slots[i], (unsigned)i);
	for (size_t i = 0; i < nr; i++)
		if (slots[i].is_first)
			write_controller(x, &slots[i]);
	return 0;
}

/* --- networks -----------------------------------------------------------------------------------
 */

static const char *nic_model(const json_t *nic)
{
	static const struct {
		const char *type, *model;
	} models[] = {
		{"VirtualVmxnet3", "vmxnet3"},
		{"VirtualE1000", "e1000"},
		{"VirtualE1000e", "e1000e"},
		{"VirtualPCNet32", "pcnet"},
	};
	const char *type = rebuild_text(nic, "type");
	for (size_t i = 0; i < ARRAY_LENGTH(models); i++)
		if (strcmp(type, models[i].type) == 0)
			return models[i].model;
	log_warning("%.128s was a %.64s, which has no equal: it becomes an e1000",
		rebuild_text(nic, "label"), type);
	return "e1000";
}

/* Names of networks mean nothing to another host, whose own "default" leads to no other machine. */
static void write_nic(struct markup *x, const json_t *nic)
{
	log_warning("%.128s was on the network \"%.128s\", and is put on \"default\": edit it",
		rebuild_text(nic, "label"), rebuild_text(nic, "network"));
	markup_open(x, "interface");
	markup_attribute(x, "type", "network");
	if (rebuild_mac(nic)[0]) {
		markup_open(x, "mac");
		markup_attribute(x, "address", "%s", rebuild_mac(nic));
		markup_close(x);
	}
	markup_open(x, "source");
	markup_attribute(x, "network", "default");
	markup_close(x);
	markup_open(x, "model");
	markup_attribute(x, "type", "%s", nic_model(nic));
	markup_close(x);
	if (!json_is_true(json_object_get(nic, "connected"))) {
		markup_open(x, "link");
		markup_attribute(x, "state", "down");
		markup_close(x);
	}
	markup_close(x);
}

/* --- the whole ----------------------------------------------------------------------------------
 */

static void write_empty(struct markup *x, const char *element, const char *name, const char *value)
{
	markup_open(x, element);
	markup_attribute(x, name, "%s", value);
	markup_close(x);
}

/* What is needed to see it boot. */
static void write_console(struct markup *x)
{
	write_empty(x, "serial", "type", "pty");
	write_empty(x, "console", "type", "pty");
	markup_open(x, "input");
	markup_attribute(x, "type", "tablet");
	markup_attribute(x, "bus", "usb");
	markup_close(x);
	markup_open(x, "graphics");
	markup_attribute(x, "type", "vnc");
	markup_attribute(x, "autoport", "yes");
	markup_attribute(x, "listen", "127.0.0.1");
	markup_close(x);
	markup_open(x, "video");
	write_empty(x, "model", "type", "vga");
	markup_close(x);
	write_empty(x, "memballoon", "model", "none");
}

char *rebuild_domain(const struct rebuild_machine *machine, const struct rebuild_target *targets,
	size_t nr_targets, struct err *err)
{
	struct markup *x = markup_new();
	const json_t *nic;
	size_t i;
	markup_open(x, "domain");
	markup_attribute(x, "type", "kvm");
	write_head(x, machine);
	write_os(x, machine);
	write_features(x, machine);
	markup_open(x, "devices");
	if (write_disks(x, machine, targets, nr_targets, err) < 0) {
		markup_free(x);
		return NULL;
	}
	json_array_foreach(json_object_get(machine->json, "nics"), i, nic) write_nic(x, nic);
	write_console(x);
	markup_close(x);
	markup_close(x);
	if (is_efi(machine))
		log_warning("EFI's variables of VMware cannot be taken over: a guest that does not "
			    "start from EFI/BOOT/BOOTX64.EFI needs a boot entry made anew");
	char *text = markup_finish(x, err);
	markup_free(x);
	return text;
}
