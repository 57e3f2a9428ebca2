/*
 * vmware_source: "vmware://USER@HOST/VM" as the disks of a backup: a machine of a vCenter, all of
 * whose disks are read as one snapshot has them.  "nbdkit-vddk://USER@HOST/VM" is the same machine,
 * whose disks nbdkit's vddk plugin reads.
 *
 *   open ─► (keys are known) ─► name ─► plan, begin (disks can be read) ─► keep ─► reading
 *     ─► check ─► the restore point is committed ─► commit ─► end
 *
 * It is the session of vmware.h, opened by what the command line says.
 */
#ifndef SENDENSE_CLI_VMWARE_SOURCE_H
#define SENDENSE_CLI_VMWARE_SOURCE_H

#include "cli.h"
#include "remote.h"
#include "vmware_options.h"

#include "vmware.h"

/* The member "machine" of their values. */
struct vmware_wishes {
	const char *state_folder, *vddk_folder, *modes, *nbdkit;
	struct option_list skip;
	bool skip_unsupported, no_quiesce, no_cbt;
};

/* state_name: of the option for the state folder, where "state-dir" is another one's. */
#define VMWARE_SOURCE_ROWS(values, state_name)                                                    \
	{.name = "vddk",                                                                          \
		.kind = OPTION_TEXT,                                                              \
		.offset = offsetof(values, machine.vddk_folder),                                  \
		.argument = "DIR",                                                                \
		.words = WORDS_FOLDER,                                                            \
		.help = "of a vCenter: where VMware's library is (default: $SENDENSE_VDDK_DIR, "  \
			"or the usual folders; sendense doctor tells)"},                          \
		{.name = "transport-modes",                                                       \
			.kind = OPTION_TEXT,                                                      \
			.offset = offsetof(values, machine.modes),                                \
			.argument = "MODES",                                                      \
			.help = "of a vCenter: how that library may read (default: nbdssl:nbd)"}, \
		{.name = "nbdkit",                                                                \
			.kind = OPTION_TEXT,                                                      \
			.offset = offsetof(values, machine.nbdkit),                               \
			.argument = "PROGRAM",                                                    \
			.words = WORDS_FILE,                                                      \
			.help = "of nbdkit-vddk://: the nbdkit that has the vddk plugin "         \
				"(default: "                                                      \
				"nbdkit)"},                                                       \
		{.name = "no-quiesce",                                                            \
			.kind = OPTION_FLAG,                                                      \
			.offset = offsetof(values, machine.no_quiesce),                           \
			.help = "of a vCenter: do not ask the guest's tools to hold its file "    \
				"systems still"},                                                 \
		{.name = "no-enable-cbt",                                                         \
			.kind = OPTION_FLAG,                                                      \
			.offset = offsetof(values, machine.no_cbt),                               \
			.help = "of a vCenter: do not switch change tracking on (by default it "  \
				"is, when the machine has no snapshots)"},                        \
		{.name = "skip-disk",                                                             \
			.kind = OPTION_LIST,                                                      \
			.offset = offsetof(values, machine.skip),                                 \
			.argument = "KEY",                                                        \
			.help = "of a vCenter: leave this disk out"},                             \
		{.name = "skip-unsupported",                                                      \
			.kind = OPTION_FLAG,                                                      \
			.offset = offsetof(values, machine.skip_unsupported),                     \
			.help = "of a vCenter: leave out disks that no snapshot covers "          \
				"(independent, raw devices, shared); otherwise they are an "      \
				"error"},                                                         \
	{                                                                                         \
		.name = (state_name), .kind = OPTION_TEXT,                                        \
		.offset = offsetof(values, machine.state_folder), .argument = "DIR",              \
		.words = WORDS_FOLDER,                                                            \
		.help = "of a vCenter: where it is kept which snapshots must be removed "         \
			"(default: $SENDENSE_STATE_DIR, /var/lib/sendense/vmware, or "            \
			"~/.local/state/sendense/vmware)"                                         \
	}

/* Whether the name has one of these schemes. */
bool vmware_source_is(const char *name);
/* The first of these options that was given, NULL: none. */
const char *vmware_source_given(const struct vmware_access *access,
	const struct vmware_wishes *wishes, const char *state_name);

/* purpose: for people who find the snapshot.  Borrows cli's cancel, and wishes until begin. */
struct vmware_session *vmware_source_open(struct cli *cli, const char *url,
	const struct vmware_access *access, const struct vmware_wishes *wishes, const char *purpose,
	struct err *err);

/* The machine's name; ERR_USAGE when a VM of a store or a replica cannot be called so. */
int vmware_source_own_name(
	const struct vmware_session *session, char vm[REPOSITORY_VM_BYTES], struct err *err);
/* What it is called in the store: the VM whose latest restore point is of this machine, else the
 * machine's name.  ERR_USAGE when there are several, or the name cannot be one. */
int vmware_source_name(const struct vmware_session *session, struct store *store,
	char vm[REPOSITORY_VM_BYTES], struct err *err);

/* Puts what a rebuild needs into the restore point. */
int vmware_source_keep(
	struct vmware_session *session, struct store_backup *backup, struct err *err);

/* A snapshot that is left is warned of.  NULL is harmless. */
void vmware_source_end(struct vmware_session *session);

#endif
