/* Names: what is accepted, and how it stands on disk. */
#include "test_support.h"

static void test_vm_names(void **state)
{
	(void)state;
	static const char *const good[] = {"web01", ".", "..", "/", "../../etc", "a b", "\xc3\xa9",
		"\xf0\x9f\x98\x80", "100%", "a@b"};
	for (unsigned i = 0; i < ARRAY_LENGTH(good); i++)
		assert_int_equal(repository_name_check_vm(good[i], NULL), 0);
	static const char *const bad[] = {"", "a\nb", "a\tb", "\x7f", "\xc2\x85", "\xff", "\xc3",
		"\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe0\x80\x80"};
	for (unsigned i = 0; i < ARRAY_LENGTH(bad); i++)
		assert_int_equal(repository_name_check_vm(bad[i], NULL), -1);

	struct err err = ERR_INIT;
	repository_name_check_vm("web\n01", &err);
	support_expect(&err, ERR_USAGE, "byte 4 is 0x0a");
	support_bad_input("VM name with a newline", &err);
	char longest[301];
	memset(longest, 'x', 300);
	longest[300] = '\0';
	repository_name_check_vm(longest, &err);
	support_expect(&err, ERR_USAGE, "300 bytes is too long (at most 255)");
	support_bad_input("VM name of 300 bytes", &err);
	longest[255] = '\0';
	assert_int_equal(repository_name_check_vm(longest, NULL), 0);
}

static void test_keys(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	assert_int_equal(repository_name_check_key("2000", NULL), 0);
	assert_int_equal(repository_name_check_key("a-B_9", NULL), 0);
	assert_int_equal(repository_name_check_key("", NULL), -1);
	assert_int_equal(repository_name_check_key("..", NULL), -1);
	assert_int_equal(repository_name_check_key("a/b", &err), -1);
	support_expect(&err, ERR_USAGE, "\"a/b\" is refused");
	support_bad_input("disk key with a slash", &err);
	char key[66];
	memset(key, 'k', 65);
	key[65] = '\0';
	assert_int_equal(repository_name_check_key(key, NULL), -1);
	key[64] = '\0';
	assert_int_equal(repository_name_check_key(key, NULL), 0);
}

static void test_split(void **state)
{
	(void)state;
	char vm[REPOSITORY_VM_BYTES], point[REPOSITORY_POINT_BYTES];
	struct {
		const char *text, *vm, *point;
	} const cases[] = {
		{"web01", "web01", ""},
		{"web01@20261121T200000Z-7f3a9c", "web01", "20261121T200000Z-7f3a9c"},
		{"a@b@20261121T200000Z-7f3a9c", "a@b", "20261121T200000Z-7f3a9c"},
		{"a@b", "a@b", ""},
		{"a@20261121T200000Z-7F3A9C", "a@20261121T200000Z-7F3A9C", ""},
		{"a@20261121T200000Z-7f3a9c0", "a@20261121T200000Z-7f3a9c0", ""},
	};
	for (unsigned i = 0; i < ARRAY_LENGTH(cases); i++) {
		assert_int_equal(repository_name_split(cases[i].text, vm, point, NULL), 0);
		assert_string_equal(vm, cases[i].vm);
		assert_string_equal(point, cases[i].point);
	}
	assert_int_equal(repository_name_split("@20261121T200000Z-7f3a9c", vm, point, NULL), -1);
}

static void test_folders(void **state)
{
	(void)state;
	char folder[REPOSITORY_FOLDER_BYTES], vm[REPOSITORY_VM_BYTES], name[256];
	struct {
		const char *vm, *folder;
	} const cases[] = {{"web01", "web01"}, {"web-01_a.b", "web-01_a.b"}, {".", "%2E"},
		{"..", "%2E."}, {"a/b", "a%2Fb"}, {"../x", "%2E.%2Fx"}, {"100%", "100%25"},
		{"\xc3\xa9", "%C3%A9"}, {"a~b", "a%7Eb"}};
	for (unsigned i = 0; i < ARRAY_LENGTH(cases); i++) {
		repository_name_folder(cases[i].vm, folder);
		assert_string_equal(folder, cases[i].folder);
		assert_true(name_unfolder(folder, vm));
		assert_string_equal(vm, cases[i].vm);
	}
	/* Long names are cut, whole escapes only, and differ by their hash. */
	char other[REPOSITORY_FOLDER_BYTES];
	memset(name, '/', 255);
	name[255] = '\0';
	repository_name_folder(name, folder);
	assert_int_equal(strlen(folder), 120 + 1 + 32);
	name[254] = 'x';
	repository_name_folder(name, other);
	assert_string_not_equal(folder, other);
	assert_false(name_unfolder(folder, vm));
	/* What we never write is nobody's folder. */
	static const char *const foreign[] = {"%2e", "a%", "a%2", "a b", "%41", "\xc3\xa9", "%00"};
	for (unsigned i = 0; i < ARRAY_LENGTH(foreign); i++)
		assert_false(name_unfolder(foreign[i], vm));
}

static void test_ids(void **state)
{
	(void)state;
	char point[REPOSITORY_POINT_BYTES], job[REPOSITORY_JOB_BYTES];
	assert_int_equal(name_make_point(1795291200, point, NULL), 0);
	assert_int_equal(name_make_job(1795291200, job, NULL), 0);
	assert_true(repository_name_is_point(point));
	assert_true(name_is_job(job));
	assert_false(repository_name_is_point(job));
	assert_int_equal(name_seconds(point), 1795291200);
	assert_memory_equal(point, "20261121T200000Z-", 17);
	assert_int_equal(name_seconds_utc("2026-11-21T20:00:00Z"), 1795291200);
	assert_int_equal(name_seconds_utc("yesterday"), 0);
}

static void test_printable(void **state)
{
	(void)state;
	char out[8];
	name_printable("a\nb\xff\x1b[", out, sizeof out);
	assert_string_equal(out, "a?b??[");
	name_printable("123456\xc3\xa9", out, sizeof out);
	assert_string_equal(out, "123456");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_vm_names),
		cmocka_unit_test(test_keys),
		cmocka_unit_test(test_split),
		cmocka_unit_test(test_folders),
		cmocka_unit_test(test_ids),
		cmocka_unit_test(test_printable),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
