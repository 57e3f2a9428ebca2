/*
 * vsphere: a vCenter (or a single ESXi host) over its SOAP API: virtual machines, snapshots,
 * changed blocks.
 *
 *   open ─► find (or list) ─► snapshot_create ─► snapshot_config: disks and their change ids
 *        ─► changed_areas for each disk ─► (the disks are read by other means) ─► snapshot_remove
 *        ─► close
 *
 * The server's certificate is checked before the user's password is sent, on every connection;
 * where it is not trusted, the error tells its fingerprint for people to compare. A session that
 * expired is opened again and the call repeated, without the caller seeing it; so are calls that
 * met HTTP 503 or a broken connection, as long as their deadline lasts and repeating does no harm.
 * After vsphere_close() there is no session left on the server.
 *
 * Every wait has a name in its error, a deadline, and heeds the session's cancel
 * (vsphere_set_cancel), also those of clean-up: a caller that cleans up after a cancel
 * sets another one first (NULL: only deadlines end waits).
 *
 * Errors beyond those of each function, their text holding the server's own words and the name
 * of its fault:
 *   ERR_DENIED        wrong user or password, certificate not trusted, a privilege is missing
 *                     (the text names it)
 *   ERR_NOT_FOUND     no such object (any more)
 *   ERR_BUSY          another task is at work on this VM
 *   ERR_REFUSED       the server, or this room, does not do it, for the reason in the text
 *   ERR_UNSUPPORTED   the server does not know such a call
 *   ERR_NO_SPACE      a datastore is full
 *   ERR_DISCONNECTED, ERR_TIMEOUT, ERR_PROTOCOL (the answer is not XML, is too large, or does
 *                     not fit what was asked), ERR_CANCELLED, ERR_NO_MEMORY
 *
 * Strings in what is given are UTF-8 and never NULL ("" where the server says nothing) unless
 * it is stated.  Managed object ids ("morefs", like "vm-57") are at most VSPHERE_MOREF_BYTES - 1
 * bytes.
 *
 * Thread rule: one thread at a time for each struct vsphere; what it gave belongs to the caller.
 */
#ifndef SENDENSE_VSPHERE_H
#define SENDENSE_VSPHERE_H

#include "base.h"

#include <jansson.h>

#define VSPHERE_MOREF_BYTES 128u
#define VSPHERE_PORT 443u

/* --- names ---------------------------------------------------------------------------------- */

/* vmware://USER@HOST[:PORT][/PATH]; USER may hold '@', everything may be percent-encoded. */
struct vsphere_url {
	char *user, *host; /* host: an IPv6 address without its brackets */
	unsigned port;
	char *path; /* "" or "/Datacenter/vm/web01", decoded; a name or a uuid as well: "/web01" */
};

/* ERR_USAGE, also for a password in it.  After an error there is nothing to free. */
int vsphere_url_parse(const char *text, struct vsphere_url *url, struct err *err);
/* Harmless on one of zeros. */
void vsphere_url_free(struct vsphere_url *url);

/* The one line of a file that only its owner may read (ERR_DENIED).  The caller wipes *password,
 * *length bytes, and frees it. */
int vsphere_password_load(const char *path, char **password, size_t *length, struct err *err);

/* --- the session ---------------------------------------------------------------------------- */

/* Called on the caller's thread each time that the server was asked how far a task of it is, some
 * two seconds apart, and as changed areas are told.  percent: 0..100. */
typedef void vsphere_progress(void *context, const char *what, unsigned percent);

struct vsphere_options {
	const char *host;
	unsigned port; /* 0: VSPHERE_PORT */
	const char *user, *password; /* copied; the copy is wiped by vsphere_close() */
	/* Whom to trust: at most one of both; neither: the system's CAs, and the certificate
	 * must be for this host's name. */
	const char *ca_file; /* PEM */
	const char *fingerprint; /* SHA-256 of the server's own certificate: 64 hex digits, with
				    or without colons */
	unsigned connect_timeout_ms; /* 0: 30,000 */
	unsigned call_timeout_ms; /* of one call with all its repetitions; 0: 60,000 */
	const char *user_agent; /* NULL: "sendense" */
	const struct cancel *cancel; /* borrowed; may be NULL */
	vsphere_progress *progress; /* may be NULL */
	void *progress_context;
};

