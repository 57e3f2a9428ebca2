/*
 * qemu_source: "qemu:SOCKET" and "qemu:SOCKET/DISK" as the disks of a backup: a running
 * machine, all of whose disks are read as they were at one moment.
 *
 *   open ─► (keys are known) ─► plan, begin (exports are there) ─► reading ─► check
 *     ─► the restore point is committed ─► commit ─► end
 */
#ifndef SENDENSE_CLI_QEMU_SOURCE_H
#define SENDENSE_CLI_QEMU_SOURCE_H

#include "cli.h"
#include "remote.h"

#include "qemu.h"

struct qemu_source_options {
	const char *name; /* "qemu:..." */
	const char *agent, *scratch; /* see qemu_options; may be NULL */
	const char *bitmaps; /* how their names begin: "...-", a user's own */
	bool no_freeze;
	struct cancel *cancel;
};

/* All lent until end. */
struct qemu_source_disk {
	const char *key;
	const char *name; /* "qemu:SOCKET/KEY", for messages and records */
	const char *identity; /* for people */
	uint64_t size_bytes;
	/* After begin: */
	const char *uri; /* its export */
	const char *unusable; /* why the planned bitmap tells nothing; NULL: it does */
	const char *bitmap; /* that begins at the moment that is read */
};

struct qemu_source;

/* Whether the name has this scheme. */
bool qemu_source_is(const char *name);

/* Borrows cancel and bitmaps until end. */
struct qemu_source *qemu_source_open(const struct qemu_source_options *options, struct err *err);
size_t qemu_source_nr_disks(const struct qemu_source *source);
const struct qemu_source_disk *qemu_source_disk(const struct qemu_source *source, size_t i);
/* Of the machine; "" when it has none. */
const char *qemu_source_uuid(const struct qemu_source *source);
/* See qemu_is_running(). */
int qemu_source_is_running(struct qemu_source *source, bool *running, struct err *err);

/* Puts the disk's bitmaps in order: since is the one that began at the parent's state (NULL: there
 * is none).  Before begin, for each disk. */
int qemu_source_plan(struct qemu_source *source, size_t i, const char *since, struct err *err);
/* Takes the moment. */
int qemu_source_begin(struct qemu_source *source, struct err *err);

/* "application" or "crash", and why it is no better (NULL: it is). */
const char *qemu_source_consistency(const struct qemu_source *source);
const char *qemu_source_consistency_reason(const struct qemu_source *source);

/* See qemu_check(). */
int qemu_source_check(struct qemu_source *source, struct err *err);
void qemu_source_commit(struct qemu_source *source);
/* What fails here is logged: the next backup cleans it up; of a QEMU that has ended, nothing
 * is there to be given back.  NULL is harmless. */
void qemu_source_end(struct qemu_source *source);

#endif
