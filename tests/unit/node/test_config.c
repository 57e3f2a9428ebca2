/* The node's settings: what is taken, and what is refused in which line. */
#include "../scratch.h"

#include "config.h"

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

/* In the current folder, which is the test's own. */
static struct node_config *load(const char *text, struct heard *heard, struct err *err)
{
	assert_int_equal(file_replace(AT_FDCWD, "node.conf", text, strlen(text), 0600, err), 0);
	return node_config_load("node.conf", hear, heard, err);
}

static void test_refused(void **state)
{
	(void)state;
	static const struct {
		const char *text;
		unsigned line;
		const char *why;
	} cases[] = {
		{"[node]\nnbd = 1\n", 2, "no setting \"nbd\""},
		{"[node]\nlisten = 0.0.0.0:8081\n", 2, "beyond loopback, and there is no TLS"},
		{"[node]\nstate-dir = /x\nruntime-dir = /x\n", 3, "are the same folder"},
		{"[tls]\nkey = /k\n", 2, "certificate and key go together"},
		{"[limits]\njobs = 1\njobs-per-vcenter = 2\n", 3, "is more than jobs = 1"},
		{"[vcenter a]\npassword-file = /p\n", 1, "has no url"},
		{"[vcenter a]\nurl = vmware://u@h\n", 1, "has no password-file"},
		{"[vcenter a]\nurl = https://h\npassword-file = /p\n", 1, "[vcenter a] url: "},
		{"[vcenter a]\nurl = vmware://u:p@h\npassword-file = /p\n", 1, "password"},
		{"[vcenter a]\nurl = vmware://u@h/web01\npassword-file = /p\n", 1,
			"names a machine"},
		{"[vcenter a]\nurl = vmware://u@h\npassword-file = /p\nca-file = /c\n"
		 "fingerprint = "
		 "0000000000000000000000000000000000000000000000000000000000000000\n",
			1, "give one of them"},
		{"[vcenter a]\ndiscover-every = 1s\n", 2, "discover-every"},
		{"[repository r]\nid = 0123456789abcdef0123456789abcdef\n", 1,
			"neither path and url"},
		{"[repository r]\npath = /r\nurl = https://h/r\ntoken-file = /t\n", 1,
			"both path and url"},
		{"[repository r]\nurl = ftp://h/r\ntoken-file = /t\n", 1,
			"does not begin with https://"},
		{"[repository r]\nurl = https://h/r\n", 1, "has no token-file"},
		{"[repository r]\npath = /r\ntoken-file = /t\n", 1, "are for one with a url"},
		{"[allow]\ntarget = /dev/vg\n", 2, "[allow] target"},
		{"[hub]\nurl = https://h\n", 2, "url and token-file go together"},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		struct err err = ERR_INIT;
		struct heard heard = {0};
		struct node_config *config = load(cases[i].text, &heard, &err);
		if (config || heard.line != cases[i].line || !strstr(heard.text, cases[i].why))
			fail_msg("%s: line %u, %s", cases[i].text, heard.line, heard.text);
		assert_int_equal(err.code, ERR_USAGE);
		support_bad_input("node's settings", &err);
	}
}

static void test_taken(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct heard heard = {0};
	struct node_config *c =
		load("[node]\nname = n1\n[limits]\njobs = 1\n"
		     "[vcenter a]\nurl = vmware://u@h\npassword-file = /p\n"
		     "[vcenter b]\nurl = vmware://v@[::1]:8989\npassword-file = /q\n"
		     "ca-file = /c\ndiscover-every = 1h\n"
		     "[repository main]\npath = /srv/r\n"
		     "[repository far]\nurl = https://hub/far\ntoken-file = /t\n"
		     "[hub]\nurl = https://hub\ntoken-file = /t\n",
			&heard, &err);
	if (!c)
		fail_msg("%s", err.text);
	assert_string_equal(c->name, "n1");
	assert_string_equal(c->state_dir, "/var/lib/sendense/node");
	assert_int_equal(c->listen.port, 8081);
	assert_true(c->listen.loopback);
	assert_int_equal(c->nr_vcenters, 2);
	assert_string_equal(c->vcenters[0].access.name, "a");
	assert_int_equal(c->vcenters[0].discover_every_s, 300);
	assert_string_equal(c->vcenters[1].access.ca_file, "/c");
	assert_int_equal(c->vcenters[1].discover_every_s, 3600);
	assert_null(c->repositories[0].url);
	assert_string_equal(c->repositories[1].url, "https://hub/far");
	assert_int_equal(c->most_jobs_per_vcenter, 1);
	assert_string_equal(c->hub_url, "https://hub");
	node_config_free(c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {SUPPORT_TEST(test_refused), SUPPORT_TEST(test_taken)};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
