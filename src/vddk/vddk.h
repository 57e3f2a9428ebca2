/*
 * vddk: a disk of a VMware snapshot as a read-only block, through VMware's own library.
 *
 * The library (libvixDiskLib 6.7 to 9, x86-64) is proprietary: the user downloads it from VMware
 * and says where it is.  It runs in a helper process, sendense-vddk, one for each open disk, so
 * that its crash, or a call that never returns, ends that process and nothing else.  Credentials
 * go to the helper by its socket; they are in no argument, environment or log.
 *
 * Thread rule: as every block; vddk_open() and the close of a block in any thread.
 */
#ifndef SENDENSE_VDDK_H
#define SENDENSE_VDDK_H

#include "block.h"

struct vddk_options {
	const char *helper; /* the program; NULL: sendense-vddk beside this one */
	const char *folder; /* that holds lib64/libvixDiskLib.so.N; NULL: vddk_find_folder() */

	const char *server; /* vCenter or ESXi: a name or an address */
	uint16_t port; /* 0: 443 */
	uint16_t nfc_port; /* to the ESXi host; 0: 902 */
	const char *thumbprint; /* SHA-1 of the server's certificate, hex with colons; NULL: none */
	const char *user;
	const char *password;
	const char *cookie; /* of a session, instead of the password; NULL: none */

	const char *vm; /* managed object id: "vm-57" */
	const char *snapshot; /* "snapshot-60" */
	const char *path; /* the snapshot's backing file: "[datastore] web01/web01.vmdk" */
	uint64_t size_bytes; /* what vCenter says that the disk has; 0: not compared */

	const char *modes; /* the library's transport modes; NULL: "nbdssl:nbd" */
	const char *compression; /* on the wire: "none", "zlib", "fastlz", "skipz"; NULL: none */
	const char *config_file; /* the library's; NULL: one of our own with the next two */
	unsigned nfc_buffer_kib; /* a multiple of 64; 0: 1024 */
	unsigned nfc_buffers; /* 0: 4; together at most 16 MiB, or the library refuses to open */
	unsigned nr_reads; /* in flight, of 1 MiB at most each: 1..32; 0: 8 */
	bool allocated; /* extents by the library's allocated blocks (slow; CBT's "*" is better) */
	/* Migration of the machine's storage is held off while this block is open.  For a machine
	 * with several disks: on the one that is opened first and closed last, alone. */
	bool hold_access;

	uint32_t open_timeout_ms; /* of all that opening takes; 0: 120 s */
	uint32_t call_timeout_ms; /* of each read; 0: 120 s */
	uint32_t close_timeout_ms; /* then the helper is killed; 0: 30 s */

	struct cancel *cancel; /* of opening and of blocking calls; NULL: none */
	/* A line of the library, without secrets; called by a thread of the block's, one at a
	 * time, until it is closed.  NULL: to the log, as debug and warning lines. */
	void (*log)(void *context, enum log_level level, const char *line);
	void *log_context;
};

/*
 * Opens the disk: starts the helper, loads the library, connects, opens.  Borrows all that
 * options names until it returns; cancel and log_context until the block is closed.  On an error
 * the helper is gone.
 *
 * ERR_NOT_FOUND: no library, or no helper.  ERR_UNSUPPORTED: a library that cannot be used.
 * ERR_USAGE: options that are wrong.  ERR_REFUSED: the library could not connect or open, or the
 * disk has another size.  ERR_TIMEOUT: a step took too long; the text names it.
 * ERR_DISCONNECTED: the helper ended; the text says how, and its last words.
 * Reads fail with ERR_IO (the library's words are in the text), ERR_TIMEOUT and
 * ERR_DISCONNECTED; after the last two all reads do, and the block is to be opened anew.
 */
struct block *vddk_open(const struct vddk_options *options, struct err *err);

struct vddk_facts {
	unsigned major; /* of the library: 6..9 */
	char transport[64]; /* what it reads by: "nbdssl" */
	bool allocated; /* it can tell allocated blocks */
	bool asynchronous; /* it has asynchronous reads */
};

/* Of a block that vddk_open() gave. */
void vddk_facts(const struct block *block, struct vddk_facts *facts);

#define VDDK_PATH_BYTES 4096

/*
 * Where the library is: the folder that is named (it, or the lib64 in it), else (NULL)
 * SENDENSE_VDDK_DIR, else the usual folders.  ERR_NOT_FOUND says what to download, and where to
 * put it.
 */
int vddk_find_folder(const char *named, char path[VDDK_PATH_BYTES], struct err *err);

/*
 * Whether the library can be loaded, without connecting anywhere (for doctor): facts has its
 * version, loaded the file.  folder, helper: NULL as above.  Errors as of vddk_open().
 */
int vddk_probe(const char *folder, const char *helper, struct vddk_facts *facts,
	char loaded[VDDK_PATH_BYTES], struct cancel *cancel, struct err *err);

#endif
