/*
 * policy: what holds for which machines: repository, schedules, how long a machine may be
 * without a good restore point, what is kept.
 *
 * A machine has the policy that its settings name; else, of the policies whose patterns match
 * its name and labels, the one of the highest priority (of the same: the first by id); else
 * none.  A policy without patterns and labels is only ever named.
 *
 * The JSON is described in docs/hub.md.  Pure.
 */
#ifndef SENDENSE_HUB_POLICY_H
#define SENDENSE_HUB_POLICY_H

#include "base.h"

#include <jansson.h>

/* ERR_USAGE names the member. */
int policy_check(const char *id, const json_t *value, struct err *err);

/* The settings of a machine.  ERR_USAGE names the member. */
int policy_check_machine(const char *name, const json_t *value, struct err *err);

/* The rules of a policy's keep that are given, as a job takes them; the caller's, NULL: no memory.
 */
json_t *policy_keep_given(const json_t *keep);

/* Policies by id -> value, as a JSON object.  settings: of the machine, NULL: none.
 * Borrowed from policies; id (may be NULL) too.  NULL: none. */
const json_t *policy_of(
	const json_t *policies, const char *machine, const json_t *settings, const char **id);

/* Whether text matches a pattern with * and ?. */
bool policy_matches(const char *pattern, const char *text);

#endif
