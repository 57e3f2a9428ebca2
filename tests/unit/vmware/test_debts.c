/* What must be given back, written down; the lock of a machine. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "debts.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

struct scene {
	char folder[64], state[96];
	struct debts_place place;
};

static int begin(void **state)
{
	struct scene *s = calloc(1, sizeof *s);
	assert_non_null(s);
	snprintf(s->folder, sizeof s->folder, "/tmp/test_debts.XXXXXX");
	assert_non_null(mkdtemp(s->folder));
	snprintf(s->state, sizeof s->state, "%s/a/b", s->folder);
	s->place = (struct debts_place){
		.folder = s->state,
		.vcenter_uuid = "11111111-2222",
		.host = "vc.example",
		.vm_uuid = "5032a1c0",
		.vm = "vm-57",
		.path = "/DC/vm/w\"eb\\01",
	};
	*state = s;
	return 0;
}

static int end(void **state)
{
	struct scene *s = *state;
	char path[128];
	rmdir(s->state);
	snprintf(path, sizeof path, "%s/a", s->folder);
	rmdir(path);
	assert_int_equal(rmdir(s->folder), 0); /* else a test left something */
	free(s);
	return 0;
}

struct seen {
	unsigned nr;
	char snapshot[DEBTS_NAME_BYTES], moref[64], path[64], file[DEBTS_PATH_BYTES];
	bool alive;
	int64_t pid;
};

static int see(void *context, const struct vmware_debt *debt, struct err *err)
{
	struct seen *seen = context;
	(void)err;
	seen->nr++;
	seen->alive = debt->alive;
	seen->pid = debt->pid;
	snprintf(seen->snapshot, sizeof seen->snapshot, "%s", debt->snapshot);
	snprintf(seen->moref, sizeof seen->moref, "%s", debt->moref);
	snprintf(seen->path, sizeof seen->path, "%s", debt->path);
	snprintf(seen->file, sizeof seen->file, "%s", debt->file);
	assert_string_equal(debt->vcenter_uuid, "11111111-2222");
	assert_string_equal(debt->host, "vc.example");
	assert_string_equal(debt->vm_uuid, "5032a1c0");
	assert_string_equal(debt->vm, "vm-57");
	return 0;
}

static struct seen list(const struct scene *s)
{
	struct seen seen = {.nr = 0};
	struct err err = ERR_INIT;
	if (vmware_debts(s->state, see, &seen, &err) < 0)
		fail_msg("%s", err.text);
	return seen;
}

static void test_written_listed_dropped(void **state)
{
	struct scene *s = *state;
	struct err err = ERR_INIT;
	char name[DEBTS_NAME_BYTES], other[DEBTS_NAME_BYTES], file[DEBTS_PATH_BYTES];
	struct stat st;
	assert_int_equal(list(s).nr, 0); /* no folder, no debts */
	assert_int_equal(statedir_make(s->state, &err), 0);
	assert_int_equal(statedir_make(s->state, &err), 0);
	assert_true(stat(s->state, &st) == 0 && (st.st_mode & 0777) == 0700);
	assert_int_equal(debts_name(name, &err), 0);
	assert_int_equal(debts_name(other, &err), 0);
	assert_string_not_equal(name, other);
	assert_int_equal(strlen(name), strlen("sendense-") + 16);
	assert_int_equal(debts_write(&s->place, name, "", &err), 0);
	assert_string_equal(list(s).moref, "");
	assert_int_equal(debts_write(&s->place, name, "snapshot-60", &err), 0);
	struct seen seen = list(s);
	debts_file(s->state, name, file);
	assert_int_equal(seen.nr, 1);
	assert_string_equal(seen.snapshot, name);
	assert_string_equal(seen.moref, "snapshot-60");
	assert_string_equal(seen.path, s->place.path);
	assert_string_equal(seen.file, file);
	assert_true(seen.alive && seen.pid == getpid());
	assert_true(stat(file, &st) == 0 && (st.st_mode & 0777) == 0600);
	assert_int_equal(debts_drop(s->state, name, &err), 0);
	assert_int_equal(debts_drop(s->state, name, &err), 0);
	assert_int_equal(list(s).nr, 0);
}

