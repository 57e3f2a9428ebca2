/*
 * debts: what a session must give back, written down before it is asked for; and the lock of a
 * machine.
 *
 *   STATE/debt-SNAPSHOT.json   a snapshot that may be there.  Made durable before it is asked for,
 *                              unlinked when its removal was confirmed
 *   STATE/vm-HASH.lock         a machine of a vCenter: held (flock) by the session that has it.
 *                              The debts of a machine belong to dead sessions, or to the holder
 *
 *   {"sendense-debt":1,"snapshot":"sendense-...","moref":"snapshot-60","vcenter":"UUID",
 *    "host":"vc.example","vm-uuid":"UUID","vm":"vm-57","path":"/DC/vm/web01",
 *    "created":"2026-11-21T20:00:00Z","pid":N,"start":N,"boot":"UUID"}
 */
#ifndef SENDENSE_VMWARE_DEBTS_H
#define SENDENSE_VMWARE_DEBTS_H

#include "vmware.h"

#define DEBTS_PATH_BYTES 4096 /* a file in the state folder */
#define DEBTS_NAME_BYTES 32 /* "sendense-" and 16 hex digits */

/* "sendense-0123456789abcdef", never used before. */
int debts_name(char name[DEBTS_NAME_BYTES], struct err *err);

/* Where a machine is; borrowed. */
struct debts_place {
	const char *folder; /* the state's */
	const char *vcenter_uuid, *host; /* the first may be "" */
	const char *vm_uuid, *vm, *path;
};

/* Gives a descriptor that holds the machine.  ERR_BUSY names the process that has it. */
int debts_lock(const struct debts_place *place, struct err *err);
/* -1 is harmless. */
void debts_unlock(const struct debts_place *place, int fd);

/* Writes it, or writes it anew when moref ("" before) is known. */
int debts_write(
	const struct debts_place *place, const char *snapshot, const char *moref, struct err *err);
int debts_drop(const char *folder, const char *snapshot, struct err *err);
/* The file's name, for messages. */
void debts_file(const char *folder, const char *snapshot, char path[DEBTS_PATH_BYTES]);

#endif
