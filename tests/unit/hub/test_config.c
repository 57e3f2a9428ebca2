/* The hub's settings: what is taken, and what is refused in which line. */
#include "test_support.h"

#include "config.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct heard {
	unsigned nr, line;
	char text[ERR_TEXT_BYTES];
};

static void hear(void *context, const struct settings_finding *finding)
{
	struct heard *heard = context;
	if (heard->nr++ == 0) {
		heard->line = finding->line;
		snprintf(heard->text, sizeof heard->text, "%s", finding->text);
	}
}

static struct hub_config *load(
	const char *text, size_t length, struct heard *heard, struct err *err)
{
	char path[] = "/tmp/test_config.XXXXXX";
	int fd = mkstemp(path);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, length), (ssize_t)length);
	close(fd);
	struct hub_config *config = hub_config_load(path, hear, heard, err);
	unlink(path);
	return config;
}

static void test_refused(void **state)
{
	(void)state;
	static const struct {
		const char *text;
		unsigned line;
		const char *why;
	} cases[] = {
		{"listen = 127.0.0.1:1\n", 1, "before the first section"},
		{"[hub]\nfoo = 1\n", 2, "no setting \"foo\" (there is: state-dir"},
		{"[Hub]\n", 1, "[Hub] is no section"},
		{"[foo]\n", 1, "[foo] is no section"},
		{"[hub\nlog = text\n", 1, "this is no section"},
		{"[hub]\nlog\n", 2, "this is no setting"},
		{"[hub]\nlog: text\n", 2, "this is no setting"},
		{"[hub]\n= text\n", 2, "this is no setting"},
		{"[hub]\nlog =\n", 2, "there is no value"},
		{"[hub]\nlog = loud\n", 2, "\"loud\" is not one of: auto, journal, json, text"},
		{"[hub]\nlog = text\n\n# again\nlog = json\n", 5, "is there already, in line 2"},
		{"[hub]\nstate-dir = here\n", 2, "not an absolute path"},
		{"[hub]\nstate-dir = /x\nruntime-dir = /x\n", 3, "are the same folder"},
		{"[hub]\nlisten = 127.0.0.1\n", 2, "not a numeric address"},
		{"[hub]\nlisten = localhost:80\n", 2, "not a numeric address"},
		{"[hub]\nlisten = ::1:80\n", 2, "not a numeric address"},
		{"[hub]\nlisten = [127.0.0.1]:80\n", 2, "not a numeric address"},
		{"[hub]\nlisten = 127.0.0.1:65536\n", 2, "\"65536\" is not a port"},
		{"[hub]\nlisten = 127.0.0.1:\n", 2, "\"\" is not a port"},
		{"[hub]\nlisten = 0.0.0.0:8080\n", 2, "beyond loopback, and there is no TLS"},
		{"[hub]\nlisten = [::]:8080\n", 2, "beyond loopback, and there is no TLS"},
		{"[hub]\nstop-timeout = soon\n", 2, "not a duration"},
		{"[hub]\nstop-timeout = 2h\n", 2, "not within 0 to 3600 seconds"},
		{"[hub]\nkeep-jobs = 1s\n", 2, "not within 3600"},
		{"[tls]\ncertificate = /c\n", 2, "go together"},
		{"[tls]\nkey = /c\n", 2, "go together"},
		{"[tls]\nclients = required\n", 2, "needs certificate, key and ca"},
		{"[nbd]\nlisten = 10.0.0.1:10809\ntls = off\n", 3, "TLS is off"},
		{"[nbd]\nmode = both\n", 2, "not one of: single, range"},
		{"[nbd]\nport-range = 10100\n", 2, "not a range of ports"},
		{"[nbd]\nport-range = 200-100\n", 2, "holds no port"},
		{"[nbd]\nport-range = 0-100\n", 2, "holds no port"},
		{"[nbd]\nmax-connections = 0\n", 2, "not within 1 to 65536"},
		{"[nbd]\nmax-connections = -1\n", 2, "not a number"},
		{"[nbd]\nmax-connections = 99999999999999999999\n", 2, "not a number"},
		{"[nbd]\nlisten = 127.0.0.1:8080\n", 2, "the same address"},
		{"[hub]\nlisten = 127.0.0.1:10150\n[nbd]\nmode = range\n"
		 "port-range = 10100-10200\n",
			5, "holds the port 10150"},
		{"[repository a]\npath = /srv/b\xe4"
		 "ckup\n",
			2, "not UTF-8"},
		{"[allow]\nsource = !/home/m\xfc"
		 "ller/\n",
			2, "not UTF-8"},
		{"[repository]\npath = /x\n", 1, "needs a name"},
		{"[repository a b]\npath = /x\n", 1, "no name for a repository"},
		{"[repository ../x]\npath = /x\n", 1, "no name for a repository"},
		{"[repository a]\n", 1, "has no path"},
		{"[repository a]\npath = /x\n[repository a]\npath = /y\n", 3, "there twice"},
		{"[repository a]\npath = /x\n[repository b]\npath = /x\n", 3, "the same folder"},
		{"[repository a]\npath = /x\nid = 12\n", 3, "has 2 bytes, not 32 to 32"},
		{"[repository a]\npath = /x\nrequire-mount = maybe\n", 3, "not one of: no, yes"},
		{"[repository a]\npath = /x\nwarn-free = lots\n", 3, "not a size"},
		{"[repository a]\npath = /x\nwarn-free = 1G\nstop-free = 2G\n", 1,
			"warn-free is less than stop-free"},
		{"[limits]\njobs = 2\njobs-per-source = 3\n", 3, "is more than jobs"},
		{"[allow]\nsource = nbd://h/\nsource = /etc\n", 3, "[allow] source"},
		{"[allow]\ntarget = raw:x/\n", 2, "[allow] target"},
		{"[notify]\nwebhook = http://example.com/\nwebhook-secret-file = /x\n", 2,
			"must begin with https://"},
		{"[notify]\nwebhook = https://example.com/\n", 2, "needs webhook-secret-file"},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		struct err err = ERR_INIT;
		struct heard heard = {0};
		char line[32];
		struct hub_config *config =
			load(cases[i].text, strlen(cases[i].text), &heard, &err);
		if (config)
			fail_msg("taken: %s", cases[i].text);
		assert_int_equal(err.code, ERR_USAGE);
		snprintf(line, sizeof line, ":%u: ", cases[i].line);
		if (!strstr(heard.text, cases[i].why) || heard.line != cases[i].line)
			fail_msg("%s: line %u: %s", cases[i].text, heard.line, heard.text);
		if (!strstr(err.text, line))
			fail_msg("no line in %s", err.text);
	}
}

