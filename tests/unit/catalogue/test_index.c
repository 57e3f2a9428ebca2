/* The index: what is asked of it, and that it can be lost. */
#include "test_support.h"

#include <time.h>

#define DAY 86400

static struct index *open_index(const char *path, bool expect_new)
{
	struct err err = ERR_INIT;
	bool is_new;
	struct index *index = index_open(path, &is_new, &err);
	if (!index)
		fail_msg("%s", err.text);
	assert_int_equal(is_new, expect_new);
	return index;
}

/* Point nr of a VM: a day after the one before; every third verified good, every fifth protected,
 * of which every second no longer; nr 7 damaged. */
static void put_points(
	struct index *index, const char *repository, const char *vm, int first, int nr)
{
	struct err err = ERR_INIT;
	struct index_point point;
	char id[64], utc[CLOCK_UTC_BYTES];
	for (int i = first; i < first + nr; i++) {
		memset(&point, 0, sizeof point);
		point.time = 1750000000 + (int64_t)i * DAY;
		clock_utc_text(point.time, utc);
		snprintf(id, sizeof id, "%.4s%.2s%.2sT%.2s%.2s%.2sZ-000000", utc, utc + 5, utc + 8,
			utc + 11, utc + 14, utc + 17);
		point.id = id;
		point.mark = "1 2.3";
		point.verified = i % 3 == 0 ? INDEX_GOOD : INDEX_NEVER_VERIFIED;
		point.is_protected = i % 5 == 0;
		point.protected_until = i % 10 == 5 ? 1700000000 : 0;
		point.is_damaged = i == 7;
		point.size_bytes = 1000 + (uint64_t)i;
		point.stored_bytes = 10;
		json_t *value = json_pack("{s:s, s:s, s:i, s:b}", "vm", vm, "point", id, "nr", i,
			"protected", i % 5 == 0);
		if (i % 10 == 5)
			json_object_set_new(value, "protected_until", json_string("2023"));
		point.value = value;
		SUPPORT_OK(index_put(index, repository, vm, "m", &point, 1, NULL, &err), err);
		json_decref(value);
	}
}

static void fill(struct index *index)
{
	static const char *const names[] = {"db[1]", "web-01", "web-02"};
	struct err err = ERR_INIT;
	SUPPORT_OK(index_repository_is(index, "main", "11", &err), err);
	SUPPORT_OK(index_repository_is(index, "far", "22", &err), err);
	for (size_t i = 0; i < ARRAY_LENGTH(names); i++)
		put_points(index, "main", names[i], 0, 20);
	put_points(index, "far", "web-01", 0, 10);
	SUPPORT_OK(index_put(index, "far", "new", "m", NULL, 0, NULL, &err), err);
}

struct told {
	unsigned nr, stop_at;
	int64_t first, last;
	int first_nr, last_nr; /* of the values */
	bool has_values;
	char cursor[INDEX_CURSOR_BYTES];
	char text[1024];
};

static int note_point(
	void *context, const struct index_point *point, const char cursor[INDEX_CURSOR_BYTES])
{
	struct told *told = context;
	size_t length = strlen(told->text);
	int nr = (int)json_integer_value(json_object_get(point->value, "nr"));
	if (told->nr++ == 0) {
		told->first = point->time;
		told->first_nr = nr;
	}
	told->last = point->time;
	told->last_nr = nr;
	told->has_values = point->value != NULL;
	snprintf(told->cursor, sizeof told->cursor, "%s", cursor);
	snprintf(told->text + length, sizeof told->text - length, "%s/%s ", point->repository,
		point->vm);
	if (point->value)
		assert_int_equal(json_is_true(json_object_get(point->value, "protected")),
			point->is_protected);
	return told->nr == told->stop_at;
}

static unsigned count(struct index *index, const struct index_filter *filter, struct told *told)
{
	struct told own = {0};
	struct err err = ERR_INIT;
	told = told ? told : &own;
	memset(told, 0, sizeof *told);
	SUPPORT_OK(index_points(index, filter, note_point, told, &err), err);
	return told->nr;
}

#define COUNT(...) count(index, &(struct index_filter){__VA_ARGS__}, NULL)

