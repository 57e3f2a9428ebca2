/*
 * A libvixDiskLib for tests: it serves the test vCenter's frozen disks, watches that its
 * caller keeps the library's rules, and fails when it is told to.
 *
 * Written from the public description of the interface, apart from the client's own
 * declarations, so that one checks the other.  The file named by SENDENSE_FAKE_VDDK says what to
 * do, a line "name=value" each:
 *
 *   frozen=DIR        where SNAPSHOT/index and SNAPSHOT/KEY.raw are
 *   log=FILE          one line for each call is appended
 *   password=TEXT  thumbprint=TEXT   what must be given; a wrong thumbprint shows only at Open
 *   init= prepare= connect= open= info= query=CODE   that call fails so
 *   read=CODE         reads fail that touch the byte read_at=OFFSET (default: all)
 *   slow=MS           each read takes that long
 *   hang=load|init|connect|open|read|query|close     the call never returns
 *   crash=N           the Nth read ends the process with a segmentation fault
 *   killed=N          the same, by SIGKILL
 *   async=no          ReadAsync is not supported; async=late: done before it returns
 *   transport=TEXT    what GetTransportMode tells (nbdssl)
 *   stderr=secret     the password is written to stderr at each ConnectEx
 *   chatter=N         so many log lines at each Open
 *
 * A broken rule is told on stderr and in the log, and ends the process by abort().
 */
#include "../told.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SECTOR 512u
#define OK 0u
#define FAIL 1u
#define NFC_MEMORY 5u
#define NOT_SUPPORTED 6u
#define NO_HOST 18000u
#define ASYNC 25000u
#define EXPORT __attribute__((visibility("default")))

typedef uint64_t error_t64;
typedef void say_fn(const char *format, va_list ap);
typedef void done_fn(void *data, error_t64 result);

struct connect_params {
	char *vmx_spec, *server, *thumbprint;
	long private_use;
	int credentials;
	union {
		struct {
			char *user, *password;
		} name;
		struct {
			char *cookie, *user, *key;
		} session;
		void *pad[3];
	} who;
	uint32_t port, nfc_port;
	char *api_version;
	char reserved[8];
	void *state;
	void *spec[3];
	int spec_type;
};
_Static_assert(sizeof(struct connect_params) == 128, "as described");
_Static_assert(offsetof(struct connect_params, spec_type) == 120, "as described");

struct info {
	uint32_t bios[3], physical[3];
	uint64_t capacity;
	int adapter, links;
	char *parent, *uuid;
	uint32_t logical_sector, physical_sector;
};
_Static_assert(sizeof(struct info) == 64, "as described");

struct block_list {
	uint32_t nr;
	struct {
		uint64_t offset, length;
	} blocks[];
};
_Static_assert(offsetof(struct block_list, blocks) == 8, "as described");

struct connection {
	char spec[128], snapshot[128];
	bool thumbprint_ok;
};

struct handle {
	int fd;
	uint64_t capacity;
	unsigned sync_reads, async_reads;
};

struct job {
	struct handle *handle;
	uint64_t sector, count;
	uint8_t *buffer;
	done_fn *done;
	void *data;
	struct job *next;
};

static struct {
	pthread_mutex_t mutex;
	pthread_cond_t more;
	char text[8192]; /* of the configuration */
	say_fn *log, *warn, *panic;
	bool initialised;
	pthread_t opener;
	bool has_opener;
	int nr_connections, nr_handles, nr_accesses;
	unsigned nr_reads;
	struct job *first, *last;
	pthread_t workers[4];
	unsigned nr_workers;
	bool ending;
} lib = {.mutex = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER};

/* --- what it was told ------------------------------------------------------- */

static const char *told(const char *name, char *out, size_t room)
{
	return told_value(lib.text, name, out, room);
}

static uint64_t told_number(const char *name, uint64_t otherwise)
{
	char value[64];
	return told(name, value, sizeof value) ? strtoull(value, NULL, 0) : otherwise;
}

static bool told_is(const char *name, const char *value)
{
	char found[64];
	return told(name, found, sizeof found) && strcmp(found, value) == 0;
}

