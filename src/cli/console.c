/* Standard error; see console.h. */
#include "console.h"

#include "base.h"

#include <stdio.h>
#include <sys/ioctl.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static char status[512]; /* what the last line shows now */

bool console_is_terminal(void)
{
	return isatty(STDERR_FILENO);
}

unsigned console_width(void)
{
	struct winsize size;
	if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) < 0 || size.ws_col < 20)
		return 80;
	return size.ws_col;
}

/* "\r" and "erase to the end of the line". */
static void draw_status(void)
{
	if (status[0])
		fprintf(stderr, "\r%s\033[K", status);
}

char console_clean(char c, char before)
{
	unsigned char byte = (unsigned char)c;
	/* U+0080 to U+009F are controls too: they become U+00BF. */
	if (before == (char)0xc2 && byte >= 0x80 && byte < 0xa0)
		return (char)0xbf;
	return byte < 0x20 || byte == 0x7f ? '?' : c;
}

void console_line(const char *text)
{
	WITH_LOCK(&mutex);
	if (status[0])
		fputs("\r\033[K", stderr);
	for (const char *p = text; *p; p++)
		fputc(console_clean(*p, p > text ? p[-1] : '\0'), stderr);
	fputc('\n', stderr);
	draw_status();
	fflush(stderr);
}

void console_status(const char *text)
{
	WITH_LOCK(&mutex);
	if (!text[0] && status[0])
		fputs("\r\033[K", stderr);
	snprintf(status, sizeof status, "%s", text);
	draw_status();
	fflush(stderr);
}

void console_status_keep(void)
{
	WITH_LOCK(&mutex);
	if (status[0])
		fputc('\n', stderr);
	status[0] = '\0';
	fflush(stderr);
}
