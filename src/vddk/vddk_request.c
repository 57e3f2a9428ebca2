/* The options as the OPEN message: checked, and packed. */
#include "vddk_internal.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#define HTTPS_PORT 443u
#define NFC_PORT 902u
#define NFC_UNIT_KIB 64u
#define NFC_MOST_KIB (16u << 10)
#define THUMBPRINT_BYTES 20u

/* The library's flags of Open. */
#define OPEN_READ_ONLY 4u

static const struct {
	const char *name;
	unsigned flag;
} compressions[] = {
	{"none", 0},
	{"zlib", 16},
	{"fastlz", 32},
	{"skipz", 64},
};

static int compression_flag(const char *name, unsigned *flag, struct err *err)
{
	*flag = 0;
	if (!name)
		return 0;
	for (size_t i = 0; i < ARRAY_LENGTH(compressions); i++) {
		if (strcmp(compressions[i].name, name) == 0) {
			*flag = compressions[i].flag;
			return 0;
		}
	}
	return err_set(err, ERR_USAGE,
		"VDDK has no compression \"%s\" (it has none, zlib, fastlz and skipz)", name);
}

/* 40 hex digits, with or without colons, to the form that the library knows. */
static int format_thumbprint(const char *text, char out[3 * THUMBPRINT_BYTES], struct err *err)
{
	static const char digits[] = "0123456789ABCDEF";
	const char *at = text;
	for (unsigned i = 0; i < THUMBPRINT_BYTES; i++) {
		if (i > 0 && *at == ':')
			at++;
		int byte = hex_pair(at);
		if (byte < 0)
			break;
		*out++ = digits[byte >> 4];
		*out++ = digits[byte & 15];
		*out++ = i + 1 < THUMBPRINT_BYTES ? ':' : '\0';
		at += 2;
		if (i + 1 == THUMBPRINT_BYTES && !*at)
			return 0;
	}
	return err_set(
		err, ERR_USAGE, "\"%s\" is no thumbprint (SHA-1: 20 pairs of hex digits)", text);
}

static int check_id(const char *id, const char *what, struct err *err)
{
	size_t length = id ? strlen(id) : 0;
	bool good = length > 0 && length <= 100;
	for (size_t i = 0; good && i < length; i++)
		good = isalnum((unsigned char)id[i]) || id[i] == '-';
	if (!good)
		return err_set(
			err, ERR_USAGE, "\"%s\" is no managed object id of %s", id ? id : "", what);
	return 0;
}

static int check_options(const struct vddk_options *options, struct err *err)
{
	if (!options->server || !options->server[0])
		return err_set(err, ERR_USAGE, "VDDK needs the server's name");
	if (!options->user || (!options->password && !options->cookie))
		return err_set(err, ERR_USAGE, "VDDK needs a user, and a password or a session");
	if (!options->path || !options->path[0])
		return err_set(err, ERR_USAGE, "VDDK needs the disk's file name");
	if (options->nr_reads > VDDK_SLOTS_MAX)
		return err_set(err, ERR_USAGE, "VDDK: %u reads in flight are too many (%u at most)",
			options->nr_reads, VDDK_SLOTS_MAX);
	if (check_id(options->vm, "a machine", err) < 0)
		return -1;
	return check_id(options->snapshot, "a snapshot", err);
}

static int fill_config(const struct vddk_options *options, char *out, size_t room, struct err *err)
{
	unsigned kib = options->nfc_buffer_kib ? options->nfc_buffer_kib : 1024;
	unsigned nr = options->nfc_buffers ? options->nfc_buffers : 4;
	if (kib % NFC_UNIT_KIB != 0 || kib > NFC_MOST_KIB || nr > NFC_MOST_KIB / kib)
		return err_set(err, ERR_USAGE,
			"VDDK cannot have %u NFC buffers of %u KiB (a multiple of %u KiB each, "
			"together at most %u MiB)",
			nr, kib, NFC_UNIT_KIB, NFC_MOST_KIB >> 10);
	snprintf(out, room,
		"vixDiskLib.nfcAio.Session.BufSizeIn64KB=%u\n"
		"vixDiskLib.nfcAio.Session.BufCount=%u\n",
		kib / NFC_UNIT_KIB, nr);
	return 0;
}

static int pack(
	struct vddk_request *request, const char *const texts[VDDK_NR_TEXTS], struct err *err)
{
	size_t used = 0;
	for (int i = 0; i < VDDK_NR_TEXTS; i++) {
		const char *text = texts[i] ? texts[i] : "";
		size_t bytes = strlen(text) + 1;
		if (bytes > sizeof request->text - used)
			return err_set(err, ERR_USAGE, "VDDK's parameters are too long");
		memcpy(request->text + used, text, bytes);
		used += bytes;
	}
	request->head.text_bytes = (uint32_t)used;
	return 0;
}

int vddk_request_fill(struct vddk_request *request, const struct vddk_options *options,
	const char *folder, struct err *err)
{
	char thumbprint[3 * THUMBPRINT_BYTES] = "", config[256];
	unsigned flag;
	if (check_options(options, err) < 0 ||
		compression_flag(options->compression, &flag, err) < 0 ||
		fill_config(options, config, sizeof config, err) < 0)
		return -1;
	if (options->thumbprint && format_thumbprint(options->thumbprint, thumbprint, err) < 0)
		return -1;
	const char *const texts[VDDK_NR_TEXTS] = {
		[VDDK_TEXT_FOLDER] = folder,
		[VDDK_TEXT_SERVER] = options->server,
		[VDDK_TEXT_THUMBPRINT] = thumbprint,
		[VDDK_TEXT_USER] = options->user,
		[VDDK_TEXT_PASSWORD] = options->password,
		[VDDK_TEXT_COOKIE] = options->cookie,
		[VDDK_TEXT_VM] = options->vm,
		[VDDK_TEXT_SNAPSHOT] = options->snapshot,
		[VDDK_TEXT_PATH] = options->path,
		[VDDK_TEXT_MODES] = options->modes ? options->modes : "nbdssl:nbd",
		[VDDK_TEXT_CONFIG_FILE] = options->config_file,
		[VDDK_TEXT_CONFIG] = config,
	};
	request->head = (struct vddk_message){
		.type = VDDK_OPEN,
		.tag = VDDK_WIRE_VERSION,
		.slot = options->nr_reads ? options->nr_reads : 8,
		.sector = options->port ? options->port : HTTPS_PORT,
		.count = options->nfc_port ? options->nfc_port : NFC_PORT,
		.flags = options->hold_access ? VDDK_FLAG_ACCESS : 0,
		.code = OPEN_READ_ONLY | flag,
	};
	return pack(request, texts, err);
}

int vddk_request_fill_probe(struct vddk_request *request, const char *folder, struct err *err)
{
	const char *const texts[VDDK_NR_TEXTS] = {[VDDK_TEXT_FOLDER] = folder};
	request->head = (struct vddk_message){
		.type = VDDK_OPEN, .tag = VDDK_WIRE_VERSION, .slot = 1, .flags = VDDK_FLAG_PROBE};
	return pack(request, texts, err);
}
