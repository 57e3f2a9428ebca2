/* Sources; see source.h. */
#include "source.h"

#include <errno.h>

struct block *source_open(const char *name, bool read_only, const struct option_list *allow_backing,
	struct cancel *cancel, struct err *err)
{
	struct block *block = NULL;
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
	struct locator_options options = {
		.read_only = read_only,
		.allow_backing = (const char *const *)folders,
		.cancel = cancel,
	};
	block = locator_open(name, &options, err);
out:
	for (size_t i = 0; i < allow_backing->nr; i++)
		free(folders[i]);
	free(folders);
	return block;
}
