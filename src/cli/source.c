/* Sources; see source.h. */
#include "source.h"

#include <errno.h>
#include <string.h>

/* A QCOW2 image that is taken for a raw disk is a mistake nobody sees until the restore.
 * What a guest wrote on its disk makes no more of this than a warning. */
static void warn_of_image(const char *name, struct block *block)
{
	static const char magic[4] = {'Q', 'F', 'I', '\xfb'};
	char start[sizeof magic];
	const char *path = locator_path(name);
	if (path && strncmp(name, "raw:", 4) == 0 &&
		block_info(block)->size_bytes >= sizeof start &&
		block_read(block, start, sizeof start, 0, NULL) == 0 &&
		memcmp(start, magic, sizeof magic) == 0)
		log_warning("%s starts like a QCOW2 image and is taken byte for byte "
			    "(qcow2:%s if it is one)",
			name, path);
}

struct block *source_open(const char *name, const struct source_options *options, struct err *err)
{
	struct block *block = NULL;
	const struct option_list *allow_backing = options->allow_backing;
	char **folders = calloc(allow_backing->nr + 1, sizeof *folders);
	if (!folders) {
		err_errno(err, ENOMEM, "cannot open %s", name);
		return NULL;
	}
	for (size_t i = 0; i < allow_backing->nr; i++) {
		folders[i] = realpath(allow_backing->items[i], NULL);
		if (!folders[i]) {
			err_errno(err, errno, "--allow-backing %s", allow_backing->items[i]);
			goto out;
		}
	}
	struct locator_options open = {
		.read_only = options->read_only,
		.allow_backing = (const char *const *)folders,
		.nbd = {.bitmap = options->bitmap, .no_reconnect = options->no_reconnect},
		.cancel = options->cancel,
	};
	tls_options_set(&open.nbd, name, options->tls);
	block = locator_open(name, &open, err);
	if (block)
		warn_of_image(name, block);
out:
	for (size_t i = 0; i < allow_backing->nr; i++)
		free(folders[i]);
	free(folders);
	return block;
}
