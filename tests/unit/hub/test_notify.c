/* Notices: signed, kept, tried again with growing pauses, given up in the end.  Delivery itself is
 * in tests/integration/test_hub_time.py. */
#include "fixture.h"

#include "notify_internal.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/socket.h>

struct world {
	struct fixture *f;
	struct hub_config config;
	_Atomic int64_t now;
	char url[64], *allow[2], secret[128];
};

static const struct hub_config *config_of(void *context)
{
	return &((struct world *)context)->config;
}

static int64_t now_of(void *context)
{
	return ((struct world *)context)->now;
}

/* A port of loopback at which nobody listens. */
static unsigned dead_port(int *fd)
{
	struct sockaddr_in address = {
		.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t length = sizeof address;
	*fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(*fd, (struct sockaddr *)&address, sizeof address), 0);
	assert_int_equal(getsockname(*fd, (struct sockaddr *)&address, &length), 0);
	return ntohs(address.sin_port);
}

static void make_world(struct world *w, struct fixture *f, unsigned port)
{
	memset(w, 0, sizeof *w);
	w->f = f;
	w->now = 1000000;
	snprintf(w->url, sizeof w->url, "http://127.0.0.1:%u/x", port);
	w->allow[0] = w->url;
	snprintf(w->secret, sizeof w->secret, "%s/secret", f->folder);
	FILE *file = fopen(w->secret, "w");
	assert_non_null(file);
	fputs("secret\n", file);
	fclose(file);
	w->config = (struct hub_config){.name = (char *)"hub",
		.webhook = w->url,
		.webhook_secret_file = w->secret,
		.allow_webhooks = w->allow};
}

static struct notify *open_notify(struct world *w)
{
	struct err err = ERR_INIT;
	struct notify_options options = {
		.state = w->f->state, .config = config_of, .now = now_of, .context = w};
	struct notify *notify = notify_start(&options, &err);
	if (!notify)
		fail_msg("%s", err.text);
	return notify;
}

static struct notify_figures figures_of(struct notify *notify)
{
	struct notify_figures figures;
	notify_figures(notify, &figures);
	return figures;
}

/* Until so many tries have failed. */
static void wait_failures(struct notify *notify, uint64_t nr)
{
	struct deadline until = deadline_after_ms(30000);
	while (figures_of(notify).nr_webhook_failures < nr)
		assert_false(deadline_passed(until));
	assert_int_equal(figures_of(notify).nr_webhook_failures, nr);
}

static int take_next(void *context, const struct state_object *object)
{
	*(int64_t *)context = json_integer_value(json_object_get(object->value, "next"));
	return 1;
}

/* When the first notice is tried next, as the state has it, once it is not `old` any more. */
static int64_t next_of(struct world *w, int64_t old)
{
	int64_t next = old;
	struct err err = ERR_INIT;
	struct deadline until = deadline_after_ms(30000);
	while (next == old) {
		OK(state_list(w->f->state, "notice", NULL, take_next, &next, &err), err);
		assert_false(deadline_passed(until));
	}
	return next;
}

static void test_pauses(void **context)
{
	struct world w;
	int fd;
	struct err err = ERR_INIT;
	make_world(&w, *context, dead_port(&fd));
	struct notify *notify = open_notify(&w);
	struct notice notice = {.event = "alarm", .title = "VM web01: alarm", .text = "late"};
	OK(notify_post(notify, &notice, &err), err);
	static const int64_t pauses[] = {10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600};
	int64_t next = w.now;
	for (size_t i = 0; i < ARRAY_LENGTH(pauses); i++) {
		wait_failures(notify, i + 1);
		next = next_of(&w, next);
		assert_int_equal(next, w.now + pauses[i]);
		/* A second before nothing happens; then it is tried. */
		w.now = next - 1;
		notify_wake(notify);
		assert_int_equal(figures_of(notify).nr_webhook_failures, i + 1);
		w.now = next;
		notify_wake(notify);
	}
	wait_failures(notify, ARRAY_LENGTH(pauses) + 1);
	/* A restart is worth a try. */
	notify_stop(notify);
	notify = open_notify(&w);
	wait_failures(notify, 1);
	assert_int_equal(figures_of(notify).nr_pending, 1);
	/* Three days, and it is given up. */
	w.now += 3 * 86400 + 1;
	notify_wake(notify);
	wait_failures(notify, 2);
	struct deadline until = deadline_after_ms(30000);
	while (figures_of(notify).nr_pending > 0)
		assert_false(deadline_passed(until));
	assert_int_equal(figures_of(notify).nr_given_up, 1);
	notify_stop(notify);
	close(fd);
}

static void test_nobody_to_tell(void **context)
{
	struct world w;
	struct err err = ERR_INIT;
	make_world(&w, *context, 1);
	w.config.webhook = NULL;
	struct notify *notify = open_notify(&w);
	struct notice notice = {.event = "alarm", .title = "VM web01: alarm", .text = "late"};
	OK(notify_post(notify, &notice, &err), err);
	assert_int_equal(figures_of(notify).nr_pending, 0);
	notify_stop(notify);
}

