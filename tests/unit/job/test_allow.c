/* Allow lists: what gets by must be below what a rule says, however it is written. */
#include "test_support.h"

#include "allow.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

/* 0 or the code; one rule. */
static enum err_code ask(const char *rule, enum allow_use use, const char *name)
{
	const char *const rules[] = {rule, NULL};
	char checked[ALLOW_NAME_BYTES];
	struct err err = ERR_INIT;
	return allow_check(rules, use, name, checked, &err) == 0 ? ERR_NONE : err.code;
}

static void test_net(void **state)
{
	(void)state;
	static const struct {
		const char *rule, *name;
		enum err_code code;
	} cases[] = {
		{"nbd://host:10809/", "nbd://host/x", ERR_NONE},
		{"nbd://host:10809/", "nbd://HOST:10809/x", ERR_NONE},
		{"nbd://host", "nbd://host/a/b", ERR_NONE},
		{"nbd://host", "nbd://host", ERR_NONE},
		{"nbd://host/", "nbd://host.evil/", ERR_DENIED},
		{"nbd://host/", "nbd://evilhost/", ERR_DENIED},
		{"nbd://host/", "nbd://host:10810/x", ERR_DENIED},
		{"nbd://host:*/", "nbd://host:10810/x", ERR_NONE},
		{"nbd://host/", "nbd://host:*/x", ERR_USAGE},
		{"nbd://host/", "nbd://host:0/x", ERR_USAGE},
		{"nbd://host/", "nbd://host:65536/x", ERR_USAGE},
		{"nbd://host/", "nbd://host:99999999999/x", ERR_USAGE},
		{"nbd://host/", "nbd://host:/x", ERR_USAGE},
		{"nbd://host/", "nbd://host@evil/x", ERR_USAGE},
		{"nbd://host/", "nbd://host:10809@evil/x", ERR_USAGE},
		{"nbd://host/", "nbd://user:secret@host/x", ERR_USAGE},
		{"nbd://host/", "nbd:///x", ERR_USAGE},
		{"nbd://host/", "nbd://host%2eevil/x", ERR_USAGE},
		{"nbd://host/", "nbd://host\\.evil/x", ERR_USAGE},
		{"nbd://host/", "nbd://host /x", ERR_USAGE},
		{"nbd://host/", "nbds://host/x", ERR_DENIED},
		{"nbds://host/", "nbd://host/x", ERR_DENIED},
		{"nbd://host/", "NBD://host/x", ERR_USAGE},
		{"nbd://[::1]/", "nbd://[0:0::1]:10809/x", ERR_NONE},
		{"nbd://[::1]/", "nbd://[::2]/x", ERR_DENIED},
		{"nbd://[::1]/", "nbd://[localhost]/x", ERR_USAGE},
		{"nbd://[::1]/", "nbd://[::1]evil/x", ERR_USAGE},
		{"nbd://[::1]/", "nbd://[::1/x", ERR_USAGE},
		{"nbd://127.0.0.1/", "nbd://127.1/x", ERR_DENIED},
		{"nbd://host/vm", "nbd://host/vm", ERR_NONE},
		{"nbd://host/vm", "nbd://host/vm/d0", ERR_NONE},
		{"nbd://host/vm", "nbd://host/vmx", ERR_DENIED},
		{"nbd://host/vm/", "nbd://host/vm/d0", ERR_NONE},
		{"nbd://host/vm/", "nbd://host/vm", ERR_DENIED},
		{"nbd://host/vm-*", "nbd://host/vm-7", ERR_NONE},
		{"nbd://host/vm-*", "nbd://host/vn-7", ERR_DENIED},
		{"nbd://host/vm", "nbd://host/%76%6d", ERR_NONE},
		{"nbd://host/vm/", "nbd://host/vm/../other", ERR_USAGE},
		{"nbd://host/vm/", "nbd://host/vm/%2e%2e/other", ERR_USAGE},
		{"nbd://host/vm/", "nbd://host/vm/%2e./other", ERR_USAGE},
		{"nbd://host/", "nbd://host/a%00b", ERR_USAGE},
		{"nbd://host/", "nbd://host/a%0ab", ERR_USAGE},
		{"nbd://host/", "nbd://host/a%zz", ERR_USAGE},
		{"nbd://host/", "nbd://host/x?tls-psk-file=/etc/shadow", ERR_USAGE},
		{"nbd://host/", "nbd://host/x#y", ERR_USAGE},
		{"nbd://host/", "nbd://host?socket=/run/x", ERR_USAGE},
		{"nbd://host/", "raw:/etc/passwd", ERR_DENIED},
		{"nbd://host/", "json:{}", ERR_USAGE},
		{"nbd://host/", "", ERR_USAGE},
		{"null:", "null:1G", ERR_NONE},
		{"nbd://host/", "null:1G", ERR_DENIED},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++)
		if (ask(cases[i].rule, ALLOW_SOURCE, cases[i].name) != cases[i].code)
			fail_msg("%s of %s: %s", cases[i].name, cases[i].rule,
				err_code_name(ask(cases[i].rule, ALLOW_SOURCE, cases[i].name)));
}