struct vsphere;

/* Connects and logs in.  ERR_USAGE for options that are none.  Strings are copied. */
struct vsphere *vsphere_open(const struct vsphere_options *options, struct err *err);

/* From now on waits heed this one (borrowed; NULL: none). */
void vsphere_set_cancel(struct vsphere *vsphere, const struct cancel *cancel);

/* Logs out, 5 s at most, heeding no cancel.  NULL is harmless. */
void vsphere_close(struct vsphere *vsphere);

/* Lent until close. */
struct vsphere_about {
	const char *full_name; /* "VMware vCenter Server 7.0.3 build-19234570" */
	const char *api_version; /* "7.0.3.0" */
	const char *instance_uuid; /* the vCenter's own; "" for an ESXi host */
	bool is_vcenter;
	/* Of the certificate that was accepted, upper-case hex with colons: VDDK asks for SHA-1,
	 * people for SHA-256. */
	const char *sha1, *sha256;
};
const struct vsphere_about *vsphere_about(const struct vsphere *vsphere);

/* --- virtual machines ----------------------------------------------------------------------- */

enum vsphere_power {
	VSPHERE_POWER_UNKNOWN,
	VSPHERE_POWER_OFF,
	VSPHERE_POWER_ON,
	VSPHERE_POWER_SUSPENDED,
};
/* "unknown", "off", "on", "suspended". */
const char *vsphere_power_name(enum vsphere_power power);

struct vsphere_disk {
	int32_t key; /* of the device: what the disk is called, end to end */
	const char *label; /* "Hard disk 1" */
	uint64_t capacity_bytes; /* > 0, a multiple of 512 */
	int32_t controller_key, unit; /* -1: not told */
	const char *file; /* "[datastore] folder/name.vmdk"; in a snapshot's config: that of the
			     snapshot, which is the one to read */
	const char *uuid; /* of the backing: stays when the file is moved; "" when not told */
	const char *change_id; /* "uuid/sequence"; "": not tracked */
	const char *mode; /* "persistent", "independent_persistent", ... */
	const char *sharing; /* "sharingNone", "sharingMultiWriter", "" */
	const char *backing; /* VMware's name: "VirtualDiskFlatVer2BackingInfo" */
	bool thin;
	/* NULL: snapshots and change tracking cover it; else why they do not ("independent: no
	 * snapshot holds it"). */
	const char *unsupported;
};

struct vsphere_controller {
	int32_t key, bus;
	const char *type; /* VMware's name: "ParaVirtualSCSIController" */
	const char *sharing; /* "noSharing", ...; "" */
};

struct vsphere_nic {
	int32_t key;
	const char *label, *type; /* "Network adapter 1", "VirtualVmxnet3" */
	const char *mac; /* "00:50:56:..." */
	const char *network; /* a name, or a distributed port group's key; "" */
	bool connected; /* at power-on */
};

/* A VM's configuration, or that of one of its snapshots: what a rebuild needs. */
struct vsphere_config {
	const char *name;
	const char *instance_uuid; /* unique in one vCenter */
	const char *bios_uuid; /* clones may share it */
	const char *guest_id, *guest_name; /* "debian11_64Guest", "Debian GNU/Linux 11 (64-bit)" */
	const char *hardware; /* "vmx-19" */
	unsigned hardware_version; /* 19; 0: not told */
	const char *firmware; /* "bios", "efi" */
	bool secure_boot;
	unsigned nr_cpus, cores_per_socket; /* 0: not told */
	uint64_t memory_bytes;
	const char *vmx_file; /* "[datastore] folder/name.vmx" */
	const char *nvram_file; /* the same way; "" when not told */
	bool template;
	bool cbt_enabled;
	size_t nr_disks, nr_controllers, nr_nics;
	const struct vsphere_disk *disks; /* by key, all distinct */
	const struct vsphere_controller *controllers;
	const struct vsphere_nic *nics;
	/* The whole configuration as the server told it: one XML element "config" with zero
	 * behind it.  It may hold what the guest's owner put there (guestinfo). */
	const char *xml;
	size_t xml_length;
};

