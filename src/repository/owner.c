/* Owners: who runs a job, and whether that process still lives. */
#include "repository_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

int owner_self(struct owner *owner, struct err *err)
{
	memset(owner, 0, sizeof *owner);
	if (gethostname(owner->host, sizeof owner->host - 1) < 0)
		return err_errno(err, errno, "cannot tell this host's name");
	proc_word("/etc/machine-id", owner->host_id, sizeof owner->host_id);
	if (strlen(owner->host_id) != 32)
		snprintf(owner->host_id, sizeof owner->host_id, "name:%.58s", owner->host);
	proc_boot(owner->boot_id);
	struct stat st;
	if (stat("/proc/self/ns/pid", &st) == 0)
		owner->pid_namespace = st.st_ino;
	owner->pid = getpid();
	struct proc_stat process;
	if (!owner->boot_id[0] || !proc_stat(owner->pid, &process))
		return err_set(err, ERR_UNSUPPORTED,
			"cannot tell this boot's and process's identity from /proc (is it "
			"mounted?)");
	owner->pid_start = process.start;
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

bool owner_is(const struct owner *owner, const struct repository_process *process)
{
	struct owner self;
	return owner_self(&self, NULL) == 0 && strcmp(owner->host_id, self.host_id) == 0 &&
	       strcmp(owner->boot_id, self.boot_id) == 0 &&
	       strcmp(owner->boot_id, process->boot_id) == 0 &&
	       owner->pid_namespace == self.pid_namespace && owner->pid == process->pid &&
	       owner->pid_start == process->start;
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
	struct proc_stat process;
	if (!proc_stat(owner->pid, &process) || process.start != owner->pid_start)
		return OWNER_DEAD;
	/* A zombie holds nothing any more; its parent may take long to notice. */
	return process.state == 'Z' || process.state == 'X' ? OWNER_DEAD : OWNER_ALIVE;
}