static void test_all_are_told(void **state)
{
	(void)state;
	static const char text[] = "[hub]\nlog = x\nfoo = 1\n[bar]\n[nbd]\nmode = y\n";
	struct err err = ERR_INIT;
	struct heard heard = {0};
	assert_null(load(text, strlen(text), &heard, &err));
	assert_int_equal(heard.nr, 4);
	assert_non_null(strstr(err.text, ":2: [hub] log"));
}

/* Lines and names that libinih would cut in silence. */
static void test_long(void **state)
{
	(void)state;
	char text[9000] = "[hub]\nname = ", name[300];
	struct err err = ERR_INIT;
	struct heard heard = {0};
	memset(name, 'a', sizeof name);
	name[251] = '\0';
	strcat(strcat(text, name), "\n");
	struct hub_config *config = load(text, strlen(text), &heard, &err);
	assert_non_null(config);
	assert_string_equal(config->name, name);
	hub_config_free(config);

	memset(text, 0, sizeof text);
	memset(text, 'a', 60);
	strcat(text, " = 1\n");
	assert_null(load(text, strlen(text), &heard, &err));
	memset(&heard, 0, sizeof heard);
	memset(text, 0, sizeof text);
	strcpy(text, "[hub]\nname = ");
	memset(text + strlen(text), 'a', 8000);
	assert_null(load(text, strlen(text), &heard, &err));
	assert_int_equal(heard.line, 2);
	assert_non_null(strstr(heard.text, "longer than"));
	assert_null(load("[hub]\n\0log = 1\n", 15, &heard, &err));
}

