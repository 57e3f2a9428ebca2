/* The helper's work; see serve.h. */
#include "serve.h"

#include "orphan.h"
#include "say.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define IDENTITY "sendense"

/* One read; the library's thread finishes it. */
struct read {
	uint32_t slot;
	uint64_t tag;
};

static struct {
	struct library lib;
	char text[VDDK_TEXT_BYTES]; /* of OPEN */
	const char *texts[VDDK_NR_TEXTS];
	uint32_t nr_slots;
	uint8_t *memory;
	struct read reads[VDDK_SLOTS_MAX];
	bool initialised, access, no_async;
	char vmx_spec[256];
	struct vix_connect_params own_params, *params;
	struct vix_connection *connection;
	struct vix_handle *handle;
	uint64_t capacity;
	pthread_mutex_t mutex; /* over reads and nr_out */
	pthread_cond_t back;
	unsigned nr_out; /* reads that the library has */
} self = {.mutex = PTHREAD_MUTEX_INITIALIZER, .back = PTHREAD_COND_INITIALIZER};

/* --- messages --------------------------------------------------------------- */

static void tell_stage(enum vddk_stage stage)
{
	say_message(&(struct vddk_message){.type = VDDK_STAGE, .slot = stage}, NULL);
}

/* Says FAILED with the library's own words, or with why.  Returns -1. */
static int failed(enum vddk_stage stage, vix_error error, const char *why)
{
	char *text = !why && self.lib.error_text ? self.lib.error_text(error, NULL) : NULL;
	say_message(&(struct vddk_message){.type = VDDK_FAILED, .slot = stage, .code = error},
		why ? why : text);
	if (text)
		self.lib.free_error_text(text);
	return -1;
}

static void done(uint32_t slot, uint64_t tag, vix_error error, uint64_t count)
{
	struct vddk_message message = {
		.type = VDDK_DONE, .slot = slot, .tag = tag, .code = error, .count = count};
	char *text = error ? self.lib.error_text(error, NULL) : NULL;
	say_message(&message, text);
	if (text)
		self.lib.free_error_text(text);
}

/* The length of the text behind the head, or -1: the parent is gone, or mad. */
static ssize_t receive(struct vddk_message *message)
{
	struct iovec parts[2] = {
		{message, sizeof *message},
		{self.text, sizeof self.text},
	};
	struct msghdr packet = {.msg_iov = parts, .msg_iovlen = 2};
	/* Only OPEN has texts, which are kept. */
	if (self.nr_slots)
		packet.msg_iovlen = 1;
	ssize_t n;
	do
		n = recvmsg(0, &packet, 0);
	while (n < 0 && errno == EINTR);
	if (n < (ssize_t)sizeof *message || (packet.msg_flags & MSG_TRUNC))
		return -1;
	return n - (ssize_t)sizeof *message;
}

/* --- opening ---------------------------------------------------------------- */

static int take_open(const struct vddk_message *message, ssize_t length)
{
	const char *at = self.text, *end = self.text + length;
	for (int i = 0; i < VDDK_NR_TEXTS; i++) {
		const char *zero = memchr(at, '\0', (size_t)(end - at));
		if (!zero)
			return failed(VDDK_STAGE_START, 0, "the request is cut short");
		self.texts[i] = at;
		at = zero + 1;
	}
	if (message->type != VDDK_OPEN || message->tag != VDDK_WIRE_VERSION || message->slot == 0 ||
		message->slot > VDDK_SLOTS_MAX)
		return failed(VDDK_STAGE_START, 0,
			"it is of another build than sendense (install both from one package)");
	say_hide(self.texts[VDDK_TEXT_PASSWORD]);
	say_hide(self.texts[VDDK_TEXT_COOKIE]);
	self.nr_slots = message->slot;
	self.memory = mmap(NULL, (size_t)self.nr_slots * VDDK_SLOT_BYTES, PROT_READ | PROT_WRITE,
		MAP_SHARED, VDDK_MEMORY_FD, 0);
	if (self.memory == MAP_FAILED)
		return failed(VDDK_STAGE_START, 0, strerror(errno));
	return 0;
}

