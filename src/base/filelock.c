/*
 * Locks that keep two programs from changing one image file.
 *
 * QEMU's scheme, so that it and we see each other: locks of open file
 * descriptions on single bytes of the file.  Who uses a permission holds byte
 * 100 + number, who does not bear that others use it holds byte 200 + number.
 * All locks are shared ones: whoever comes takes his bytes, and then looks
 * whether somebody holds the opposite of one of them.
 *
 *   permission        number  reader          writer
 *   consistent read   0       uses            uses
 *   write             1       does not bear   uses, does not bear
 *   resize            3       does not bear   uses, does not bear
 */
#include "filelock.h"

#include "log.h"

#include <errno.h>
#include <fcntl.h>

#define USES 100
#define BEARS_NOT 200
#define CONSISTENT_READ 0
#define WRITE 1
#define RESIZE 3

/* 1: done, or with F_OFD_GETLK nobody's lock is in the way; 0: somebody's is;
 * -1: the file system has no such locks. */
static int lock_byte(int fd, int command, short type, off_t byte)
{
	struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
	int rc;
	do {
		rc = fcntl(fd, command, &lock);
	} while (rc < 0 && errno == EINTR);
	if (rc < 0)
		return errno == EAGAIN || errno == EACCES ? 0 : -1;
	return command != F_OFD_GETLK || lock.l_type == F_UNLCK;
}

/* One command for all bytes of a reader or writer; uses, bears_not: where they start. */
static int lock_bytes(int fd, bool write, int command, short type, off_t uses, off_t bears_not)
{
	int rc = lock_byte(fd, command, type, uses + CONSISTENT_READ);
	for (off_t p = WRITE; rc > 0 && p <= RESIZE; p += RESIZE - WRITE) {
		rc = lock_byte(fd, command, type, bears_not + p);
		if (rc > 0 && write)
			rc = lock_byte(fd, command, type, uses + p);
	}
	return rc;
}

int filelock_take(int fd, const char *name, enum filelock_kind kind, struct err *err)
{
	bool write = kind == FILELOCK_WRITE || kind == FILELOCK_MERGE;
	int rc = lock_bytes(fd, write, F_OFD_SETLK, F_RDLCK, USES, BEARS_NOT);
	if (rc > 0) /* the same on the opposite side */
		rc = lock_bytes(fd, write, F_OFD_GETLK, F_WRLCK, BEARS_NOT, USES);
	if (rc < 0)
		log_debug("%s: its file system has no locks for it", name);
	if (rc != 0)
		return 0;
	return err_set(err, ERR_BUSY,
		write ? "cannot write to %s: another program has it open (a running virtual "
			"machine, qemu-nbd, sendense export); end that first"
		      : "cannot read %s: another program is writing to it (a running virtual "
			"machine, qemu-nbd, sendense export); end that first",
		name);
}
