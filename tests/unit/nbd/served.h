/* A server in a thread, on a port of 127.0.0.1 that the kernel picks. */
#ifndef SENDENSE_TEST_NBD_SERVED_H
#define SENDENSE_TEST_NBD_SERVED_H

#include "test_support.h"

#include "nbd.h"

struct served {
	struct nbd_server *server;
	struct listener listener;
	pthread_t thread;
};

static inline void *served_main(void *arg)
{
	struct served *s = arg;
	struct err err = ERR_INIT;
	if (nbd_server_run(s->server, &s->listener, &err) < 0)
		fail_msg("%s", err.text);
	return NULL;
}

static inline void served_start(struct served *s, const struct nbd_server_options *options)
{
	assert_non_null(s->server = nbd_server_new(options, NULL));
	assert_int_equal(transport_listen_tcp(&s->listener, "127.0.0.1", 0, NULL), 0);
	assert_int_equal(thread_start(&s->thread, "run", served_main, s, NULL), 0);
}

static inline void served_add(struct served *s, const struct nbd_export *export)
{
	struct err err = ERR_INIT;
	if (nbd_server_add_export(s->server, export, &err) < 0)
		fail_msg("%s", err.text);
}

static inline void served_stop(struct served *s)
{
	nbd_server_stop(s->server);
	pthread_join(s->thread, NULL);
	assert_true(nbd_server_free(s->server));
}

#endif
