/*
 * tunnel_config: the file that "sendense tunnel" reads on both sides (docs/tunnel.md).
 *
 *   [tunnel]         server user identity known-hosts look pause-most
 *   [forward NAME]   listen to service ca-file     here  ─► at the hub
 *   [reverse NAME]   listen to service ca-file     at the hub ─► here
 */
#ifndef SENDENSE_CLI_TUNNEL_CONFIG_H
#define SENDENSE_CLI_TUNNEL_CONFIG_H

#include "base.h"

#define TUNNEL_SECTIONS_MOST 32u
#define TUNNEL_PORTS_MOST 128u /* of one section */
#define TUNNEL_ENDPOINT_BYTES 64u

enum tunnel_service { TUNNEL_NONE, TUNNEL_NBD, TUNNEL_NBDS, TUNNEL_REST };

/* One or several ports of one address. */
struct tunnel_endpoint {
	char address[TUNNEL_ENDPOINT_BYTES]; /* numeric, loopback; without brackets */
	unsigned first, last;
};

struct tunnel_section {
	char name[33];
	bool reverse;
	unsigned line; /* of its "[...]" */
	struct tunnel_endpoint listen, to; /* as many ports each */
	enum tunnel_service service;
	char *ca_file; /* REST through TLS; NULL: in the clear */
};

struct tunnel_config {
	char *host, *user, *identity, *known_hosts;
	unsigned port;
	unsigned look_s, pause_most_s; /* 0: as tunnel.h says */
	unsigned line; /* of [tunnel]; 0: there is none */
	struct tunnel_section sections[TUNNEL_SECTIONS_MOST];
	size_t nr_sections;
};

/* ERR_USAGE with file and line. */
int tunnel_config_load(struct tunnel_config *config, const char *path, struct err *err);
void tunnel_config_clear(struct tunnel_config *config);

/* "127.0.0.1:10809", "[::1]:10809" */
void tunnel_endpoint_text(const struct tunnel_endpoint *endpoint, unsigned port,
	char out[TUNNEL_ENDPOINT_BYTES + 16]);

#endif