static void test_webhooks(void **state)
{
	(void)state;
	assert_int_equal(ask("https://h.example/in/", ALLOW_WEBHOOK, "https://h.example/in/a"), 0);
	assert_int_equal(
		ask("https://h.example/in/", ALLOW_WEBHOOK, "https://h.example:443/in/a"), 0);
	assert_int_equal(
		ask("https://h.example/in/", ALLOW_WEBHOOK, "http://h.example/in/a"), ERR_DENIED);
	assert_int_equal(ask("https://h.example/in/", ALLOW_WEBHOOK, "https://h.example/in/../out"),
		ERR_USAGE);
	assert_int_equal(ask("https://h.example/in/", ALLOW_WEBHOOK, "https://h.example.evil/in/"),
		ERR_DENIED);
	/* Each list has schemes of its own. */
	assert_int_equal(ask("nbd://h/", ALLOW_WEBHOOK, "nbd://h/x"), ERR_USAGE);
	assert_int_equal(ask("https://h/", ALLOW_SOURCE, "https://h/x"), ERR_USAGE);
	assert_int_equal(ask("qemu:/run/", ALLOW_TARGET, "qemu:/run/x"), ERR_USAGE);
	/* Machines of vCenters are no disks that a rule could allow: see jobplan_vmware. */
	assert_int_equal(ask("vmware://u@h/", ALLOW_SOURCE, "vmware://u@h/x"), ERR_USAGE);
}

static void test_rules(void **state)
{
	(void)state;
	static const struct {
		const char *rule;
		enum allow_use use;
		bool good;
	} cases[] = {
		{"nbd://host:10809/vm-*", ALLOW_SOURCE, true},
		{"nbds://host:*/", ALLOW_TARGET, true},
		{"raw:/srv/vm/", ALLOW_SOURCE, true},
		{"raw:srv", ALLOW_SOURCE, false},
		{"raw:/srv/../etc/", ALLOW_SOURCE, false},
		{"/srv", ALLOW_SOURCE, false},
		{"nbd+unix:/run/nbd/", ALLOW_SOURCE, true},
		{"nbd+unix:///x?socket=/run/x", ALLOW_SOURCE, false},
		{"extents:/srv/lists/", ALLOW_TARGET, false},
		{"null:", ALLOW_SOURCE, true},
		{"null:1G", ALLOW_SOURCE, false},
		{"*", ALLOW_SOURCE, false},
		{"https://h.example/", ALLOW_WEBHOOK, true},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		struct err err = ERR_INIT;
		int rc = allow_check_rule(cases[i].rule, cases[i].use, &err);
		if ((rc == 0) != cases[i].good)
			fail_msg("%s: %d %s", cases[i].rule, rc, err.text);
	}
	/* Nothing is allowed where there is no list. */
	struct err err = ERR_INIT;
	assert_int_equal(allow_check(NULL, ALLOW_SOURCE, "null:1G", NULL, &err), -1);
	assert_int_equal(err.code, ERR_DENIED);
	assert_non_null(strstr(err.text, "[allow] source"));
	/* A broken rule is no open door. */
	assert_int_equal(ask("raw:srv", ALLOW_SOURCE, "raw:/etc/passwd"), ERR_USAGE);
}

/* --- local ------------------------------------------------------------------------------- */

static char top[64];

static char *at(const char *name)
{
	static char texts[8][256];
	static unsigned next;
	char *out = texts[next++ % 8];
	snprintf(out, 256, "%s/%s", top, name);
	return out;
}

