/* One write() a line, so that lines of several threads do not mix; see logging.h. */
#include "logging.h"

#include "clock.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

const char *const logging_forms[] = {"auto", "journal", "json", "text", NULL};
const char *const logging_levels[] = {"error", "warning", "info", "debug", NULL};

static void write_line(const char *line, size_t length)
{
	/* A log that cannot be written has nobody to be told. */
	ssize_t done = write(STDERR_FILENO, line, length);
	(void)done;
}

/* "<4>text": the journal's levels. */
static void to_journal(void *context, enum log_level level, const char *text)
{
	static const int priorities[] = {3, 4, 6, 7};
	char line[2200];
	(void)context;
	int length = snprintf(line, sizeof line - 1, "<%d>%s", priorities[level], text);
	size_t used = min_size((size_t)length, sizeof line - 2);
	line[used] = '\n';
	write_line(line, used + 1);
}

static void to_text(void *context, enum log_level level, const char *text)
{
	char line[2200], now[CLOCK_UTC_BYTES];
	(void)context;
	clock_utc_text(time(NULL), now);
	int length = snprintf(line, sizeof line - 1, "%s %s: %s", now, log_level_name(level), text);
	size_t used = min_size((size_t)length, sizeof line - 2);
	line[used] = '\n';
	write_line(line, used + 1);
}

static void to_json(void *context, enum log_level level, const char *text)
{
	char now[CLOCK_UTC_BYTES];
	(void)context;
	clock_utc_text(time(NULL), now);
	json_t *said = json_string(text);
	json_t *line = json_pack("{s:s, s:s, s:o}", "time", now, "level", log_level_name(level),
		"text", said ? said : json_string("(the text is not UTF-8)"));
	char *out = line ? json_dumps(line, JSON_COMPACT) : NULL;
	json_decref(line);
	if (!out)
		return;
	size_t length = strlen(out);
	out[length] = '\n'; /* in the place of the end, which write() does not need */
	write_line(out, length + 1);
	free(out);
}

void logging_set(enum logging_form form, enum log_level most)
{
	if (form == LOGGING_AUTO)
		form = getenv("JOURNAL_STREAM") ? LOGGING_JOURNAL : LOGGING_TEXT;
	log_set_sink(form == LOGGING_JOURNAL ? to_journal
		     : form == LOGGING_JSON  ? to_json
					     : to_text,
		NULL, most);
}
