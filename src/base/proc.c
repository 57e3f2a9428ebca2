/* What the kernel tells of processes; see proc.h. */
#include "proc.h"

#include "cleanup.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* As a string; false when there is nothing to read. */
static bool read_text(const char *path, char *text, size_t room)
{
	int AUTO_CLOSE fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, room - 1);
	text[n > 0 ? n : 0] = '\0';
	return n > 0;
}

/* Fields 3 and 22 of its stat file, counted from behind the last ')', because a program's
 * name may hold anything. */
bool proc_stat(int64_t pid, struct proc_stat *stat)
{
	char path[64], text[1024];
	snprintf(path, sizeof path, "/proc/%" PRId64 "/stat", pid);
	if (!read_text(path, text, sizeof text))
		return false;
	char *at = strrchr(text, ')');
	if (!at || at[1] != ' ')
		return false;
	at += 2;
	stat->state = *at;
	for (int field = 3; field < 22; field++) {
		at = strchr(at, ' ');
		if (!at)
			return false;
		at++;
	}
	stat->start = strtoull(at, NULL, 10);
	return true;
}

void proc_word(const char *path, char *out, size_t room)
{
	read_text(path, out, room);
	out[strcspn(out, " \n")] = '\0';
}

void proc_boot(char boot[PROC_BOOT_BYTES])
{
	proc_word("/proc/sys/kernel/random/boot_id", boot, PROC_BOOT_BYTES);
}
