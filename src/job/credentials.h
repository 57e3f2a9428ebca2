/*
 * credentials: with what jobs connect to nbds:// disks.  The hub's settings name them, so that
 * nobody has to send a secret, or a path, with a job:
 *
 *   nbds://HOST[:PORT]/[NAME] psk:/FILE [IDENTITY]     a pre-shared key (IDENTITY:HEX), the first
 * one of the file where none is named nbds://HOST[:PORT]/[NAME] certificates:/FOLDER ca-cert.pem,
 * perhaps client-cert.pem and client-key.pem
 *
 * The first word is a rule (allow.h), compared as those are.  It allows nothing by itself.
 *
 * Thread rule: any thread.
 */
#ifndef SENDENSE_JOB_CREDENTIALS_H
#define SENDENSE_JOB_CREDENTIALS_H

#include "base.h"

#include <jansson.h>

/* Such a line as {"rule", "psk_file" or "certificates", "username"?}, the caller's; ERR_USAGE. */
json_t *credentials_parse(const char *line, struct err *err);

/* The first of a list of those that holds for this disk; NULL: none. */
const json_t *credentials_find(const json_t *list, const char *name);

#endif