static void make_file(const char *name)
{
	int fd = open(at(name), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	close(fd);
}

static int set_up(void **state)
{
	(void)state;
	snprintf(top, sizeof top, "/tmp/allow-XXXXXX");
	if (!mkdtemp(top))
		return -1;
	assert_int_equal(mkdir(at("vm"), 0700), 0);
	assert_int_equal(mkdir(at("vm/sub"), 0700), 0);
	assert_int_equal(mkdir(at("repo"), 0700), 0);
	make_file("vm/a.raw");
	make_file("vm/sub/b.raw");
	make_file("secret");
	make_file("repo/repository.json");
	assert_int_equal(symlink("sub/b.raw", at("vm/inner")), 0);
	assert_int_equal(symlink("../secret", at("vm/outer")), 0);
	assert_int_equal(symlink(at("secret"), at("vm/absolute")), 0);
	assert_int_equal(symlink("..", at("vm/up")), 0);
	assert_int_equal(symlink("nowhere", at("vm/dangling")), 0);
	assert_int_equal(symlink("/proc/self/root", at("vm/magic")), 0);
	assert_int_equal(symlink("vm", at("alias")), 0);
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	char command[128];
	snprintf(command, sizeof command, "rm -rf %s", top);
	return system(command);
}

/* With the rule SCHEME:TOP/vm/, SCHEME:TOP/NAME: the code, and what comes out. */
static enum err_code look(const char *scheme, enum allow_use use, const char *name, char *out)
{
	char rule[128], whole[512], checked[ALLOW_NAME_BYTES] = "";
	snprintf(rule, sizeof rule, "%s:%s/vm/", scheme, top);
	snprintf(whole, sizeof whole, "%s:%s/%s", scheme, top, name);
	const char *const rules[] = {rule, NULL};
	struct err err = ERR_INIT;
	int rc = allow_check(rules, use, whole, checked, &err);
	if (out)
		assert_true(snprintf(out, 512, "%s", checked) < 512);
	return rc == 0 ? ERR_NONE : err.code;
}

static void test_files(void **state)
{
	(void)state;
	static const struct {
		const char *name;
		enum err_code source, target;
	} cases[] = {
		{"vm/a.raw", ERR_NONE, ERR_NONE},
		{"vm//./a.raw", ERR_NONE, ERR_NONE},
		{"vm/sub/b.raw", ERR_NONE, ERR_NONE},
		{"vm/inner", ERR_NONE, ERR_NONE},
		{"vm/new.raw", ERR_NOT_FOUND, ERR_NONE},
		{"vm/sub/new.raw", ERR_NOT_FOUND, ERR_NONE},
		{"vm/nofolder/new.raw", ERR_NOT_FOUND, ERR_NOT_FOUND},
		{"vm/outer", ERR_DENIED, ERR_DENIED},
		{"vm/absolute", ERR_DENIED, ERR_DENIED},
		{"vm/up/secret", ERR_DENIED, ERR_DENIED},
		{"vm/up/new", ERR_DENIED, ERR_DENIED},
		{"vm/magic/etc/passwd", ERR_DENIED, ERR_DENIED},
		{"vm/dangling", ERR_NOT_FOUND, ERR_DENIED},
		{"vm/../secret", ERR_USAGE, ERR_USAGE},
		{"secret", ERR_DENIED, ERR_DENIED},
		{"vmx", ERR_DENIED, ERR_DENIED},
		{"alias/a.raw", ERR_DENIED, ERR_DENIED},
		{"repo/repository.json", ERR_DENIED, ERR_DENIED},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		enum err_code source = look("raw", ALLOW_SOURCE, cases[i].name, NULL);
		enum err_code target = look("raw", ALLOW_TARGET, cases[i].name, NULL);
		if (source != cases[i].source || target != cases[i].target)
			fail_msg("%s: %s, %s", cases[i].name, err_code_name(source),
				err_code_name(target));
	}
}

static void test_what_comes_out(void **state)
{
	(void)state;
	char out[512], wanted[512];
	assert_int_equal(look("raw", ALLOW_SOURCE, "vm/inner", out), ERR_NONE);
	snprintf(wanted, sizeof wanted, "raw:%s/vm/sub/b.raw", top);
	assert_string_equal(out, wanted);
	assert_int_equal(look("qcow2", ALLOW_TARGET, "vm/./new.qcow2", out), ERR_NONE);
	snprintf(wanted, sizeof wanted, "qcow2:%s/vm/new.qcow2", top);
	assert_string_equal(out, wanted);
}

static void test_repositories(void **state)
{
	(void)state;
	char rule[128], name[512];
	snprintf(rule, sizeof rule, "raw:%s/", top);
	snprintf(name, sizeof name, "raw:%s/secret", top);
	assert_int_equal(ask(rule, ALLOW_SOURCE, name), ERR_NONE);
	snprintf(name, sizeof name, "raw:%s/repo/repository.json", top);
	assert_int_equal(ask(rule, ALLOW_SOURCE, name), ERR_DENIED);
	snprintf(name, sizeof name, "raw:%s/repo/new", top);
	assert_int_equal(ask(rule, ALLOW_TARGET, name), ERR_DENIED);
	/* A rule that names one file, and that alone. */
	snprintf(rule, sizeof rule, "raw:%s/secret", top);
	snprintf(name, sizeof name, "raw:%s/secret", top);
	assert_int_equal(ask(rule, ALLOW_TARGET, name), ERR_NONE);
	snprintf(name, sizeof name, "raw:%s/secret2", top);
	assert_int_equal(ask(rule, ALLOW_TARGET, name), ERR_DENIED);
}

static void test_forbidden(void **state)
{
	(void)state;
	static const struct {
		const char *forbidden, *name;
		enum err_code code;
	} cases[] = {
		{"vm/sub", "vm/sub/b.raw", ERR_DENIED},
		{"vm/sub/", "vm/sub/b.raw", ERR_DENIED},
		{"vm/sub/b.raw", "vm/sub/b.raw", ERR_DENIED},
		{"vm/sub", "vm/inner", ERR_DENIED},
		{"alias/sub", "vm/sub/b.raw", ERR_DENIED},
		{"vm/sub", "vm/sub/new.raw", ERR_DENIED},
		{"vm/su", "vm/sub/b.raw", ERR_NONE},
		{"vm/sub", "vm/a.raw", ERR_NONE},
		{"none", "vm/a.raw", ERR_NONE},
	};
	struct err err = ERR_INIT;
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		char rule[128], forbidden[128], name[512];
		snprintf(rule, sizeof rule, "raw:%s/", top);
		snprintf(forbidden, sizeof forbidden, "!%s/%s", top, cases[i].forbidden);
		snprintf(name, sizeof name, "raw:%s/%s", top, cases[i].name);
		const char *const rules[] = {rule, forbidden, NULL};
		err_clear(&err);
		allow_check(rules, ALLOW_TARGET, name, NULL, &err);
		if (err.code != cases[i].code)
			fail_msg("%s, %s: %s", cases[i].forbidden, cases[i].name, err.text);
	}
	assert_int_equal(allow_check_rule("!/srv/x", ALLOW_SOURCE, &err), 0);
	assert_int_equal(allow_check_rule("!srv/x", ALLOW_SOURCE, &err), -1);
	assert_int_equal(allow_check_rule("!/srv/x", ALLOW_WEBHOOK, &err), -1);
}