__attribute__((format(printf, 1, 2))) static void note(const char *format, ...)
{
	char path[4096], line[4096];
	if (!told("log", path, sizeof path))
		return;
	va_list ap;
	va_start(ap, format);
	int n = vsnprintf(line, sizeof line - 1, format, ap);
	va_end(ap);
	line[n++] = '\n';
	int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || write(fd, line, (size_t)n) != n)
		abort();
	close(fd);
}

#define RULE(holds, ...)                                                         \
	do {                                                                     \
		if (!(holds)) {                                                  \
			fprintf(stderr, "fake VDDK: rule broken: " __VA_ARGS__); \
			fputc('\n', stderr);                                     \
			note("rule broken: " __VA_ARGS__);                       \
			abort();                                                 \
		}                                                                \
	} while (0)

static void hang_if(const char *where)
{
	while (told_is("hang", where))
		pause();
}

/* While it is loaded. */
__attribute__((constructor)) static void take_configuration(void)
{
	told_load(lib.text, sizeof lib.text);
	if (told_is("hang", "load"))
		note("load");
	hang_if("load");
}

__attribute__((format(printf, 2, 3))) static void say(say_fn *to, const char *format, ...)
{
	va_list ap;
	va_start(ap, format);
	to(format, ap);
	va_end(ap);
}

/* --- beginning and end ------------------------------------------------------ */

static void check_process(const char *libdir)
{
	char path[4096], line[4096];
	snprintf(path, sizeof path, "%s/lib64", libdir);
	RULE(access(path, X_OK) == 0, "libdir %s has no lib64", libdir);
	const char *search = getenv("LD_LIBRARY_PATH");
	RULE(search && strstr(search, path), "LD_LIBRARY_PATH lacks %s", path);
	FILE *file = fopen("/proc/self/maps", "re");
	while (file && fgets(line, sizeof line, file))
		RULE(!strstr(line, "libcurl") && !strstr(line, "libgnutls") &&
				!strstr(line, "libxml2") && !strstr(line, "libcrypto"),
			"loaded beside %s", line);
	if (file)
		fclose(file);
	RULE(gettid() == getpid(), "InitEx outside the main thread");
	file = getenv("TSAN_OPTIONS") ? NULL : fopen("/proc/self/status", "re");
	while (file && fgets(line, sizeof line, file))
		RULE(strncmp(line, "Threads:", 8) != 0 || atoi(line + 8) == 1,
			"InitEx with other threads running");
	if (file)
		fclose(file);
}

EXPORT error_t64 VixDiskLib_InitEx(uint32_t major, uint32_t minor, say_fn *log, say_fn *warn,
	say_fn *panic, const char *libdir, const char *config)
{
	RULE(!lib.initialised, "InitEx twice");
	RULE(log && warn && panic, "a log function is NULL");
	RULE(major >= 5 && major <= MAJOR && minor < 10, "InitEx for version %u.%u", major, minor);
	check_process(libdir);
	lib.initialised = true;
	lib.log = log;
	lib.warn = warn;
	lib.panic = panic;
	char content[1024] = "";
	FILE *file = config ? fopen(config, "re") : NULL;
	RULE(!config || file, "cannot read the configuration %s", config);
	if (file) {
		content[fread(content, 1, sizeof content - 1, file)] = '\0';
		fclose(file);
	}
	for (char *c = content; *c; c++)
		*c = *c == '\n' ? ' ' : *c;
	note("init %u.%u %s", major, minor, content);
	hang_if("init");
	signal(SIGUSR1, SIG_IGN); /* a library that thinks signals its own */
	return told_number("init", OK);
}

static void *work(void *unused);

EXPORT void VixDiskLib_Exit(void)
{
	pthread_mutex_lock(&lib.mutex);
	lib.ending = true;
	pthread_cond_broadcast(&lib.more);
	pthread_mutex_unlock(&lib.mutex);
	for (unsigned i = 0; i < lib.nr_workers; i++)
		pthread_join(lib.workers[i], NULL);
	RULE(lib.nr_handles == 0, "Exit with %d handles open", lib.nr_handles);
	RULE(lib.nr_connections == 0, "Exit with %d connections open", lib.nr_connections);
	RULE(lib.nr_accesses == 0, "Exit with %d accesses not ended", lib.nr_accesses);
	note("exit");
}

