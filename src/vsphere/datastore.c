/* Small files of a VM, over HTTPS: /folder/PATH?dcPath=DATACENTER&dsName=DATASTORE */
#include "vim.h"

#include <ctype.h>
#include <stdio.h>

struct content {
	char *bytes;
	size_t length, room;
};

static int take(void *context, const char *bytes, size_t length, struct err *err)
{
	struct content *content = context;
	if (!content->bytes || content->length + length + 1 > content->room) {
		size_t room = (content->length + length + 1) * 2;
		char *grown = realloc(content->bytes, room);
		if (!grown)
			return err_set(err, ERR_NO_MEMORY, "no memory");
		content->bytes = grown;
		content->room = room;
	}
	memcpy(content->bytes + content->length, bytes, length);
	content->length += length;
	content->bytes[content->length] = 0;
	return 0;
}

static void put_encoded(FILE *out, const char *text, size_t length, const char *plain)
{
	for (size_t i = 0; i < length; i++) {
		unsigned char c = (unsigned char)text[i];
		if (isalnum(c) || (c && strchr(plain, c)))
			putc(c, out);
		else
			fprintf(out, "%%%02X", c);
	}
}

/* file: "[datastore] folder/name"; allocated. */
static char *make_path(const struct vsphere_vm *vm, const char *file, struct err *err)
{
	const char *end = *file == '[' ? strchr(file, ']') : NULL;
	const char *datacenter = vm->datacenter + (*vm->datacenter == '/');
	char *path = NULL;
	size_t length;
	if (!end || end[1] != ' ' || !end[2] || !*datacenter) {
		err_set(err, ERR_UNSUPPORTED, "%s",
			*datacenter ? "it is not on a datastore" : "its datacenter is not visible");
		return NULL;
	}
	FILE *out = open_memstream(&path, &length);
	if (out) {
		fputs("/folder/", out);
		put_encoded(out, end + 2, strlen(end + 2), "-._~/");
		fputs("?dcPath=", out);
		put_encoded(out, datacenter, strlen(datacenter), "-._~/");
		fputs("&dsName=", out);
		put_encoded(out, file + 1, (size_t)(end - file - 1), "-._~");
	}
	if (!out || fclose(out)) {
		free(path);
		path = NULL;
		err_set(err, ERR_NO_MEMORY, "no memory");
	}
	return path;
}

static int get(struct vsphere *vsphere, const char *path, size_t most, struct content *content,
	unsigned *status, struct err *err)
{
	struct https_call call = {.what = "reading a file",
		.path = path,
		.until = vim_until(vsphere),
		.cancel = vsphere->cancel,
		.take = take,
		.context = content,
		.most = most};
	content->length = 0;
	if (vim_login(vsphere, call.until, err) || https_call(vsphere->https, &call, err))
		return -1;
	*status = call.status;
	return 0;
}

static int tell_status(unsigned status, struct err *err)
{
	enum err_code code = status == 404                    ? ERR_NOT_FOUND
			     : status == 401 || status == 403 ? ERR_DENIED
							      : ERR_REFUSED;
	err_set(err, code, "the server answered HTTP %u", status);
	return code == ERR_DENIED ? err_hint(err, "it needs the privilege Datastore.Browse") : -1;
}

int vsphere_load_file(struct vsphere *vsphere, const struct vsphere_vm *vm, const char *file,
	size_t most, char **bytes, size_t *length, struct err *err)
{
	struct content content = {.length = 0};
	unsigned status = 0;
	AUTO_FREE char *path = make_path(vm, file, err);
	int rc = path ? get(vsphere, path, most, &content, &status, err) : -1;
	if (!rc && status == 401) {
		vim_has_expired(vsphere);
		rc = get(vsphere, path, most, &content, &status, err);
	}
	if (!rc && status != 200)
		rc = tell_status(status, err);
	if (!rc && !content.bytes)
		rc = take(&content, "", 0, err);
	if (rc) {
		free(content.bytes);
		return err_context(err, "reading %s", file);
	}
	*bytes = content.bytes;
	*length = content.length;
	return 0;
}