static int initialise(void)
{
	const char *file = self.texts[VDDK_TEXT_CONFIG_FILE];
	const char *content = self.texts[VDDK_TEXT_CONFIG];
	char path[64];
	if (!file[0] && content[0]) {
		/* The library wants a file; this one has no name that could be left over. */
		int fd = memfd_create("vddk.conf", 0);
		size_t length = strlen(content);
		if (fd < 0 || write(fd, content, length) != (ssize_t)length)
			return failed(VDDK_STAGE_INIT, 0, strerror(errno));
		snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
		file = path;
	}
	/* 6.x also comes as 6.5, which knows no later number. */
	uint32_t minor = self.lib.major == 6 ? 5 : 0;
	vix_error error = self.lib.init(self.lib.major, minor, say_log_info, say_log_warning,
		say_log_panic, self.texts[VDDK_TEXT_FOLDER], file[0] ? file : NULL);
	if (VIX_CODE(error) != VIX_OK)
		return failed(VDDK_STAGE_INIT, error, NULL);
	self.initialised = true;
	orphan_watch();
	return 0;
}

/* The library reads its parameters only, but declares them without const. */
static char *text_of(enum vddk_text which)
{
	return (char *)(uintptr_t)self.texts[which];
}

static int connect_to_server(const struct vddk_message *message)
{
	struct vix_connect_params *params =
		self.lib.allocate_params ? self.lib.allocate_params() : &self.own_params;
	if (!params)
		return failed(VDDK_STAGE_CONNECT, 0, "the library has no memory left");
	self.params = params;
	snprintf(self.vmx_spec, sizeof self.vmx_spec, "moref=%s", self.texts[VDDK_TEXT_VM]);
	params->vmx_spec = self.vmx_spec;
	params->server = text_of(VDDK_TEXT_SERVER);
	params->thumbprint =
		self.texts[VDDK_TEXT_THUMBPRINT][0] ? text_of(VDDK_TEXT_THUMBPRINT) : NULL;
	params->port = (uint32_t)message->sector;
	params->nfc_port = (uint32_t)message->count;
	params->spec_type = 0;
	if (self.texts[VDDK_TEXT_COOKIE][0]) {
		params->credentials_type = VIX_CREDENTIALS_SESSION;
		params->credentials.session.cookie = text_of(VDDK_TEXT_COOKIE);
		params->credentials.session.user = text_of(VDDK_TEXT_USER);
		params->credentials.session.key = text_of(VDDK_TEXT_PASSWORD);
	} else {
		params->credentials_type = VIX_CREDENTIALS_NAME;
		params->credentials.name.user = text_of(VDDK_TEXT_USER);
		params->credentials.name.password = text_of(VDDK_TEXT_PASSWORD);
	}
	if (message->flags & VDDK_FLAG_ACCESS) {
		vix_error error = self.lib.prepare(params, IDENTITY);
		self.access = VIX_CODE(error) == VIX_OK;
		if (!self.access)
			say_warning(
				"the machine may be migrated meanwhile: PrepareForAccess failed "
				"with error %u",
				VIX_CODE(error));
	}
	const char *modes = self.texts[VDDK_TEXT_MODES];
	vix_error error = self.lib.connect(params, 1, self.texts[VDDK_TEXT_SNAPSHOT],
		modes[0] ? modes : NULL, &self.connection);
	return VIX_CODE(error) == VIX_OK ? 0 : failed(VDDK_STAGE_CONNECT, error, NULL);
}

static int open_disk(const struct vddk_message *message)
{
	tell_stage(VDDK_STAGE_OPEN);
	vix_error error = self.lib.open(
		self.connection, self.texts[VDDK_TEXT_PATH], (uint32_t)message->code, &self.handle);
	if (VIX_CODE(error) != VIX_OK)
		return failed(VDDK_STAGE_OPEN, error, NULL);
	tell_stage(VDDK_STAGE_INFO);
	struct vix_info *info = NULL;
	error = self.lib.get_info(self.handle, &info);
	if (VIX_CODE(error) != VIX_OK || !info)
		return failed(VDDK_STAGE_INFO, error, VIX_CODE(error) ? NULL : "it told nothing");
	self.capacity = info->capacity_sectors;
	self.lib.free_info(info);
	return 0;
}

static int open_all(const struct vddk_message *message)
{
	unsigned stage;
	char why[1024];
	tell_stage(VDDK_STAGE_LOAD);
	if (library_load(&self.lib, self.texts[VDDK_TEXT_FOLDER], &stage, why, sizeof why) < 0)
		return failed(stage, 0, why);
	struct vddk_message opened = {.type = VDDK_OPENED, .slot = self.lib.major};
	opened.flags = (self.lib.query ? VDDK_FLAG_ALLOCATED : 0) |
		       (self.lib.read_async ? VDDK_FLAG_ASYNC : 0);
	if (message->flags & VDDK_FLAG_PROBE) {
		say_message(&opened, self.lib.path);
		return 0;
	}
	tell_stage(VDDK_STAGE_INIT);
	if (initialise() < 0)
		return -1;
	tell_stage(VDDK_STAGE_CONNECT);
	if (connect_to_server(message) < 0 || open_disk(message) < 0)
		return -1;
	opened.count = self.capacity;
	say_message(&opened, self.lib.transport_mode(self.handle));
	return 0;
}

