/*
 * Bytes as the file that `sendense hub import` takes.  What no chance would make right is made
 * right first: the sums of the headers, and the digests in the list, where 64 zeros stand for the
 * next file's.  What comes of it lies in the folder alone, as files and folders of one's own; where
 * nothing comes of it, nothing is there.
 */
#include "hub.h"

#include <gnutls/crypto.h>

#include <assert.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BLOCK 512u
#define SUM_AT 148u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char scratch[256], in[300], out[300];
static unsigned nr_found;

/* Nothing here has to outlive a power cut. */
int fsync(int fd)
{
	(void)fd;
	return 0;
}

int fdatasync(int fd)
{
	(void)fd;
	return 0;
}

/* --- what chance would not find -------------------------------------------------------------- */

static uint64_t octal(const uint8_t *field, size_t bytes)
{
	uint64_t value = 0;
	for (size_t i = 0; i < bytes && field[i] >= '0' && field[i] <= '7'; i++)
		value = value << 3 | (uint64_t)(field[i] - '0');
	return value;
}

static void put_sum(uint8_t *block)
{
	unsigned sum = 0;
	memset(block + SUM_AT, ' ', 8);
	for (unsigned i = 0; i < BLOCK; i++)
		sum += block[i];
	snprintf((char *)block + SUM_AT, 7, "%06o", sum);
}

/* The next 64 zeros at or behind *at. */
static void put_digest(char *list, size_t length, size_t *at, const uint8_t *bytes, size_t size)
{
	static const char zeros[] =
		"0000000000000000000000000000000000000000000000000000000000000000";
	uint8_t hash[DIGEST_ROOT_BYTES];
	char hex[DIGEST_ROOT_HEX_BYTES];
	char *place = *at < length ? memmem(list + *at, length - *at, zeros, 64) : NULL;
	if (!place)
		return;
	assert(gnutls_hash_fast(GNUTLS_DIG_SHA256, bytes, size, hash) == 0);
	digest_hex(hash, sizeof hash, hex);
	memcpy(place, hex, 64);
	*at = (size_t)(place - list) + 64;
}

static void mend(uint8_t *bytes, size_t size)
{
	char *list = NULL;
	size_t list_length = 0, digest_at = 0;
	for (size_t at = 0; size - at >= BLOCK;) {
		uint8_t *block = bytes + at;
		uint64_t length = octal(block + 124, 12);
		if (block[0] == '\0')
			return;
		put_sum(block);
		at += BLOCK;
		if (length > size - at)
			return;
		if (list)
			put_digest(list, list_length, &digest_at, bytes + at, (size_t)length);
		else
			list = (char *)bytes + at, list_length = (size_t)length;
		at += (size_t)min_u64(round_up(length, BLOCK), size - at);
	}
}

/* --- what came of it -------------------------------------------------------------------------- */

static int look_at(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)path;
	assert(type == FTW_F || type == FTW_D);
	if (ftw->level > 0)
		assert((st->st_mode & 07777) == (type == FTW_D ? 0700 : 0600));
	nr_found += type == FTW_F;
	return 0;
}

static int drop(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st, (void)type, (void)ftw;
	return remove(path);
}

static void told(void *context, const char *name, const char *old_path)
{
	(void)old_path;
	assert(name[0] && name[0] != '/' && name[0] != '.' && !strstr(name, "/."));
	(*(unsigned *)context)++;
}

static unsigned count_below(const char *folder)
{
	nr_found = 0;
	assert(nftw(folder, look_at, 16, FTW_PHYS) == 0);
	return nr_found;
}

static void make_scratch(void)
{
	const char *top = getenv("TMPDIR");
	snprintf(scratch, sizeof scratch, "%s/archive-XXXXXX", top ? top : "/tmp");
	assert(mkdtemp(scratch));
	snprintf(in, sizeof in, "%s/in", scratch);
	snprintf(out, sizeof out, "%s/out", scratch);
}

static void put_input(const uint8_t *data, size_t size)
{
	uint8_t *bytes = malloc(size + 1);
	assert(bytes);
	memcpy(bytes, data, size);
	mend(bytes, size);
	int fd = open(in, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert(fd >= 0 && write(fd, bytes, size) == (ssize_t)size);
	close(fd);
	free(bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	unsigned nr_told = 0;
	struct archive_summary summary = {.file = told, .context = &nr_told};
	struct err err = ERR_INIT;
	if (!scratch[0])
		make_scratch();
	bool is_there = size % 2;
	put_input(data, size);
	assert(!is_there || mkdir(out, 0700) == 0);
	if (archive_import(in, out, &summary, &err) == 0) {
		assert(count_below(out) == summary.nr_files);
		assert(nr_told == summary.nr_files || summary.created[0] == '\0');
		assert(nftw(out, drop, 16, FTW_DEPTH | FTW_PHYS) == 0);
	} else {
		assert(err.text[0]);
		assert(is_there ? rmdir(out) == 0 : access(out, F_OK) < 0);
	}
	/* Nothing beside it. */
	assert(count_below(scratch) == 1);
	assert(unlink(in) == 0);
	return 0;
}
