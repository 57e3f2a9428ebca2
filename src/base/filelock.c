/*
 * Locks that keep two programs from changing one image file.
 *
 * QEMU's scheme, so that it and we see each other: locks of open file
 * descriptions on single bytes of the file.  Who uses a permission holds byte
 * 100 + number, who does not bear that others use it holds byte 200 + number.
 * All locks are shared ones: whoever comes takes his bytes, and then looks
 * whether somebody holds the opposite of one of them.
 *
 *   permission        number  reader     writer           merged reader  merge writer
 *   consistent read   0       uses       uses             uses           uses
 *   write             1       bears not  uses, bears not                 uses, bears not
 *   resize            3       bears not  uses, bears not  bears not      bears not
 *
 * QEMU has no names for the two on the right.  They bear each other, and as a merge
 * writer does not claim to resize (what grows is of no concern to those who bear it),
 * the right to resize tells him from other writers.
 */
#include "filelock.h"

#include "log.h"

#include <errno.h>
#include <fcntl.h>

#define USES 100
#define BEARS_NOT 200
#define CONSISTENT_READ (1u << 0)
#define WRITE (1u << 1)
#define RESIZE (1u << 3)
#define NR_PERMISSIONS 4

static const struct permissions {
	unsigned uses, bears_not;
	bool write;
} permissions_of[] = {
	[FILELOCK_READ] = {CONSISTENT_READ, WRITE | RESIZE, false},
	[FILELOCK_WRITE] = {CONSISTENT_READ | WRITE | RESIZE, WRITE | RESIZE, true},
	[FILELOCK_READ_MERGED] = {CONSISTENT_READ, RESIZE, false},
	[FILELOCK_MERGE] = {CONSISTENT_READ | WRITE, WRITE | RESIZE, true},
};

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

/* One command for the bytes of what is used, and of what is not borne. */
static int lock_bytes(
	int fd, int command, short type, const struct permissions *p, off_t uses, off_t bears_not)
{
	int rc = 1;
	for (unsigned i = 0; rc > 0 && i < NR_PERMISSIONS; i++) {
		if (p->uses >> i & 1)
			rc = lock_byte(fd, command, type, uses + i);
		if (rc > 0 && p->bears_not >> i & 1)
			rc = lock_byte(fd, command, type, bears_not + i);
	}
	return rc;
}

int filelock_take(int fd, const char *name, enum filelock_kind kind, struct err *err)
{
	const struct permissions *p = &permissions_of[kind];
	int rc = lock_bytes(fd, F_OFD_SETLK, F_RDLCK, p, USES, BEARS_NOT);
	if (rc > 0) /* the same on the opposite side */
		rc = lock_bytes(fd, F_OFD_GETLK, F_WRLCK, p, BEARS_NOT, USES);
	if (rc < 0)
		log_debug("%s: its file system has no locks for it", name);
	if (rc != 0)
		return 0;
	return err_set(err, ERR_BUSY,
		p->write ? "cannot write to %s: another program has it open (a running virtual "
			   "machine, qemu-nbd, sendense export); end that first"
			 : "cannot read %s: another program is writing to it (a running virtual "
			   "machine, qemu-nbd, sendense export); end that first",
		name);
}
