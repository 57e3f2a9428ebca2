/*
 * machine_config: what "restore --config" writes beside restored disks, so that their machine can
 * be made again: the XML of a libvirt domain, or an OVF.
 */
#ifndef SENDENSE_CLI_MACHINE_CONFIG_H
#define SENDENSE_CLI_MACHINE_CONFIG_H

#include "cli.h"
#include "remote.h"

/* The member "machine" of a command's values. */
struct machine_values {
	const char *kind, *out, *firmware;
	struct option_number cpus, memory;
	bool only;
};

#define MACHINE_OPTION_ROWS(values)                                                               \
	{.name = "config",                                                                        \
		.kind = OPTION_CHOICE,                                                            \
		.offset = offsetof(values, machine.kind),                                         \
		.argument = "libvirt|ovf",                                                        \
		.choices = machine_config_kinds,                                                  \
		.help = "write what makes the machine again: a libvirt domain's XML, or an OVF"}, \
		{.name = "config-out",                                                            \
			.kind = OPTION_TEXT,                                                      \
			.offset = offsetof(values, machine.out),                                  \
			.argument = "FILE",                                                       \
			.words = WORDS_FILE,                                                      \
			.help = "where to (default: VM.xml or VM.ovf beside the first file that " \
				"--to names)"},                                                   \
		{.name = "config-only",                                                           \
			.kind = OPTION_FLAG,                                                      \
			.offset = offsetof(values, machine.only),                                 \
			.help = "copy nothing: the disks are where --to says already"},           \
		{.name = "cpus",                                                                  \
			.kind = OPTION_NUMBER,                                                    \
			.offset = offsetof(values, machine.cpus),                                 \
			.argument = "N",                                                          \
			.minimum = 1,                                                             \
			.maximum = 4096,                                                          \
			.help = "with --config: instead of those in the restore point"},          \
		{.name = "memory",                                                                \
			.kind = OPTION_SIZE,                                                      \
			.offset = offsetof(values, machine.memory),                               \
			.argument = "SIZE",                                                       \
			.minimum = 1048576,                                                       \
			.maximum = UINT64_C(1) << 50,                                             \
			.help = "the same"},                                                      \
	{                                                                                         \
		.name = "firmware", .kind = OPTION_CHOICE,                                        \
		.offset = offsetof(values, machine.firmware), .argument = "bios|efi",             \
		.choices = machine_config_firmwares, .help = "the same"                           \
	}

extern const char *const machine_config_kinds[];
extern const char *const machine_config_firmwares[];

/* A restored disk. */
struct machine_disk {
	const char *key, *name; /* name: of the target, see locator.h */
	uint64_t size_bytes;
};

struct machine_config {
	char *text, *path;
};

/* Whether the values go together; ERR_USAGE. */
int machine_config_check(const struct machine_values *values, struct err *err);

/*
 * Before anything is copied: makes the text, and finds where it goes, which is refused as a target
 * of a restore would be (ERR_EXISTS without force).  Nothing without --config.
 */
int machine_config_make(struct machine_config *config, const struct machine_values *values,
	struct store *store, const char *vm, const char *point, const struct machine_disk *disks,
	size_t nr_disks, bool force, struct err *err);
/* Nothing when nothing was made. */
int machine_config_write(const struct machine_config *config, struct err *err);
void machine_config_free(struct machine_config *config);

#endif
