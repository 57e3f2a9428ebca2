/* Loading libvixDiskLib; see library.h. */
#include "library.h"

#include "vddk_wire.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define NEWEST_MAJOR 9u
#define OLDEST_MAJOR 6u

static const struct {
	const char *name;
	size_t offset;
	bool optional;
} entry_points[] = {
#define ENTRY(name, member, is_optional)                                          \
	{                                                                         \
		"VixDiskLib_" name, offsetof(struct library, member), is_optional \
	}
	ENTRY("InitEx", init, false),
	ENTRY("Exit", exit, false),
	ENTRY("GetErrorText", error_text, false),
	ENTRY("FreeErrorText", free_error_text, false),
	ENTRY("AllocateConnectParams", allocate_params, true),
	ENTRY("PrepareForAccess", prepare, false),
	ENTRY("EndAccess", end_access, false),
	ENTRY("ConnectEx", connect, false),
	ENTRY("Disconnect", disconnect, false),
	ENTRY("Open", open, false),
	ENTRY("Close", close, false),
	ENTRY("GetInfo", get_info, false),
	ENTRY("FreeInfo", free_info, false),
	ENTRY("GetTransportMode", transport_mode, false),
	ENTRY("Read", read, false),
	ENTRY("ReadAsync", read_async, true),
	ENTRY("QueryAllocatedBlocks", query, true),
	ENTRY("FreeBlockList", free_list, true),
#undef ENTRY
};

static int find_symbols(struct library *library, void *loaded, char *why, size_t room)
{
	size_t used = 0;
	for (size_t i = 0; i < sizeof entry_points / sizeof entry_points[0]; i++) {
		void *symbol = dlsym(loaded, entry_points[i].name);
		/* ISO C has no cast from void * to a function. */
		memcpy((char *)library + entry_points[i].offset, &symbol, sizeof symbol);
		if (symbol || entry_points[i].optional)
			continue;
		int n = snprintf(why + used, room - used, "%s%s", used ? ", " : "it lacks ",
			entry_points[i].name);
		used = n > 0 && used + (size_t)n < room ? used + (size_t)n : room - 1;
	}
	if (!library->free_list)
		library->query = NULL;
	return used ? -1 : 0;
}

int library_load(
	struct library *library, const char *folder, unsigned *stage, char *why, size_t room)
{
	*library = (struct library){0};
	*stage = VDDK_STAGE_LOAD;
	for (unsigned major = NEWEST_MAJOR; major >= OLDEST_MAJOR; major--) {
		int n = snprintf(library->path, sizeof library->path,
			"%s/lib64/libvixDiskLib.so.%u", folder, major);
		if (n < 0 || (size_t)n >= sizeof library->path || access(library->path, F_OK) != 0)
			continue;
		library->major = major;
		void *loaded = dlopen(library->path, RTLD_NOW);
		if (!loaded) {
			snprintf(why, room, "%s", dlerror());
			return -1;
		}
		*stage = VDDK_STAGE_SYMBOLS;
		return find_symbols(library, loaded, why, room);
	}
	snprintf(why, room, "there is no lib64/libvixDiskLib.so.%u to .%u in it", OLDEST_MAJOR,
		NEWEST_MAJOR);
	return -1;
}
