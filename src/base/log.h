/*
 * Logging: one line an event.  Rooms log what an operator needs to know and no
 * return value carries (a slot freed, a connection lost and found again); they
 * never print.  The program decides where lines go; the default is nowhere.
 *
 * Secrets in URIs are taken out (redact.h).  Thread rule: log_line() may be called from any thread;
 * log_set_sink() only while there is one.
 */
#ifndef SENDENSE_LOG_H
#define SENDENSE_LOG_H

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

/* text ends without a newline and holds no control characters.  Called with
 * no lock held, possibly by several threads at once. */
typedef void log_sink(void *context, enum log_level level, const char *text);

void log_set_sink(log_sink *sink, void *context, enum log_level most);

void log_line(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...) log_line(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_line(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_info(...) log_line(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_line(LOG_LEVEL_DEBUG, __VA_ARGS__)

const char *log_level_name(enum log_level level);

#endif