EXPORT char *VixDiskLib_GetErrorText(error_t64 error, const char *locale)
{
	(void)locale;
	static const struct {
		error_t64 code;
		const char *text;
	} texts[] = {{OK, "The operation was successful"}, {FAIL, "Unknown error"},
		{NFC_MEMORY, "NFC error 5: failed to allocate the requested memory"},
		{NOT_SUPPORTED, "The operation is not supported"},
		{NO_HOST, "Cannot connect to host"}};
	for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
		if (texts[i].code == (error & 0xffff))
			return strdup(texts[i].text);
	return strdup("An error that has no text");
}

EXPORT void VixDiskLib_FreeErrorText(char *text)
{
	free(text);
}

#ifndef OLD
EXPORT struct connect_params *VixDiskLib_AllocateConnectParams(void)
{
	struct connect_params *params = calloc(1, sizeof *params);
	if (params)
		params->state = params; /* something that the caller must leave alone */
	return params;
}

EXPORT void VixDiskLib_FreeConnectParams(struct connect_params *params)
{
	free(params);
}
#endif

EXPORT error_t64 VixDiskLib_PrepareForAccess(
	const struct connect_params *params, const char *identity)
{
	RULE(identity && identity[0], "no identity");
	note("prepare %s %s", params->vmx_spec, identity);
	error_t64 error = told_number("prepare", OK);
	lib.nr_accesses += error == OK;
	return error;
}

EXPORT error_t64 VixDiskLib_EndAccess(const struct connect_params *params, const char *identity)
{
	RULE(lib.nr_accesses > 0, "EndAccess alone");
	note("end-access %s %s", params->vmx_spec, identity);
	lib.nr_accesses--;
	return OK;
}

/* --- connections ------------------------------------------------------------ */

EXPORT error_t64 VixDiskLib_ConnectEx(const struct connect_params *params, char read_only,
	const char *snapshot, const char *modes, struct connection **out)
{
	char value[1024];
	RULE(lib.initialised, "ConnectEx before InitEx");
	RULE(read_only == 1, "not read-only");
	RULE(params->spec_type == 0, "specType %d", params->spec_type);
#ifndef OLD
	RULE(params->state == params, "the library's own state was overwritten");
#endif
	note("connect %s %s %u %u %s %s cred %d", params->server, params->vmx_spec, params->port,
		params->nfc_port, snapshot ? snapshot : "-", modes ? modes : "-",
		params->credentials);
	const char *secret =
		params->credentials == 1 ? params->who.name.password : params->who.session.cookie;
	if (told_is("stderr", "secret"))
		for (int i = 0; i < 100; i++)
			fprintf(stderr, "%d: connecting with %s\n", i, secret);
	say(lib.log, "VixDiskLib: connecting with \"%s\" as %s\nin two lines\t\001", secret,
		params->credentials == 1 ? params->who.name.user : params->who.session.user);
	hang_if("connect");
	if (told_number("connect", OK) != OK)
		return told_number("connect", OK);
	if (told("password", value, sizeof value) && strcmp(value, secret) != 0)
		return NO_HOST;
	struct connection *connection = calloc(1, sizeof *connection);
	if (!connection)
		return FAIL;
	connection->thumbprint_ok = !told("thumbprint", value, sizeof value) ||
				    (params->thumbprint && strcmp(value, params->thumbprint) == 0);
	snprintf(connection->spec, sizeof connection->spec, "%s", params->vmx_spec);
	snprintf(connection->snapshot, sizeof connection->snapshot, "%s", snapshot ? snapshot : "");
	lib.nr_connections++;
	*out = connection;
	return OK;
}

EXPORT error_t64 VixDiskLib_Disconnect(struct connection *connection)
{
	note("disconnect");
	lib.nr_connections--;
	free(connection);
	return OK;
}

static void check_opener(const char *what)
{
	pthread_mutex_lock(&lib.mutex);
	if (!lib.has_opener)
		lib.opener = pthread_self();
	lib.has_opener = true;
	bool same = pthread_equal(lib.opener, pthread_self());
	pthread_mutex_unlock(&lib.mutex);
	RULE(same, "%s from another thread than the first Open", what);
}