static void test_filters(void **context)
{
	(void)context;
	struct index *index = open_index("i.db", true);
	struct told told;
	fill(index);
	assert_int_equal(COUNT(.limit = 0), 70);
	assert_int_equal(COUNT(.repository = "main"), 60);
	assert_int_equal(COUNT(.repository = "none"), 0);
	assert_int_equal(COUNT(.vm = "web-01"), 30);
	assert_int_equal(COUNT(.vm = "web-0*"), 0);
	assert_int_equal(COUNT(.vm_glob = "web-0*"), 50);
	assert_int_equal(COUNT(.vm_glob = "web-0?", .repository = "far"), 10);
	/* A bracket is a bracket. */
	assert_int_equal(COUNT(.vm_glob = "db[1]"), 20);
	assert_int_equal(COUNT(.vm_glob = "db[0-9]*"), 0);
	assert_int_equal(COUNT(.since = 1750000000 + 5 * DAY, .before = 1750000000 + 7 * DAY), 8);
	assert_int_equal(COUNT(.is_good = INDEX_YES, .repository = "far"), 4);
	assert_int_equal(COUNT(.is_good = INDEX_NO, .repository = "far"), 6);
	assert_int_equal(COUNT(.is_damaged = INDEX_YES), 4);
	assert_int_equal(COUNT(.is_damaged = INDEX_NO), 66);
	/* 0 and 10 of each VM; for 5 and 15 the time is over. */
	assert_int_equal(COUNT(.is_protected = INDEX_YES, .repository = "main"), 6);
	assert_int_equal(COUNT(.is_protected = INDEX_NO, .repository = "main"), 54);
	assert_int_equal(count(index, &(struct index_filter){.newest_only = true}, &told), 4);
	assert_string_equal(told.text, "main/web-02 main/web-01 main/db[1] far/web-01 ");
	assert_int_equal(told.first_nr, 19);
	assert_int_equal(told.last_nr, 9);
	assert_int_equal(
		count(index, &(struct index_filter){.vm = "web-02", .oldest_first = true}, &told),
		20);
	assert_int_equal(told.first_nr, 0);
	assert_int_equal(told.last_nr, 19);
	assert_true(told.has_values);
	count(index, &(struct index_filter){.without_value = true}, &told);
	assert_false(told.has_values);
	told = (struct told){.stop_at = 3};
	struct err err = ERR_INIT;
	SUPPORT_OK(index_points(index, &(struct index_filter){0}, note_point, &told, &err), err);
	assert_int_equal(told.nr, 3);
	index_close(index);
	support_sqlite("i.db", "SELECT count(*) FROM point WHERE vm GLOB 'web*'", "50");
}

static void walk_pages(struct index *index, bool oldest_first, unsigned limit)
{
	struct told page;
	char after[INDEX_CURSOR_BYTES] = "";
	unsigned nr = 0;
	int64_t last = 0;
	do {
		struct index_filter filter = {.oldest_first = oldest_first,
			.limit = limit,
			.after = after[0] ? after : NULL};
		count(index, &filter, &page);
		if (nr > 0 && page.nr > 0)
			assert_true(oldest_first ? page.first >= last : page.first <= last);
		last = page.last;
		nr += page.nr;
		snprintf(after, sizeof after, "%s", page.cursor);
	} while (page.nr == limit);
	assert_int_equal(nr, 70);
}

static void test_pages(void **context)
{
	(void)context;
	static const char *const wrong[] = {
		"", "7", "zz", "3100", "310a320a330a", "78790a610a620a63", "310a610a"};
	struct err err = ERR_INIT;
	struct index *index = open_index("i.db", true);
	fill(index);
	for (unsigned limit = 1; limit < 75; limit += 9) {
		walk_pages(index, false, limit);
		walk_pages(index, true, limit);
	}
	for (size_t i = 0; i < ARRAY_LENGTH(wrong); i++) {
		struct told told = {0};
		int rc = index_points(
			index, &(struct index_filter){.after = wrong[i]}, note_point, &told, &err);
		if (i == 4) { /* well-formed, of a time before all */
			assert_int_equal(rc, 0);
			continue;
		}
		assert_int_equal(rc, -1);
		support_expect(&err, ERR_USAGE, "is not where a list went on");
	}
	/* The longest names. */
	char vm[256], repository[128];
	memset(vm, 'v', 255);
	memset(repository, 'r', 127);
	vm[255] = repository[127] = '\0';
	SUPPORT_OK(index_repository_is(index, repository, "33", &err), err);
	put_points(index, repository, vm, 0, 2);
	struct told told;
	count(index, &(struct index_filter){.vm = vm, .limit = 1}, &told);
	struct index_filter next = {.vm = vm, .after = told.cursor};
	struct told rest;
	assert_int_equal(count(index, &next, &rest), 1);
	index_close(index);
}

