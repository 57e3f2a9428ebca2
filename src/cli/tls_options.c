/* TLS for disks; see tls_options.h. */
#include "tls_options.h"

static tls_options_find *find_otherwise;
static void *find_context;

void tls_options_otherwise(tls_options_find *find, void *context)
{
	find_otherwise = find;
	find_context = context;
}

void tls_options_set(
	struct nbd_client_options *client, const char *name, const struct tls_options *options)
{
	struct tls_options found = {0};
	bool given = options && (options->certificates || options->psk_file);
	if (!given && find_otherwise && find_otherwise(find_context, name, &found))
		options = &found;
	if (!options)
		return;
	client->tls_certificates = options->certificates;
	client->tls_psk_file = options->psk_file;
	client->tls_username = options->username;
}
