/* What the files of a push share: session.c, push.c, sample.c. */
#ifndef SENDENSE_REMOTE_SESSION_INTERNAL_H
#define SENDENSE_REMOTE_SESSION_INTERNAL_H

#include "ranges.h"
#include "remote_internal.h"
#include "told.h"

struct session_disk {
	struct session *session;
	char key[REPOSITORY_KEY_BYTES], label[REPOSITORY_VM_BYTES + REPOSITORY_KEY_BYTES + 16];
	uint64_t size_bytes;
	enum repository_disk_mode mode;
	enum repository_change change;
	enum repository_resumed resumed;
	struct block *changed; /* of REPOSITORY_UPDATED: what changed since that was stored; lent */
	uint64_t kept_bytes;
	char *uri, *tls_identity, *tls_psk; /* of its export */
	struct told *told; /* what was sent, that of an interrupted backup too */
	struct ranges *ranges; /* NULL: the hub holds nothing but zeros */
	struct block *target; /* the export */
	struct block *remaining; /* the source, seen through what the hub holds already */
	struct copy_chunk_sink sink;
	struct copy_baseline baseline;
	struct repository_figures figures;
	uint64_t audited_bytes;
};

struct session {
	struct store *store;
	char id[REMOTE_ID_BYTES], vm[REPOSITORY_VM_BYTES], point[REPOSITORY_POINT_BYTES];
	char path[REMOTE_PATH_BYTES];
	struct digest_key key;
	struct session_disk *disks;
	size_t nr_disks;
	void (*stage)(void *context, const char *stage);
	void *stage_context;
	bool asked; /* to commit */
	bool committed;
	unsigned lease_s;
	struct keeper *keeper;
};

static inline bool session_disk_has_changes(const struct session_disk *disk)
{
	return disk->mode == REPOSITORY_INCREMENTAL && disk->change != REPOSITORY_CHANGE_COMPARE;
}

/* The disk's part of the commit's request; NULL with err. */
json_t *push_digest(struct session_disk *disk, struct err *err);
void push_close(struct session_disk *disk);
/* Ends the connections: what is flushed stays. */
int push_finish(struct session_disk *disk, struct err *err);

#endif