static void test_points_one_by_one(void **context)
{
	(void)context;
	struct err err = ERR_INIT;
	struct index *index = open_index("i.db", true);
	fill(index);
	json_t *value = index_point(index, "main", "web-01", NULL, &err);
	assert_int_equal(json_integer_value(json_object_get(value, "nr")), 19);
	char *id = strdup(json_string_value(json_object_get(value, "point")));
	json_decref(value);
	assert_null(index_point(index, "far", "web-01", id, &err));
	support_expect(&err, ERR_NOT_FOUND, "has no restore point 2025");
	/* A protection that has ended is shown as none. */
	value = index_point(index, "main", "web-01", "20250620T150640Z-000000", &err);
	if (!value)
		fail_msg("%s", err.text);
	assert_true(json_is_false(json_object_get(value, "protected")));
	assert_null(json_object_get(value, "protected_until"));
	json_decref(value);
	/* Gone points go, and the newest one is another. */
	const char *const gone[] = {id, NULL};
	SUPPORT_OK(index_put(index, "main", "web-01", "m", NULL, 0, gone, &err), err);
	value = index_point(index, "main", "web-01", NULL, &err);
	assert_int_equal(json_integer_value(json_object_get(value, "nr")), 18);
	json_decref(value);
	free(id);
	index_close(index);
}

static int note_vm(void *context, const struct index_vm *vm)
{
	struct told *told = context;
	size_t length = strlen(told->text);
	told->nr++;
	snprintf(told->text + length, sizeof told->text - length, "%s@%s:%u,%u,%d,%d,%d ", vm->vm,
		vm->repository, vm->nr_points, vm->nr_damaged,
		vm->newest ? (int)((vm->newest_time - 1750000000) / DAY) : -1,
		vm->newest_usable ? (int)((vm->newest_usable_time - 1750000000) / DAY) : -1,
		vm->newest_good ? (int)((vm->newest_good_time - 1750000000) / DAY) : -1);
	assert_int_equal(vm->stored_bytes, 10 * vm->nr_points);
	if (vm->nr_points == 20)
		assert_int_equal(vm->size_bytes, 1019);
	return 0;
}

static void test_vms(void **context)
{
	(void)context;
	struct err err = ERR_INIT;
	struct index *index = open_index("i.db", true);
	struct told all = {0}, some = {0}, one = {0};
	fill(index);
	const char *const gone[] = {"20250624T150640Z-000000", "20250623T150640Z-000000", NULL};
	SUPPORT_OK(index_put(index, "far", "web-01", "m", NULL, 0, gone, &err), err);
	SUPPORT_OK(index_vms(index, &(struct index_vms_filter){0}, note_vm, &all, &err), err);
	/* The newest of far's web-01 is the damaged one now. */
	assert_string_equal(all.text,
		"db[1]@main:20,1,19,19,18 new@far:0,0,-1,-1,-1 web-01@far:8,1,7,6,6 "
		"web-01@main:20,1,19,19,18 web-02@main:20,1,19,19,18 ");
	SUPPORT_OK(index_vms(index,
			   &(struct index_vms_filter){
				   .after_vm = "new", .after_repository = "far", .limit = 2},
			   note_vm, &some, &err),
		err);
	assert_string_equal(some.text, "web-01@far:8,1,7,6,6 web-01@main:20,1,19,19,18 ");
	SUPPORT_OK(index_vms(index,
			   &(struct index_vms_filter){.repository = "main", .vm_glob = "*[1]"},
			   note_vm, &one, &err),
		err);
	assert_string_equal(one.text, "db[1]@main:20,1,19,19,18 ");
	index_close(index);
}

static int note_repository(void *context, const struct index_repository *repository)
{
	struct told *told = context;
	size_t length = strlen(told->text);
	snprintf(told->text + length, sizeof told->text - length, "%s=%s:%u,%u,%u,%d ",
		repository->name, repository->id, repository->nr_vms, repository->nr_points,
		(unsigned)repository->stored_bytes, (int)repository->indexed);
	return 0;
}

