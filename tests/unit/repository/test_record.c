/* Records: bounds on foreign JSON, the canonical form, opening damaged repositories. */
#include "test_support.h"

static void test_bounds(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	char deep[200] = "";
	for (unsigned i = 0; i < 17; i++)
		strcat(deep, "{\"a\":");
	strcat(deep, "1");
	assert_null(record_parse(deep, strlen(deep), "x.json", &err));
	support_expect(&err, ERR_FORMAT, "x.json is nested deeper than 16 levels");
	static const char *const bad[] = {
		"", "{", "[]", "1", "{\"a\":1,\"a\":2}", "{\"a\":\"\xff\"}"};
	for (unsigned i = 0; i < ARRAY_LENGTH(bad); i++) {
		assert_null(record_parse(bad[i], strlen(bad[i]), "x.json", &err));
		assert_int_equal(err.code, ERR_FORMAT);
	}
	/* Each takes memory many times its size. */
	char *many = malloc(400000);
	strcpy(many, "{\"a\":[0");
	for (char *at = many + strlen(many); at < many + 200000; at += 2)
		memcpy(at, ",0", 3);
	strcat(many, "]}");
	assert_null(record_parse(many, strlen(many), "x.json", &err));
	support_expect(&err, ERR_FORMAT, "x.json holds more than 65536 values");
	free(many);
	/* A damaged repository.json does not bring the digest seed into a log. */
	static const char torn[] = "{\"digest_seed\" \"5ec4e7\"}";
	assert_null(record_parse(torn, strlen(torn), "x.json", &err));
	assert_null(strstr(err.text, "5ec4e7"));
	/* Brackets inside texts are not depth. */
	const char *text = "{\"a\":\"[[[[[[[[[[[[[[[[[[[[[[\\\"{{{{\"}";
	json_t *value = record_parse(text, strlen(text), "x.json", &err);
	assert_non_null(value);
	json_decref(value);
	assert_int_equal(truncate("big.json", 0), -1);
	support_write("big.json", "{}", 2);
	assert_int_equal(truncate("big.json", RECORD_BYTES_MOST + 1), 0);
	assert_null(record_load(AT_FDCWD, "big.json", &err));
	support_expect(&err, ERR_FORMAT, "more than the 4194304");
}

static void test_canonical(void **state)
{
	(void)state;
	const char *text = "{ \"b\" : [1, true, null], \"a\":\"\xc3\xa9/\\u0001\" }";
	json_t *value = record_parse(text, strlen(text), "x", NULL);
	char *canonical = record_canonical(value);
	assert_string_equal(canonical, "{\"a\":\"\xc3\xa9/\\u0001\",\"b\":[1,true,null]}");
	free(canonical);
	json_decref(value);
}

static void rewrite(const char *path, const char *field, json_t *value, bool reseal)
{
	struct err err = ERR_INIT;
	json_t *record = record_load(AT_FDCWD, path, &err);
	assert_non_null(record);
	json_object_set_new(record, field, value);
	if (reseal) {
		char hex[DIGEST_ROOT_HEX_BYTES];
		assert_int_equal(record_digest(record, "sha256", hex, &err), 0);
		json_object_set_new(record, "sha256", json_string(hex));
	}
	SUPPORT_OK(record_store(AT_FDCWD, path, record, &err), err);
	json_decref(record);
}

static void expect_refused(enum err_code code, const char *text, const char *bad_input)
{
	struct err err = ERR_INIT;
	assert_null(repository_open("r", REPOSITORY_READ, &err));
	support_expect(&err, code, text);
	if (bad_input)
		support_bad_input(bad_input, &err);
}