EXPORT error_t64 VixDiskLib_Open(
	struct connection *connection, const char *path, uint32_t flags, struct handle **out)
{
	check_opener("Open");
	RULE(flags & 4, "Open flags %u without read-only", flags);
	note("open %u %s", flags, path);
	for (uint64_t i = told_number("chatter", 0); i > 0; i--)
		say(lib.warn, "chatter %" PRIu64 " of a library that says a lot, line after line",
			i);
	hang_if("open");
	if (told_number("open", OK) != OK)
		return told_number("open", OK);
	if (!connection->thumbprint_ok) {
		say(lib.warn, "SSL: the thumbprint of the host is another one");
		return FAIL;
	}
	int fd = told_frozen(lib.text, connection->spec, connection->snapshot, path);
	if (fd < 0)
		return 4; /* file not found */
	struct stat st;
	struct handle *handle = calloc(1, sizeof *handle);
	if (!handle || fstat(fd, &st) < 0) {
		close(fd);
		free(handle);
		return FAIL;
	}
	handle->fd = fd;
	handle->capacity = (uint64_t)st.st_size / SECTOR;
	lib.nr_handles++;
	*out = handle;
	return OK;
}

EXPORT error_t64 VixDiskLib_Close(struct handle *handle)
{
	check_opener("Close");
	hang_if("close");
	pthread_mutex_lock(&lib.mutex);
	RULE(handle->async_reads == 0, "Close with %u reads in flight", handle->async_reads);
	pthread_mutex_unlock(&lib.mutex);
	note("close");
	lib.nr_handles--;
	close(handle->fd);
	free(handle);
	return OK;
}

EXPORT error_t64 VixDiskLib_GetInfo(struct handle *handle, struct info **out)
{
	error_t64 error = told_number("info", OK);
	if (error != OK)
		return error;
	struct info *info = calloc(1, sizeof *info);
	if (!info)
		return FAIL;
	info->capacity = told_number("capacity", handle->capacity);
	info->logical_sector = info->physical_sector = SECTOR;
	*out = info;
	return OK;
}

EXPORT void VixDiskLib_FreeInfo(struct info *info)
{
	free(info);
}

EXPORT const char *VixDiskLib_GetTransportMode(struct handle *handle)
{
	static char mode[64];
	(void)handle;
	return told("transport", mode, sizeof mode) ? mode : "nbdssl";
}

/* --- reading ---------------------------------------------------------------- */

static error_t64 read_sectors(
	struct handle *handle, uint64_t sector, uint64_t count, uint8_t *buffer)
{
	pthread_mutex_lock(&lib.mutex);
	unsigned nr = ++lib.nr_reads;
	pthread_mutex_unlock(&lib.mutex);
	note("read %" PRIu64 " %" PRIu64, sector, count);
	hang_if("read");
	if (told_number("crash", 0) == nr)
		*(volatile int *)(uintptr_t)told_number("nowhere", 8) = 1;
	if (told_number("killed", 0) == nr)
		kill(getpid(), SIGKILL);
	uint64_t slow = told_number("slow", 0);
	if (slow) {
		struct timespec pause = {(time_t)(slow / 1000), (long)(slow % 1000) * 1000000};
		clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
	}
	uint64_t at = told_number("read_at", sector * SECTOR);
	if (told_number("read", OK) != OK && at >= sector * SECTOR &&
		at < (sector + count) * SECTOR)
		return told_number("read", OK);
	for (size_t have = 0; have < count * SECTOR;) {
		ssize_t n = pread(handle->fd, buffer + have, count * SECTOR - have,
			(off_t)(sector * SECTOR + have));
		if (n <= 0)
			return FAIL;
		have += (size_t)n;
	}
	return OK;
}

static void check_read(struct handle *handle, uint64_t sector, uint64_t count)
{
	RULE(count > 0 && count <= 4096, "read of %" PRIu64 " sectors", count);
	RULE(sector <= handle->capacity && count <= handle->capacity - sector,
		"read of %" PRIu64 "+%" PRIu64 " beyond %" PRIu64, sector, count, handle->capacity);
}

EXPORT error_t64 VixDiskLib_Read(
	struct handle *handle, uint64_t sector, uint64_t count, uint8_t *buffer)
{
	check_read(handle, sector, count);
	pthread_mutex_lock(&lib.mutex);
	RULE(handle->sync_reads++ == 0 && handle->async_reads == 0, "two reads at once");
	pthread_mutex_unlock(&lib.mutex);
	error_t64 error = read_sectors(handle, sector, count, buffer);
	pthread_mutex_lock(&lib.mutex);
	handle->sync_reads--;
	pthread_mutex_unlock(&lib.mutex);
	return error;
}

