/*
 * locator: opens a disk by its written name.
 *
 *   raw:PATH  qcow2:PATH  nbd://HOST[:PORT]/NAME  nbd+unix:///NAME?socket=PATH
 *   nbds://...  nbds+unix://...  null:SIZE  qemu:QMP-SOCKET[/DISK]
 *
 * The format is always stated, never probed (a guest can write a QCOW2 header
 * onto its raw disk and name a host file as its backing).
 */
#ifndef SENDENSE_LOCATOR_H
#define SENDENSE_LOCATOR_H

#include "block.h"
#include "nbd.h"
#include "qcow2.h"

/* QEMU: the disks of a running machine.  That is no disk to open: whoever wants it opens the
 * machine (qemu.h), and the disks that it exports then. */
enum locator_kind { LOCATOR_RAW, LOCATOR_QCOW2, LOCATOR_NBD, LOCATOR_NULL, LOCATOR_QEMU };

/* Splits a name: its kind, and where what follows the scheme begins (the whole
 * name for NBD).  ERR_USAGE with the list of schemes for a name without a known
 * one, ERR_UNSUPPORTED for one that is known and not done yet. */
int locator_parse(const char *name, enum locator_kind *kind, const char **rest, struct err *err);

struct locator_options {
	bool read_only;
	const char *const *allow_backing; /* see qcow2_open_options */
	struct nbd_client_options nbd; /* its read_only is set from ours */
	struct cancel *cancel;
};

/* Opens what is there.  ERR_UNSUPPORTED for a machine (LOCATOR_QEMU). */
struct block *locator_open(
	const char *name, const struct locator_options *options, struct err *err);

struct locator_create_options {
	uint64_t size_bytes;
	bool replace; /* an existing file, device or image may be overwritten */
	bool compress; /* qcow2 */
	enum qcow2_compression compression;
	uint32_t cluster_bytes;
	struct nbd_client_options nbd;
	struct cancel *cancel;
};

/*
 * Opens a target for writing all of it: a raw or QCOW2 file is made (ERR_EXISTS
 * when it is there and !replace); a block device, an NBD export or a null disk
 * must be there and have exactly that size (ERR_RANGE names both).  A device
 * needs replace too, and is refused while it is in use (ERR_BUSY).  A file that
 * this process has open is refused (ERR_BUSY): it is the source, or backs it.
 * *created tells whether a file was made or replaced, which locator_discard()
 * removes again after a failure.
 */
struct block *locator_create(const char *name, const struct locator_create_options *options,
	bool *created, struct err *err);

/* Removes a file that locator_create() made. */
void locator_discard(const char *name);

/* Makes the name of a file that locator_create() made durable (its folder is synced). */
int locator_settle(const char *name, struct err *err);

/* "10GiB", "512", "1.5TiB", "64k": bytes; powers of 1024. */
int locator_parse_size(const char *text, uint64_t *bytes, struct err *err);

/* The local path behind a raw: or qcow2: name, NULL for others. */
const char *locator_path(const char *name);

/* True when both names are one disk: the same text, or the same local file or device. */
bool locator_same(const char *a, const char *b);

#endif
