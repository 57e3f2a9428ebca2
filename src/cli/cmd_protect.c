/* sendense protect: a restore point that prune leaves alone. */
#include "commands.h"
#include "disks.h"

#include <stdio.h>
#include <string.h>

struct values {
	struct store_values store;
	const char *until;
	bool off;
};

static const struct option_spec option_table[] = {
	STORE_OPTION_ROWS(struct values),
	{.name = "until",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct values, until),
		.argument = "DATE",
		.help = "to the end of that day (2026-12-31, UTC), to a time "
			"(2026-12-31T20:00:00Z), or for so long from now on (30d); default: "
			"without "
			"end"},
	{.name = "off",
		.kind = OPTION_FLAG,
		.offset = offsetof(struct values, off),
		.help = "do not protect it any more"},
};

/* A day lasts to its end.  False when the text is no such date. */
static bool parse_date(const char *text, int64_t *seconds)
{
	struct tm tm = {.tm_hour = 23, .tm_min = 59, .tm_sec = 59};
	char again[CLOCK_UTC_BYTES];
	int end = 0;
	size_t length = strlen(text);
	if (length != strlen("2026-12-31") && length != strlen("2026-12-31T20:00:00Z"))
		return false;
	if (sscanf(text, "%4d-%2d-%2d%n", &tm.tm_year, &tm.tm_mon, &tm.tm_mday, &end) != 3)
		return false;
	if (text[end] &&
		sscanf(text + end, "T%2d:%2d:%2dZ", &tm.tm_hour, &tm.tm_min, &tm.tm_sec) != 3)
		return false;
	tm.tm_year -= 1900;
	tm.tm_mon -= 1;
	*seconds = timegm(&tm);
	if (*seconds < 0)
		return false;
	/* "2026-02-31" is another day. */
	clock_utc_text(*seconds, again);
	return strncmp(again, text, length) == 0;
}

static int parse_until(const char *text, int64_t *until, struct err *err)
{
	uint64_t seconds;
	if (parse_date(text, until))
		return 0;
	if (clock_parse_duration(text, &seconds, NULL) < 0 || seconds > INT64_MAX / 2)
		return err_set(err, ERR_USAGE,
			"--until: \"%s\" is not a date (like 2026-12-31, 2026-12-31T20:00:00Z or "
			"30d)",
			text);
	*until = time(NULL) + (int64_t)seconds;
	return 0;
}

static int report(struct cli *cli, const char *vm, const char *point, bool off, int64_t until,
	struct err *err)
{
	char text[CLOCK_UTC_BYTES] = "";
	if (until > 0)
		clock_utc_text(until, text);
	if (cli->common.json)
		return cli_print_json(json_pack("{s:s, s:s, s:b, s:s*}", "vm", vm, "point", point,
					      "protected", !off, "until", until > 0 ? text : NULL),
			err);
	if (!cli->common.quiet)
		printf("%s@%s is %s%s%s.\n", vm, point,
			off ? "not protected any more" : "protected from prune",
			until > 0 ? " until " : "", text);
	return cli_flush(err);
}

static int run(struct cli *cli, const void *values, struct err *err)
{
	const struct values *v = values;
	char vm[REPOSITORY_VM_BYTES], point[REPOSITORY_POINT_BYTES];
	int64_t until = 0;
	if (repository_name_split(cli->arguments.items[0], vm, point, err) < 0)
		return -1;
	if (!point[0])
		return err_set(err, ERR_USAGE, "which restore point of %s? (VM@POINT)", vm);
	if (v->off && v->until)
		return err_set(err, ERR_USAGE, "--until and --off exclude each other");
	if (v->until && parse_until(v->until, &until, err) < 0)
		return -1;
	struct store *store = disks_open_store(cli, &v->store, REPOSITORY_WRITE, err);
	if (!store)
		return -1;
	int rc = store_protect(store, vm, point, v->off, until, err);
	store_close(store);
	return rc < 0 ? -1 : report(cli, vm, point, v->off, until, err);
}

const struct command command_protect = {
	.name = "protect",
	.arguments = "VM@POINT",
	.summary = "Protect a restore point from prune, for a time or without end",
	COMMAND_OPTIONS(option_table),
	.common = COMMON_JSON,
	.min_arguments = 1,
	.max_arguments = 1,
	.values_bytes = sizeof(struct values),
	.run = run,
};
