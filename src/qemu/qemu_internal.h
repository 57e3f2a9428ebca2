/*
 * What the files of the room share: the session.
 *
 * wire.c, qmp.c     JSON lines; the monitor's client
 * agent.c           freezing the guest, and the guard that thaws when we die
 * scratch.c         a session's folder: who lives, unnamed scratch files, the NBD socket
 * inventory.c       disks and their keys, the agent's channel
 * bitmaps.c         which of a disk's bitmaps counts; roll back and drop
 * recovery.c        takes a session's things out of QEMU: ours, or a dead one's
 * space.c           a thread that ends the backup before the scratch space is full
 * qemu.c            the session: open, begin, commit, end
 */
#ifndef SENDENSE_QEMU_INTERNAL_H
#define SENDENSE_QEMU_INTERNAL_H

#include "agent.h"
#include "qemu.h"
#include "qmp.h"
#include "scratch.h"

#include "transport.h"

#define QEMU_KEY_BYTES 65
#define QEMU_BITMAPS "sendense-" /* qemu_options.bitmaps by default */

struct disk {
	struct qemu_disk facts; /* its strings are those below */
	char key[QEMU_KEY_BYTES];
	char *node, *identity, *uri;
	char no_bitmap[256];
	bool persistent; /* its bitmaps outlast an orderly end of QEMU */
	bool settled; /* its bitmaps are in order */
	char *old; /* the bitmap that stands still while the session lasts; NULL: none */
	json_int_t fdset; /* of its scratch file, -1: none */
	int scratch_fd;
};

struct qemu_session {
	struct qmp qmp;
	pthread_mutex_t mutex; /* over qmp and broken, from begin to end */
	struct scratch scratch;
	unsigned freeze_timeout_ms;
	uint64_t reserve_bytes;
	char *agent_socket; /* as given */
	bool no_freeze;
	char uuid[64];
	char *name;
	struct disk *disks;
	size_t nr_disks;
	json_t *nodes; /* as query-named-block-nodes told when the disks were learnt */
	struct listener listener; /* of the NBD server; only its path is ours */
	bool listening;
	const char *bitmaps; /* how the names of ours begin */
	char bitmap[256]; /* that begins; "" before begin */
	bool began, committed, is_frozen_state;
	char no_freeze_reason[AGENT_REASON_BYTES];
	struct err broken; /* why the exports are worth nothing any more */
	struct space *space;
};

#endif