/* What is open, by what it leads to now. */
static enum err_code look_opened(const char *rule, const char *name, int flags, const char *above)
{
	char source[128], target[128], forbidden[128], own[128], folder[300];
	snprintf(source, sizeof source, "%s%s",
		rule[0] ? "raw:" : "qcow2:", at(rule[0] ? rule : "vm/a.raw"));
	snprintf(target, sizeof target, "raw:%s", at("vm/sub/"));
	snprintf(forbidden, sizeof forbidden, "!%s", at("secret"));
	snprintf(own, sizeof own, "%s", at("repo"));
	const char *const sources[] = {forbidden, source, NULL}, *const targets[] = {target, NULL};
	const struct allow_job job = {sources, targets, own};
	struct err err = ERR_INIT;
	int AUTO_CLOSE fd = flags < 0 ? -1 : open(at(name), flags | O_CLOEXEC);
	assert_true(flags < 0 || fd >= 0);
	if (above)
		snprintf(folder, sizeof folder, "%s", at(above));
	int rc = allow_opened(&job, fd, at(name), above ? folder : NULL, &err);
	return rc == 0 ? ERR_NONE : err.code;
}

static void test_opened(void **state)
{
	(void)state;
	static const struct {
		const char *rule, *name;
		int flags; /* -1: not open */
		const char *above;
		enum err_code code;
	} cases[] = {
		{"vm/", "vm/a.raw", O_RDONLY, NULL, ERR_NONE},
		{"vm/", "vm/inner", O_RDONLY, NULL, ERR_NONE},
		{"alias/", "vm/a.raw", O_RDONLY, NULL, ERR_NONE},
		/* Beneath a rule for sources alone nothing is written. */
		{"vm/", "vm/a.raw", O_RDWR, NULL, ERR_DENIED},
		{"vm/", "vm/inner", O_RDWR, NULL, ERR_NONE},
		{"vm/sub/", "vm/a.raw", O_RDONLY, NULL, ERR_DENIED},
		/* It was a file when it was looked at. */
		{"", "vm/outer", O_RDONLY, NULL, ERR_DENIED},
		{"vm/", "vm/absolute", O_RDWR, NULL, ERR_DENIED},
		/* An image that a rule names stands on what lies beside it. */
		{"", "vm/a.raw", O_RDONLY, NULL, ERR_NONE},
		{"", "vm/sub/b.raw", -1, "vm/a.raw", ERR_NONE},
		{"", "secret", -1, "vm/a.raw", ERR_DENIED},
		/* The job's own repository is no disk from outside, but nobody's else's. */
		{"vm/", "repo/repository.json", O_RDWR, NULL, ERR_NONE},
		{"vm/", "repo/repository.json", -1, "repo/x.qcow2", ERR_NONE},
		{"./", "repo/repository.json", -1, "vm/a.raw", ERR_DENIED},
		{"./", "secret", O_RDONLY, NULL, ERR_DENIED},
		{"./", "alias/a.raw", O_RDONLY, NULL, ERR_NONE},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		enum err_code code =
			look_opened(cases[i].rule, cases[i].name, cases[i].flags, cases[i].above);
		if (code != cases[i].code)
			fail_msg("%zu, %s: %s", i, cases[i].name, err_code_name(code));
	}
}

