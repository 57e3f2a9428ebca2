/* The written names of disks, and of sizes; see locator.h. */
#include "locator_internal.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define SCHEMES                                                                              \
	"raw:PATH, qcow2:PATH, nbd[s]://HOST[:PORT]/NAME, nbd[s]+unix:///NAME?socket=PATH, " \
	"null:SIZE, qemu:QMP-SOCKET[/DISK]"

static bool starts_with(const char *text, const char *prefix)
{
	return strncmp(text, prefix, strlen(prefix)) == 0;
}

int locator_parse(const char *name, enum locator_kind *kind, const char **rest, struct err *err)
{
	static const struct {
		const char *prefix;
		enum locator_kind kind;
		bool keep; /* the prefix is part of what follows */
	} known[] = {
		{"raw:", LOCATOR_RAW, false},
		{"qcow2:", LOCATOR_QCOW2, false},
		{"nbd://", LOCATOR_NBD, true},
		{"nbd+unix://", LOCATOR_NBD, true},
		{"nbds://", LOCATOR_NBD, true},
		{"nbds+unix://", LOCATOR_NBD, true},
		{"null:", LOCATOR_NULL, false},
		{"qemu:", LOCATOR_QEMU, false},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(known); i++) {
		if (!starts_with(name, known[i].prefix))
			continue;
		*kind = known[i].kind;
		*rest = known[i].keep ? name : name + strlen(known[i].prefix);
		if (**rest == '\0')
			return err_set(err, ERR_USAGE, "%s: nothing follows (known are %s)", name,
				SCHEMES);
		if (*kind != LOCATOR_NULL && strcmp(*rest, "-") == 0)
			return err_set(err, ERR_USAGE,
				"%s: a disk cannot be a pipe (the file of that name is %s./-)",
				name, known[i].prefix);
		return 0;
	}
	if (starts_with(name, "vmware://") || starts_with(name, "nbdkit-vddk:"))
		return err_set(err, ERR_UNSUPPORTED,
			"%s is a machine of a vCenter, not one disk (sendense backup and "
			"replicate read from it)",
			name);
	struct stat st;
	if (name[0] && (stat(name, &st) == 0 || !strchr(name, ':')))
		return err_set(err, ERR_USAGE,
			"%s: what format? Formats are never guessed (write raw:%s or qcow2:%s)",
			name, name, name);
	return err_set(err, ERR_USAGE, "%s: not the name of a disk (known are %s)", name, SCHEMES);
}

const char *locator_path(const char *name)
{
	enum locator_kind kind;
	const char *rest;
	if (locator_parse(name, &kind, &rest, NULL) < 0)
		return NULL;
	return kind == LOCATOR_RAW || kind == LOCATOR_QCOW2 ? rest : NULL;
}

/* --- sizes ------------------------------------------------------------------- */

/* "k", "KiB", "KB" and the like: how many times 1024; -1 for anything else. */
static int unit_power(const char *unit)
{
	static const char letters[] = "kmgtpe";
	if (*unit == '\0' || strcasecmp(unit, "b") == 0)
		return 0;
	const char *at = strchr(letters, tolower((unsigned char)unit[0]));
	if (!at)
		return -1;
	if (unit[1] != '\0' && strcasecmp(unit + 1, "b") != 0 && strcasecmp(unit + 1, "ib") != 0)
		return -1;
	return (int)(at - letters) + 1;
}

int locator_parse_size(const char *text, uint64_t *bytes, struct err *err)
{
	char *end;
	errno = 0;
	unsigned long long whole = strtoull(text, &end, 10);
	bool bad = !isdigit((unsigned char)text[0]) || errno != 0;
	/* The fraction in thousandths is exact enough: "1.5TiB", "2.048GiB". */
	uint64_t thousandths = 0;
	if (!bad && *end == '.') {
		uint64_t weight = 100;
		bad = !isdigit((unsigned char)end[1]);
		for (end++; isdigit((unsigned char)*end); end++, weight /= 10)
			thousandths += (uint64_t)(*end - '0') * weight;
	}
	int power = bad ? -1 : unit_power(end);
	if (power < 0)
		return err_set(
			err, ERR_USAGE, "\"%s\" is not a size (like 512, 64k, 1.5GiB)", text);
	uint64_t unit = (uint64_t)1 << (10 * power);
	uint64_t size;
	if (!mul_u64(whole, unit, &size) ||
		!add_u64(size, unit / 1000 * thousandths + unit % 1000 * thousandths / 1000, &size))
		return err_set(err, ERR_USAGE, "\"%s\" is more bytes than 64 bits can count", text);
	*bytes = size;
	return 0;
}

/* --- the same disk under two names -------------------------------------- */

bool locator_same_file(const struct stat *a, const struct stat *b)
{
	if (S_ISBLK(a->st_mode) && S_ISBLK(b->st_mode))
		return a->st_rdev == b->st_rdev;
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* The file behind a name: of a local disk the file or device, of an NBD server
 * on a Unix socket that socket.  False for others. */
static bool stat_name(const char *name, struct stat *st)
{
	const char *path = locator_path(name);
	if (path)
		return stat(path, st) == 0;
	const char *socket = strstr(name, "?socket=");
	return starts_with(name, "nbd+unix://") && socket &&
	       stat(socket + strlen("?socket="), st) == 0;
}

bool locator_same(const char *a, const char *b)
{
	if (strcmp(a, b) == 0)
		return true;
	struct stat st_a, st_b;
	if (!stat_name(a, &st_a) || !stat_name(b, &st_b) || !locator_same_file(&st_a, &st_b))
		return false;
	/* One server may have many exports. */
	size_t length = strcspn(a, "?");
	return !S_ISSOCK(st_a.st_mode) || (length == strcspn(b, "?") && strncmp(a, b, length) == 0);
}
