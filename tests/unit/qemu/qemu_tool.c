/*
 * Drives a session step by step, for tests: qemu_tool OPTION=VALUE...
 *
 * One command a line on stdin (plan I [BITMAP], begin BITMAP, check, commit, end), one JSON
 * object a line as the answer; the first one tells of the open.  The end of
 * stdin ends the session.
 */
#include "qemu.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

static void sink(void *context, enum log_level level, const char *text)
{
	(void)context;
	fprintf(stderr, "%s: %s\n", log_level_name(level), text);
}

static void answer(json_t *object, const struct err *err)
{
	if (err->code != ERR_NONE) {
		json_object_set_new(object, "error", json_string(err_code_name(err->code)));
		json_object_set_new(object, "text", json_string(err->text));
	}
	json_dumpf(object, stdout, JSON_COMPACT);
	json_decref(object);
	putchar('\n');
	fflush(stdout);
}

static json_t *state(const struct qemu_session *session)
{
	if (!session)
		return json_object();
	json_t *disks = json_array();
	for (size_t i = 0; i < qemu_nr_disks(session); i++) {
		const struct qemu_disk *disk = qemu_disk(session, i);
		json_array_append_new(
			disks, json_pack("{s:s, s:s, s:I, s:s, s:b, s:s*, s:s*}", "key", disk->key,
				       "node", disk->node, "size", (json_int_t)disk->size_bytes,
				       "identity", disk->identity, "has_bitmap", disk->has_bitmap,
				       "no_bitmap", disk->no_bitmap, "uri", disk->uri));
	}
	return json_pack("{s:s, s:s, s:s, s:s*, s:o}", "uuid", qemu_vm_uuid(session), "name",
		qemu_vm_name(session), "consistency", qemu_consistency(session), "reason",
		qemu_no_freeze_reason(session), "disks", disks);
}

static void run(struct qemu_session **session, char *line)
{
	struct err err = ERR_INIT;
	char *command = strtok(line, " \n");
	const char *first = strtok(NULL, " \n"), *second = strtok(NULL, " \n");
	if (!command)
		return;
	if (strcmp(command, "plan") == 0 && first) {
		qemu_plan_bitmap(*session, (size_t)atoi(first), second, &err);
	} else if (strcmp(command, "begin") == 0 && first) {
		qemu_begin(*session, first, &err);
	} else if (strcmp(command, "check") == 0) {
		qemu_check(*session, &err);
	} else if (strcmp(command, "commit") == 0) {
		qemu_commit(*session);
	} else if (strcmp(command, "end") == 0) {
		qemu_end(*session, &err);
		*session = NULL;
	}
	answer(state(*session), &err);
}

int main(int argc, char **argv)
{
	struct qemu_options options = {.socket = ""};
	struct err err = ERR_INIT;
	char line[1024];
	for (int i = 1; i < argc; i++) {
		char *value = strchr(argv[i], '=');
		if (!value)
			return 2;
		*value++ = '\0';
		if (strcmp(argv[i], "socket") == 0)
			options.socket = value;
		else if (strcmp(argv[i], "node") == 0)
			options.node = value;
		else if (strcmp(argv[i], "agent") == 0)
			options.agent = value;
		else if (strcmp(argv[i], "scratch") == 0)
			options.scratch = value;
		else if (strcmp(argv[i], "reserve") == 0)
			options.reserve_bytes = strtoull(value, NULL, 10);
		else if (strcmp(argv[i], "timeout") == 0)
			options.timeout_ms = (unsigned)atoi(value);
		else if (strcmp(argv[i], "freeze") == 0)
			options.freeze_timeout_ms = (unsigned)atoi(value);
	}
	log_set_sink(sink, NULL, LOG_LEVEL_INFO);
	struct qemu_session *session = qemu_open(&options, &err);
	answer(state(session), &err);
	while (session && fgets(line, sizeof line, stdin))
		run(&session, line);
	qemu_end(session, NULL);
	return 0;
}
