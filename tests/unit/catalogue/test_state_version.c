/* Versions of the state: migrations forwards, the copy that is kept, newer ones refused. */
#include "test_support.h"

#include <sched.h>
#include <signal.h>

static const char good_step[] =
	"ALTER TABLE job ADD COLUMN owner TEXT; UPDATE job SET owner = 'nobody'";
static const char bad_step[] = "CREATE TABLE half (a); INSERT INTO nothing VALUES (1)";

static void fill(const char *path)
{
	struct err err = ERR_INIT;
	struct state *state = support_state(path);
	json_t *value = json_pack("{s:i}", "a", 1);
	struct state_job job = {
		.id = "20261122T000000Z-00000000", .kind = "backup", .state = "done"};
	job.value = value;
	SUPPORT_OK(state_put(state, "vm", "web", value, 0, NULL, &err), err);
	SUPPORT_OK(state_job_put(state, &job, &err), err);
	json_decref(value);
	state_close(state);
}

static int count_job(void *context, const struct state_job *job)
{
	(void)job;
	++*(unsigned *)context;
	return 0;
}

/* What there was before nodes: all of it is there, and jobs of nodes are found by theirs. */
static void test_from_version_1(void **context)
{
	(void)context;
	const struct state_schema one = {state_schema.steps, 1};
	struct err err = ERR_INIT;
	struct state_object object;
	unsigned nr = 0;
	struct state *state = state_open_schema("s.db", &one, &err);
	if (!state)
		fail_msg("%s", err.text);
	json_t *value = json_object();
	SUPPORT_OK(state_put(state, "vm", "web", value, 0, NULL, &err), err);
	state_close(state);
	support_sqlite("s.db", "PRAGMA user_version", "1");
	state = support_state("s.db");
	SUPPORT_OK(state_get(state, "vm", "web", &object, &err), err);
	state_object_clear(&object);
	struct state_job job = {.id = "20261122T000001Z-00000000",
		.kind = "backup",
		.state = "queued",
		.node = "esx1"};
	job.value = value;
	SUPPORT_OK(state_job_put(state, &job, &err), err);
	json_decref(value);
	const struct state_job_filter its = {.state = "open", .node = "esx1"};
	const struct state_job_filter others = {.state = "open", .node = "esx2"};
	SUPPORT_OK(state_jobs(state, &its, count_job, &nr, &err), err);
	assert_int_equal(nr, 1);
	SUPPORT_OK(state_jobs(state, &others, count_job, &nr, &err), err);
	assert_int_equal(nr, 1);
	state_close(state);
	support_sqlite("s.db", "PRAGMA user_version", "2");
	support_sqlite("s.db", "SELECT node FROM job", "esx1");
	support_sqlite("s.db.v1", "PRAGMA user_version", "1");
	support_sqlite("s.db.v1", "SELECT count(*) FROM object WHERE kind = 'vm'", "1");
	/* An older hub, which knows nothing of nodes, does not open it. */
	assert_null(state_open_schema("s.db", &one, &err));
	support_expect(&err, ERR_UNSUPPORTED, "has version 2, this program knows versions up to 1");
}

static void test_migrate(void **context)
{
	(void)context;
	const char *const steps[] = {state_schema.steps[0], state_schema.steps[1], good_step};
	const struct state_schema three = {steps, 3};
	struct err err = ERR_INIT;
	struct state_object object;
	fill("s.db");
	struct state *state = state_open_schema("s.db", &three, &err);
	if (!state)
		fail_msg("%s", err.text);
	SUPPORT_OK(state_get(state, "vm", "web", &object, &err), err);
	state_object_clear(&object);
	state_close(state);
	support_sqlite("s.db", "SELECT owner FROM job", "nobody");
	support_sqlite("s.db", "PRAGMA user_version", "3");
	/* The older one is whole, for the older program, and for nobody else. */
	support_sqlite("s.db.v2", "PRAGMA user_version", "2");
	struct stat st;
	assert_int_equal(stat("s.db.v2", &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	/* This program is the older one. */
	assert_null(state_open("s.db", &err));
	support_bad_input("a hub's state of a newer version", &err);
	assert_non_null(strstr(err.text, "bring back s.db.v2"));
	support_expect(&err, ERR_UNSUPPORTED, "has version 3, this program knows versions up to 2");
	assert_int_equal(state_check("s.db", &err), -1);
	support_expect(&err, ERR_UNSUPPORTED, "has version 3");
	assert_int_equal(rename("s.db.v2", "s.db"), 0);
	state = support_state("s.db");
	SUPPORT_OK(state_get(state, "vm", "web", &object, &err), err);
	state_object_clear(&object);
	state_close(state);
}

/* Nothing of a migration that failed is left, and what it was is still there. */
static void test_migrate_fails(void **context)
{
	(void)context;
	const char *const steps[] = {
		state_schema.steps[0], state_schema.steps[1], good_step, bad_step};
	const struct state_schema four = {steps, 4};
	struct err err = ERR_INIT;
	fill("s.db");
	assert_null(state_open_schema("s.db", &four, &err));
	assert_non_null(strstr(err.text, "cannot bring it from version 3 to 4"));
	err_clear(&err);
	support_sqlite("s.db", "PRAGMA user_version", "2");
	support_sqlite("s.db", "SELECT count(*) FROM sqlite_schema WHERE name = 'half'", "0");
	support_sqlite(
		"s.db", "SELECT count(*) FROM pragma_table_info('job') WHERE name = 'owner'", "0");
	state_close(support_state("s.db"));
	/* And the next attempt is not in the way of what the last one kept. */
	assert_null(state_open_schema("s.db", &four, &err));
	err_clear(&err);
	const struct state_schema three = {steps, 3};
	struct state *state = state_open_schema("s.db", &three, &err);
	if (!state)
		fail_msg("%s", err.text);
	state_close(state);
}

/* Killed in the middle: the next one begins anew. */
static void test_migrate_killed(void **context)
{
	(void)context;
	static const char slow[] =
		"CREATE TABLE many (a); WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1"
		" FROM n WHERE i < 300000) INSERT INTO many SELECT hex(randomblob(100)) FROM n;";
	const char *const steps[] = {state_schema.steps[0], state_schema.steps[1], slow};
	const struct state_schema three = {steps, 3};
	fill("s.db");
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		state_open_schema("s.db", &three, NULL);
		_exit(0);
	}
	/* When the copy is there the migration is about to run; its log has grown when it runs. */
	struct stat st;
	int status = 0;
	pid_t ended = 0;
	while ((ended = waitpid(pid, &status, WNOHANG)) == 0 &&
		(stat("s.db-wal", &st) < 0 || st.st_size < 1 << 20))
		sched_yield();
	if (ended == 0) {
		kill(pid, SIGKILL);
		assert_int_equal(waitpid(pid, &status, 0), pid);
	}
	assert_true(WIFSIGNALED(status));
	struct state *state = support_state("s.db");
	state_close(state);
	support_sqlite("s.db", "SELECT count(*) FROM sqlite_schema WHERE name = 'many'", "0");
	support_sqlite("s.db", "PRAGMA integrity_check", "ok");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SUPPORT_TEST(test_from_version_1),
		SUPPORT_TEST(test_migrate),
		SUPPORT_TEST(test_migrate_fails),
		SUPPORT_TEST(test_migrate_killed),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
