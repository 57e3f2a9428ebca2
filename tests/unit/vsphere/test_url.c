/* vmware:// URLs, and change ids. */
#include "vsphere.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static void takes(
	const char *text, const char *user, const char *host, unsigned port, const char *path)
{
	struct vsphere_url url;
	struct err err = ERR_INIT;
	if (vsphere_url_parse(text, &url, &err))
		fail_msg("%s", err.text);
	assert_string_equal(url.user, user);
	assert_string_equal(url.host, host);
	assert_int_equal(url.port, port);
	assert_string_equal(url.path, path);
	vsphere_url_free(&url);
	vsphere_url_free(&url);
}

static void refuses(const char *text, const char *why)
{
	struct vsphere_url url;
	struct err err = ERR_INIT;
	assert_int_equal(vsphere_url_parse(text, &url, &err), -1);
	assert_int_equal(err.code, ERR_USAGE);
	if (!strstr(err.text, why))
		fail_msg("%s: %s", text, err.text);
	assert_null(strstr(err.text, "secret"));
}

static void test_parts_of_a_url(void **state)
{
	(void)state;
	takes("vmware://root@esx1", "root", "esx1", 443, "");
	takes("vmware://root@esx1/", "root", "esx1", 443, "/");
	takes("vmware://administrator@vsphere.local@vc.example:8443/DC/vm/web%2001",
		"administrator@vsphere.local", "vc.example", 8443, "/DC/vm/web 01");
	takes("vmware://a%40b@h/x@y", "a@b", "h", 443, "/x@y");
	takes("vmware://DOMAIN%5cjoe@h/a%252fb", "DOMAIN\\joe", "h", 443, "/a%2fb");
	takes("vmware://u@[fd00::1]/x", "u", "fd00::1", 443, "/x");
	takes("vmware://u@[fd00::1]:1/x", "u", "fd00::1", 1, "/x");
}

static void test_what_is_no_url(void **state)
{
	(void)state;
	refuses("https://u@h", "not a URL");
	refuses("vmware://host/path", "no user");
	refuses("vmware://@host", "no user");
	refuses("vmware://u:secret@host/x", "password");
	refuses("vmware://u@/x", "no server");
	refuses("vmware://u@h:/x", "port");
	refuses("vmware://u@h:0", "port");
	refuses("vmware://u@h:65536", "port");
	refuses("vmware://u@h:44x", "port");
	refuses("vmware://u@h:99999999999999999999", "port");
	refuses("vmware://u@[fd00::1", "']'");
	refuses("vmware://u@[]/x", "no server");
	refuses("vmware://u@[fd00::1]x/", "port");
	refuses("vmware://u@h/a%0ab", "path");
	refuses("vmware://u@h/a%0", "path");
	refuses("vmware://u@h/a%", "path");
	refuses("vmware://u@h/%00", "path");
	refuses("vmware://u%zz@h", "user");
}

static void test_epochs(void **state)
{
	(void)state;
	static const char id[] = "52 de ad be ef 00 11 22-33 44 55 66 77 88 99 aa/1";
	assert_true(vsphere_same_epoch(id, id));
	assert_true(vsphere_same_epoch(id, "52 de ad be ef 00 11 22-33 44 55 66 77 88 99 aa/239"));
	assert_false(vsphere_same_epoch(id, "53 de ad be ef 00 11 22-33 44 55 66 77 88 99 aa/1"));
	assert_false(vsphere_same_epoch(id, "52 de ad be ef 00 11 22-33 44 55 66 77 88 99 aa"));
	assert_false(vsphere_same_epoch(id, "52 de ad be ef 00 11 22-33 44 55 66 77 88 99 aa/"));
	assert_false(vsphere_same_epoch("a/1", "a/1/2"));
	assert_false(vsphere_same_epoch("", ""));
	assert_false(vsphere_same_epoch("*", "*"));
	assert_false(vsphere_same_epoch("/1", "/2"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_parts_of_a_url),
		cmocka_unit_test(test_what_is_no_url),
		cmocka_unit_test(test_epochs),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
