/*
 * The server: exports, who is connected, listening and stopping.
 *
 * Every connection has a thread of its own (connection_run), which is joined by
 * whoever listens.  The guard thread looks round now and then for requests that
 * do not end.  When the server is to stop it ends the connections, first gently
 * and after GRACE_MS for good; what is at the disk then has stop_timeout_ms left.
 */
#include "nbd_internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>

#define DEFAULT_CONNECTIONS 16
#define DEFAULT_BUDGET_BYTES (32 * MIB)
#define LEAST_BUDGET_BYTES (64 * KIB)
#define DEFAULT_HANDSHAKE_MS 10000
#define DEFAULT_SEND_MS 60000
#define MOST_CONNECTIONS 4096
/* Clients before GO, among them those being told that there is no place. */
#define MOST_HANDSHAKES 128
/* When that many are: who has said nothing for so long, or is at it for so long, gives way. */
#define SILENT_MS 1000
#define SLOW_HANDSHAKE_MS 3000
#define GRACE_MS 5000
#define DEFAULT_STOP_MS 60000
#define DEFAULT_SLOW_MS 30000
#define LOOK_ROUND_MS 5000
/* The handshake's own deadlines come first: they know what it waited for. */
#define HANDSHAKE_EXTRA_MS 1000
#define WATCH_TEXT_BYTES 256
#define LISTED_PEERS_BYTES 700

static void *guard_main(void *arg);

/* --- the server's life ------------------------------------------------------------ */

static int check_options(struct nbd_server_options *o, struct err *err)
{
	o->max_connections = o->max_connections ? o->max_connections : DEFAULT_CONNECTIONS;
	o->budget_bytes = o->budget_bytes ? o->budget_bytes : DEFAULT_BUDGET_BYTES;
	o->handshake_timeout_ms =
		o->handshake_timeout_ms ? o->handshake_timeout_ms : DEFAULT_HANDSHAKE_MS;
	o->send_timeout_ms = o->send_timeout_ms ? o->send_timeout_ms : DEFAULT_SEND_MS;
	o->slow_ms = o->slow_ms ? o->slow_ms : DEFAULT_SLOW_MS;
	o->stop_timeout_ms = o->stop_timeout_ms ? o->stop_timeout_ms : DEFAULT_STOP_MS;
	if (o->max_connections > MOST_CONNECTIONS)
		return err_set(err, ERR_USAGE, "cannot serve %u connections: the most is %u",
			o->max_connections, MOST_CONNECTIONS);
	if (o->budget_bytes < LEAST_BUDGET_BYTES)
		return err_set(err, ERR_USAGE,
			"cannot serve with %zu bytes for requests: the least "
			"is %zu",
			o->budget_bytes, (size_t)LEAST_BUDGET_BYTES);
	if (o->tls != NBD_TLS_OFF && !o->tls_server)
		return err_set(err, ERR_USAGE, "cannot serve with TLS without credentials");
	return 0;
}

struct nbd_server *nbd_server_new(const struct nbd_server_options *options, struct err *err)
{
	struct nbd_server *server = calloc(1, sizeof *server);
	if (!server) {
		err_errno(err, ENOMEM, "cannot make an NBD server");
		return NULL;
	}
	if (options)
		server->options = *options;
	if (check_options(&server->options, err) < 0)
		goto fail;
	server->stop = cancel_new(err);
	if (!server->stop)
		goto fail;
	pool_init(&server->pool, server->options.budget_bytes, server->options.max_connections);
	pthread_mutex_init(&server->mutex, NULL);
	thread_cond_init(&server->changed);
	if (thread_start(&server->guard, "nbd-guard", guard_main, server, err) < 0)
		goto fail_all;
	return server;
fail_all:
	pthread_cond_destroy(&server->changed);
	pthread_mutex_destroy(&server->mutex);
	pool_destroy(&server->pool);
	cancel_free(server->stop);
fail:
	free(server);
	return NULL;
}

static void free_export(struct export *export)
{
	free(export->name);
	free(export->description);
	free(export->tls_identity);
	free(export);
}

void nbd_server_stop(struct nbd_server *server)
{
	cancel_request(server->stop);
}

static void reap(struct nbd_server *server)
{
	pthread_mutex_lock(&server->mutex);
	struct connection *list = server->finished;
	server->finished = NULL;
	pthread_mutex_unlock(&server->mutex);
	while (list) {
		struct connection *c = list;
		list = c->next;
		pthread_join(c->thread, NULL);
		connection_free(c);
	}
}

