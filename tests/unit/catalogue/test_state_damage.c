/* What may happen to the state: a second process, damage, a full disk, kill -9, copies. */
#include "test_support.h"

#include <signal.h>

static void put_vms(struct state *state, int nr)
{
	struct err err = ERR_INIT;
	json_t *value = json_pack("{s:s}", "source", "nbd://10.0.0.1/web");
	for (int i = 0; i < nr; i++) {
		char id[32];
		snprintf(id, sizeof id, "vm-%05d", i);
		SUPPORT_OK(state_put(state, "vm", id, value, STATE_ANY, NULL, &err), err);
	}
	json_decref(value);
}

static void overwrite(const char *path, off_t offset, const char *bytes, size_t length)
{
	int fd = open(path, O_WRONLY | O_CREAT, 0600);
	assert_true(fd >= 0);
	assert_int_equal(pwrite(fd, bytes, length, offset), (ssize_t)length);
	close(fd);
}

static void test_second_process(void **context)
{
	(void)context;
	struct err err = ERR_INIT;
	char pid[32];
	struct state *state = support_state("s.db");
	assert_null(state_open("s.db", &err));
	support_bad_input("a hub's state that another hub has open", &err);
	snprintf(pid, sizeof pid, "pid %d", (int)getpid());
	support_expect(&err, ERR_BUSY, pid);
	/* A copy may be made all the same. */
	put_vms(state, 3);
	SUPPORT_OK(state_copy("s.db", "copy.db", &err), err);
	support_sqlite("copy.db", "SELECT count(*) FROM object", "3");
	SUPPORT_OK(state_check("copy.db", &err), err);
	assert_int_equal(state_backup(state, "copy.db", &err), -1);
	support_expect(&err, ERR_EXISTS, "copy.db");
	state_close(state);
	state_close(support_state("s.db"));
}

static void test_not_a_state(void **context)
{
	(void)context;
	struct err err = ERR_INIT;
	char text[8192];
	memset(text, 'x', sizeof text);
	overwrite("text.db", 0, text, sizeof text);
	assert_null(state_open("text.db", &err));
	support_bad_input("a hub's state that is no database", &err);
	support_expect(&err, ERR_CORRUPT, "hub/NAME/state.db");
	assert_int_equal(state_check("text.db", &err), -1);
	support_expect(&err, ERR_CORRUPT, "text.db");
	assert_int_equal(state_check("none.db", &err), -1);
	support_expect(&err, ERR_NOT_FOUND, "none.db");
	sqlite3 *sqlite;
	assert_int_equal(sqlite3_open("other.db", &sqlite), SQLITE_OK);
	assert_int_equal(sqlite3_exec(sqlite, "CREATE TABLE a (b)", NULL, NULL, NULL), SQLITE_OK);
	sqlite3_close(sqlite);
	assert_null(state_open("other.db", &err));
	support_expect(&err, ERR_FORMAT, "is a database, but no state of ours");
	support_sqlite("other.db", "SELECT count(*) FROM sqlite_schema", "1");
}

/* Pages of the tables overwritten: found when it is opened, and told where the copy is. */
static void test_damage(void **context)
{
	(void)context;
	struct err err = ERR_INIT;
	struct stat st;
	char junk[8192];
	memset(junk, 0x5a, sizeof junk);
	struct state *state = support_state("s.db");
	put_vms(state, 400);
	SUPPORT_OK(state_backup(state, "first.db", &err), err);
	SUPPORT_OK(state_copied(state, "first.db", &err), err);
	SUPPORT_OK(state_backup(state, "second.db", &err), err);
	SUPPORT_OK(state_copied(state, "second.db", &err), err);
	SUPPORT_OK(state_copied(state, "gone.db", &err), err);
	state_close(state);
	assert_int_equal(stat("s.db", &st), 0);
	overwrite("s.db", st.st_size / 2 & ~(off_t)4095, junk, sizeof junk);
	assert_null(state_open("s.db", &err));
	support_bad_input("a hub's state with damaged pages", &err);
	/* The newest one that is still there. */
	support_expect(&err, ERR_CORRUPT, "copy second.db, made at ");
	assert_int_equal(unlink("second.db"), 0);
	assert_null(state_open("s.db", &err));
	support_expect(&err, ERR_CORRUPT, "copy first.db, made at ");
	/* What the message says, done. */
	assert_int_equal(rename("first.db", "s.db"), 0);
	unlink("s.db-wal");
	state = support_state("s.db");
	support_sqlite("s.db", "SELECT count(*) FROM object", "400");
	state_close(state);
}

