/*
 * The user's libvixDiskLib, loaded.  Its declarations are not ours to copy: entry points and
 * structs are described here from public text, for LP64, with their offsets asserted.
 *
 * Thread rule of the library: library_init() once, in the main thread, before there are
 * other threads; open, close and query in one thread; read_async from that one too.
 */
#ifndef SENDENSE_VDDK_LIBRARY_H
#define SENDENSE_VDDK_LIBRARY_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

/* Codes: the low 16 bits of what a call returns. */
#define VIX_OK 0u
#define VIX_FAIL 1u
#define VIX_NOT_SUPPORTED 6u
#define VIX_ASYNC 25000u
#define VIX_CODE(error) ((uint32_t)((error)&0xffffu))

#define VIX_CREDENTIALS_NAME 1
#define VIX_CREDENTIALS_SESSION 2

struct vix_connect_params {
	char *vmx_spec; /* "moref=vm-123" */
	char *server;
	char *thumbprint; /* SHA-1, with colons */
	long private_use;
	int credentials_type;
	union {
		struct {
			char *user;
			char *password;
		} name;
		struct {
			char *cookie;
			char *user;
			char *key;
		} session;
	} credentials;
	uint32_t port;
	uint32_t nfc_port;
	char *api_version;
	char reserved[8];
	void *state; /* the library's */
	void *spec[3];
	int spec_type;
};

struct vix_geometry {
	uint32_t cylinders, heads, sectors;
};

struct vix_info {
	struct vix_geometry bios, physical;
	uint64_t capacity_sectors;
	int adapter_type;
	int nr_links;
	char *parent;
	char *uuid;
	uint32_t logical_sector_bytes, physical_sector_bytes; /* valid from 7.0 on */
};

struct vix_block_list {
	uint32_t nr;
	struct {
		uint64_t sector, count;
	} blocks[];
};

_Static_assert(sizeof(struct vix_connect_params) == 128, "LP64");
_Static_assert(offsetof(struct vix_connect_params, private_use) == 24, "LP64");
_Static_assert(offsetof(struct vix_connect_params, credentials_type) == 32, "LP64");
_Static_assert(offsetof(struct vix_connect_params, credentials) == 40, "LP64");
_Static_assert(offsetof(struct vix_connect_params, port) == 64, "LP64");
_Static_assert(offsetof(struct vix_connect_params, nfc_port) == 68, "LP64");
_Static_assert(offsetof(struct vix_connect_params, api_version) == 72, "LP64");
_Static_assert(offsetof(struct vix_connect_params, state) == 88, "LP64");
_Static_assert(offsetof(struct vix_connect_params, spec) == 96, "LP64");
_Static_assert(offsetof(struct vix_connect_params, spec_type) == 120, "LP64");
_Static_assert(sizeof(struct vix_info) == 64, "LP64");
_Static_assert(offsetof(struct vix_info, capacity_sectors) == 24, "LP64");
_Static_assert(offsetof(struct vix_block_list, blocks) == 8, "LP64");

struct vix_connection;
struct vix_handle;

typedef uint64_t vix_error;
typedef void vix_say(const char *format, va_list ap);
typedef void vix_done(void *data, vix_error result);

/* NULL: this version has it not; library_load() fails without those that are needed. */
struct library {
	unsigned major;
	char path[4096]; /* of the file that was loaded */

	vix_error (*init)(uint32_t major, uint32_t minor, vix_say *log, vix_say *warn,
		vix_say *panic, const char *folder, const char *config);
	void (*exit)(void);
	char *(*error_text)(vix_error error, const char *locale);
	void (*free_error_text)(char *text);
	struct vix_connect_params *(*allocate_params)(void); /* optional */
	vix_error (*prepare)(const struct vix_connect_params *params, const char *identity);
	vix_error (*end_access)(const struct vix_connect_params *params, const char *identity);
	vix_error (*connect)(const struct vix_connect_params *params, char read_only,
		const char *snapshot, const char *modes, struct vix_connection **connection);
	vix_error (*disconnect)(struct vix_connection *connection);
	vix_error (*open)(struct vix_connection *connection, const char *path, uint32_t flags,
		struct vix_handle **handle);
	vix_error (*close)(struct vix_handle *handle);
	vix_error (*get_info)(struct vix_handle *handle, struct vix_info **info);
	void (*free_info)(struct vix_info *info);
	const char *(*transport_mode)(struct vix_handle *handle);
	vix_error (*read)(struct vix_handle *handle, uint64_t sector, uint64_t count, uint8_t *out);
	vix_error (*read_async)(struct vix_handle *handle, uint64_t sector, uint64_t count,
		uint8_t *out, vix_done *done, void *data); /* optional */
	vix_error (*query)(struct vix_handle *handle, uint64_t sector, uint64_t count,
		uint64_t chunk, struct vix_block_list **list); /* optional */
	vix_error (*free_list)(struct vix_block_list *list); /* optional */
};

/*
 * Loads the newest version that folder/lib64 holds.  Returns 0, or -1 with *stage set to
 * the enum vddk_stage that failed and why filled.
 */
int library_load(
	struct library *library, const char *folder, unsigned *stage, char *why, size_t room);

#endif