bool nbd_server_free(struct nbd_server *server)
{
	if (!server)
		return true;
	nbd_server_stop(server);
	if (!server->is_unguarded)
		pthread_join(server->guard, NULL);
	server->is_unguarded = true;
	pthread_mutex_lock(&server->mutex);
	bool is_left = server->nr_connections > 0;
	pthread_mutex_unlock(&server->mutex);
	if (is_left)
		return false;
	/* Only now: the last one may have ended just before that look. */
	reap(server);
	while (server->exports) {
		struct export *export = server->exports;
		server->exports = export->next;
		free_export(export);
	}
	pthread_cond_destroy(&server->changed);
	pthread_mutex_destroy(&server->mutex);
	pool_destroy(&server->pool);
	cancel_free(server->stop);
	free(server);
	return true;
}

/* --- ending connections --------------------------------------------------------------- */

/* Under the mutex.  of: one export's connections, or NULL for all. */
static void shut_connections(struct nbd_server *server, const struct export *of, bool both)
{
	for (struct connection *c = server->connections; c; c = c->next) {
		if (of && c->export != of)
			continue;
		connection_note_end(c, false, of ? "the export was removed" : "the server stops");
		/* In the handshake nothing is in progress that deserves an answer. */
		stream_shut(&c->stream, both || !c->export);
	}
}

/* Under the mutex: any request that is under way. */
static void name_one(struct nbd_server *server, const struct export *of, char *text, size_t size)
{
	snprintf(text, size, "nothing is known of what it waits for");
	for (struct connection *c = server->connections; c; c = c->next)
		if ((!of || c->export == of) && watch_tell(c, 0, text, size))
			return;
}

/*
 * Under the mutex: ends connections and waits until *nr is 0.  Requests at the
 * disk cannot be called back: they get stop_timeout_ms, then it is ERR_TIMEOUT.
 */
static int end_connections(
	struct nbd_server *server, const struct export *of, const unsigned *nr, struct err *err)
{
	unsigned stop_ms = server->options.stop_timeout_ms;
	struct deadline until = deadline_after_ms(stop_ms < GRACE_MS ? stop_ms : GRACE_MS);
	char text[WATCH_TEXT_BYTES];
	shut_connections(server, of, false);
	while (*nr > 0 && thread_cond_wait(&server->changed, &server->mutex, until))
		;
	if (*nr > 0)
		shut_connections(server, of, true);
	until = deadline_after_ms(stop_ms);
	while (*nr > 0 && thread_cond_wait(&server->changed, &server->mutex, until))
		;
	if (*nr == 0)
		return 0;
	name_one(server, of, text, sizeof text);
	return err_set(err, ERR_TIMEOUT, "%u connections do not end: %s", *nr, text);
}

/* Under the mutex: something to tell of, one at a time. */
static bool find_slow(struct nbd_server *server, char *text, size_t size)
{
	for (struct connection *c = server->connections; c; c = c->next)
		if (watch_tell(c, (int64_t)server->options.slow_ms * 1000000, text, size))
			return true;
	return false;
}

/* Under the mutex.  A client that takes the answers of the handshake a byte at a
 * time is cut by no other deadline. */
static void end_handshakes(struct nbd_server *server)
{
	int64_t most_ms = (int64_t)server->options.handshake_timeout_ms + HANDSHAKE_EXTRA_MS;
	int64_t before_ns = clock_now_ns() - most_ms * 1000000;
	for (struct connection *c = server->connections; c; c = c->next) {
		if (c->export || c->began_ns > before_ns)
			continue;
		connection_note_end(c, true, "handshake: it took too long");
		stream_shut(&c->stream, true);
	}
}

static void look_round(struct nbd_server *server)
{
	char text[WATCH_TEXT_BYTES];
	bool found = true;
	pthread_mutex_lock(&server->mutex);
	end_handshakes(server);
	pthread_mutex_unlock(&server->mutex);
	while (found) {
		pthread_mutex_lock(&server->mutex);
		found = find_slow(server, text, sizeof text);
		pthread_mutex_unlock(&server->mutex);
		if (found)
			log_warning("%s", text);
	}
}

