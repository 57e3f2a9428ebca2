/* Where the library and the helper are. */
#include "vddk_internal.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HELPER_NAME "sendense-vddk"

static const char *const usual_folders[] = {
	"/usr/lib/vmware-vix-disklib",
	"/usr/local/lib/vmware-vix-disklib",
	"/opt/vmware-vix-disklib",
	"/opt/vmware-vix-disklib-distrib",
};

static int hint_download(struct err *err)
{
	return err_hint(err,
		"download VMware's \"Virtual Disk Development Kit\" for Linux, 6.7 to 9, from "
		"Broadcom's developer portal, unpack it, and name the folder that holds its lib64 "
		"by SENDENSE_VDDK_DIR, or put it at %s",
		usual_folders[0]);
}

static bool has_library(const char *folder)
{
	char path[VDDK_PATH_BYTES + 64];
	for (int major = 6; major <= 9; major++) {
		snprintf(path, sizeof path, "%s/lib64/libvixDiskLib.so.%d", folder, major);
		if (access(path, F_OK) == 0)
			return true;
	}
	return false;
}

/* People name the folder, or the lib64 in it. */
static int take_named(const char *named, char path[VDDK_PATH_BYTES], struct err *err)
{
	size_t length = strlen(named);
	if (length == 0 || length >= VDDK_PATH_BYTES)
		return err_set(err, ERR_USAGE, "the folder of VMware's library has no usable name");
	memcpy(path, named, length + 1);
	while (length > 1 && path[length - 1] == '/')
		path[--length] = '\0';
	char *last = strrchr(path, '/');
	if (!has_library(path) && last && last > path && strcmp(last, "/lib64") == 0)
		*last = '\0';
	if (has_library(path))
		return 0;
	err_set(err, ERR_NOT_FOUND,
		"cannot use VMware's library (VDDK) in %s: there is no "
		"lib64/libvixDiskLib.so.6 to .9 in it",
		named);
	return hint_download(err);
}

int vddk_folder_choose(const char *named, char path[VDDK_PATH_BYTES], struct err *err)
{
	const char *by_environment = getenv("SENDENSE_VDDK_DIR");
	if (!named && by_environment && by_environment[0])
		named = by_environment;
	if (named)
		return take_named(named, path, err);
	for (size_t i = 0; i < ARRAY_LENGTH(usual_folders); i++) {
		if (has_library(usual_folders[i]))
			return take_named(usual_folders[i], path, err);
	}
	err_set(err, ERR_NOT_FOUND, "VMware's library (VDDK) was not found");
	return hint_download(err);
}

int vddk_folder_helper(const char *named, char path[VDDK_PATH_BYTES], struct err *err)
{
	if (named) {
		int n = snprintf(path, VDDK_PATH_BYTES, "%s", named);
		if (n < 0 || n >= VDDK_PATH_BYTES)
			return err_set(err, ERR_USAGE, "the helper's name is too long");
	} else {
		char self[PATH_MAX];
		ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
		if (n < 0)
			return err_errno(err, errno, "cannot find this program's own folder");
		self[n] = '\0';
		char *slash = strrchr(self, '/');
		int folder = slash ? (int)(slash - self) : 0;
		int wrote = snprintf(path, VDDK_PATH_BYTES, "%.*s/" HELPER_NAME, folder, self);
		if (wrote < 0 || wrote >= VDDK_PATH_BYTES)
			return err_set(err, ERR_USAGE, "the helper's name is too long");
	}
	if (access(path, X_OK) == 0)
		return 0;
	int number = errno;
	err_errno(err, number, "cannot use the helper that runs VMware's library, %s", path);
	return err_hint(err, HELPER_NAME " comes with sendense, and stands in the same folder");
}