static void test_open(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct repository_info info;
	assert_null(repository_open("r", REPOSITORY_READ, &err));
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_int_equal(mkdir("r", 0700), 0);
	expect_refused(ERR_FORMAT, "is not a repository: it has no repository.json",
		"a repository that is not one");

	struct repository *repo = support_repository("r"); /* an empty folder will do */
	assert_int_equal(repository_info(repo, &info, &err), 0);
	assert_int_equal(info.settings.cluster_bytes, 65536);
	assert_int_equal(info.settings.compression, REPOSITORY_COMPRESS_ZSTD);
	assert_int_equal(strlen(info.id), 32);
	assert_true(info.free_bytes > 0 && info.free_bytes <= info.total_bytes);
	repository_close(repo);
	struct stat st;
	assert_int_equal(stat("r/repository.json", &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_int_equal(stat("r/vms", &st), 0);
	assert_int_equal(st.st_mode & 0777, 0700);

	rewrite("r/repository.json", "created", json_string("2000-01-01T00:00:00Z"), false);
	expect_refused(ERR_CORRUPT, "repository.json is damaged", "repository.json was edited");
	rewrite("r/repository.json", "format", json_integer(2), true);
	expect_refused(ERR_UNSUPPORTED,
		"was written by a newer Sendense: format 2, this program reads 1",
		"a repository of a newer format");
	support_write("r/repository.json", "{\"format\":", 10);
	expect_refused(
		ERR_FORMAT, "repository.json is not valid JSON", "repository.json was cut off");
}

static void test_unknown_fields(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	repository_close(support_repository("r"));
	rewrite("r/repository.json", "later", json_string("unknown to this program"), true);
	struct repository *repo = repository_open("r", REPOSITORY_READ, &err);
	assert_non_null(repo);
	repository_close(repo);
}

static void test_init(void **state)
{
	(void)state;
	struct repository_settings settings;
	struct err err = ERR_INIT;
	repository_settings_default(&settings);
	settings.cluster_bytes = 65537;
	assert_int_equal(repository_init("r", &settings, &err), -1);
	support_expect(&err, ERR_USAGE, "cluster size 65537 is refused");
	repository_settings_default(&settings);
	assert_int_equal(mkdir("r", 0755), 0);
	support_write("r/mine", "x", 1);
	assert_int_equal(repository_init("r", &settings, &err), -1);
	support_expect(&err, ERR_EXISTS, "it holds \"mine\"");
	assert_int_equal(unlink("r/mine"), 0);
	/* What an interrupted init leaves is taken up. */
	assert_int_equal(mkdir("r/vms", 0700), 0);
	support_write("r/repository.json.new", "{", 1);
	SUPPORT_OK(repository_init("r", &settings, &err), err);
	assert_int_equal(repository_init("r", &settings, &err), -1);
	support_expect(&err, ERR_EXISTS, "is a repository already");
	assert_int_equal(repository_init("r/vms/other", &settings, &err), -1);
	support_expect(&err, ERR_DENIED, "lies inside the repository");
	assert_int_equal(repository_init("no/such", &settings, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
}

static void test_paths(void **state)
{
	(void)state;
	char root[4096];
	struct err err = ERR_INIT;
	repository_close(support_repository("r"));
	assert_int_equal(mkdir("outside", 0700), 0);
	assert_int_equal(symlink("../r/vms", "outside/link"), 0);
	assert_true(repository_path_inside("r", root));
	assert_non_null(strstr(root, "/r"));
	assert_true(repository_path_inside("r/vms/new/file.raw", root));
	assert_true(repository_path_inside("outside/link/file", root));
	assert_true(repository_path_inside("outside/../r/x", root));
	assert_false(repository_path_inside("outside/file", root));
	assert_false(repository_path_inside("file", root));
	assert_int_equal(repository_path_guard("outside/x", &err), 0);
	assert_int_equal(repository_path_guard("r/disk.raw", &err), -1);
	support_expect(&err, ERR_DENIED, "lies inside the repository");
	support_bad_input("a target inside a repository", &err);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SUPPORT_TEST(test_bounds),
		SUPPORT_TEST(test_canonical),
		SUPPORT_TEST(test_open),
		SUPPORT_TEST(test_unknown_fields),
		SUPPORT_TEST(test_init),
		SUPPORT_TEST(test_paths),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
