/* Whole files: good ones, bad ones, long ones, and ones that change under us. */
#include "test_support.h"

#include <fcntl.h>
#include <sys/stat.h>

#define FIRST \
	"{\"sendense-extents\":1,\"key\":\"2000\",\"size\":1000000,\"from\":\"a\",\"to\":\"b\"}\n"
#define E(offset, length) "{\"offset\":" #offset ",\"length\":" #length "}\n"
#define END(count, bytes) "{\"end\":true,\"count\":" #count ",\"bytes\":" #bytes "}"

static struct changes *open_text(const char *text, struct err *err)
{
	struct list list;
	list_write(&list, text, strlen(text));
	struct changes *changes = changes_open(list.path, NULL, err);
	unlink(list.path);
	return changes;
}

static void check_next(struct changes *c, uint64_t offset, uint64_t start, uint64_t end)
{
	uint64_t got_start, got_end;
	assert_int_equal(changes_next(c, offset, &got_start, &got_end, NULL), 0);
	assert_int_equal(got_start, start);
	assert_int_equal(got_end, end);
}

static void test_good(void **state)
{
	struct err err = ERR_INIT;
	(void)state;
	struct changes *c = open_text(
		FIRST E(0, 512) E(512, 1) E(70000, 30000) E(999999, 1) END(4, 30514) "\n", &err);
	if (!c)
		fail_msg("%s", err.text);
	const struct changes_facts *facts = changes_facts(c);
	assert_string_equal(facts->key, "2000");
	assert_string_equal(facts->from, "a");
	assert_string_equal(facts->to, "b");
	assert_int_equal(facts->size_bytes, 1000000);
	assert_int_equal(facts->count, 4);
	assert_int_equal(facts->bytes, 30514);
	check_next(c, 0, 0, 512);
	check_next(c, 999999, 999999, 1000000);
	check_next(c, 512, 512, 513);
	check_next(c, 513, 70000, 100000);
	check_next(c, 99999, 70000, 100000);
	check_next(c, 100000, 999999, 1000000);
	changes_close(c);
}

/* The last line's end may be missing: what it says is whole. */
static void test_nothing_changed(void **state)
{
	(void)state;
	struct changes *c = open_text(FIRST END(0, 0), NULL);
	assert_non_null(c);
	check_next(c, 0, 1000000, 1000000);
	changes_close(c);
	changes_close(NULL);
}

static void test_bad(void **state)
{
	static const struct {
		const char *text, *words;
	} cases[] = {
		{"", "without an end line"},
		{"\n", "line 1: is not a JSON object"},
		{E(0, 1), "line 1: is not the first line"},
		{FIRST, "behind line 1 without an end line: it was cut off"},
		{FIRST E(0, 1) E(5, 1), "behind line 3 without an end line"},
		{FIRST E(0, 1) "{\"offset\":70", "line 3: is cut off"},
		{FIRST E(0, 1) "{\"end\":true,\"count\":1,\"by", "line 3: is cut off"},
		{FIRST E(0, 2) E(1, 2) END(2, 4),
			"line 3: begins at offset 1, before the end of the "
			"extent before it, 2"},
		{FIRST E(10, 2) E(1, 2) END(2, 4), "line 3: begins at offset 1"},
		{FIRST E(0, 1000001) END(1, 1000001), "line 2: leads past the end"},
		{FIRST E(1000000, 1) END(1, 1), "line 2: leads past the end"},
		{FIRST E(9223372036854775807, 9223372036854775807) END(1, 1), "line 2: leads past"},
		{FIRST E(5, 0) END(1, 0), "line 2: has a length of 0"},
		{FIRST E(0, 1) END(2, 1),
			"line 3: tells of 2 extents with 1 bytes, and there are 1"},
		{FIRST E(0, 1) END(1, 2), "line 3: tells of 1 extents with 2 bytes"},
		{FIRST END(0, 0) "\n" E(0, 1), "line 3: stands behind the end line"},
		{FIRST END(0, 0) "\n\n", "line 3: stands behind the end line"},
		{FIRST FIRST END(0, 0), "line 2: needs \"offset\""},
		{FIRST "\n" END(0, 0), "line 2: is not a JSON object"},
		{FIRST "{\"offset\":-1,\"length\":1}\n" END(0, 0), "line 2: needs \"offset\""},
	};
	(void)state;
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		struct err err = ERR_INIT;
		if (open_text(cases[i].text, &err))
			fail_msg("%s", cases[i].text);
		assert_int_equal(err.code, ERR_FORMAT);
		assert_non_null(strstr(err.text, "cannot use the extents file /tmp/"));
		if (!strstr(err.text, cases[i].words))
			fail_msg("%s: %s", cases[i].text, err.text);
	}
}

