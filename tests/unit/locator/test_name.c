/* The written names of disks and sizes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "locator.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

static void names(void **state)
{
	(void)state;
	static const struct {
		const char *name;
		enum locator_kind kind;
		const char *rest, *path;
	} good[] = {
		{"raw:/srv/a.img", LOCATOR_RAW, "/srv/a.img", "/srv/a.img"},
		{"raw:a:b=c", LOCATOR_RAW, "a:b=c", "a:b=c"},
		{"qcow2:x", LOCATOR_QCOW2, "x", "x"},
		{"nbd://host:1/x", LOCATOR_NBD, "nbd://host:1/x", NULL},
		{"nbd+unix:///x?socket=/s", LOCATOR_NBD, "nbd+unix:///x?socket=/s", NULL},
		{"null:1k", LOCATOR_NULL, "1k", NULL},
		{"qemu:/run/vm.qmp", LOCATOR_QEMU, "/run/vm.qmp", NULL},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(good); i++) {
		enum locator_kind kind;
		const char *rest, *path = locator_path(good[i].name);
		assert_int_equal(locator_parse(good[i].name, &kind, &rest, NULL), 0);
		assert_int_equal(kind, good[i].kind);
		assert_string_equal(rest, good[i].rest);
		if (good[i].path)
			assert_string_equal(path, good[i].path);
		else
			assert_null(path);
	}
	static const struct {
		const char *name;
		enum err_code code;
		const char *text; /* NULL: the list of what is known */
	} bad[] = {
		{"", ERR_USAGE, NULL},
		{"raw:", ERR_USAGE, NULL},
		{"/srv/a.img", ERR_USAGE, "write raw:/srv/a.img or qcow2:/srv/a.img"},
		{"raw:-", ERR_USAGE, "raw:./-"},
		{"qcow2:-", ERR_USAGE, "cannot be a pipe"},
		{"RAW:/srv/a.img", ERR_USAGE, NULL},
		{"file:///srv/a.img", ERR_USAGE, NULL},
		{"json:{}", ERR_USAGE, NULL},
		{"nbd:host:1", ERR_USAGE, NULL},
		{"vmware://u@v/vm", ERR_UNSUPPORTED, "sendense backup"},
		{"nbdkit-vddk://u@v/vm", ERR_UNSUPPORTED, "sendense backup"},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(bad); i++) {
		struct err err = ERR_INIT;
		enum locator_kind kind;
		const char *rest;
		assert_int_equal(locator_parse(bad[i].name, &kind, &rest, &err), -1);
		assert_int_equal(err.code, bad[i].code);
		assert_non_null(strstr(err.text, bad[i].text ? bad[i].text : "raw:PATH"));
		assert_null(locator_path(bad[i].name));
	}
}

static void sizes(void **state)
{
	(void)state;
	static const struct {
		const char *text;
		uint64_t bytes;
	} good[] = {
		{"0", 0},
		{"512", 512},
		{"512B", 512},
		{"64k", 64 * KIB},
		{"64KiB", 64 * KIB},
		{"64kb", 64 * KIB},
		{"10GiB", 10 * GIB},
		{"1.5TiB", TIB + TIB / 2},
		{"0.5k", 512},
		{"2.25M", 2 * MIB + MIB / 4},
		{"15E", (uint64_t)15 << 60},
		{"18446744073709551615", UINT64_MAX},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(good); i++) {
		uint64_t bytes;
		assert_int_equal(locator_parse_size(good[i].text, &bytes, NULL), 0);
		assert_int_equal(bytes, good[i].bytes);
	}
	static const char *const bad[] = {"", " 1", "-1", "+1", "1 GiB", "1GG", "1i", "1.", "1.k",
		".5k", "0x10", "1e3", "16E", "18446744073709551616", "15.9999E9"};
	for (size_t i = 0; i < ARRAY_LENGTH(bad); i++) {
		struct err err = ERR_INIT;
		uint64_t bytes;
		if (locator_parse_size(bad[i], &bytes, &err) == 0)
			fail_msg("\"%s\" was taken", bad[i]);
		assert_int_equal(err.code, ERR_USAGE);
	}
}

static void same_disks(void **state)
{
	(void)state;
	char folder[] = "/tmp/locator-XXXXXX", file[64], other[64], linked[64];
	assert_non_null(mkdtemp(folder));
	snprintf(file, sizeof file, "raw:%s/a", folder);
	snprintf(other, sizeof other, "raw:%s/b", folder);
	snprintf(linked, sizeof linked, "qcow2:%s/c", folder);
	close(open(file + 4, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
	close(open(other + 4, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
	assert_int_equal(link(file + 4, linked + 6), 0);
	assert_true(locator_same(file, file));
	assert_true(locator_same(file, linked));
	assert_false(locator_same(file, other));
	unlink(file + 4);
	unlink(other + 4);
	unlink(linked + 6);
	rmdir(folder);
}

static void same_exports(void **state)
{
	(void)state;
	assert_true(locator_same("nbd://a/x", "nbd://a/x"));
	assert_false(locator_same("nbd://a/x", "nbd://a/y"));
	char folder[] = "/tmp/locator-XXXXXX";
	assert_non_null(mkdtemp(folder));
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	char linked[64], a[160], b[160], c[160];
	snprintf(address.sun_path, sizeof address.sun_path, "%s/s", folder);
	snprintf(linked, sizeof linked, "%s/t", folder);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
	assert_int_equal(link(address.sun_path, linked), 0);
	/* One socket under two names; the export's name counts. */
	snprintf(a, sizeof a, "nbd+unix:///x?socket=%s", address.sun_path);
	snprintf(b, sizeof b, "nbd+unix:///x?socket=%s", linked);
	snprintf(c, sizeof c, "nbd+unix:///y?socket=%s", linked);
	assert_true(locator_same(a, b));
	assert_false(locator_same(a, c));
	close(fd);
	unlink(address.sun_path);
	unlink(linked);
	rmdir(folder);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(names),
		cmocka_unit_test(sizes),
		cmocka_unit_test(same_disks),
		cmocka_unit_test(same_exports),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
