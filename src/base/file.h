/* Files: whole reads and writes, names, durable replacement. */
#ifndef SENDENSE_FILE_H
#define SENDENSE_FILE_H

#include "err.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/*
 * Reads exactly length bytes at offset.  A short file is ERR_IO "ends at ...".
 * name is for the message.
 */
int file_pread(
	int fd, void *buffer, size_t length, uint64_t offset, const char *name, struct err *err);

/* Writes exactly length bytes at offset. */
int file_pwrite(int fd, const void *buffer, size_t length, uint64_t offset, const char *name,
	struct err *err);

/* fsync of a folder, relative to dir_fd (or AT_FDCWD). */
int file_sync_dir(int dir_fd, const char *path, struct err *err);

/*
 * Replaces path by the given bytes so that after a crash the old or the new
 * content is there, whole: temporary file beside it, fsync, rename, fsync of
 * the folder.
 */
int file_replace(int dir_fd, const char *path, const void *bytes, size_t length, mode_t mode,
	struct err *err);

/*
 * Reads a whole file of at most `most` bytes (else ERR_FORMAT) into memory that
 * the caller frees; one zero byte follows the content.
 */
int file_load(
	int dir_fd, const char *path, size_t most, char **bytes, size_t *length, struct err *err);

/* Makes one folder; that it exists already is no error. */
int file_make_dir(int dir_fd, const char *path, mode_t mode, struct err *err);

/* length random bytes of the kernel's generator. */
int file_random(void *buffer, size_t length, struct err *err);

#endif
