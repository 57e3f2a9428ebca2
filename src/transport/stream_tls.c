/*
 * Streams through TLS; see tls.h.
 *
 * One thread receives while another sends.  GnuTLS allows that, as long as the
 * receiving side does not make the session unusable for the sender: so the end of
 * the stream and errors of the socket are noted here, and GnuTLS is only told that
 * nothing is there for now.
 *
 *   send     buffers ─► records of 16 KiB, encrypted straight from the buffer where one
 *            fills a record; small pieces are put together first ─► a buffer ─► socket
 *   receive  socket ─► what GnuTLS wants now, the rest into a buffer for its next
 *            questions ─► the caller's buffers, as long as whole records are here
 */
#include "transport_internal.h"

#include <errno.h>
#include <gnutls/x509.h>
#include <stdio.h>

#define RECORD_BYTES 16384u
/* Some four records each: a system call for each record would cost as much as its
 * encryption. */
#define IN_BYTES (64 * KIB)
#define OUT_BYTES (68 * KIB)

struct tls_session {
	struct stream *stream;
	struct tls_credentials *credentials;
	gnutls_session_t session;
	char identity[TLS_IDENTITY_BYTES];
	char why[256]; /* what callbacks found, for the handshake's error */
	const struct deadline *until; /* of the handshake; NULL afterwards */
	bool is_ready; /* the handshake is over, and good */

	/* The receiver's. */
	const char *receive_what;
	bool may_not_wait; /* only take what is here */
	bool timed_out;
	struct err receive_err; /* of the socket; stays */
	size_t in_start, in_end;

	/* The sender's. */
	const char *send_what;
	struct err send_err; /* of the socket; stays */
	size_t out_used;

	uint8_t record[RECORD_BYTES]; /* small pieces on their way to a record */
	uint8_t in[IN_BYTES];
	uint8_t out[OUT_BYTES];
};

/* --- what GnuTLS calls ------------------------------------------------------------ */

static ssize_t nothing_now(void)
{
	errno = EAGAIN;
	return -1;
}

/* Before the deadline of the handshake has passed, no receive waits beyond it. */
static bool has_time(struct tls_session *tls)
{
	if (!tls->until)
		return true;
	int left_ms = deadline_left_ms(*tls->until);
	if (left_ms <= 0)
		return false;
	stream_set_receive_timeout(tls->stream, (unsigned)left_ms);
	return true;
}

static int flush(struct tls_session *tls)
{
	if (tls->send_err.code)
		return -1;
	struct iovec iov = {tls->out, tls->out_used};
	tls->out_used = 0;
	return stream_raw_send(tls->stream, &iov, 1, tls->send_what, &tls->send_err);
}

static ssize_t pull(gnutls_transport_ptr_t user, void *data, size_t size)
{
	struct tls_session *tls = user;
	size_t n = min_size(size, tls->in_end - tls->in_start);
	if (n > 0) {
		memcpy(data, tls->in + tls->in_start, n);
		tls->in_start += n;
		return (ssize_t)n;
	}
	if (tls->may_not_wait || tls->receive_err.code)
		return nothing_now();
	/* The peer answers what it has. */
	if (tls->until && flush(tls) < 0)
		return nothing_now();
	if (!has_time(tls)) {
		tls->timed_out = true;
		return nothing_now();
	}
	struct err err = ERR_INIT;
	struct iovec iov[2] = {{data, size}, {tls->in, sizeof tls->in}};
	ssize_t got = stream_raw_receive(tls->stream, iov, 2, tls->receive_what, &err);
	if (got < 0) {
		tls->timed_out = err.code == ERR_TIMEOUT;
		if (!tls->timed_out)
			err_copy(&tls->receive_err, &err);
		return nothing_now();
	}
	n = min_size(size, (size_t)got);
	tls->in_start = 0;
	tls->in_end = (size_t)got - n;
	return (ssize_t)n;
}

static ssize_t push(gnutls_transport_ptr_t user, const giovec_t *iov, int nr_iov)
{
	struct tls_session *tls = user;
	ssize_t taken = 0;
	for (int i = 0; i < nr_iov; i++) {
		const uint8_t *at = iov[i].iov_base;
		size_t left = iov[i].iov_len;
		while (left > 0) {
			if (tls->out_used == sizeof tls->out && flush(tls) < 0) {
				errno = EPIPE;
				return -1;
			}
			size_t n = min_size(left, sizeof tls->out - tls->out_used);
			memcpy(tls->out + tls->out_used, at, n);
			tls->out_used += n;
			at += n;
			left -= n;
		}
		taken += (ssize_t)iov[i].iov_len;
	}
	return taken;
}

