/*
 * The floor beneath the benchmark: moves a disk's data and does nothing else.
 *
 *   floor file SOURCE TARGET        read pieces of a raw file, write them to another
 *   floor nbd URI SOURCE TARGET     the same, but the pieces come from an NBD export
 *                                   (of SOURCE, which only tells where data lies)
 *
 * Two threads, 256 KiB at a time, no digests, no zero detection, no image format.
 * What a real program needs beyond this is its own cost.
 */
#include <err.h>
#include <fcntl.h>
#include <libnbd.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PIECE_BYTES (256 * 1024)
#define NR_THREADS 2

static struct {
	pthread_mutex_t mutex;
	const char *uri; /* NULL: read the source file */
	int source, target;
	off_t at, data_end, size;
} work = {.mutex = PTHREAD_MUTEX_INITIALIZER};

/* The next piece of data: its length, 0 at the end. */
static size_t next_piece(off_t *offset)
{
	size_t length = 0;
	pthread_mutex_lock(&work.mutex);
	if (work.at >= work.data_end) {
		off_t data = lseek(work.source, work.at, SEEK_DATA);
		work.at = data < 0 ? work.size : data;
		work.data_end = data < 0 ? work.size : lseek(work.source, data, SEEK_HOLE);
	}
	if (work.at < work.size) {
		off_t left = work.data_end - work.at;
		length = left < PIECE_BYTES ? (size_t)left : PIECE_BYTES;
		*offset = work.at;
		work.at += (off_t)length;
	}
	pthread_mutex_unlock(&work.mutex);
	return length;
}

static void *move(void *unused)
{
	(void)unused;
	char *buffer = malloc(PIECE_BYTES);
	struct nbd_handle *nbd = NULL;
	if (!buffer)
		err(1, "malloc");
	if (work.uri && (!(nbd = nbd_create()) || nbd_connect_uri(nbd, work.uri) < 0))
		errx(1, "%s: %s", work.uri, nbd_get_error());
	off_t offset = 0;
	size_t length;
	while ((length = next_piece(&offset)) > 0) {
		if (nbd && nbd_pread(nbd, buffer, length, (uint64_t)offset, 0) < 0)
			errx(1, "%s", nbd_get_error());
		if (!nbd && pread(work.source, buffer, length, offset) != (ssize_t)length)
			err(1, "read");
		if (pwrite(work.target, buffer, length, offset) != (ssize_t)length)
			err(1, "write");
	}
	nbd_close(nbd);
	free(buffer);
	return NULL;
}

int main(int argc, char **argv)
{
	int nbd = argc == 5 && strcmp(argv[1], "nbd") == 0;
	if (!nbd && !(argc == 4 && strcmp(argv[1], "file") == 0))
		errx(2, "usage: floor file SOURCE TARGET | floor nbd URI SOURCE TARGET");
	if (nbd)
		work.uri = argv[2];
	work.source = open(argv[2 + nbd], O_RDONLY);
	work.target = open(argv[3 + nbd], O_WRONLY | O_CREAT | O_TRUNC, 0600);
	struct stat st;
	if (work.source < 0 || work.target < 0 || fstat(work.source, &st) < 0)
		err(1, "open");
	work.size = st.st_size;
	if (ftruncate(work.target, st.st_size) < 0)
		err(1, "truncate");
	pthread_t threads[NR_THREADS];
	for (int i = 0; i < NR_THREADS; i++)
		if (pthread_create(&threads[i], NULL, move, NULL) != 0)
			errx(1, "pthread_create");
	for (int i = 0; i < NR_THREADS; i++)
		pthread_join(threads[i], NULL);
	if (fdatasync(work.target) < 0)
		err(1, "sync");
	return 0;
}