static void *guard_main(void *arg)
{
	struct nbd_server *server = arg;
	struct err err = ERR_INIT;
	unsigned each_ms =
		server->options.slow_ms < LOOK_ROUND_MS ? server->options.slow_ms : LOOK_ROUND_MS;
	/* Ends only by the request to stop, which nbd_server_free() makes. */
	while (!cancel_requested(server->stop)) {
		(void)cancel_sleep(server->stop, deadline_after_ms(each_ms), NULL);
		look_round(server);
	}
	pthread_mutex_lock(&server->mutex);
	int rc = end_connections(server, NULL, &server->nr_connections, &err);
	if (rc < 0) {
		server->is_abandoned = true;
		err_copy(&server->abandoned_err, &err);
		pthread_cond_broadcast(&server->changed);
	}
	pthread_mutex_unlock(&server->mutex);
	if (rc < 0)
		log_error("the server cannot stop: %s", err.text);
	return NULL;
}

/* --- exports ------------------------------------------------------------------------------ */

/* The time that this takes says nothing but how long the wanted name is. */
static bool is_named(const struct export *export, const char *wanted)
{
	size_t length = strlen(export->name), wanted_length = strlen(wanted);
	size_t differs = length ^ wanted_length;
	/* As far as the wanted one goes; the zero behind a name belongs to it. */
	for (size_t i = 0; i < wanted_length; i++)
		differs |= (size_t)(wanted[i] ^ export->name[i % (length + 1)]);
	return differs == 0;
}

/* Under the mutex: where the pointer to it is, or to the end.  All are looked at. */
static struct export **find_export(struct nbd_server *server, const char *name)
{
	struct export **found = NULL, **at = &server->exports;
	for (; *at; at = &(*at)->next)
		if (is_named(*at, name))
			found = at;
	return found ? found : at;
}

/* Whether there is such an export for this client. */
static bool may_use(const struct connection *c, const struct export *export)
{
	if (!export || export->is_leaving)
		return false;
	return !export->tls_identity ||
	       strcmp(export->tls_identity, stream_tls_identity(&c->stream)) == 0;
}

static bool is_secret(const struct export *export)
{
	return export->hidden || export->tls_identity;
}

/* What it is called in messages, with quotes where it is a name. */
static void shown_name(const struct export *export, char *text, size_t size)
{
	if (!is_secret(export))
		snprintf(text, size, "export '%s'", export->name);
	else
		snprintf(text, size, "a hidden export (%s)",
			export->description ? export->description : "without description");
}

static int copy_export(struct export *export, const struct nbd_export *given)
{
	export->name = strdup(given->name);
	export->description = given->description ? strdup(given->description) : NULL;
	export->tls_identity = given->tls_identity ? strdup(given->tls_identity) : NULL;
	export->block = given->block;
	export->read_only = given->read_only || block_info(given->block)->read_only;
	export->hidden = given->hidden;
	export->past.active_ns = clock_now_ns();
	bool is_copied = export->name && (export->description || !given->description) &&
			 (export->tls_identity || !given->tls_identity);
	return is_copied ? 0 : -1;
}

int nbd_server_add_export(
	struct nbd_server *server, const struct nbd_export *given, struct err *err)
{
	if (strlen(given->name) > NBD_NAME_BYTES)
		return err_set(err, ERR_USAGE,
			"cannot export under a name of %zu bytes: the most is %u",
			strlen(given->name), NBD_NAME_BYTES);
	if (given->tls_identity && server->options.tls == NBD_TLS_OFF)
		return err_set(err, ERR_USAGE,
			"cannot export for one client alone without TLS, which tells who it is");
	struct export *export = calloc(1, sizeof *export);
	if (!export)
		return err_errno(err, ENOMEM, "cannot add an export");
	if (copy_export(export, given) < 0) {
		free_export(export);
		return err_errno(err, ENOMEM, "cannot add an export");
	}
	WITH_LOCK(&server->mutex);
	struct export **at = find_export(server, given->name);
	if (*at) {
		char text[NBD_NAME_BYTES + 64];
		shown_name(export, text, sizeof text);
		free_export(export);
		return err_set(err, ERR_EXISTS, "there is %s already", text);
	}
	*at = export;
	return 0;
}

int nbd_server_remove_export(struct nbd_server *server, const char *name, struct err *err)
{
	char text[NBD_NAME_BYTES + 64];
	WITH_LOCK(&server->mutex);
	struct export *export = *find_export(server, name);
	if (!export)
		return err_set(err, ERR_NOT_FOUND, "there is no such export");
	shown_name(export, text, sizeof text);
	if (export->is_ending)
		return err_set(err, ERR_BUSY, "%s is being removed already", text);
	export->is_leaving = export->is_ending = true;
	int rc = end_connections(server, export, &export->nr_users, err);
	export->is_ending = false;
	if (rc < 0)
		return err_context(err, "cannot remove %s", text);
	/* Others may have come and gone meanwhile. */
	*find_export(server, name) = export->next;
	free_export(export);
	return 0;
}