static void check_long_line(const char *before, size_t bytes, const char *words)
{
	struct err err = ERR_INIT;
	size_t length = strlen(before);
	char *text = malloc(length + bytes + 1);
	memcpy(text, before, length);
	memset(text + length, ' ', bytes);
	text[length + bytes] = '\0';
	assert_null(open_text(text, &err));
	assert_int_equal(err.code, ERR_FORMAT);
	if (!strstr(err.text, words))
		fail_msg("%s", err.text);
	free(text);
}

static void test_long_lines(void **state)
{
	struct err err = ERR_INIT;
	char text[3 * 4096] = FIRST;
	(void)state;
	check_long_line("", 1 << 20, "line 1: is longer than 65536 bytes");
	check_long_line(FIRST, 1 << 20, "line 2: is longer than 4096 bytes");
	check_long_line(FIRST, 4097, "line 2: is longer than 4096 bytes");
	check_long_line(FIRST, 4096, "line 2: is cut off");
	size_t at = strlen(text);
	memset(text + at, ' ', 4096);
	memcpy(text + at + 4096 - 23, E(0, 1), 24);
	memcpy(text + at + 4097, END(1, 1), sizeof END(1, 1));
	struct changes *c = open_text(text, &err);
	if (!c)
		fail_msg("%s", err.text);
	changes_close(c);
}

static void test_no_regular_file(void **state)
{
	char folder[] = "/tmp/test_changes.XXXXXX", path[64];
	struct err err = ERR_INIT;
	(void)state;
	assert_non_null(mkdtemp(folder));
	snprintf(path, sizeof path, "%s/pipe", folder);
	assert_int_equal(mkfifo(path, 0600), 0);
	assert_null(changes_open(path, NULL, &err));
	assert_int_equal(err.code, ERR_USAGE);
	assert_null(changes_open(folder, NULL, &err));
	assert_int_equal(err.code, ERR_USAGE);
	unlink(path);
	assert_null(changes_open(path, NULL, &err));
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_non_null(strstr(err.text, path));
	rmdir(folder);
}

static int refuse(void *context, int fd, const char *path, const char *above, struct err *err)
{
	(void)context;
	(void)fd;
	(void)above;
	return err_set(err, ERR_DENIED, "%s", path);
}

/* What this process wrote itself needs nobody's leave. */
static void test_guarded(void **state)
{
	struct list list;
	struct err err = ERR_INIT;
	(void)state;
	list_write(&list, FIRST END(0, 0), strlen(FIRST END(0, 0)));
	int fd = open(list.path, O_RDONLY | O_CLOEXEC);
	guard_set(refuse, NULL);
	assert_null(changes_open(list.path, NULL, &err));
	assert_int_equal(err.code, ERR_DENIED);
	struct changes *c = changes_open_own(fd, "of disk 2000", NULL, NULL);
	guard_set(NULL, NULL);
	assert_non_null(c);
	close(fd);
	check_next(c, 0, 1000000, 1000000);
	changes_close(c);
	assert_null(changes_open_own(-1, "of disk 2000", NULL, &err));
	assert_non_null(strstr(err.text, "of disk 2000"));
	unlink(list.path);
}

static void test_cancel(void **state)
{
	struct list list;
	struct err err = ERR_INIT;
	struct cancel *cancel = cancel_new(NULL);
	(void)state;
	list_write(&list, FIRST END(0, 0), strlen(FIRST END(0, 0)));
	cancel_request(cancel);
	assert_null(changes_open(list.path, cancel, &err));
	assert_int_equal(err.code, ERR_CANCELLED);
	cancel_free(cancel);
	unlink(list.path);
}

