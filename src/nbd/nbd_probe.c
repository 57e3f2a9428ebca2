/* Proving that a server answers; see nbd.h. */
#include "nbd.h"

#include <errno.h>
#include <libnbd.h>

static int failed(struct err *err, const char *uri)
{
	int errnum = nbd_get_errno();
	err_set(err, errnum ? err_code_from_errno(errnum) : ERR_REFUSED, "cannot reach %s: %s", uri,
		nbd_get_error());
	return -1;
}

/* Drives the handle until it has reached the option phase or is done with one. */
static int drive(struct nbd_handle *nbd, const char *uri, struct deadline until, struct err *err)
{
	while (nbd_aio_is_connecting(nbd) == 1 ||
		(nbd_aio_is_negotiating(nbd) == 0 && nbd_aio_is_closed(nbd) == 0 &&
			nbd_aio_is_dead(nbd) == 0)) {
		if (deadline_passed(until))
			return err_set(err, ERR_TIMEOUT, "cannot reach %s: no answer in time", uri);
		if (nbd_poll(nbd, deadline_left_ms(until)) < 0)
			return failed(err, uri);
	}
	return 0;
}

static int end_option(void *user_data, int *error)
{
	*(int *)user_data = *error ? -*error : 1;
	return 1;
}

/* Asks INFO and waits for the answer: result is 1, or a negative errno. */
static int ask(struct nbd_handle *nbd, const char *uri, struct deadline until, struct err *err)
{
	int result = 0;
	nbd_completion_callback done = {.callback = end_option, .user_data = &result};
	if (nbd_aio_opt_info(nbd, done) < 0)
		return failed(err, uri);
	while (result == 0) {
		if (deadline_passed(until))
			return err_set(err, ERR_TIMEOUT, "cannot reach %s: no answer in time", uri);
		if (nbd_poll(nbd, deadline_left_ms(until)) < 0)
			return failed(err, uri);
	}
	if (result < 0)
		return err_errno(err, -result, "%s does not serve", uri);
	return 0;
}

/* A server that demands TLS says so to who asks without. */
static int probe_tls(const char *uri, struct deadline until, struct err *err)
{
	struct err why = ERR_INIT;
	char *AUTO_FREE plain = strdup(uri);
	if (!plain)
		return err_errno(err, ENOMEM, "cannot reach %s", uri);
	/* "nbds" loses its s. */
	memmove(plain + 3, plain + 4, strlen(plain + 4) + 1);
	if (nbd_probe(plain, until, &why) == 0)
		return err_set(err, ERR_PROTOCOL, "%s serves without TLS too", uri);
	return why.sys_errno == ENOTSUP ? 0 : err_copy(err, &why);
}

int nbd_probe(const char *uri, struct deadline until, struct err *err)
{
	if (strncmp(uri, "nbds", 4) == 0)
		return probe_tls(uri, until, err);
	struct nbd_handle *nbd = nbd_create();
	int rc = -1;
	if (!nbd)
		return failed(err, uri);
	if (nbd_set_opt_mode(nbd, true) < 0 || nbd_set_uri_allow_local_file(nbd, false) < 0 ||
		nbd_aio_connect_uri(nbd, uri) < 0) {
		failed(err, uri);
		goto out;
	}
	if (drive(nbd, uri, until, err) < 0)
		goto out;
	rc = ask(nbd, uri, until, err);
	/* A clean end; how the server takes it says nothing about serving. */
	(void)nbd_aio_opt_abort(nbd);
	while (nbd_aio_is_closed(nbd) == 0 && nbd_aio_is_dead(nbd) == 0 && !deadline_passed(until))
		if (nbd_poll(nbd, deadline_left_ms(until)) < 0)
			break;
out:
	nbd_close(nbd);
	return rc;
}
