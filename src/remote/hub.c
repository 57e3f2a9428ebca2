/* Hubs; see remote_internal.h. */
#include "remote_internal.h"

int hub_open(struct store *store, const struct store_options *options, struct err *err)
{
	(void)store;
	return err_set(err, ERR_UNSUPPORTED, "--repo %s: this build knows folders alone, no hubs",
		options->name);
}

void hub_close(struct store *store)
{
	(void)store;
}