/* Neither the URL nor its beginning alone make it allowed. */
static void test_not_allowed(void **context)
{
	struct world w;
	struct err err = ERR_INIT;
	json_t *body = json_pack("{s:s, s:s, s:s}", "event", "alarm", "title", "t", "text", "x");
	make_world(&w, *context, 1);
	static const char *const rules[] = {
		"http://127.0.0.1:2/", "https://127.0.0.1:1/", "http://127.0.0.1:1/y/"};
	for (size_t i = 0; i < ARRAY_LENGTH(rules); i++) {
		w.allow[0] = (char *)rules[i];
		assert_int_equal(notify_webhook(&w.config, "id", body, w.now, NULL, &err), -1);
		assert_int_equal(err.code, ERR_DENIED);
	}
	json_decref(body);
}

static void test_signature(void **context)
{
	(void)context;
	char out[72];
	struct err err = ERR_INIT;
	/* Of openssl dgst -sha256 -hmac secret, over "1000000.{}". */
	OK(notify_webhook_sign("secret", 6, 1000000, "{}", out, &err), err);
	assert_string_equal(
		out, "sha256=e19bf930ce06c2f38d83c05d153cabae4049f02a29b8ecc608c766ef0f8f2927");
}

static void test_mail_text(void **context)
{
	(void)context;
	struct err err = ERR_INIT;
	struct hub_config config = {.name = (char *)"hub", .mail_to = (char *)"a@example.org"};
	json_t *body = json_pack("{s:s, s:s}", "title", "VM web01: alarm", "text", "two\nlines");
	char *text = notify_mail_text(&config, body, 1795000000, &err);
	assert_non_null(text);
	assert_string_equal(text,
		"To: a@example.org\nSubject: [sendense hub] VM web01: alarm\n"
		"Date: Wed, 18 Nov 2026 11:06:40 +0000\nAuto-Submitted: auto-generated\n"
		"MIME-Version: 1.0\nContent-Type: text/plain; charset=UTF-8\n"
		"Content-Transfer-Encoding: 8bit\n\ntwo\nlines\n");
	free(text);
	/* Nothing of a name gets into the header as it is. */
	json_object_set_new(body, "title", json_string("VM \xc3\xa4\nBcc: x@example.org"));
	text = notify_mail_text(&config, body, 1795000000, &err);
	assert_non_null(text);
	assert_non_null(strstr(text, "Subject: =?UTF-8?B?W3NlbmRlbnNl"));
	assert_null(strstr(text, "Bcc"));
	free(text);
	json_decref(body);
}

/* One that fails says why; one that hangs would be ended at its deadline or by a cancel. */
static void test_sendmail(void **context)
{
	struct fixture *f = *context;
	struct err err = ERR_INIT;
	char program[128];
	json_t *body = json_pack("{s:s, s:s}", "title", "t", "text", "x");
	snprintf(program, sizeof program, "%s/sendmail", f->folder);
	struct hub_config config = {
		.name = (char *)"hub", .mail_to = (char *)"a@example.org", .sendmail = program};
	assert_int_equal(notify_mail(&config, body, 0, NULL, &err), -1);
	assert_non_null(strstr(err.text, "cannot start"));
	static const struct {
		const char *script, *why;
	} cases[] = {
		{"#!/bin/sh\necho no such user >&2; exit 67\n", "status 67: no such user"},
		{"#!/bin/sh\nkill -9 $$\n", "killed by signal 9"},
		{"#!/bin/sh\nexec cat >/dev/null\n", NULL},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		FILE *file = fopen(program, "we");
		assert_non_null(file);
		fputs(cases[i].script, file);
		fclose(file);
		chmod(program, 0700);
		int rc = notify_mail(&config, body, 0, NULL, &err);
		if (cases[i].why ? rc == 0 || !strstr(err.text, cases[i].why) : rc < 0)
			fail_msg("%zu: %s", i, err.text);
	}
	/* Cancelled while it hangs: ended, at once, and reaped. */
	FILE *file = fopen(program, "we");
	assert_non_null(file);
	fputs("#!/bin/sh\nexec cat /dev/zero >/dev/null\n", file);
	fclose(file);
	struct cancel *cancel = cancel_new(&err);
	assert_non_null(cancel);
	cancel_request(cancel);
	assert_int_equal(notify_mail(&config, body, 0, cancel, &err), -1);
	assert_int_equal(err.code, ERR_CANCELLED);
	cancel_free(cancel);
	json_decref(body);
}

int main(void)
{
	/* As in threads of the hub, which have all signals blocked. */
	signal(SIGPIPE, SIG_IGN);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_pauses, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(
			test_nobody_to_tell, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(test_not_allowed, fixture_setup, fixture_teardown),
		cmocka_unit_test(test_signature),
		cmocka_unit_test(test_mail_text),
		cmocka_unit_test_setup_teardown(test_sendmail, fixture_setup, fixture_teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