/* --- receiving ----------------------------------------------------------------------- */

static int receive_failed(struct tls_session *tls, ssize_t code, struct err *err)
{
	if (code == 0)
		err_set(&tls->receive_err, ERR_DISCONNECTED, "%s: the peer closed the connection",
			tls->receive_what);
	else if (!tls->receive_err.code)
		err_set(&tls->receive_err, ERR_PROTOCOL, "%s: TLS failed: %s", tls->receive_what,
			gnutls_strerror((int)code));
	return err_copy(err, &tls->receive_err);
}

/* One piece of what came: its length; 0: nothing now; -1: the end, or an error. */
static ssize_t receive_some(struct tls_session *tls, void *data, size_t size, struct err *err)
{
	for (;;) {
		ssize_t n = gnutls_record_recv(tls->session, data, size);
		if (n > 0)
			return n;
		bool again = n == GNUTLS_E_AGAIN || n == GNUTLS_E_INTERRUPTED ||
			     n == GNUTLS_E_WARNING_ALERT_RECEIVED;
		if (!again || tls->receive_err.code)
			return receive_failed(tls, n, err);
		if (tls->timed_out || tls->may_not_wait)
			return 0;
		/* It was a message of TLS itself. */
	}
}

ssize_t stream_tls_receive(struct stream *stream, const struct iovec *iov, size_t nr_iov,
	const char *what, struct err *err)
{
	struct tls_session *tls = stream->tls;
	ssize_t total = 0;
	tls->timed_out = tls->may_not_wait = false;
	tls->receive_what = what;
	for (size_t i = 0; i < nr_iov; i++) {
		uint8_t *at = iov[i].iov_base;
		size_t left = iov[i].iov_len;
		while (left > 0) {
			struct err later = ERR_INIT;
			ssize_t n = receive_some(tls, at, left, total ? &later : err);
			if (n < 0)
				return total ? total : -1;
			if (n == 0)
				goto out;
			at += n;
			left -= (size_t)n;
			total += n;
			if (tls->in_start == tls->in_end &&
				gnutls_record_check_pending(tls->session) == 0)
				return total;
			tls->may_not_wait = true;
		}
	}
out:
	if (total == 0)
		return err_set(err, ERR_TIMEOUT, "%s: nothing came for %u ms", what,
			stream->receive_timeout_ms);
	return total;
}

/* --- sending -------------------------------------------------------------------------- */

static int send_failed(struct tls_session *tls, ssize_t code, struct err *err)
{
	if (!tls->send_err.code)
		err_set(&tls->send_err, ERR_DISCONNECTED, "%s: TLS failed: %s", tls->send_what,
			gnutls_strerror((int)code));
	return err_copy(err, &tls->send_err);
}

static int send_record(
	struct tls_session *tls, const uint8_t *bytes, size_t length, struct err *err)
{
	while (length > 0) {
		ssize_t n = gnutls_record_send(tls->session, bytes, length);
		if (n < 0 && (gnutls_error_is_fatal((int)n) || tls->send_err.code))
			return send_failed(tls, n, err);
		if (n < 0)
			n = 0;
		bytes += n;
		length -= (size_t)n;
	}
	return 0;
}

int stream_tls_send(
	struct stream *stream, struct iovec *iov, size_t nr_iov, const char *what, struct err *err)
{
	struct tls_session *tls = stream->tls;
	size_t used = 0;
	tls->send_what = what;
	for (size_t i = 0; i < nr_iov; i++) {
		const uint8_t *at = iov[i].iov_base;
		size_t left = iov[i].iov_len;
		while (left > 0) {
			/* Whole records need not be put together. */
			if (used == 0 && left >= RECORD_BYTES) {
				if (send_record(tls, at, RECORD_BYTES, err) < 0)
					return -1;
				at += RECORD_BYTES;
				left -= RECORD_BYTES;
				continue;
			}
			size_t n = min_size(left, RECORD_BYTES - used);
			memcpy(tls->record + used, at, n);
			used += n;
			at += n;
			left -= n;
			if (used < RECORD_BYTES)
				continue;
			if (send_record(tls, tls->record, used, err) < 0)
				return -1;
			used = 0;
		}
	}
	if (send_record(tls, tls->record, used, err) < 0)
		return -1;
	return flush(tls) < 0 ? send_failed(tls, 0, err) : 0;
}