static void test_sockets(void **state)
{
	(void)state;
	char out[512], name[512], rule[128], checked[ALLOW_NAME_BYTES], wanted[512];
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	snprintf(address.sun_path, sizeof address.sun_path, "%.60s/vm/q mp.sock", top);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
	assert_int_equal(look("qemu", ALLOW_SOURCE, "vm/q mp.sock", out), ERR_NONE);
	assert_int_equal(look("qemu", ALLOW_SOURCE, "vm/q mp.sock/disk1", out), ERR_NONE);
	snprintf(wanted, sizeof wanted, "qemu:%s/vm/q mp.sock/disk1", top);
	assert_string_equal(out, wanted);
	assert_int_equal(look("qemu", ALLOW_SOURCE, "vm/a.raw/disk1", out), ERR_IO);
	assert_int_equal(look("qemu", ALLOW_SOURCE, "vm/none.sock", out), ERR_NOT_FOUND);
	snprintf(rule, sizeof rule, "nbd+unix:%s/vm/", top);
	const char *const rules[] = {rule, NULL};
	snprintf(name, sizeof name, "nbd+unix:///d0?socket=%s/vm/q%%20mp.sock", top);
	struct err err = ERR_INIT;
	assert_int_equal(allow_check(rules, ALLOW_SOURCE, name, checked, &err), 0);
	assert_string_equal(checked, name);
	snprintf(name, sizeof name, "nbd+unix:///d0?socket=%s/vm/..%%2fsecret", top);
	assert_int_equal(ask(rule, ALLOW_SOURCE, name), ERR_USAGE);
	snprintf(name, sizeof name, "nbd+unix:///d0?socket=%s/secret", top);
	assert_int_equal(ask(rule, ALLOW_SOURCE, name), ERR_DENIED);
	snprintf(name, sizeof name, "nbd+unix:///d0?socket=%s/vm/a&tls-psk-file=/x", top);
	assert_int_equal(ask(rule, ALLOW_SOURCE, name), ERR_USAGE);
	close(fd);
}

static void test_hosts(void **state)
{
	(void)state;
	char host[256];
	allow_host("nbd://a.example:1/x", host);
	assert_string_equal(host, "a.example");
	allow_host("nbds://[::1]/x", host);
	assert_string_equal(host, "::1");
	allow_host("raw:/x", host);
	assert_string_equal(host, "");
	allow_host("nonsense", host);
	assert_string_equal(host, "");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_net),
		cmocka_unit_test(test_webhooks),
		cmocka_unit_test(test_rules),
		cmocka_unit_test(test_files),
		cmocka_unit_test(test_what_comes_out),
		cmocka_unit_test(test_repositories),
		cmocka_unit_test(test_forbidden),
		cmocka_unit_test(test_opened),
		cmocka_unit_test(test_sockets),
		cmocka_unit_test(test_hosts),
	};
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
