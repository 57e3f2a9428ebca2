/* Follows a stream of events, and takes it up again where it was lost. */
#include "client_internal.h"

struct follower {
	struct rest_event_parser parser;
	int (*event)(void *context, const char *name, const json_t *data);
	void *context;
	struct err *err;
	bool any; /* of this connection */
};

static int take_event(void *context, const char *name, const char *data, size_t length)
{
	struct follower *follower = context;
	json_t *value = rest_json_parse(data, length, follower->err);
	if (!value) {
		follower->err->code = ERR_PROTOCOL;
		return err_context(follower->err, "the event \"%s\"", name);
	}
	follower->any = true;
	int rc = follower->event(follower->context, name, value);
	json_decref(value);
	return rc ? 1 : 0;
}

static int take_bytes(void *context, const char *bytes, size_t length, struct err *err)
{
	struct follower *follower = context;
	follower->err = err;
	return rest_event_parse(&follower->parser, bytes, length, take_event, follower, err);
}

/* 1: over; 0: to be taken up again; -1: err. */
static int follow_once(struct rest_client *client, struct rest_exchange *exchange,
	struct follower *follower, struct err *err)
{
	rest_exchange_clear(exchange);
	rest_event_restart(&follower->parser);
	follower->any = false;
	exchange->last_event = follower->parser.id[0] ? follower->parser.id : NULL;
	int rc = rest_client_exchange(client, exchange, err);
	if (exchange->ended)
		return 1;
	if (!rc && exchange->status != 200)
		rc = rest_client_problem(client, exchange, err);
	if (!rc)
		return follower->any ? 0 : 1;
	return rest_client_is_passing(exchange, err) ? 0 : -1;
}

int rest_follow(struct rest_client *client, const char *path,
	int (*event)(void *context, const char *name, const json_t *data), void *context,
	struct err *err)
{
	struct follower follower = {.event = event, .context = context};
	struct rest_exchange exchange = {.method = "GET",
		.path = path,
		.accept = "text/event-stream",
		.take = take_bytes,
		.context = &follower};
	struct deadline until = deadline_after_ms(client->options.retry_ms);
	struct err why = ERR_INIT;
	int rc;
	for (unsigned tries = 0;; tries++) {
		err_clear(&why);
		rc = follow_once(client, &exchange, &follower, &why);
		if (rc)
			break;
		if (follower.any) {
			tries = 0;
			until = deadline_after_ms(client->options.retry_ms);
		}
		if (why.code == ERR_NONE)
			err_set(&why, ERR_DISCONNECTED, "the stream %s ended", path);
		rc = rest_client_back_off(client, &exchange, tries, until, &why);
		if (rc)
			break;
	}
	rest_event_clear(&follower.parser);
	rest_exchange_clear(&exchange);
	return rc < 0 ? err_copy(err, &why) : 0;
}