static void *work(void *unused)
{
	(void)unused;
	pthread_mutex_lock(&lib.mutex);
	for (;;) {
		while (!lib.first && !lib.ending)
			pthread_cond_wait(&lib.more, &lib.mutex);
		if (!lib.first)
			break;
		struct job *job = lib.first;
		lib.first = job->next;
		pthread_mutex_unlock(&lib.mutex);
		error_t64 error = read_sectors(job->handle, job->sector, job->count, job->buffer);
		pthread_mutex_lock(&lib.mutex);
		job->handle->async_reads--;
		pthread_mutex_unlock(&lib.mutex);
		job->done(job->data, error);
		free(job);
		pthread_mutex_lock(&lib.mutex);
	}
	pthread_mutex_unlock(&lib.mutex);
	return NULL;
}

EXPORT error_t64 VixDiskLib_ReadAsync(struct handle *handle, uint64_t sector, uint64_t count,
	uint8_t *buffer, done_fn *done, void *data)
{
	if (told_is("async", "no"))
		return NOT_SUPPORTED;
	check_read(handle, sector, count);
	if (told_is("async", "late")) {
		done(data, read_sectors(handle, sector, count, buffer));
		return ASYNC;
	}
	struct job *job = malloc(sizeof *job);
	if (!job)
		return FAIL;
	*job = (struct job){handle, sector, count, buffer, done, data, NULL};
	pthread_mutex_lock(&lib.mutex);
	RULE(handle->sync_reads == 0, "ReadAsync during Read");
	handle->async_reads++;
	if (lib.first)
		lib.last->next = job;
	else
		lib.first = job;
	lib.last = job;
	while (lib.nr_workers < sizeof lib.workers / sizeof lib.workers[0]) {
		if (pthread_create(&lib.workers[lib.nr_workers], NULL, work, NULL) != 0)
			abort();
		lib.nr_workers++;
	}
	pthread_cond_signal(&lib.more);
	pthread_mutex_unlock(&lib.mutex);
	return ASYNC;
}

EXPORT error_t64 VixDiskLib_Wait(struct handle *handle)
{
	(void)handle;
	return OK;
}

/* --- the map ---------------------------------------------------------------- */

#ifndef OLD
EXPORT error_t64 VixDiskLib_QueryAllocatedBlocks(struct handle *handle, uint64_t sector,
	uint64_t count, uint64_t chunk, struct block_list **out)
{
	check_opener("QueryAllocatedBlocks");
	RULE(chunk >= 128 && (chunk & (chunk - 1)) == 0, "chunk of %" PRIu64 " sectors", chunk);
	RULE(sector % chunk == 0 && count % chunk == 0 && count > 0,
		"query of %" PRIu64 "+%" PRIu64 " not aligned", sector, count);
	RULE(count / chunk <= 524288, "query of %" PRIu64 " chunks", count / chunk);
	RULE(sector <= handle->capacity && count <= handle->capacity - sector,
		"query of %" PRIu64 "+%" PRIu64 " beyond the end", sector, count);
	note("query %" PRIu64 " %" PRIu64 " %" PRIu64, sector, count, chunk);
	hang_if("query");
	if (told_number("query", OK) != OK)
		return told_number("query", OK);
	struct block_list *list =
		calloc(1, sizeof *list + (count / chunk + 1) * sizeof list->blocks[0]);
	if (!list)
		return FAIL;
	for (uint64_t at = sector; at < sector + count; at += chunk) {
		off_t data = lseek(handle->fd, (off_t)(at * SECTOR), SEEK_DATA);
		if (data < 0 || (uint64_t)data >= (at + chunk) * SECTOR)
			continue;
		if (list->nr &&
			list->blocks[list->nr - 1].offset + list->blocks[list->nr - 1].length ==
				at) {
			list->blocks[list->nr - 1].length += chunk;
		} else {
			list->blocks[list->nr].offset = at;
			list->blocks[list->nr++].length = chunk;
		}
	}
	*out = list;
	return OK;
}

EXPORT error_t64 VixDiskLib_FreeBlockList(struct block_list *list)
{
	free(list);
	return OK;
}
#endif