/* However long that takes: who does not want to wait ends the process. */
static void wait_for_reads(unsigned left)
{
	pthread_mutex_lock(&self.mutex);
	while (self.nr_out > left)
		pthread_cond_wait(&self.back, &self.mutex);
	pthread_mutex_unlock(&self.mutex);
}

static struct read *read_begins(const struct vddk_message *message)
{
	struct read *read = &self.reads[message->slot];
	pthread_mutex_lock(&self.mutex);
	*read = (struct read){message->slot, message->tag};
	self.nr_out++;
	pthread_mutex_unlock(&self.mutex);
	return read;
}

/* With the answer the slot is the parent's again, and so is *read. */
static void read_ends(const struct read *read, vix_error error)
{
	pthread_mutex_lock(&self.mutex);
	const struct read ended = *read;
	pthread_mutex_unlock(&self.mutex);
	done(ended.slot, ended.tag, error, 0);
	pthread_mutex_lock(&self.mutex);
	self.nr_out--;
	pthread_cond_signal(&self.back);
	pthread_mutex_unlock(&self.mutex);
}

static void close_all(void)
{
	wait_for_reads(0);
	if (self.handle)
		self.lib.close(self.handle);
	if (self.connection)
		self.lib.disconnect(self.connection);
	if (self.access)
		self.lib.end_access(self.params, IDENTITY);
	if (self.initialised)
		self.lib.exit();
}

/* --- serving ---------------------------------------------------------------- */

/* Called in a thread of the library's. */
static void on_read(void *data, vix_error error)
{
	read_ends(data, error);
}

static void do_read(const struct vddk_message *message)
{
	struct read *read = read_begins(message);
	uint8_t *out = self.memory + (size_t)message->slot * VDDK_SLOT_BYTES;
	vix_error error = VIX_NOT_SUPPORTED;
	if (self.lib.read_async && !self.no_async) {
		error = self.lib.read_async(
			self.handle, message->sector, message->count, out, on_read, read);
		if (VIX_CODE(error) == VIX_ASYNC)
			return;
		self.no_async = VIX_CODE(error) == VIX_NOT_SUPPORTED;
	}
	if (!self.lib.read_async || self.no_async) {
		wait_for_reads(1); /* the library bears no other one beside it */
		error = self.lib.read(self.handle, message->sector, message->count, out);
	}
	read_ends(read, error);
}

static void do_map(const struct vddk_message *message)
{
	struct vddk_area *areas =
		(struct vddk_area *)(void *)(self.memory + (size_t)message->slot * VDDK_SLOT_BYTES);
	struct vix_block_list *list = NULL;
	vix_error error = self.lib.query ? self.lib.query(self.handle, message->sector,
						   message->count, VDDK_CHUNK_SECTORS, &list)
					 : VIX_NOT_SUPPORTED;
	if (VIX_CODE(error) == VIX_OK && (!list || list->nr > VDDK_SLOT_BYTES / sizeof *areas))
		error = VIX_FAIL;
	uint64_t count = VIX_CODE(error) == VIX_OK ? list->nr : 0;
	for (uint64_t i = 0; i < count; i++)
		areas[i] = (struct vddk_area){list->blocks[i].sector, list->blocks[i].count};
	if (list)
		self.lib.free_list(list);
	done(message->slot, message->tag, error, count);
}

static void serve_disk(void)
{
	struct vddk_message message = {0};
	while (receive(&message) >= 0 && message.slot < self.nr_slots && self.handle) {
		if (message.type == VDDK_READ && message.count <= VDDK_SLOT_BYTES / VDDK_SECTOR)
			do_read(&message);
		else if (message.type == VDDK_MAP)
			do_map(&message);
		else
			break; /* CLOSE; a probe takes no other */
	}
}

int serve_parent(void)
{
	struct vddk_message message = {0};
	ssize_t length = receive(&message);
	if (length < 0)
		return 1;
	int rc = take_open(&message, length);
	if (rc == 0)
		rc = open_all(&message);
	if (rc == 0)
		serve_disk();
	close_all();
	return rc == 0 ? 0 : 1;
}
