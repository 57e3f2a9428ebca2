/* TLS for disks; see tls_options.h. */
#include "tls_options.h"

void tls_options_set(struct nbd_client_options *client, const struct tls_options *options)
{
	if (!options)
		return;
	client->tls_certificates = options->certificates;
	client->tls_psk_file = options->psk_file;
	client->tls_username = options->username;
}
