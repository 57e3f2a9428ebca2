/*
 * Errors: a code for programs, a text for people.
 *
 * A function that can fail returns 0/-1 (or a pointer/NULL) and fills the
 * caller's struct err.  Callers on the way up put context in front with
 * err_context(), so that the finished text reads
 *
 *     what was tried, on what: why it failed (what to do about it)
 *
 * Every err_* function accepts err == NULL (the caller does not care) and
 * returns -1, so that "return err_set(...)" reads well.
 *
 * Secrets in URIs are taken out (redact.h).
 *
 * Thread rule: a struct err belongs to one thread at a time.
 */
#ifndef SENDENSE_ERR_H
#define SENDENSE_ERR_H

#include <stdarg.h>
#include <stdbool.h>

enum err_code {
	ERR_NONE = 0,
	ERR_USAGE, /* the caller's words are wrong: a flag, a name, a URI */
	ERR_IO, /* the system or a device failed */
	ERR_NO_SPACE, /* no space left, a quota, a size limit of the file system */
	ERR_NOT_FOUND, /* no such file, export, VM, restore point */
	ERR_EXISTS, /* it is there already and may not be overwritten */
	ERR_DENIED, /* permission, or a read-only thing that was to be written */
	ERR_FORMAT, /* the bytes are not what they claim to be */
	ERR_UNSUPPORTED, /* valid, but not something we read or do */
	ERR_CORRUPT, /* it was ours and good once, and is damaged now */
	ERR_BUSY, /* locked or in use by someone named in the text */
	ERR_REFUSED, /* a peer said no; its reason is in the text */
	ERR_CONFLICT, /* what was asked for does not go with what there is: asking again gets the
			 same answer */
	ERR_PROTOCOL, /* a peer broke the protocol */
	ERR_DISCONNECTED, /* a peer is gone */
	ERR_TIMEOUT, /* a deadline passed; the text names the wait */
	ERR_CANCELLED, /* the user or the job's owner asked to stop */
	ERR_RANGE, /* an offset or length outside the disk */
	ERR_NO_MEMORY,
};

#define ERR_TEXT_BYTES 1024

struct err {
	enum err_code code;
	int sys_errno; /* the errno behind it, 0 where there is none */
	char text[ERR_TEXT_BYTES];
};

#define ERR_INIT ((struct err){.code = ERR_NONE})

/* Sets code and text; an older content is replaced.  Returns -1. */
int err_set(struct err *err, enum err_code code, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/*
 * Sets the text followed by ": " and the description of errnum, and the code
 * that belongs to it (ENOSPC -> ERR_NO_SPACE, ENOENT -> ERR_NOT_FOUND, ...).
 * Returns -1.
 */
int err_errno(struct err *err, int errnum, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* Puts "context: " in front of the text.  Returns -1. */
int err_context(struct err *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Puts " (hint)" behind the text: what the user can do.  Returns -1. */
int err_hint(struct err *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Copies src to dst (both may be NULL).  Returns -1. */
int err_copy(struct err *dst, const struct err *src);

void err_clear(struct err *err);

/* The code that belongs to an errno, and the errno that a code is told as to
 * peers that speak errno (NBD): never 0 for a code other than ERR_NONE. */
enum err_code err_code_from_errno(int errnum);
int err_to_errno(const struct err *err);

/* A short stable word for JSON: "io", "no-space", ... */
const char *err_code_name(enum err_code code);
/* The error that has that word; otherwise for one that is not known, or NULL. */
enum err_code err_code_parse(const char *name, enum err_code otherwise);

/* What the contract says, told to clang's analyzer, which looks at one file at a time. */
#if defined(__clang_analyzer__) && !defined(ERR_DEFINES)
#define err_set(...) (err_set(__VA_ARGS__), -1)
#define err_errno(...) (err_errno(__VA_ARGS__), -1)
#define err_context(...) (err_context(__VA_ARGS__), -1)
#define err_hint(...) (err_hint(__VA_ARGS__), -1)
#define err_copy(dst, src) (err_copy(dst, src), -1)
#endif

#endif