/* NULL: none has this key. */
const struct vsphere_disk *vsphere_config_disk(const struct vsphere_config *config, int32_t key);

struct vsphere_snapshot {
	const char *moref, *name, *description;
	const char *created; /* "2026-11-21T19:29:42.260287837Z" */
	unsigned depth; /* 0: a root */
	bool quiesced, current;
};

struct vsphere_vm {
	const char *moref;
	const char *path; /* "/Datacenter/vm/folder/name", as the server writes it (a slash in a
			     name is %2f) */
	const char *datacenter; /* the part of the path that is the datacenter's; "": not visible */
	enum vsphere_power power;
	const char *connection; /* "connected", "orphaned", "inaccessible", ... */
	const char *host; /* moref */
	const char *tools; /* "guestToolsRunning", "guestToolsNotRunning", ...; "" */
	bool cbt_supported;
	bool consolidation_needed;
	const char *migration; /* a running task that moves it, "" for none */
	size_t nr_snapshots;
	const struct vsphere_snapshot *snapshots; /* parents before children */
	const struct vsphere_config *config;
};

/* What a list shows of one VM; lent to the call. */
struct vsphere_listed {
	const char *moref, *path, *name, *instance_uuid, *bios_uuid, *guest_name;
	enum vsphere_power power;
	bool template, cbt_enabled;
	unsigned nr_disks;
	uint64_t used_bytes; /* on datastores, as the server estimates it; 0: not told */
};

/*
 * All VMs and templates that the user may see, by path, asked for in pages.  take: 0 to go
 * on; otherwise the list ends there and that is the answer (-1 sets err).
 */
typedef int vsphere_take_vm(void *context, const struct vsphere_listed *vm, struct err *err);
int vsphere_list_vms(
	struct vsphere *vsphere, vsphere_take_vm *take, void *context, struct err *err);

/*
 * what: an inventory path (it has a '/' in it; one at the front may be missing), an instance
 * uuid, a BIOS uuid, or a name, tried in this order as far as it looks like it.  "/web01",
 * as URLs give it, is a name too.  ERR_NOT_FOUND says what there is instead; ERR_REFUSED: more
 * than one has it (their paths are listed), or what is there is no VM.
 * A VM whose configuration the server cannot tell now (inaccessible, orphaned) is ERR_REFUSED.
 */
struct vsphere_vm *vsphere_find_vm(struct vsphere *vsphere, const char *what, struct err *err);

/* The same facts by moref, fresh from the server. */
struct vsphere_vm *vsphere_vm(struct vsphere *vsphere, const char *moref, struct err *err);
void vsphere_vm_free(struct vsphere_vm *vm);

/* --- as JSON -------------------------------------------------------------------------------- */

/* As "sendense vmware ls --json" and the like show them; new, NULL without memory. */
json_t *vsphere_about_json(const struct vsphere *vsphere);
json_t *vsphere_listed_json(const struct vsphere_listed *vm);
json_t *vsphere_vm_json(const struct vsphere_vm *vm);
json_t *vsphere_disks_json(const struct vsphere_config *config);

/* --- changed-block tracking ------------------------------------------------------------------ */

struct vsphere_cbt {
	bool was_enabled; /* before the call */
	bool stunned; /* a snapshot was made and removed, so that tracking began */
	size_t nr_disks; /* that tracking can cover */
	size_t nr_tracked; /* of these: how many have a change id now */
};

/*
 * Switches tracking on, if it is off.  On a running VM with a disk that is not tracked yet a
 * snapshot is made and removed at once, because tracking begins at the next stun only. ERR_REFUSED:
 * it has snapshots (named), hardware before version 7, or is a template; ERR_BUSY: it is being
 * moved.  name: of that snapshot, unique, so that the caller knows it whatever happens.
 */
int vsphere_cbt_enable(struct vsphere *vsphere, const char *vm, const char *name,
	struct deadline until, struct vsphere_cbt *found, struct err *err);

/* Whether both change ids count in the same epoch (the part before the '/'); if not, everything
 * may have changed between them.  false for what is no change id. */
bool vsphere_same_epoch(const char *change_id, const char *other);