static void test_repositories(void **context)
{
	(void)context;
	struct err err = ERR_INIT;
	struct index *index = open_index("i.db", true);
	struct told before = {0}, after = {0}, last = {0};
	fill(index);
	assert_int_equal(index_walked(index, "far"), 0);
	SUPPORT_OK(index_repository_walked(index, "far", 77, &err), err);
	assert_int_equal(index_walked(index, "far"), 77);
	assert_int_equal(index_walked(index, "none"), 0);
	SUPPORT_OK(index_repositories(index, note_repository, &before, &err), err);
	assert_string_equal(before.text, "far=22:2,10,100,77 main=11:3,60,600,0 ");
	SUPPORT_OK(index_repository_is(index, "far", "22", &err), err);
	/* The name is another repository's now. */
	SUPPORT_OK(index_repository_is(index, "main", "33", &err), err);
	SUPPORT_OK(index_repositories(index, note_repository, &after, &err), err);
	assert_string_equal(after.text, "far=22:2,10,100,77 main=33:0,0,0,0 ");
	SUPPORT_OK(index_forget(index, "far", "new", &err), err);
	SUPPORT_OK(index_forget(index, "main", NULL, &err), err);
	SUPPORT_OK(index_repositories(index, note_repository, &last, &err), err);
	assert_string_equal(last.text, "far=22:1,10,100,77 ");
	assert_int_equal(index_repository_is(index, "", "1", &err), -1);
	support_expect(&err, ERR_USAGE, "a repository's name");
	index_close(index);
}

static void write_file(const char *path, off_t offset, const char *text)
{
	int fd = open(path, O_WRONLY | O_CREAT, 0600);
	assert_true(fd >= 0);
	assert_int_equal(pwrite(fd, text, strlen(text), offset), (ssize_t)strlen(text));
	close(fd);
}

/* Whatever is there instead of an index of ours gives way to one. */
static void test_disposable(void **context)
{
	(void)context;
	struct err err = ERR_INIT;
	char junk[4097];
	memset(junk, 0x5a, sizeof junk - 1);
	junk[sizeof junk - 1] = '\0';
	struct index *index = open_index("i.db", true);
	fill(index);
	assert_null(index_open("i.db", NULL, &err));
	support_expect(&err, ERR_BUSY, "in use by another process");
	index_close(index);
	index = open_index("i.db", false);
	assert_int_equal(COUNT(.limit = 0), 70);
	index_close(index);
	struct stat st;
	assert_int_equal(stat("i.db", &st), 0);
	for (off_t at = 4096; at < st.st_size; at += 8192)
		write_file("i.db", at, junk);
	index = open_index("i.db", true);
	assert_int_equal(COUNT(.limit = 0), 0);
	fill(index);
	assert_int_equal(
		sqlite3_exec(index->db.sqlite, "PRAGMA user_version = 99", NULL, NULL, NULL),
		SQLITE_OK);
	index_close(index);
	index = open_index("i.db", true);
	fill(index);
	index_close(index);
	write_file("i.db", 0, "this is no database at all, and never was one of ours");
	index = open_index("i.db", true);
	fill(index);
	/* Damaged while it is open. */
	SUPPORT_OK(index_check(index, &err), err);
	sqlite3_exec(index->db.sqlite, "PRAGMA wal_checkpoint(TRUNCATE)", NULL, NULL, NULL);
	assert_int_equal(stat("i.db", &st), 0);
	sqlite3_db_release_memory(index->db.sqlite);
	for (off_t at = 4096; at < st.st_size; at += 4096)
		write_file("i.db", at, junk);
	assert_int_equal(index_check(index, &err), -1);
	err_clear(&err);
	SUPPORT_OK(index_renew(index, &err), err);
	SUPPORT_OK(index_check(index, &err), err);
	assert_int_equal(COUNT(.limit = 0), 0);
	fill(index);
	assert_int_equal(COUNT(.limit = 0), 70);
	index_close(index);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SUPPORT_TEST(test_filters),
		SUPPORT_TEST(test_pages),
		SUPPORT_TEST(test_points_one_by_one),
		SUPPORT_TEST(test_vms),
		SUPPORT_TEST(test_repositories),
		SUPPORT_TEST(test_disposable),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
