/*
 * tar: just enough of it (POSIX ustar) for the hub's export: regular files with short names.
 * What it writes, every tar reads.
 */
#ifndef SENDENSE_HUB_TAR_H
#define SENDENSE_HUB_TAR_H

#include "base.h"

#define TAR_NAME_BYTES 101

/* Appends a file of that length; the bytes come from fd's start, or from memory (fd -1). */
struct tar_writer {
	int fd;
	uint64_t at;
	const char *path; /* for messages */
};
int tar_add(struct tar_writer *tar, const char *name, uint64_t length, int64_t time, int from,
	const void *bytes, struct err *err);
/* The two empty blocks that end it. */
int tar_end(struct tar_writer *tar, struct err *err);

struct tar_member {
	char name[TAR_NAME_BYTES];
	uint64_t offset, length; /* of its bytes in the file */
};
struct tar_reader {
	int fd;
	uint64_t at;
	const char *path;
};
/* 1: the next member; 0: the end; -1: ERR_FORMAT for what is no such archive, or cut. */
int tar_next(struct tar_reader *tar, struct tar_member *member, struct err *err);

#endif
