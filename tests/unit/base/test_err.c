/* Errors: the texts that people read, codes and errnos, and what does not fit. */
#include "test_support.h"

#include <errno.h>
#include <string.h>

static void test_text_grows_on_the_way_up(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	assert_int_equal(err_set(&err, ERR_FORMAT, "cluster_bits is %d", 40), -1);
	assert_int_equal(err_context(&err, "cannot open %s", "a.qcow2"), -1);
	assert_int_equal(err_hint(&err, "is it a QCOW2 file?"), -1);
	assert_string_equal(
		err.text, "cannot open a.qcow2: cluster_bits is 40 (is it a QCOW2 file?)");
	assert_int_equal(err.code, ERR_FORMAT);
	assert_int_equal(err.sys_errno, 0);
	err_clear(&err);
	assert_int_equal(err.code, ERR_NONE);
	assert_string_equal(err.text, "");
}

static void test_errno(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	assert_int_equal(err_errno(&err, ENOSPC, "cannot write %s", "x"), -1);
	assert_string_equal(err.text, "cannot write x: No space left on device");
	assert_int_equal(err.code, ERR_NO_SPACE);
	assert_int_equal(err_to_errno(&err), ENOSPC);
	/* A code set by hand forgets the errno of an older error. */
	err_set(&err, ERR_DENIED, "no");
	assert_int_equal(err_to_errno(&err), EPERM);
	assert_int_equal(err_to_errno(NULL), EIO);
}

static void test_every_code_has_a_name_and_an_errno(void **state)
{
	(void)state;
	for (int code = ERR_NONE; code <= ERR_NO_MEMORY; code++) {
		struct err err = {.code = (enum err_code)code};
		assert_true((err_to_errno(&err) == 0) == (code == ERR_NONE));
		assert_int_equal(err_code_parse(err_code_name(err.code), ERR_IO),
			code == ERR_NONE ? ERR_IO : code);
		for (int other = ERR_NONE; other < code; other++)
			assert_string_not_equal(err_code_name((enum err_code)code),
				err_code_name((enum err_code)other));
	}
	assert_int_equal(err_code_parse("nonsense", ERR_BUSY), ERR_BUSY);
	assert_int_equal(err_code_parse(NULL, ERR_BUSY), ERR_BUSY);
	const struct {
		int errnum;
		enum err_code code;
	} rows[] = {{0, ERR_NONE}, {EDQUOT, ERR_NO_SPACE}, {ENOENT, ERR_NOT_FOUND},
		{EROFS, ERR_DENIED}, {EIO, ERR_IO}, {ESTALE, ERR_IO}, {ETIMEDOUT, ERR_TIMEOUT},
		{EPIPE, ERR_DISCONNECTED}, {ENOMEM, ERR_NO_MEMORY}};
	for (size_t i = 0; i < ARRAY_LENGTH(rows); i++)
		assert_int_equal(err_code_from_errno(rows[i].errnum), rows[i].code);
}

static void test_null_is_harmless(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	assert_int_equal(err_set(NULL, ERR_IO, "x"), -1);
	assert_int_equal(err_errno(NULL, EIO, "x"), -1);
	assert_int_equal(err_context(NULL, "x"), -1);
	assert_int_equal(err_hint(NULL, "x"), -1);
	assert_int_equal(err_copy(NULL, &err), -1);
	assert_int_equal(err_copy(&err, NULL), -1);
	err_clear(NULL);
}

static void test_long_texts_are_cut(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	char name[3 * ERR_TEXT_BYTES];
	memset(name, 'n', sizeof name - 1);
	name[sizeof name - 1] = '\0';
	err_errno(&err, EIO, "%s", name);
	assert_int_equal(strlen(err.text), ERR_TEXT_BYTES - 1);
	err_context(&err, "%s", name);
	err_hint(&err, "%s", name);
	assert_int_equal(strlen(err.text), ERR_TEXT_BYTES - 1);
	err_context(&err, "short");
	assert_memory_equal(err.text, "short: nnn", 10);
	/* Wherever in a character it is cut, it stays UTF-8, which JSON takes. */
	for (size_t first = 0; first < 3; first++) {
		size_t used = 0;
		for (; used < first; used++)
			name[used] = 'n';
		for (; used + 4 < sizeof name; used += 3)
			memcpy(name + used, "\xe2\x82\xac", 3);
		name[used] = '\0';
		err_set(&err, ERR_IO, "%s", name);
		assert_in_range(strlen(err.text), ERR_TEXT_BYTES - 3, ERR_TEXT_BYTES - 1);
		for (const char *at = err.text; *at; at += utf8_step((const uint8_t *)at))
			assert_true(utf8_step((const uint8_t *)at) > 0);
		err_set(&err, ERR_IO, "%.200s: x", name);
		assert_non_null(strstr(err.text, ": x"));
		for (const char *at = err.text; *at; at += utf8_step((const uint8_t *)at))
			assert_true(utf8_step((const uint8_t *)at) > 0);
	}
}

static void test_copy(void **state)
{
	(void)state;
	struct err a = ERR_INIT, b = ERR_INIT;
	err_errno(&a, ENOENT, "x");
	assert_int_equal(err_copy(&b, &a), -1);
	assert_int_equal(b.code, ERR_NOT_FOUND);
	assert_int_equal(b.sys_errno, ENOENT);
	assert_string_equal(b.text, a.text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_text_grows_on_the_way_up),
		cmocka_unit_test(test_errno),
		cmocka_unit_test(test_every_code_has_a_name_and_an_errno),
		cmocka_unit_test(test_null_is_harmless),
		cmocka_unit_test(test_long_texts_are_cut),
		cmocka_unit_test(test_copy),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
