/*
 * tunnel_config: the file that "sendense tunnel" reads on both sides (docs/tunnel.md), as
 * settings.h says.
 *
 *   [tunnel]         server user identity known-hosts look pause-most
 *   [forward NAME]   listen to service ca-file     here  ─► at the hub
 *   [reverse NAME]   listen to service ca-file     at the hub ─► here
 */
#ifndef SENDENSE_CLI_TUNNEL_CONFIG_H
#define SENDENSE_CLI_TUNNEL_CONFIG_H

#include "daemon.h"

#define TUNNEL_PORTS_MOST 128u /* of one section */
#define TUNNEL_ENDPOINT_BYTES 64u
#define TUNNEL_HOST_BYTES 256u

enum tunnel_service { TUNNEL_NONE, TUNNEL_NBD, TUNNEL_NBDS, TUNNEL_REST };

/* One or several ports of one address. */
struct tunnel_endpoint {
	char address[TUNNEL_ENDPOINT_BYTES]; /* numeric, loopback; without brackets */
	unsigned first, last;
};

struct tunnel_section {
	const char *name;
	bool reverse;
	char *listen_text, *to_text; /* as they were written */
	struct tunnel_endpoint listen, to; /* as many ports each */
	unsigned service; /* enum tunnel_service */
	char *ca_file; /* REST through TLS; NULL: in the clear */
};

struct tunnel_config {
	char *path; /* of the file, absolute */
	char *server, *user, *identity, *known_hosts;
	char host[TUNNEL_HOST_BYTES]; /* of server */
	unsigned port;
	uint64_t look_s, pause_most_s; /* 0: as tunnel.h says */
	struct tunnel_section *forwards, *reverses;
	size_t nr_forwards, nr_reverses;
};

/* ERR_USAGE with file and line. */
struct tunnel_config *tunnel_config_load(const char *path, struct err *err);
/* NULL is harmless. */
void tunnel_config_free(struct tunnel_config *config);

/* "127.0.0.1:10809", "[::1]:10809" */
void tunnel_endpoint_text(const struct tunnel_endpoint *endpoint, unsigned port,
	char out[TUNNEL_ENDPOINT_BYTES + 16]);

#endif