bool nbd_server_has_export(struct connection *c, const char *name)
{
	WITH_LOCK(&c->server->mutex);
	return may_use(c, *find_export(c->server, name));
}

bool nbd_server_nth_export(struct connection *c, unsigned n, char **name, char **description)
{
	WITH_LOCK(&c->server->mutex);
	for (const struct export *export = c->server->exports; export; export = export->next) {
		if (export->hidden || !may_use(c, export) || n-- > 0)
			continue;
		*name = strdup(export->name);
		*description = export->description ? strdup(export->description) : NULL;
		return *name != NULL;
	}
	return false;
}

void nbd_server_no_export(const struct nbd_server *server, const char *name, struct err *err)
{
	/* With TLS a name may be a secret, of an export that is there for somebody else. */
	if (server->options.tls == NBD_TLS_OFF)
		err_set(err, ERR_NOT_FOUND, "there is no export '%s' here", name);
	else
		err_set(err, ERR_NOT_FOUND, "there is no export of that name here");
}

/* --- what was done with them -------------------------------------------------------------- */

/* Under the mutex: adds what a connection did. */
static void add_figures(struct nbd_export_state *state, struct connection *c)
{
	int64_t active_ns =
		atomic_load(&c->nr_served) > 0 ? clock_now_ns() : atomic_load(&c->active_ns);
	if (active_ns > state->active_ns)
		state->active_ns = active_ns;
	state->nr_requests += atomic_load(&c->nr_requests);
	state->read_bytes += atomic_load(&c->read_bytes);
	state->written_bytes += atomic_load(&c->written_bytes);
}

int nbd_server_export_state(struct nbd_server *server, const char *name,
	struct nbd_export_state *state, struct err *err)
{
	WITH_LOCK(&server->mutex);
	const struct export *export = *find_export(server, name);
	if (!export)
		return err_set(err, ERR_NOT_FOUND, "there is no such export");
	*state = export->past;
	state->nr_connections = export->nr_users;
	for (struct connection *c = server->connections; c; c = c->next)
		if (c->export == export)
			add_figures(state, c);
	return 0;
}

void nbd_server_state(struct nbd_server *server, struct nbd_server_state *state)
{
	WITH_LOCK(&server->mutex);
	*state = (struct nbd_server_state){
		.nr_connections = server->nr_connections,
		.nr_active = server->nr_active,
		.max_connections = server->options.max_connections,
	};
}

/* --- places ------------------------------------------------------------------------------- */

/* Under the mutex: who has the places, as many as fit a line. */
static void list_peers(const struct nbd_server *server, char *text, size_t size)
{
	size_t used = 0;
	unsigned left = server->nr_active;
	text[0] = '\0';
	for (const struct connection *c = server->connections; c; c = c->next) {
		char since[CLOCK_UTC_BYTES];
		if (!c->export)
			continue;
		if (used > LISTED_PEERS_BYTES) {
			snprintf(text + used, size - used, " and %u more", left);
			return;
		}
		clock_utc_text(c->since_s, since);
		used += (size_t)snprintf(text + used, size - used, "%s%s since %s",
			used ? ", " : "", c->peer, since);
		left--;
	}
}

/* Under the mutex.  Others' addresses are told to who has shown who he is, and where nobody has to.
 */
static uint32_t check_place(const struct connection *c, struct err *err)
{
	const struct nbd_server *server = c->server;
	bool is_stranger = server->options.tls != NBD_TLS_OFF && !atomic_load(&c->known);
	char peers[LISTED_PEERS_BYTES + TRANSPORT_PEER_BYTES + 64];
	if (cancel_requested(server->stop)) {
		err_set(err, ERR_REFUSED, "the server is stopping");
		return NBD_REP_ERR_SHUTDOWN;
	}
	if (server->nr_active < server->options.max_connections)
		return 0;
	if (is_stranger) {
		err_set(err, ERR_REFUSED, "%u of %u connections in use; try again later",
			server->nr_active, server->options.max_connections);
		return NBD_REP_ERR_POLICY;
	}
	list_peers(server, peers, sizeof peers);
	err_set(err, ERR_REFUSED,
		"%u of %u connections in use, by %s; try again later or raise --max-connections",
		server->nr_active, server->options.max_connections, peers);
	return NBD_REP_ERR_POLICY;
}