static void test_defaults(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct heard heard = {0};
	struct hub_config *c = load("", 0, &heard, &err);
	assert_non_null(c);
	assert_string_equal(c->state_dir, "/var/lib/sendense");
	assert_string_equal(c->listen.host, "127.0.0.1");
	assert_int_equal(c->listen.port, 8080);
	assert_true(c->listen.loopback);
	assert_int_equal(c->nbd_listen.port, 10809);
	assert_int_equal(c->nbd_tls, HUB_NBD_TLS_OFF);
	assert_int_equal(c->nbd_port_first, 10100);
	assert_int_equal(c->nbd_port_last, 10200);
	assert_int_equal(c->stop, HUB_STOP_HAND_OVER);
	assert_int_equal(c->stop_timeout_s, 30);
	assert_int_equal(c->keep_jobs_s, 90 * 86400);
	assert_true(c->name[0] != '\0');
	assert_null(c->allow_sources);
	hub_config_free(c);
}

static const char whole[] = "; a comment\n"
			    "[hub]\r\n"
			    "  listen = [::1]:9000\r\n"
			    "stop = cancel\n"
			    "[tls]\n"
			    "certificate = /c;1\n"
			    "key = /k\n"
			    "[nbd]\n"
			    "listen = 10.0.0.1:10809\n"
			    "[repository main]\n"
			    "path = /srv/a b\n"
			    "require-mount = yes\n"
			    "stop-free = 10GiB\n"
			    "[repository off-site]\n"
			    "path = /mnt/b\n"
			    "[allow]\n"
			    "source = nbd://a/\n"
			    "source = nbd://b/\n"
			    "[limits]\n"
			    "jobs = 1\n";

static void test_taken(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct heard heard = {0};
	struct hub_config *c = load(whole, strlen(whole), &heard, &err);
	if (!c)
		fail_msg("%s", err.text);
	assert_string_equal(c->listen.host, "::1");
	assert_int_equal(c->listen.port, 9000);
	assert_int_equal(c->stop, HUB_STOP_CANCEL);
	assert_string_equal(c->certificate, "/c;1");
	assert_int_equal(c->nbd_tls, HUB_NBD_TLS_REQUIRED);
	assert_int_equal(c->nr_repositories, 2);
	const struct job_repository *r = hub_config_repository(c, "main");
	assert_non_null(r);
	assert_string_equal(r->path, "/srv/a b");
	assert_true(r->require_mount);
	assert_int_equal(r->stop_free_bytes, 10 * GIB);
	assert_null(hub_config_repository(c, "mai"));
	assert_string_equal(c->allow_sources[1], "nbd://b/");
	assert_null(c->allow_sources[2]);
	assert_int_equal(c->most_jobs_per_source, 1);
	hub_config_free(c);
}

/* What does not count before a restart stays what it was. */
static void test_reload(void **state)
{
	(void)state;
	static const char changed[] = "[hub]\nlog = json\nlisten = 127.0.0.1:1\n"
				      "[repository main]\npath = /else\n"
				      "[builds]\nallow = 1*\n";
	struct err err = ERR_INIT;
	char path[] = "/tmp/test_config.XXXXXX";
	int fd = mkstemp(path);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, whole, strlen(whole)), (ssize_t)strlen(whole));
	struct hub_config *old = hub_config_load(path, NULL, NULL, &err);
	assert_non_null(old);
	assert_int_equal(ftruncate(fd, 0), 0);
	assert_int_equal(pwrite(fd, changed, strlen(changed), 0), (ssize_t)strlen(changed));
	struct hub_config *new = hub_config_reload(old);
	assert_non_null(new);
	assert_string_equal(new->listen.host, "::1");
	assert_int_equal(new->nr_repositories, 2);
	assert_string_equal(new->repositories[0].path, "/srv/a b");
	assert_string_equal(new->allow_sources[1], "nbd://b/");
	assert_int_equal(new->log, LOGGING_JSON);
	assert_string_equal(new->builds_allow[0], "1*");
	hub_config_free(old);
	hub_config_free(new);
	close(fd);
	unlink(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_all_are_told),
		cmocka_unit_test(test_long),
		cmocka_unit_test(test_defaults),
		cmocka_unit_test(test_taken),
		cmocka_unit_test(test_reload),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