/* --- the handshake --------------------------------------------------------------------- */

int stream_tls_find_key(gnutls_session_t session, const gnutls_datum_t *name, gnutls_datum_t *key)
{
	struct tls_session *tls = gnutls_session_get_ptr(session);
	char identity[TLS_IDENTITY_BYTES - sizeof "psk:"];
	uint8_t bytes[TLS_PSK_BYTES_MAX];
	size_t length = 0;
	bool is_text = name->size > 0 && name->size < sizeof identity;
	for (unsigned i = 0; is_text && i < name->size; i++)
		is_text = name->data[i] > 0x20 && name->data[i] < 0x7f;
	if (!is_text) {
		snprintf(tls->why, sizeof tls->why, "its identity is no usable name");
		return 1; /* GnuTLS goes on with a random key */
	}
	memcpy(identity, name->data, name->size);
	identity[name->size] = '\0';
	if (tls_credentials_find(tls->credentials, identity, bytes, &length) < 0) {
		snprintf(tls->why, sizeof tls->why, "there is no key of that identity");
		return 1;
	}
	key->data = gnutls_malloc(length);
	if (!key->data)
		return -1;
	memcpy(key->data, bytes, length);
	key->size = (unsigned)length;
	gnutls_memset(bytes, 0, sizeof bytes);
	snprintf(tls->why, sizeof tls->why, "it has another key of identity '%s'", identity);
	return 0;
}

/* Checks a client's certificate, where one is wanted.  0: go on. */
static int check_certificate(gnutls_session_t session)
{
	struct tls_session *tls = gnutls_session_get_ptr(session);
	gnutls_typed_vdata_st purpose = {.type = GNUTLS_DT_KEY_PURPOSE_OID,
		.data = (unsigned char *)(uintptr_t)GNUTLS_KP_TLS_WWW_CLIENT};
	unsigned nr = 0, status = 0;
	gnutls_datum_t text = {.data = NULL};
	(void)gnutls_certificate_get_peers(session, &nr);
	if (nr == 0)
		return tls->credentials->clients == TLS_CLIENTS_REQUIRED ? -1 : 0;
	int rc = gnutls_certificate_verify_peers(session, &purpose, 1, &status);
	if (rc < 0) {
		snprintf(tls->why, sizeof tls->why, "its certificate cannot be checked: %s",
			gnutls_strerror(rc));
		return -1;
	}
	if (status == 0)
		return 0;
	if (gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &text, 0) == 0)
		snprintf(tls->why, sizeof tls->why, "%s", (const char *)text.data);
	gnutls_free(text.data);
	return -1;
}

static int set_up(struct tls_session *tls)
{
	struct tls_credentials *credentials = tls->credentials;
	int rc = gnutls_init(&tls->session, GNUTLS_SERVER | GNUTLS_NO_TICKETS | GNUTLS_NO_SIGNAL);
	if (rc < 0) {
		tls->session = NULL;
		return rc;
	}
	gnutls_session_t session = tls->session;
	gnutls_session_set_ptr(session, tls);
	gnutls_transport_set_ptr(session, tls);
	gnutls_transport_set_pull_function(session, pull);
	gnutls_transport_set_vec_push_function(session, push);
	rc = gnutls_priority_set(session, credentials->priorities);
	if (rc == 0 && credentials->x509) {
		static const gnutls_certificate_request_t requests[] = {
			[TLS_CLIENTS_ANY] = GNUTLS_CERT_IGNORE,
			[TLS_CLIENTS_OPTIONAL] = GNUTLS_CERT_REQUEST,
			[TLS_CLIENTS_REQUIRED] = GNUTLS_CERT_REQUIRE};
		rc = gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, credentials->x509);
		gnutls_certificate_server_set_request(session, requests[credentials->clients]);
		gnutls_session_set_verify_function(session, check_certificate);
	}
	if (rc == 0 && credentials->psk)
		rc = gnutls_credentials_set(session, GNUTLS_CRD_PSK, credentials->psk);
	return rc;
}