uint32_t nbd_server_check_place(struct connection *c, struct err *err)
{
	WITH_LOCK(&c->server->mutex);
	return check_place(c, err);
}

/* Under the mutex: the export, or NULL and the option error. */
static struct export *look_up(
	struct connection *c, const char *name, uint32_t *error, struct err *err)
{
	struct nbd_server *server = c->server;
	*error = check_place(c, err);
	if (*error)
		return NULL;
	struct export *export = *find_export(server, name);
	if (may_use(c, export))
		return export;
	nbd_server_no_export(server, name, err);
	*error = NBD_REP_ERR_UNKNOWN;
	return NULL;
}

uint32_t nbd_server_attach(struct connection *c, const char *name, bool take,
	struct export_info *info, struct err *err)
{
	struct nbd_server *server = c->server;
	char text[NBD_NAME_BYTES + 64];
	uint32_t error;
	unsigned nr_active;
	{
		WITH_LOCK(&server->mutex);
		struct export *export = look_up(c, name, &error, err);
		if (!export)
			return error;
		const struct block_info *block = block_info(export->block);
		*info = (struct export_info){
			.size_bytes = block->size_bytes,
			.flags = request_export_flags(block, export->read_only, c->headers),
			.preferred_bytes =
				block->granule_bytes > 4096 ? block->granule_bytes : 4096,
			.description = export->description ? strdup(export->description) : NULL,
		};
		if (!take)
			return 0;
		c->export = export;
		export->nr_users++;
		export->past.nr_connected++;
		atomic_store(&c->active_ns, clock_now_ns());
		shown_name(export, text, sizeof text);
		nr_active = ++server->nr_active;
	}
	stream_set_send_timeout(&c->stream, server->options.send_timeout_ms);
	char tls[TLS_TEXT_BYTES];
	stream_tls_text(&c->stream, tls);
	log_info("client %s: uses %s, %s (%u of %u connections in use)", c->peer, text, tls,
		nr_active, server->options.max_connections);
	return 0;
}

/* Under the mutex: puts a connection on the list, unless the server stops. */
static int enlist(struct connection *c, struct err *err)
{
	struct nbd_server *server = c->server;
	if (cancel_requested(server->stop))
		return err_set(err, ERR_CANCELLED, "the server stops");
	c->next = server->connections;
	if (c->next)
		c->next->previous = c;
	server->connections = c;
	server->nr_connections++;
	return 0;
}

/* Under the mutex. */
static void unlink_connection(struct connection *c)
{
	struct nbd_server *server = c->server;
	if (c->previous)
		c->previous->next = c->next;
	else
		server->connections = c->next;
	if (c->next)
		c->next->previous = c->previous;
	server->nr_connections--;
	pthread_cond_broadcast(&server->changed);
}

/* Under the mutex: from here on another client may have the place. */
static void give_place_back(struct connection *c)
{
	struct nbd_server *server = c->server;
	if (!c->export)
		return;
	atomic_store(&c->active_ns, clock_now_ns());
	add_figures(&c->export->past, c);
	c->export->nr_users--;
	c->export = NULL;
	server->nr_active--;
	if (server->options.once && server->nr_active == 0)
		cancel_request(server->stop);
	pthread_cond_broadcast(&server->changed);
}

static void delist(struct connection *c)
{
	struct nbd_server *server = c->server;
	pthread_mutex_lock(&server->mutex);
	give_place_back(c);
	pthread_mutex_unlock(&server->mutex);
	/* Who sees the end of one connection finds the place free for the next. */
	if (!atomic_load(&c->broken))
		stream_finish(&c->stream);
	WITH_LOCK(&server->mutex);
	unlink_connection(c);
	/* Not only when the thread is joined. */
	stream_close(&c->stream);
	if (c->has_thread) {
		c->next = server->finished;
		server->finished = c;
	}
}

/* --- serving ---------------------------------------------------------------------------------- */

static void *connection_main(void *arg)
{
	struct connection *c = arg;
	connection_run(c);
	delist(c);
	return NULL;
}

int nbd_server_serve_fd(struct nbd_server *server, int fd, const char *peer, struct err *err)
{
	struct connection *c = connection_new(server, fd, peer, err);
	if (!c)
		return -1;
	pthread_mutex_lock(&server->mutex);
	int rc = enlist(c, err);
	pthread_mutex_unlock(&server->mutex);
	if (rc == 0) {
		connection_run(c);
		delist(c);
	}
	connection_free(c);
	return rc;
}

