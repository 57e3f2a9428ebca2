/*
 * nbdkit's vddk plugin for tests: it takes the parameters that nbdkit-vddk-plugin(1) describes, and
 * no others, and serves the test vCenter's frozen disks.  As the real one it needs whole sectors,
 * connects for each connection of a client, and says nothing of its errors but on stderr.
 *
 * The file named by SENDENSE_FAKE_VDDK says what to do (told.h): frozen, log, password and
 * thumbprint as of the library in ../vixdisklib, and
 *
 *   crash=N     the Nth read ends the process with a segmentation fault
 *   read=CODE   all reads fail
 *   hang=open   a connection is not answered while the file says so; hang=read: a read is not
 *   slow=MS     each read takes that long
 *   stderr=secret   the password is written to stderr at each connection
 */
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "told.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL
#define SECTOR 512u

enum key {
	COMPRESSION,
	CONFIG,
	FILE_NAME,
	LIBDIR,
	PASSWORD,
	PORT,
	SERVER,
	SINGLE_LINK,
	SNAPSHOT,
	THUMBPRINT,
	TRANSPORTS,
	USER,
	VM,
	NR_KEYS
};

static const char *const names[NR_KEYS] = {"compression", "config", "file", "libdir", "password",
	"port", "server", "single-link", "snapshot", "thumbprint", "transports", "user", "vm"};
static char *given[NR_KEYS];
static char text[8192];
static atomic_uint nr_reads;

static void note(const char *what, unsigned long long first, unsigned long long second)
{
	char path[4096], line[256];
	if (!told_value(text, "log", path, sizeof path))
		return;
	int n = snprintf(line, sizeof line, "%s %llu %llu\n", what, first, second);
	int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || write(fd, line, (size_t)n) != n)
		abort();
	close(fd);
}

static bool told_is(const char *name, const char *value)
{
	char found[64];
	return told_value(text, name, found, sizeof found) && strcmp(found, value) == 0;
}

static void hang_while(const char *where)
{
	char now[sizeof text], found[64];
	for (told_load(now, sizeof now);
		told_value(now, "hang", found, sizeof found) && strcmp(found, where) == 0;
		told_load(now, sizeof now))
		poll(NULL, 0, 10);
}

static void fake_load(void)
{
	told_load(text, sizeof text);
}

static int fake_config(const char *key, const char *value)
{
	for (int i = 0; i < NR_KEYS; i++) {
		if (strcmp(key, names[i]) != 0)
			continue;
		if (given[i]) {
			nbdkit_error("%s is given twice", key);
			return -1;
		}
		if (i == PASSWORD)
			return nbdkit_read_password(value, &given[i]);
		given[i] = strdup(value);
		return 0;
	}
	nbdkit_error("unknown parameter '%s'", key);
	return -1;
}

/* "xx:xx:…", 20 pairs. */
static bool is_thumbprint(const char *value)
{
	return strlen(value) == 59 && strspn(value, "0123456789abcdefABCDEF:") == 59 &&
	       value[2] == ':';
}

static int fake_config_complete(void)
{
	static const enum key needed[] = {FILE_NAME, SERVER, USER, PASSWORD, VM, THUMBPRINT};
	for (size_t i = 0; i < sizeof needed / sizeof needed[0]; i++)
		if (!given[needed[i]]) {
			nbdkit_error("remote connection requested, missing parameter: %s",
				names[needed[i]]);
			return -1;
		}
	char library[4096];
	snprintf(library, sizeof library, "%s/lib64", given[LIBDIR] ? given[LIBDIR] : "");
	if (access(library, X_OK) < 0 || !is_thumbprint(given[THUMBPRINT]) ||
		strncmp(given[VM], "moref=", 6) != 0 ||
		(given[CONFIG] && access(given[CONFIG], R_OK) < 0)) {
		nbdkit_error("libdir, thumbprint, vm or config is not of the form that they have");
		return -1;
	}
	return 0;
}

static void fake_unload(void)
{
	for (int i = 0; i < NR_KEYS; i++)
		free(given[i]);
}

static void fake_dump_plugin(void)
{
	printf("vddk_default_libdir=/usr/lib64/vmware-vix-disklib\n");
}

static void *fake_open(int readonly)
{
	char value[1024];
	note("connect", (unsigned long long)readonly, 0);
	if (told_is("stderr", "secret"))
		for (int i = 0; i < 100; i++)
			fprintf(stderr, "%d: connecting with %s\n", i, given[PASSWORD]);
	hang_while("open");
	if (!readonly || (told_value(text, "password", value, sizeof value) &&
				 strcmp(value, given[PASSWORD]) != 0)) {
		nbdkit_error("VixDiskLib_ConnectEx: Cannot complete login");
		return NULL;
	}
	int fd = -1;
	if (!told_value(text, "thumbprint", value, sizeof value) ||
		strcmp(value, given[THUMBPRINT]) == 0)
		fd = told_frozen(
			text, given[VM], given[SNAPSHOT] ? given[SNAPSHOT] : "", given[FILE_NAME]);
	if (fd < 0) {
		nbdkit_error("VixDiskLib_Open: %s: Unknown error", given[FILE_NAME]);
		return NULL;
	}
	int *handle = malloc(sizeof *handle);
	if (!handle)
		abort();
	*handle = fd;
	return handle;
}

static void fake_close(void *handle)
{
	note("disconnect", 0, 0);
	close(*(int *)handle);
	free(handle);
}

static int64_t fake_get_size(void *handle)
{
	struct stat st;
	return fstat(*(int *)handle, &st) < 0 ? -1 : (int64_t)st.st_size;
}

static int fake_can_multi_conn(void *handle)
{
	(void)handle;
	return 1;
}

static int fake_pread(void *handle, void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
	char value[64];
	(void)flags;
	unsigned nr = atomic_fetch_add(&nr_reads, 1) + 1;
	if (offset % SECTOR || count % SECTOR) {
		nbdkit_error("read is not aligned to sectors");
		return -1;
	}
	note("read", offset / SECTOR, count / SECTOR);
	if (told_value(text, "crash", value, sizeof value) && nr >= strtoul(value, NULL, 10))
		raise(SIGSEGV);
	hang_while("read");
	if (told_value(text, "slow", value, sizeof value))
		poll(NULL, 0, (int)strtoul(value, NULL, 10));
	if (told_value(text, "read", value, sizeof value)) {
		nbdkit_error("VixDiskLib_Read: NFC error %s", value);
		nbdkit_set_error(EIO);
		return -1;
	}
	return pread(*(int *)handle, buf, count, (off_t)offset) == (ssize_t)count ? 0 : -1;
}

static struct nbdkit_plugin plugin = {
	.name = "vddk",
	.load = fake_load,
	.unload = fake_unload,
	.config = fake_config,
	.config_complete = fake_config_complete,
	.magic_config_key = "file",
	.dump_plugin = fake_dump_plugin,
	.open = fake_open,
	.close = fake_close,
	.get_size = fake_get_size,
	.can_multi_conn = fake_can_multi_conn,
	.pread = fake_pread,
};

NBDKIT_REGISTER_PLUGIN(plugin)
