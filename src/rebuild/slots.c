/* See slots.h. */
#include "slots.h"

#include <errno.h>
#include <string.h>

/* --- order ------------------------------------------------------------------------------------ */

static const struct rebuild_target *find_target(
	const struct rebuild_target *targets, size_t nr, const char *key)
{
	for (size_t i = 0; i < nr; i++)
		if (strcmp(targets[i].key, key) == 0)
			return &targets[i];
	return NULL;
}

static bool is_placed(const struct placed *placed, size_t nr, const struct rebuild_target *target)
{
	for (size_t i = 0; i < nr; i++)
		if (placed[i].target == target)
			return true;
	return false;
}

struct placed *slots_place(const struct rebuild_machine *machine,
	const struct rebuild_target *targets, size_t nr_targets, struct err *err)
{
	const json_t *disks = json_object_get(machine->json, "disks"), *disk;
	const json_t *controllers = json_object_get(machine->json, "controllers");
	struct placed *placed = calloc(nr_targets, sizeof *placed);
	size_t nr = 0, i;
	if (!placed) {
		err_errno(err, ENOMEM, "cannot describe the machine's disks");
		return NULL;
	}
	json_array_foreach(disks, i, disk)
	{
		const char *key = rebuild_text(disk, "key");
		const struct rebuild_target *target = find_target(targets, nr_targets, key);
		if (!target)
			log_warning(
				"the machine's disk %.64s (%.128s) is not among those restored: "
				"its configuration is without it",
				key, rebuild_text(disk, "label"));
		else if (!is_placed(placed, nr, target))
			placed[nr++] = (struct placed){target, disk,
				rebuild_find(
					controllers, "key", rebuild_number(disk, "controller"))};
	}
	for (i = 0; i < nr_targets; i++)
		if (!is_placed(placed, nr, &targets[i]))
			placed[nr++] = (struct placed){.target = &targets[i]};
	return placed;
}

/* --- slots ------------------------------------------------------------------------------------ */

enum kind { KIND_PVSCSI, KIND_SAS, KIND_SATA, KIND_IDE, NR_KINDS };

/* room: how many disks QEMU's controller takes. */
static const struct {
	const char *type, *model;
	unsigned room;
} kinds[NR_KINDS] = {
	[KIND_PVSCSI] = {"scsi", "vmpvscsi", 15},
	[KIND_SAS] = {"scsi", "lsisas1068", 8},
	[KIND_SATA] = {"sata", NULL, 6},
	[KIND_IDE] = {"ide", NULL, 4},
};

/* What a controller becomes.  QEMU has no BusLogic, of LSI's older ones not the one that VMware
 * has, and libvirt no NVMe: drivers for SATA are in every system.  EFI's firmware as distributions
 * build it reads no disk at VMware's and LSI's controllers, so nothing would start from there; and
 * its chipset has no IDE. */
static enum kind kind_of(const struct placed *placed, bool is_efi)
{
	const char *type = rebuild_text(placed->controller, "type");
	enum kind kind = KIND_SATA;
	if (strcmp(type, "ParaVirtualSCSIController") == 0)
		kind = KIND_PVSCSI;
	else if (strcmp(type, "VirtualLsiLogicSASController") == 0)
		kind = KIND_SAS;
	else if (strcmp(type, "VirtualIDEController") == 0)
		kind = KIND_IDE;
	if (kind != KIND_SATA && !is_efi)
		return kind;
	if (placed->disk && !strstr(type, "AHCI"))
		log_warning("disk %s hung on a %.64s, which %s: it is put on SATA (the guest "
			    "needs a driver for that)",
			placed->target->key, type[0] ? type : "controller that is not told",
			kind == KIND_SATA ? "has no equal" : "QEMU's EFI cannot start from");
	return KIND_SATA;
}

static struct slot slot_of(enum kind kind, unsigned controller, unsigned position)
{
	struct slot slot = {.type = kinds[kind].type,
		.model = kinds[kind].model,
		.controller = controller,
		.is_first = position == 0};
	switch (kind) {
	case KIND_PVSCSI: /* one unit a target */
	case KIND_SAS:
		slot.target = position;
		break;
	case KIND_IDE:
		slot.bus = position / 2;
		slot.unit = position % 2;
		break;
	default:
		slot.unit = position;
	}
	return slot;
}

void slots_assign(const struct placed *placed, size_t nr, bool is_efi, struct slot *slots)
{
	unsigned taken[NR_KINDS] = {0}, controller[NR_KINDS] = {0}, nr_scsi = 0, nr_sata = 0;
	for (size_t i = 0; i < nr; i++) {
		enum kind kind = kind_of(&placed[i], is_efi);
		if (kind == KIND_IDE && taken[kind] == kinds[kind].room)
			kind = KIND_SATA; /* the chipset has one */
		unsigned position = taken[kind]++ % kinds[kind].room;
		if (position == 0 && kind != KIND_IDE)
			controller[kind] = kind == KIND_SATA ? nr_sata++ : nr_scsi++;
		slots[i] = slot_of(kind, controller[kind], position);
	}
}
