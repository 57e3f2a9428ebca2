/* Logging; see log.h. */
#include "log.h"

#include "redact.h"
#include "utf8.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

static struct {
	log_sink *sink;
	void *context;
	enum log_level most;
} state;

void log_set_sink(log_sink *sink, void *context, enum log_level most)
{
	state.sink = sink;
	state.context = context;
	state.most = most;
}

void log_line(enum log_level level, const char *format, ...)
{
	if (!state.sink || level > state.most)
		return;
	char text[2048];
	va_list ap;
	va_start(ap, format);
	vsnprintf(text, sizeof text, format, ap);
	va_end(ap);
	redact_uris(text);
	utf8_mend(text);
	/* What peers and files say may hold newlines and escape sequences. */
	for (char *p = text; *p; p++)
		if ((unsigned char)*p < 0x20 || *p == 0x7f)
			*p = '?';
	state.sink(state.context, level, text);
}

const char *log_level_name(enum log_level level)
{
	static const char *const names[] = {"error", "warning", "info", "debug"};
	return names[level];
}
