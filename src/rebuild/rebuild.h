/*
 * rebuild: a machine's configuration as text for another hypervisor.
 *
 *   vsphere.json of a restore point ─┐
 *   what the user says instead      ─┼─► rebuild_machine ─► XML of a libvirt domain, or an OVF
 *   where its disks were restored   ─┘
 *
 * Devices are replaced by such as the guest has drivers for; what cannot be taken over as it was is
 * told in a warning (log_warning).
 *
 * Thread rule: a machine belongs to one thread.
 */
#ifndef SENDENSE_REBUILD_H
#define SENDENSE_REBUILD_H

#include "base.h"

#define REBUILD_FILE "vsphere.json" /* of a restore point, see vmware_config() */

enum rebuild_format { REBUILD_RAW, REBUILD_QCOW2 };

/* A restored disk. */
struct rebuild_target {
	const char *key; /* in the restore point */
	const char *path; /* absolute */
	enum rebuild_format format;
	bool is_device; /* a block device, not a file */
	uint64_t size_bytes;
};

/* What is said instead of what is stored. */
struct rebuild_wishes {
	const char *name; /* the machine's, where none is stored */
	unsigned nr_cpus; /* 0: as stored */
	uint64_t memory_bytes; /* 0: as stored */
	const char *firmware; /* "bios", "efi"; NULL: as stored */
};

struct rebuild_machine;

/*
 * text: what REBUILD_FILE holds, length bytes; NULL: nothing is stored, so CPUs, memory and
 * firmware must be among the wishes (ERR_USAGE names what is missing), and disks hang on SATA.
 * ERR_FORMAT: it is not such a file; ERR_UNSUPPORTED: of a later version.  Copies all.
 */
struct rebuild_machine *rebuild_machine(
	const char *text, size_t length, const struct rebuild_wishes *wishes, struct err *err);
/* NULL is harmless. */
void rebuild_free(struct rebuild_machine *machine);

/*
 * The text, which the caller frees.  Disks that are stored and have no target are left out with a
 * warning; targets that are not stored hang on SATA.
 */
char *rebuild_domain(const struct rebuild_machine *machine, const struct rebuild_target *targets,
	size_t nr_targets, struct err *err);
/* The same; targets are files in the OVF's own folder, which it names without that folder
 * (ERR_USAGE for devices).  ERR_UNSUPPORTED: more disks than its controllers can take. */
char *rebuild_ovf(const struct rebuild_machine *machine, const struct rebuild_target *targets,
	size_t nr_targets, struct err *err);

#endif
