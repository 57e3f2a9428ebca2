/* Whether a file is as it was: what shows it, and what does not. */
#include "backup.h"
#include "qcow2.h"

#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[] = "/tmp/sd-state-XXXXXX";

static char *path_of(const char *name)
{
	char *path;
	assert_true(asprintf(&path, "%s/%s", folder, name) > 0);
	return path;
}

static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
	close(fd);
}

/* A file that was just written to shows nothing, but soon does. */
static char *state_of(const char *path, bool is_qcow2)
{
	struct deadline until = deadline_after_ms(30000);
	char *state;
	while (!(state = backup_state_of_file(path, is_qcow2)) && !deadline_passed(until))
		poll(NULL, 0, 2);
	assert_non_null(state);
	return state;
}

static void expect(const char *path, bool is_qcow2, const char *before, bool same)
{
	char *AUTO_FREE now = state_of(path, is_qcow2);
	if (same)
		assert_string_equal(now, before);
	else
		assert_string_not_equal(now, before);
}

static void test_file(void **state)
{
	(void)state;
	char *AUTO_FREE path = path_of("a"), *AUTO_FREE other = path_of("b");
	write_file(path, "one");
	char *AUTO_FREE first = state_of(path, false);
	expect(path, false, first, true);
	/* The same bytes again, and old times put back: it was written to all the same. */
	struct stat st;
	assert_int_equal(stat(path, &st), 0);
	write_file(path, "one");
	struct timespec times[2] = {st.st_atim, st.st_mtim};
	assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
	expect(path, false, first, false);
	/* Another file under the name. */
	char *AUTO_FREE second = state_of(path, false);
	write_file(other, "one");
	assert_int_equal(rename(other, path), 0);
	expect(path, false, second, false);
}

static void test_no_file(void **state)
{
	(void)state;
	char *AUTO_FREE none = path_of("none"), *AUTO_FREE raw = path_of("raw");
	assert_null(backup_state_of_file(none, false));
	assert_null(backup_state_of_file(folder, false));
	assert_null(backup_state_of_file("/dev/zero", false));
	write_file(raw, "no image");
	free(state_of(raw, false));
	assert_null(backup_state_of_file(raw, true));
}

static void make_image(const char *path, const char *backing, const char *format)
{
	struct qcow2_create_options options = {
		.size_bytes = MIB, .backing_file = backing, .backing_format = format};
	assert_int_equal(qcow2_create(path, &options, NULL), 0);
}

static void test_chain(void **state)
{
	(void)state;
	char *AUTO_FREE base = path_of("base.raw"), *AUTO_FREE middle = path_of("middle"),
			*AUTO_FREE top = path_of("top");
	write_file(base, "QFI\xfb is what a guest may write");
	make_image(middle, "base.raw", "raw");
	make_image(top, "middle", "qcow2");
	char *AUTO_FREE first = state_of(top, true);
	expect(top, true, first, true);
	/* Any file of the chain counts. */
	write_file(base, "QFI\xfb is what a guest may write");
	char *AUTO_FREE second = state_of(top, true);
	assert_string_not_equal(first, second);
	assert_int_equal(chmod(middle, 0640), 0);
	expect(top, true, second, false);
	assert_int_equal(unlink(base), 0);
	assert_null(backup_state_of_file(top, true));
}

static int set_up(void **state)
{
	(void)state;
	return mkdtemp(folder) ? 0 : -1;
}

static int tear_down(void **state)
{
	(void)state;
	static const char *const names[] = {"a", "b", "raw", "base.raw", "middle", "top"};
	for (size_t i = 0; i < ARRAY_LENGTH(names); i++) {
		char *AUTO_FREE path = path_of(names[i]);
		unlink(path);
	}
	return rmdir(folder);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_file),
		cmocka_unit_test(test_no_file),
		cmocka_unit_test(test_chain),
	};
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
