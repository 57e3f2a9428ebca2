/*
 * nbdkit: a disk of a snapshot as a read-only block, through a process of nbdkit with its vddk
 * plugin, for those who prefer that to our own helper (vddk.h).  One process for each open disk,
 * with a socket in a private folder; each lane is a connection, and one more stands for all else.
 *
 * Thread rule: as every block.  The thread that opened it lives until it is closed: nbdkit is told
 * by the kernel when its parent, which is that thread, ends.
 */
#ifndef SENDENSE_NBDKIT_H
#define SENDENSE_NBDKIT_H

#include "vddk.h"

/*
 * As vddk_open(), with the same options; program: nbdkit, a path or a name in PATH.  Not used of
 * the options are helper, cookie, nfc_port, config_file, nr_reads, allocated, hold_access (the
 * plugin cannot do that) and log.  The NFC buffers are those of each connection.
 *
 * The password goes by a pipe; on an error nbdkit is gone.  ERR_NOT_FOUND: no nbdkit, or no
 * library.  ERR_REFUSED: nbdkit ended, or the plugin could not open the disk; the text has their
 * last words.  When nbdkit dies all reads fail, and the text says how it ended.
 */
struct block *nbdkit_open(const char *program, const struct vddk_options *options, struct err *err);

/* See vmware_probe_nbdkit(). */
int nbdkit_probe(const char *program, struct cancel *cancel, struct err *err);

#endif
