/* What the helper says to its parent; see say.h. */
#include "say.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define SECRETS_MAX 4
#define LINE_BYTES 1024

static const char *secrets[SECRETS_MAX];
static unsigned nr_secrets;
static atomic_uint nr_lost;

void say_hide(const char *secret)
{
	if (secret[0] && nr_secrets < SECRETS_MAX)
		secrets[nr_secrets++] = secret;
}

/* The text never grows. */
static void clean(char *text)
{
	for (unsigned i = 0; i < nr_secrets; i++) {
		size_t length = strlen(secrets[i]);
		for (char *at = text; (at = strstr(at, secrets[i])) != NULL; at++) {
			*at = '*';
			memmove(at + 1, at + length, strlen(at + length) + 1);
		}
	}
	for (char *c = text; *c; c++)
		*c = (unsigned char)*c < ' ' || *c == 127 ? ' ' : *c;
	for (size_t end = strlen(text); end > 0 && text[end - 1] == ' ';)
		text[--end] = '\0';
}

static int send_message(const struct vddk_message *message, const char *text, int flags)
{
	char cleaned[LINE_BYTES] = "";
	if (text)
		snprintf(cleaned, sizeof cleaned, "%s", text);
	clean(cleaned);
	struct vddk_message head = *message;
	head.text_bytes = (uint32_t)strlen(cleaned);
	struct iovec parts[2] = {
		{&head, sizeof head},
		{cleaned, head.text_bytes},
	};
	struct msghdr packet = {.msg_iov = parts, .msg_iovlen = 2};
	ssize_t n;
	do
		n = sendmsg(0, &packet, MSG_NOSIGNAL | flags);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -1 : 0;
}

void say_message(const struct vddk_message *message, const char *text)
{
	send_message(message, text, 0);
}

static void log_line(enum vddk_loudness loudness, const char *format, va_list ap)
{
	char line[LINE_BYTES];
	/* A secret that the end of the buffer cuts in two is not found any more: what could be
	 * a part of one is dropped below. */
	int n = vsnprintf(line, sizeof line, format, ap);
	if (n < 0)
		return;
	if ((size_t)n >= sizeof line) {
		size_t longest = 0;
		for (unsigned i = 0; i < nr_secrets; i++) {
			size_t length = strlen(secrets[i]);
			longest = length > longest ? length : longest;
		}
		line[longest < sizeof line - 1 ? sizeof line - 1 - longest : 0] = '\0';
	}
	struct vddk_message message = {.type = VDDK_LOG, .slot = loudness};
	unsigned lost = atomic_exchange(&nr_lost, 0);
	message.count = lost;
	if (send_message(&message, line, MSG_DONTWAIT) < 0)
		atomic_fetch_add(&nr_lost, lost + 1);
}

void say_log_info(const char *format, va_list ap)
{
	log_line(VDDK_LOUD_INFO, format, ap);
}

void say_log_warning(const char *format, va_list ap)
{
	log_line(VDDK_LOUD_WARNING, format, ap);
}

void say_log_panic(const char *format, va_list ap)
{
	log_line(VDDK_LOUD_PANIC, format, ap);
}

void say_warning(const char *format, ...)
{
	va_list ap;
	va_start(ap, format);
	log_line(VDDK_LOUD_WARNING, format, ap);
	va_end(ap);
}