/* Damaged while it is open: each call that meets it says so. */
static void test_damage_later(void **context)
{
	(void)context;
	struct err err = ERR_INIT;
	struct stat st;
	struct state_object object;
	char junk[4096];
	memset(junk, 0x5a, sizeof junk);
	struct state *state = support_state("s.db");
	put_vms(state, 400);
	state_close(state);
	state = support_state("s.db");
	SUPPORT_OK(state_backup(state, "copy.db", &err), err);
	SUPPORT_OK(state_copied(state, "copy.db", &err), err);
	assert_int_equal(stat("s.db", &st), 0);
	for (off_t at = 4096; at < st.st_size; at += 4096)
		overwrite("s.db", at, junk, sizeof junk);
	sqlite3_db_release_memory(state->db.sqlite);
	assert_int_equal(state_get(state, "vm", "vm-00200", &object, &err), -1);
	support_bad_input("a hub's state that is damaged while the hub runs", &err);
	support_expect(&err, ERR_CORRUPT, "copy copy.db, made at ");
	assert_int_equal(state_backup(state, "later.db", &err), -1);
	support_expect(&err, ERR_CORRUPT, "copy copy.db, made at ");
	assert_int_equal(access("later.db", F_OK), -1);
	state_close(state);
}

static void test_full(void **context)
{
	(void)context;
	struct err err = ERR_INIT;
	struct state *state = support_state("s.db");
	struct state_object object;
	put_vms(state, 10);
	assert_int_equal(
		sqlite3_exec(state->db.sqlite, "PRAGMA max_page_count = 20", NULL, NULL, NULL),
		SQLITE_OK);
	char text[100000];
	memset(text, 'x', sizeof text - 1);
	text[sizeof text - 1] = '\0';
	json_t *large = json_pack("{s:s}", "text", text);
	assert_int_equal(state_put(state, "vm", "large", large, 0, NULL, &err), -1);
	support_bad_input("a full disk beneath the hub's state", &err);
	support_expect(&err, ERR_NO_SPACE, "s.db");
	/* Nothing of it is there, and all else goes on. */
	assert_int_equal(state_get(state, "vm", "large", &object, &err), -1);
	support_expect(&err, ERR_NOT_FOUND, "large");
	SUPPORT_OK(state_get(state, "vm", "vm-00003", &object, &err), err);
	state_object_clear(&object);
	assert_int_equal(
		sqlite3_exec(state->db.sqlite, "PRAGMA max_page_count = 1000000", NULL, NULL, NULL),
		SQLITE_OK);
	SUPPORT_OK(state_put(state, "vm", "large", large, 0, NULL, &err), err);
	json_decref(large);
	state_close(state);
	state_close(support_state("s.db"));
}

/* Tells how many it has put, once they are in the state. */
static void put_for_ever(int pipe)
{
	struct state *state = state_open("s.db", NULL);
	json_t *value = json_pack("{s:s}", "source", "nbd://10.0.0.1/web");
	for (uint32_t i = 0; state; i++) {
		char id[32];
		snprintf(id, sizeof id, "vm-%08u", i);
		if (state_put(state, "vm", id, value, 0, NULL, NULL) < 0 ||
			write(pipe, &i, sizeof i) != sizeof i)
			break;
	}
	_exit(1);
}

static void test_kill(void **context)
{
	(void)context;
	struct err err = ERR_INIT;
	for (unsigned round = 0; round < 10; round++) {
		int ends[2];
		uint32_t last = 0, nr = 0;
		assert_int_equal(pipe(ends), 0);
		pid_t pid = fork();
		assert_true(pid >= 0);
		if (pid == 0)
			put_for_ever(ends[1]);
		close(ends[1]);
		/* At another place each time; it goes on while the signal is on its way. */
		while (nr < 5 + 7 * round && read(ends[0], &last, sizeof last) == sizeof last)
			nr++;
		kill(pid, SIGKILL);
		int status;
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFSIGNALED(status));
		while (read(ends[0], &last, sizeof last) == sizeof last)
			;
		close(ends[0]);
		/* What it told of is there, nobody holds it, and it is sound. */
		struct state *state = support_state("s.db");
		for (uint32_t i = 0; i <= last; i++) {
			struct state_object object;
			char id[32];
			snprintf(id, sizeof id, "vm-%08u", i);
			SUPPORT_OK(state_get(state, "vm", id, &object, &err), err);
			state_object_clear(&object);
		}
		state_close(state);
		support_sqlite("s.db", "PRAGMA integrity_check", "ok");
		assert_int_equal(unlink("s.db"), 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SUPPORT_TEST(test_second_process),
		SUPPORT_TEST(test_not_a_state),
		SUPPORT_TEST(test_damage),
		SUPPORT_TEST(test_damage_later),
		SUPPORT_TEST(test_full),
		SUPPORT_TEST(test_kill),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