/* --- snapshots ---------------------------------------------------------------------------------
 */

struct vsphere_taken {
	char moref[VSPHERE_MOREF_BYTES];
	bool quiesced; /* the guest's file systems stood still */
	char why_not[512]; /* else why; "" when that was not asked for */
};

/*
 * Takes one of all disks, without memory.  name: unique to the caller's job, because it is what a
 * snapshot is found by when the answer was lost.  quiesce: with the guest's tools; where they
 * refuse or fail, once more without, and taken->why_not says why.
 * After ERR_DISCONNECTED, ERR_TIMEOUT, ERR_PROTOCOL or ERR_CANCELLED it may exist, or come to
 * exist: vsphere_snapshot_settle() tells. ERR_REFUSED: a template; ERR_BUSY: it is being moved, or
 * another task is at work.
 */
int vsphere_snapshot_create(struct vsphere *vsphere, const char *vm, const char *name,
	const char *description, bool quiesce, struct deadline until, struct vsphere_taken *taken,
	struct err *err);

/* The one with exactly this name: 1 with its moref, 0 when there is none.  ERR_REFUSED when there
 * are two. */
int vsphere_snapshot_find(struct vsphere *vsphere, const char *vm, const char *name,
	char moref[VSPHERE_MOREF_BYTES], struct err *err);

/* The same, after a creation that failed: waits while any snapshot of this VM is being made. */
int vsphere_snapshot_settle(struct vsphere *vsphere, const char *vm, const char *name,
	struct deadline until, char moref[VSPHERE_MOREF_BYTES], struct err *err);

/* The VM's configuration as the snapshot has it: its disks' files are those to read, their change
 * ids those to record. */
struct vsphere_config *vsphere_snapshot_config(
	struct vsphere *vsphere, const char *snapshot, struct err *err);
void vsphere_config_free(struct vsphere_config *config);

/*
 * Removes this one (not its children), its disks merged, and waits for it.  One that is gone
 * already is removed.  *consolidation_needed (may be NULL): the server could not merge some
 * disk's file and says that the VM needs consolidation, which is for its administrator to see to.
 * vm: for that look; after an error the snapshot is a debt.
 */
int vsphere_snapshot_remove(struct vsphere *vsphere, const char *vm, const char *snapshot,
	struct deadline until, bool *consolidation_needed, struct err *err);

/* --- changed areas -------------------------------------------------------------------------------
 */

struct vsphere_changes {
	uint64_t nr_areas, bytes; /* that were told */
	unsigned nr_calls; /* one answer covers a part of the disk only */
	/* With an error: the change id (or tracking itself) is of no use, and the answer is to read
	 * this disk in full.  The error's text is the reason to record. */
	bool gone;
};

/* offset and length in bytes, sorted, disjoint, not empty, within the disk. */
typedef int vsphere_take_area(void *context, uint64_t offset, uint64_t length, struct err *err);

/*
 * What changed on one disk between change_id and the snapshot; change_id "*": all areas that are
 * allocated.  capacity_bytes: from the snapshot's config.  Asks in a loop until the answers cover
 * the disk, and fails with ERR_PROTOCOL when they do not join.  take is called as answers come:
 * after an error what it was told is worth nothing.  take's -1 (err set) ends it.
 * ERR_REFUSED with changes->gone, see there; ERR_NOT_FOUND: no such disk in the snapshot.
 */
int vsphere_changed_areas(struct vsphere *vsphere, const char *vm, const char *snapshot,
	int32_t disk_key, const char *change_id, uint64_t capacity_bytes, vsphere_take_area *take,
	void *context, struct vsphere_changes *changes, struct err *err);

/* --- files
 * ------------------------------------------------------------------------------------------ */

/*
 * A small file of the VM ("[datastore] folder/name.nvram") over HTTPS, whole, at most `most` bytes
 * (else ERR_PROTOCOL), into memory that the caller frees.  Needs the privilege
 * Datastore.Browse; the caller treats its failure as a warning.
 */
int vsphere_load_file(struct vsphere *vsphere, const struct vsphere_vm *vm, const char *file,
	size_t most, char **bytes, size_t *length, struct err *err);

#endif
