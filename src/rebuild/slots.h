/* Which restored disk hangs where. */
#ifndef SENDENSE_REBUILD_SLOTS_H
#define SENDENSE_REBUILD_SLOTS_H

#include "rebuild_internal.h"

struct placed {
	const struct rebuild_target *target;
	const json_t *disk; /* as stored; NULL: it is not */
	const json_t *controller; /* its; NULL: not known */
};

/* nr_targets of them, in the order in which the machine has them; the caller's.  Warns of stored
 * disks that have no target. */
struct placed *slots_place(const struct rebuild_machine *machine,
	const struct rebuild_target *targets, size_t nr_targets, struct err *err);

/* A libvirt controller, and a disk's address at it. */
struct slot {
	const char *type, *model; /* "scsi", "sata", "ide"; model: NULL: none is told */
	unsigned controller, bus, target, unit;
	bool is_first; /* of the disks at this controller */
};

/*
 * Fills slots (nr of them), each controller with as many disks as QEMU's takes.  is_efi: on
 * nothing but what EFI's firmware can start from.  Warns where the guest meets another kind of
 * controller.
 */
void slots_assign(const struct placed *placed, size_t nr, bool is_efi, struct slot *slots);

#endif
