/*
 * What a stand-in for VMware's library was told: the file that SENDENSE_FAKE_VDDK names, a line
 * "name=value" each; and the disks that the test vCenter froze.
 */
#ifndef FAKE_TOLD_H
#define FAKE_TOLD_H

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void told_load(char *text, size_t room)
{
	const char *path = getenv("SENDENSE_FAKE_VDDK");
	FILE *file = path ? fopen(path, "re") : NULL;
	size_t n = file ? fread(text, 1, room - 1, file) : 0;
	text[n] = '\0';
	if (file)
		fclose(file);
}

/* NULL: nothing was said of it. */
static const char *told_value(const char *text, const char *name, char *out, size_t room)
{
	size_t length = strlen(name);
	for (const char *line = text; *line;) {
		size_t end = strcspn(line, "\n");
		if (strncmp(line, name, length) == 0 && line[length] == '=') {
			snprintf(out, room, "%.*s", (int)(end - length - 1), line + length + 1);
			return out;
		}
		line += end + (line[end] == '\n');
	}
	return NULL;
}

/* The frozen copy that the path is of that machine ("moref=vm-57") in that snapshot, open; -1:
 * none. */
static int told_frozen(const char *text, const char *spec, const char *snapshot, const char *path)
{
	char folder[2048], name[4096], line[4096], machine[128], file_name[2048];
	long key;
	if (!told_value(text, "frozen", folder, sizeof folder))
		return -1;
	snprintf(name, sizeof name, "%s/%s/index", folder, snapshot);
	FILE *index = fopen(name, "re");
	int fd = -1;
	while (index && fd < 0 && fgets(line, sizeof line, index)) {
		if (sscanf(line, "%127s %ld %2047[^\n]", machine, &key, file_name) != 3 ||
			strncmp(spec, "moref=", 6) != 0 || strcmp(spec + 6, machine) != 0 ||
			strcmp(path, file_name) != 0)
			continue;
		snprintf(name, sizeof name, "%s/%s/%ld.raw", folder, snapshot, key);
		fd = open(name, O_RDONLY | O_CLOEXEC);
	}
	if (index)
		fclose(index);
	return fd;
}

#endif