static void note_identity(struct tls_session *tls)
{
	gnutls_datum_t name = {.data = NULL};
	unsigned nr = 0;
	const gnutls_datum_t *peers;
	uint8_t digest[32];
	char hex[2 * sizeof digest + 1];
	size_t length = sizeof digest;
	if (gnutls_auth_get_type(tls->session) == GNUTLS_CRD_PSK) {
		if (gnutls_psk_server_get_username2(tls->session, &name) == 0)
			snprintf(tls->identity, sizeof tls->identity, "psk:%.*s", (int)name.size,
				(const char *)name.data);
		return;
	}
	if (tls->credentials->clients == TLS_CLIENTS_ANY)
		return;
	peers = gnutls_certificate_get_peers(tls->session, &nr);
	if (!peers || nr == 0 ||
		gnutls_fingerprint(GNUTLS_DIG_SHA256, &peers[0], digest, &length) < 0)
		return;
	digest_hex(digest, sizeof digest, hex);
	snprintf(tls->identity, sizeof tls->identity, "x509:%s", hex);
}

/* What the client did wrong, as far as it can be told. */
static int handshake_failed(struct tls_session *tls, int rc, struct err *err)
{
	const char *alert = NULL;
	if (tls->receive_err.code)
		return err_copy(err, &tls->receive_err);
	if (tls->send_err.code)
		return err_copy(err, &tls->send_err);
	if (rc == GNUTLS_E_FATAL_ALERT_RECEIVED)
		alert = gnutls_alert_get_name(gnutls_alert_get(tls->session));
	/* The client is told its part. */
	(void)gnutls_alert_send_appropriate(tls->session, rc);
	(void)flush(tls);
	if (alert)
		return err_set(err, ERR_DENIED, "the client refused: %s", alert);
	if (tls->why[0])
		return err_set(err, ERR_DENIED, "%s (%s)", tls->why, gnutls_strerror(rc));
	return err_set(err, ERR_DENIED, "%s", gnutls_strerror(rc));
}

static int handshake(struct tls_session *tls, struct err *err)
{
	int rc;
	do {
		rc = gnutls_handshake(tls->session);
		if (tls->timed_out)
			return err_set(err, ERR_TIMEOUT, "it took too long");
		if (rc == GNUTLS_E_SUCCESS && flush(tls) == 0)
			return 0;
		/* GnuTLS waits for an answer to what is still here. */
	} while (rc < 0 && !gnutls_error_is_fatal(rc) && !tls->receive_err.code &&
		 !tls->send_err.code);
	return handshake_failed(tls, rc, err);
}

int stream_tls_start(
	struct stream *stream, struct tls_server *server, struct deadline until, struct err *err)
{
	struct tls_session *tls = calloc(1, sizeof *tls);
	if (!tls)
		return err_errno(err, ENOMEM, "cannot start TLS");
	tls->stream = stream;
	tls->credentials = tls_credentials_get(server);
	tls->until = &until;
	tls->receive_what = tls->send_what = "TLS";
	stream->tls = tls;
	int rc = set_up(tls);
	if (rc < 0) {
		tls->until = NULL;
		return err_set(err, ERR_IO, "cannot start TLS: %s", gnutls_strerror(rc));
	}
	rc = handshake(tls, err);
	tls->until = NULL;
	if (rc < 0)
		return err_context(err, "TLS handshake");
	tls->is_ready = true;
	note_identity(tls);
	return 0;
}

/* --- afterwards ---------------------------------------------------------------------------- */

const char *stream_tls_identity(const struct stream *stream)
{
	return stream->tls ? stream->tls->identity : "";
}

void stream_tls_text(const struct stream *stream, char text[TLS_TEXT_BYTES])
{
	if (!stream->tls) {
		snprintf(text, TLS_TEXT_BYTES, "no TLS");
		return;
	}
	gnutls_session_t session = stream->tls->session;
	const char *identity = stream->tls->identity;
	snprintf(text, TLS_TEXT_BYTES, "%s %s, %s",
		gnutls_protocol_get_name(gnutls_protocol_get_version(session)),
		gnutls_cipher_get_name(gnutls_cipher_get(session)),
		identity[0] ? identity : "no identity");
}

void stream_tls_finish(struct stream *stream)
{
	struct tls_session *tls = stream->tls;
	if (tls->send_err.code || !tls->is_ready)
		return;
	(void)gnutls_bye(tls->session, GNUTLS_SHUT_WR);
	(void)send(stream->fd, tls->out, tls->out_used, MSG_NOSIGNAL | MSG_DONTWAIT);
	tls->out_used = 0;
}

void stream_tls_close(struct stream *stream)
{
	struct tls_session *tls = stream->tls;
	if (tls->session)
		gnutls_deinit(tls->session);
	tls_credentials_put(tls->credentials);
	gnutls_memset(tls, 0, sizeof *tls);
	free(tls);
	stream->tls = NULL;
}