/* The extents of the long file: i is the number. */
static uint64_t offset_of(uint64_t i)
{
	return i * 10000 + i % 7 * 512;
}

static uint64_t length_of(uint64_t i)
{
	return 512 + i % 5;
}

static void write_long(struct list *list, uint64_t count)
{
	uint64_t bytes = 0;
	FILE *file = list_begin(list, count * 10000 + 10000);
	for (uint64_t i = 0; i < count; i++) {
		fprintf(file, "{\"offset\":%llu,\"length\":%llu}\n",
			(unsigned long long)offset_of(i), (unsigned long long)length_of(i));
		bytes += length_of(i);
	}
	list_end(file, count, bytes);
}

/* Many blocks, read in order and at random. */
static void test_long(void **state)
{
	const uint64_t count = 50000;
	struct list list;
	struct err err = ERR_INIT;
	unsigned seed = 1;
	(void)state;
	write_long(&list, count);
	struct changes *c = changes_open(list.path, NULL, &err);
	unlink(list.path);
	if (!c)
		fail_msg("%s", err.text);
	assert_int_equal(changes_facts(c)->count, count);
	for (uint64_t n = 0; n < count + 2000; n++) {
		uint64_t i =
			n < count ? n : (unsigned)rand_r(&seed) % (count / 1000) * 1000 + n % 3;
		uint64_t end = offset_of(i) + length_of(i);
		check_next(c, offset_of(i), offset_of(i), end);
		if (n % 16 != 0)
			continue;
		check_next(c, end - 1, offset_of(i), end);
		if (i + 1 < count)
			check_next(c, end, offset_of(i + 1), offset_of(i + 1) + length_of(i + 1));
	}
	check_next(c, offset_of(count - 1) + length_of(count - 1), count * 10000 + 10000,
		count * 10000 + 10000);
	changes_close(c);
}

/* Makes the last extent one byte longer: still a list that could be believed. */
static void change_extent(FILE *file)
{
	static char text[1 << 20];
	size_t length = fread(text, 1, sizeof text - 1, file);
	text[length] = '\0';
	char *last = NULL;
	for (char *at = text; (at = strstr(at, "\"length\":")); at++)
		last = at;
	assert_non_null(last);
	last = strchr(last, '}') - 1;
	fseek(file, last - text, SEEK_SET);
	fputc(*last + 1, file);
}

/* What is no more what was checked is not believed: with another size or time, or with
 * the same. */
static void test_changed_under_us(void **state)
{
	struct stat st;
	(void)state;
	for (unsigned kind = 0; kind < 3; kind++) {
		struct list list;
		struct err err = ERR_INIT;
		uint64_t start, end;
		write_long(&list, 10000);
		struct changes *c = changes_open(list.path, NULL, NULL);
		assert_non_null(c);
		check_next(c, 0, 0, 512);
		FILE *file = fopen(list.path, "r+");
		assert_non_null(file);
		assert_int_equal(fstat(fileno(file), &st), 0);
		change_extent(file);
		if (kind == 0 && fseek(file, 0, SEEK_END) == 0)
			fputc('\n', file);
		fflush(file);
		if (kind == 2)
			assert_int_equal(futimens(fileno(file),
						 (struct timespec[2]){st.st_atim, st.st_mtim}),
				0);
		fclose(file);
		assert_int_equal(changes_next(c, offset_of(9999), &start, &end, &err), -1);
		assert_int_equal(err.code, ERR_FORMAT);
		assert_non_null(strstr(err.text, "was changed after it had been checked"));
		changes_close(c);
		unlink(list.path);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_good),
		cmocka_unit_test(test_nothing_changed),
		cmocka_unit_test(test_bad),
		cmocka_unit_test(test_long_lines),
		cmocka_unit_test(test_no_regular_file),
		cmocka_unit_test(test_guarded),
		cmocka_unit_test(test_cancel),
		cmocka_unit_test(test_long),
		cmocka_unit_test(test_changed_under_us),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
