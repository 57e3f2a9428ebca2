/* Errors; see err.h. */
#define ERR_DEFINES /* not the analyzer's macros of these names */
#include "err.h"

#include "redact.h"
#include "utf8.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const struct {
	enum err_code code;
	const char *name;
	int errnum; /* what the code is told as; the rows below also map back */
} codes[] = {
	{ERR_NONE, "none", 0},
	{ERR_USAGE, "usage", EINVAL},
	{ERR_IO, "io", EIO},
	{ERR_NO_SPACE, "no-space", ENOSPC},
	{ERR_NOT_FOUND, "not-found", ENOENT},
	{ERR_EXISTS, "exists", EEXIST},
	{ERR_DENIED, "denied", EPERM},
	{ERR_FORMAT, "format", EIO},
	{ERR_UNSUPPORTED, "unsupported", EOPNOTSUPP},
	{ERR_CORRUPT, "corrupt", EIO},
	{ERR_BUSY, "busy", EBUSY},
	{ERR_REFUSED, "refused", ECONNREFUSED},
	{ERR_CONFLICT, "conflict", EINVAL},
	{ERR_PROTOCOL, "protocol", EPROTO},
	{ERR_DISCONNECTED, "disconnected", ENOTCONN},
	{ERR_TIMEOUT, "timeout", ETIMEDOUT},
	{ERR_CANCELLED, "cancelled", ECANCELED},
	{ERR_RANGE, "range", EINVAL},
	{ERR_NO_MEMORY, "no-memory", ENOMEM},
};

/* A name that was cut in a character would keep the whole text out of every answer. */
static void clean(struct err *err)
{
	redact_uris(err->text);
	utf8_mend(err->text);
}

__attribute__((format(printf, 4, 0))) static int set_text(
	struct err *err, enum err_code code, int errnum, const char *format, va_list ap)
{
	err->code = code;
	err->sys_errno = errnum;
	vsnprintf(err->text, sizeof err->text, format, ap);
	clean(err);
	return -1;
}

int err_set(struct err *err, enum err_code code, const char *format, ...)
{
	if (!err)
		return -1;
	va_list ap;
	va_start(ap, format);
	set_text(err, code, 0, format, ap);
	va_end(ap);
	return -1;
}

int err_errno(struct err *err, int errnum, const char *format, ...)
{
	if (!err)
		return -1;
	va_list ap;
	va_start(ap, format);
	set_text(err, err_code_from_errno(errnum), errnum, format, ap);
	va_end(ap);
	char reason[128];
	const char *text = strerror_r(errnum, reason, sizeof reason);
	size_t used = strlen(err->text);
	snprintf(err->text + used, sizeof err->text - used, ": %s", text);
	return -1;
}

int err_context(struct err *err, const char *format, ...)
{
	if (!err)
		return -1;
	char old[ERR_TEXT_BYTES];
	memcpy(old, err->text, sizeof old);
	va_list ap;
	va_start(ap, format);
	vsnprintf(err->text, sizeof err->text, format, ap);
	va_end(ap);
	size_t used = strlen(err->text);
	snprintf(err->text + used, sizeof err->text - used, ": %s", old);
	clean(err);
	return -1;
}

int err_hint(struct err *err, const char *format, ...)
{
	if (!err)
		return -1;
	char hint[ERR_TEXT_BYTES];
	va_list ap;
	va_start(ap, format);
	vsnprintf(hint, sizeof hint, format, ap);
	va_end(ap);
	size_t used = strlen(err->text);
	snprintf(err->text + used, sizeof err->text - used, " (%s)", hint);
	clean(err);
	return -1;
}

int err_copy(struct err *dst, const struct err *src)
{
	if (dst && src)
		*dst = *src;
	return -1;
}

void err_clear(struct err *err)
{
	if (!err)
		return;
	err->code = ERR_NONE;
	err->sys_errno = 0;
	err->text[0] = '\0';
}

enum err_code err_code_from_errno(int errnum)
{
	switch (errnum) {
	case 0:
		return ERR_NONE;
	case ENOSPC:
	case EDQUOT:
	case EFBIG:
		return ERR_NO_SPACE;
	case ENOENT:
	case ENXIO:
	case ENODEV:
		return ERR_NOT_FOUND;
	case EEXIST:
	case ENOTEMPTY:
		return ERR_EXISTS;
	case EACCES:
	case EPERM:
	case EROFS:
		return ERR_DENIED;
	case EOPNOTSUPP:
	case ENOSYS:
		return ERR_UNSUPPORTED;
	case EBUSY:
	case EAGAIN:
	case ETXTBSY:
		return ERR_BUSY;
	case ECONNREFUSED:
		return ERR_REFUSED;
	case EPROTO:
	case EBADMSG:
		return ERR_PROTOCOL;
	case ENOTCONN:
	case ECONNRESET:
	case EPIPE:
	case ESHUTDOWN:
		return ERR_DISCONNECTED;
	case ETIMEDOUT:
		return ERR_TIMEOUT;
	case ECANCELED:
		return ERR_CANCELLED;
	case ENOMEM:
		return ERR_NO_MEMORY;
	case EINVAL:
	case ERANGE:
	case EOVERFLOW:
		return ERR_RANGE;
	default:
		return ERR_IO;
	}
}

int err_to_errno(const struct err *err)
{
	if (!err)
		return EIO;
	if (err->sys_errno != 0)
		return err->sys_errno;
	for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++)
		if (codes[i].code == err->code)
			return codes[i].errnum;
	return EIO;
}

const char *err_code_name(enum err_code code)
{
	for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++)
		if (codes[i].code == code)
			return codes[i].name;
	return "io";
}

enum err_code err_code_parse(const char *name, enum err_code otherwise)
{
	for (size_t i = 0; name && i < sizeof codes / sizeof codes[0]; i++)
		if (codes[i].code != ERR_NONE && strcmp(codes[i].name, name) == 0)
			return codes[i].code;
	return otherwise;
}
