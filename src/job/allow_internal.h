/* What allow.c and allow_local.c share. */
#ifndef SENDENSE_JOB_ALLOW_INTERNAL_H
#define SENDENSE_JOB_ALLOW_INTERNAL_H

#include "allow.h"

#include <limits.h>

enum allow_shape { ALLOW_NET, ALLOW_SOCKET, ALLOW_FILE, ALLOW_MACHINE, ALLOW_NULL };

/* A name or a rule, taken apart. */
struct allow_name {
	const char *scheme; /* as in the table: "nbd://" */
	enum allow_shape shape;
	char host[256];
	unsigned port;
	bool any_port;
	char name[4097]; /* of an export, or a URL's path; decoded */
	char path[PATH_MAX]; /* of what is local: absolute, without empty parts and dots */
	const char *query; /* borrowed: a rule's parameters; of a socket "///NAME" */
	size_t query_length; /* of the latter */
};

/* ERR_USAGE: what is wrong with it. */
int allow_parse(
	struct allow_name *n, const char *text, bool is_rule, enum allow_use use, struct err *err);

/* 0: the rule does not cover the path; 1: it does, checked is the name to go on with; -1: it does,
 * but what is there may not be used.  rules: all, for those that forbid. */
int allow_local(const char *const *rules, const struct allow_name *rule,
	const struct allow_name *name, enum allow_use use, char checked[ALLOW_NAME_BYTES],
	struct err *err);

#endif
