/* Owners: who runs a job, and whether that process still lives. */
#include "repository_internal.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/* The first word of a small file; "" when it cannot be read. */
static void read_word(const char *path, char *out, size_t room)
{
	int AUTO_CLOSE fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, out, room - 1);
	out[n > 0 ? n : 0] = '\0';
	out[strcspn(out, " \n")] = '\0';
}

/*
 * State letter and start time of a process: fields 3 and 22 of its stat file,
 * counted from behind the last ')', because a program's name may hold anything.
 */
static bool process_facts(int64_t pid, char *state, uint64_t *start)
{
	char path[64], text[1024];
	snprintf(path, sizeof path, "/proc/%" PRId64 "/stat", pid);
	int AUTO_CLOSE fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	if (n <= 0)
		return false;
	text[n] = '\0';
	char *at = strrchr(text, ')');
	if (!at || at[1] != ' ')
		return false;
	at += 2;
	*state = *at;
	for (int field = 3; field < 22; field++) {
		at = strchr(at, ' ');
		if (!at)
			return false;
		at++;
	}
	*start = strtoull(at, NULL, 10);
	return true;
}

int owner_self(struct owner *owner, struct err *err)
{
	memset(owner, 0, sizeof *owner);
	if (gethostname(owner->host, sizeof owner->host - 1) < 0)
		return err_errno(err, errno, "cannot tell this host's name");
	read_word("/etc/machine-id", owner->host_id, sizeof owner->host_id);
	if (strlen(owner->host_id) != 32)
		snprintf(owner->host_id, sizeof owner->host_id, "name:%.58s", owner->host);
	read_word("/proc/sys/kernel/random/boot_id", owner->boot_id, sizeof owner->boot_id);
	struct stat st;
	if (stat("/proc/self/ns/pid", &st) == 0)
		owner->pid_namespace = st.st_ino;
	owner->pid = getpid();
	char state;
	if (!owner->boot_id[0] || !process_facts(owner->pid, &state, &owner->pid_start))
		return err_set(err, ERR_UNSUPPORTED,
			"cannot tell this boot's and process's identity from /proc (is it "
			"mounted?)");
	return 0;
}

int owner_to_json(const struct owner *owner, json_t *object)
{
	int bad = 0;
	bad |= json_object_set_new(object, "host_id", json_string(owner->host_id));
	bad |= json_object_set_new(object, "host", record_printable(owner->host));
	bad |= json_object_set_new(object, "boot_id", json_string(owner->boot_id));
	bad |= json_object_set_new(
		object, "pid_namespace", json_integer((json_int_t)owner->pid_namespace));
	bad |= json_object_set_new(object, "pid", json_integer(owner->pid));
	bad |= json_object_set_new(object, "pid_start", json_integer((json_int_t)owner->pid_start));
	return bad ? -1 : 0;
}

int owner_from_json(struct owner *owner, const json_t *object, const char *name, struct err *err)
{
	uint64_t pid;
	memset(owner, 0, sizeof *owner);
	if (record_text_into(object, "host_id", owner->host_id, sizeof owner->host_id, name, err) <
			0 ||
		record_text_into(object, "host", owner->host, sizeof owner->host, name, err) < 0 ||
		record_text_into(
			object, "boot_id", owner->boot_id, sizeof owner->boot_id, name, err) < 0 ||
		record_u64(object, "pid_namespace", &owner->pid_namespace, name, err) < 0 ||
		record_u64(object, "pid", &pid, name, err) < 0 ||
		record_u64(object, "pid_start", &owner->pid_start, name, err) < 0)
		return -1;
	owner->pid = (int64_t)pid;
	return 0;
}

enum owner_state owner_state(const struct owner *owner)
{
	struct owner self;
	if (owner_self(&self, NULL) < 0 || strcmp(owner->host_id, self.host_id) != 0)
		return OWNER_ELSEWHERE;
	/* Cloned machines share their machine id; after a reboot the name is still the same. */
	if (strcmp(owner->boot_id, self.boot_id) != 0)
		return strcmp(owner->host, self.host) == 0 ? OWNER_DEAD : OWNER_ELSEWHERE;
	if (owner->pid_namespace != self.pid_namespace)
		return OWNER_ELSEWHERE;
	char state;
	uint64_t start;
	if (!process_facts(owner->pid, &state, &start) || start != owner->pid_start)
		return OWNER_DEAD;
	/* A zombie holds nothing any more; its parent may take long to notice. */
	return state == 'Z' || state == 'X' ? OWNER_DEAD : OWNER_ALIVE;
}