/* Under the mutex, so that the thread cannot be through before it is noted. */
static int start_thread(struct connection *c, struct err *err)
{
	if (enlist(c, err) < 0)
		return -1;
	c->has_thread = true;
	if (thread_start(&c->thread, "nbd-connection", connection_main, c, err) == 0)
		return 0;
	unlink_connection(c);
	return -1;
}

static void serve_client(struct nbd_server *server, int fd)
{
	struct err err = ERR_INIT;
	struct connection *c = connection_new(server, fd, NULL, &err);
	if (!c) {
		log_warning("a client was turned away: %s", err.text);
		return;
	}
	pthread_mutex_lock(&server->mutex);
	int rc = start_thread(c, &err);
	pthread_mutex_unlock(&server->mutex);
	if (rc < 0) {
		log_warning("client %s: turned away: %s", c->peer, err.text);
		connection_free(c);
	}
}

/* Under the mutex: of those in the handshake, the one longest there that need not be waited
 * for ends.  Connections that say nothing must not keep others out. */
static void make_way(struct nbd_server *server)
{
	struct connection *oldest = NULL;
	int64_t now_ns = clock_now_ns();
	for (struct connection *c = server->connections; c; c = c->next) {
		if (c->export || (oldest && oldest->began_ns <= c->began_ns))
			continue;
		if (now_ns - atomic_load(&c->heard_ns) >= SILENT_MS * INT64_C(1000000) ||
			now_ns - c->began_ns >= SLOW_HANDSHAKE_MS * INT64_C(1000000))
			oldest = c;
	}
	if (!oldest)
		return;
	connection_note_end(oldest, true, "handshake: it is silent or slow, and others wait");
	stream_shut(&oldest->stream, true);
}

/* Does not take more clients than can be talked to at once. */
static void wait_for_handshakes(struct nbd_server *server)
{
	bool told = false;
	WITH_LOCK(&server->mutex);
	while (server->nr_connections - server->nr_active >= MOST_HANDSHAKES &&
		!cancel_requested(server->stop)) {
		if (!told)
			log_warning("%u clients are in the handshake: others have to wait until "
				    "one is through or gives way",
				MOST_HANDSHAKES);
		told = true;
		make_way(server);
		(void)thread_cond_wait(&server->changed, &server->mutex, deadline_after_ms(50));
	}
}

static int accept_clients(struct nbd_server *server, struct listener *listener, struct err *err)
{
	while (!cancel_requested(server->stop)) {
		struct err why = ERR_INIT;
		wait_for_handshakes(server);
		if (cancel_poll(server->stop, listener->fd, POLLIN, deadline_after_ms(INT32_MAX),
			    "a client", &why) < 0) {
			if (why.code == ERR_CANCELLED)
				return 0;
			if (why.code != ERR_TIMEOUT)
				return err_copy(err, &why);
			continue;
		}
		reap(server);
		int fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC);
		if (fd >= 0) {
			serve_client(server, fd);
		} else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS ||
			   errno == ENOMEM) {
			err_errno(&why, errno, "a client has to wait");
			log_warning("%s", why.text);
			(void)cancel_sleep(server->stop, deadline_after_ms(500), NULL);
		} else if (errno == EBADF || errno == EINVAL || errno == ENOTSOCK) {
			return err_errno(
				err, errno, "cannot accept clients on %s", listener->address);
		}
		/* Others: the client was gone before its turn. */
	}
	return 0;
}

int nbd_server_run(struct nbd_server *server, struct listener *listener, struct err *err)
{
	/* Another process may share the socket and be faster. */
	(void)fcntl(listener->fd, F_SETFL, fcntl(listener->fd, F_GETFL) | O_NONBLOCK);
	int rc = accept_clients(server, listener, err);
	listener_close(listener);
	if (rc < 0)
		nbd_server_stop(server);
	pthread_mutex_lock(&server->mutex);
	/* The guard sees to it that they end, or says that they do not. */
	while (server->nr_connections > 0 && !server->is_abandoned)
		pthread_cond_wait(&server->changed, &server->mutex);
	if (server->nr_connections > 0 && rc == 0)
		rc = err_copy(err, &server->abandoned_err);
	pthread_mutex_unlock(&server->mutex);
	reap(server);
	return rc;
}
