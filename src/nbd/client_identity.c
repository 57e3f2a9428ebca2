/* What the export is: the first connection says it, the others must agree. */
#include "client_internal.h"

#include <inttypes.h>
#include <poll.h>

static void identify(const struct client *client, struct nbd_handle *h, struct client_identity *id)
{
	const char *changes = client->changes_context;
	int64_t least = nbd_get_block_size(h, LIBNBD_SIZE_MINIMUM);
	int64_t preferred = nbd_get_block_size(h, LIBNBD_SIZE_PREFERRED);
	int64_t most = nbd_get_block_size(h, LIBNBD_SIZE_MAXIMUM);
	int64_t size = nbd_get_size(h);
	*id = (struct client_identity){
		.size_bytes = size < 0 ? 0 : (uint64_t)size,
		.read_only = nbd_is_read_only(h) > 0,
		.can_flush = nbd_can_flush(h) > 0,
		.can_fua = nbd_can_fua(h) > 0,
		.can_trim = nbd_can_trim(h) > 0,
		.can_zero = nbd_can_zero(h) > 0,
		.can_fast_zero = nbd_can_fast_zero(h) > 0,
		.can_multi_conn = nbd_can_multi_conn(h) > 0,
		.has_allocation = nbd_can_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) > 0,
		.has_changes = changes && nbd_can_meta_context(h, changes) > 0,
		.block_min = least > 0 && least <= 65536 ? (uint32_t)least : 1,
		.block_preferred =
			preferred >= 512 && preferred <= (2 << 20) ? (uint32_t)preferred : 4096,
		.payload_max = most > 0 && most < (32 << 20) ? (uint32_t)most : 32u << 20,
	};
	if (id->payload_max < id->block_min)
		id->payload_max = id->block_min;
	id->payload_max -= id->payload_max % id->block_min;
}

static bool same_flags(const struct client_identity *a, const struct client_identity *b)
{
	return a->read_only == b->read_only && a->can_flush == b->can_flush &&
	       a->can_fua == b->can_fua && a->can_trim == b->can_trim &&
	       a->can_zero == b->can_zero && a->can_fast_zero == b->can_fast_zero &&
	       a->can_multi_conn == b->can_multi_conn && a->has_allocation == b->has_allocation &&
	       a->block_min == b->block_min && a->payload_max == b->payload_max;
}

int client_identity_check(struct client *client, struct nbd_handle *handle, struct err *err)
{
	struct client_identity id;
	identify(client, handle, &id);
	if (!client->known) {
		client->identity = id;
		client->known = true;
		return 0;
	}
	if (id.size_bytes != client->identity.size_bytes)
		return err_set(err, ERR_RANGE,
			"%s has %" PRIu64 " bytes on a new connection, and had %" PRIu64
			" on the first one: it is not the same disk any more",
			client->uri.label, id.size_bytes, client->identity.size_bytes);
	if (id.has_changes != client->identity.has_changes)
		return err_set(err, ERR_RANGE,
			"%s %s %s on a new connection, unlike on the first one: what changed is "
			"not "
			"known for certain any more",
			client->uri.label, id.has_changes ? "offers" : "does not offer",
			client->changes_context);
	if (!same_flags(&id, &client->identity))
		return err_set(err, ERR_RANGE,
			"%s offers other features on a new connection than on the first one: "
			"it is not the same disk any more",
			client->uri.label);
	return 0;
}

/* --- the same server as before ------------------------------------------------ */

void client_identity_leave(struct client_lane *lane)
{
	struct client *client = lane->client;
	WITH_LOCK(&client->lanes_mutex);
	for (struct client_lane **at = &client->lanes; *at; at = &(*at)->next) {
		if (*at != lane)
			continue;
		*at = lane->next;
		break;
	}
	lane->ready_fd = -1;
}

bool client_identity_is_same_server(struct client *client)
{
	WITH_LOCK(&client->lanes_mutex);
	for (struct client_lane *lane = client->lanes; lane; lane = lane->next) {
		struct pollfd fd = {.fd = lane->ready_fd, .events = POLLRDHUP};
		if (poll(&fd, 1, 0) == 0)
			return true;
	}
	return !client->had_lane;
}

void client_identity_join(struct client_lane *lane)
{
	struct client *client = lane->client;
	WITH_LOCK(&client->lanes_mutex);
	lane->ready_fd = nbd_aio_get_fd(lane->handle);
	lane->next = client->lanes;
	client->lanes = lane;
	client->had_lane = true;
}
