/*
 * Bytes from an NBD client: the handshake, options, requests.  They are sent
 * whole, then the client's side is shut for writing, and what the server answers
 * is read to its end by a thread.  The disk behind is small and in memory.
 */
#include "nbd.h"

#include <assert.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define DISK_BYTES (256 * KIB)
#define MOST_INPUT (96 * KIB) /* fits the socket's buffer */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint8_t disk_bytes[DISK_BYTES];

static int disk_read(
	struct block *block, void *buffer, size_t length, uint64_t offset, struct err *err)
{
	(void)block, (void)err;
	assert(range_fits(offset, length, DISK_BYTES));
	memcpy(buffer, disk_bytes + offset, length);
	return 0;
}

static int disk_write(struct block *block, const void *buffer, size_t length, uint64_t offset,
	unsigned flags, struct err *err)
{
	(void)block, (void)flags, (void)err;
	assert(range_fits(offset, length, DISK_BYTES));
	memcpy(disk_bytes + offset, buffer, length);
	return 0;
}

/* Holes of 32 KiB between data of 32 KiB. */
static int disk_extents(struct block *block, uint64_t offset, uint64_t length,
	struct block_extent *extents, size_t max, size_t *nr, struct err *err)
{
	(void)block, (void)err;
	size_t n = 0;
	for (uint64_t end = offset + length; offset < end && n < max; n++) {
		uint64_t part = min_u64(end - offset, 32 * KIB - offset % (32 * KIB));
		uint32_t flags = offset / (32 * KIB) % 2 ? BLOCK_HOLE | BLOCK_ZERO : 0;
		extents[n] = (struct block_extent){part, flags};
		offset += part;
	}
	*nr = n;
	return 0;
}

static int disk_close(struct block *block, struct err *err)
{
	(void)err;
	block_fini(block);
	return 0;
}

static const struct block_driver disk_driver = {
	.name = "memory",
	.read = disk_read,
	.write = disk_write,
	.extents = disk_extents,
	.close = disk_close,
};

static struct block disks[2] = {
	{.info = {.size_bytes = DISK_BYTES,
		 .has_extents = true,
		 .can_trim = true,
		 .can_fua = true,
		 .multi_lane = true,
		 .granule_bytes = 4096}},
	{.info = {.size_bytes = DISK_BYTES, .read_only = true, .granule_bytes = 512}},
};

static int no_key(void *user, const char *identity, uint8_t key[TLS_PSK_BYTES_MAX], size_t *length)
{
	(void)user, (void)identity, (void)key, (void)length;
	return -1;
}

/* STARTTLS may be asked for; what is behind it is not taken. */
static struct nbd_server *make_server(void)
{
	const struct tls_server_options tls = {.psk_find = no_key};
	const struct nbd_server_options options = {.budget_bytes = 4 * MIB,
		.tls = NBD_TLS_ALLOWED,
		.tls_server = tls_server_new(&tls, NULL)};
	const char *const names[] = {"", "other"};
	struct nbd_server *server = nbd_server_new(&options, NULL);
	assert(server);
	for (size_t i = 0; i < ARRAY_LENGTH(disks); i++) {
		block_init(&disks[i], &disk_driver, NULL);
		struct nbd_export export = {
			.name = names[i], .block = &disks[i], .read_only = i == 1};
		int rc = nbd_server_add_export(server, &export, NULL);
		assert(rc == 0);
	}
	return server;
}

static void *drain_main(void *arg)
{
	char buffer[65536];
	while (read(*(int *)arg, buffer, sizeof buffer) > 0)
		;
	return NULL;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct nbd_server *server;
	if (!server)
		server = make_server();
	if (size > MOST_INPUT)
		return -1;
	int ends[2];
	struct err err = ERR_INIT;
	pthread_t drain;
	int rc = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends);
	assert(rc == 0);
	ssize_t n = send(ends[0], data, size, MSG_NOSIGNAL);
	assert(n == (ssize_t)size);
	shutdown(ends[0], SHUT_WR);
	rc = thread_start(&drain, "drain", drain_main, &ends[0], &err);
	assert(rc == 0);
	if (nbd_server_serve_fd(server, ends[1], "fuzz", &err) < 0)
		assert(err.code != ERR_NONE && err.text[0]);
	pthread_join(drain, NULL);
	close(ends[0]);
	return 0;
}