/* The debt of a process that is gone is told as such. */
static void test_of_the_dead(void **state)
{
	struct scene *s = *state;
	struct err err = ERR_INIT;
	assert_int_equal(statedir_make(s->state, &err), 0);
	pid_t pid = fork();
	if (pid == 0)
		_exit(debts_write(&s->place, "sendense-x", "", NULL) == 0 ? 0 : 1);
	int status;
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	struct seen seen = list(s);
	assert_true(seen.nr == 1 && !seen.alive && seen.pid == pid);
	assert_int_equal(debts_drop(s->state, "sendense-x", &err), 0);
}

/* What is no record of a debt is warned of, and keeps nothing from its work. */
static void test_damaged(void **state)
{
	static const char *const texts[] = {"", "{", "[[[[[[]]]]]]", "{\"sendense-debt\":1}",
		"{\"sendense-debt\":2,\"snapshot\":\"a\",\"moref\":\"\",\"vcenter\":\"\","
		"\"host\":\"\",\"vm-uuid\":\"\",\"vm\":\"\",\"path\":\"\",\"created\":\"\","
		"\"pid\":1,\"start\":1,\"boot\":\"\"}"};
	struct scene *s = *state;
	struct err err = ERR_INIT;
	char file[DEBTS_PATH_BYTES];
	assert_int_equal(statedir_make(s->state, &err), 0);
	debts_file(s->state, "sendense-damaged", file);
	for (size_t i = 0; i < ARRAY_LENGTH(texts); i++) {
		assert_int_equal(
			file_replace(AT_FDCWD, file, texts[i], strlen(texts[i]), 0600, &err), 0);
		assert_int_equal(list(s).nr, 0);
	}
	assert_int_equal(debts_drop(s->state, "sendense-damaged", &err), 0);
}

static void test_lock(void **state)
{
	struct scene *s = *state;
	struct err err = ERR_INIT;
	struct debts_place another = s->place;
	char text[64];
	another.vm_uuid = "5032a1c1";
	assert_int_equal(statedir_make(s->state, &err), 0);
	int fd = debts_lock(&s->place, &err);
	assert_true(fd >= 0);
	assert_int_equal(debts_lock(&s->place, &err), -1);
	assert_int_equal(err.code, ERR_BUSY);
	snprintf(text, sizeof text, "process %d", (int)getpid());
	assert_non_null(strstr(err.text, text));
	int other = debts_lock(&another, &err);
	assert_true(other >= 0);
	debts_unlock(&another, other);
	debts_unlock(&s->place, fd);
	fd = debts_lock(&s->place, &err);
	assert_true(fd >= 0);
	debts_unlock(&s->place, fd);
	debts_unlock(&s->place, -1);
}

static void test_folder(void **state)
{
	char path[DEBTS_PATH_BYTES];
	struct err err = ERR_INIT;
	(void)state;
	unsetenv("SENDENSE_STATE_DIR");
	setenv("HOME", "/home/joe", 1);
	unsetenv("XDG_STATE_HOME");
	assert_int_equal(vmware_state_folder(NULL, path, &err), 0);
	assert_string_equal(path, geteuid() == 0 ? "/var/lib/sendense/vmware"
						 : "/home/joe/.local/state/sendense/vmware");
	setenv("SENDENSE_STATE_DIR", "/srv/state", 1);
	assert_int_equal(vmware_state_folder(NULL, path, &err), 0);
	assert_string_equal(path, "/srv/state");
	assert_int_equal(vmware_state_folder("here", path, &err), 0);
	assert_string_equal(path, "here");
	unsetenv("SENDENSE_STATE_DIR");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_written_listed_dropped, begin, end),
		cmocka_unit_test_setup_teardown(test_of_the_dead, begin, end),
		cmocka_unit_test_setup_teardown(test_damaged, begin, end),
		cmocka_unit_test_setup_teardown(test_lock, begin, end),
		cmocka_unit_test(test_folder),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
