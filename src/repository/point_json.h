/*
 * point_json: a restore point as JSON, for whoever tells of it: "sendense ls --json", the hub's
 * API, its index.
 *
 *   {"vm","point","started","finished","mode":"full|incremental|mixed","stored",
 *    "verified":"never|good|damaged","verified_at"?,"protected","protected_until"?,
 *    "consistency"?,"consistency_reason"?,"software","client"?,"job",
 *    "disks":[{"key","size","root","stored","image","source_kind","source","source_identity":{},
 *              "logical","read","sent","zeros_skipped","mode","reason","parent"?,"changed_by"?,
 *              "change_id"?,"bitmap"?,"backing"?,"audited",
 *              "checked"?}]}
 *   {"vm","point","damage"} of one whose manifest cannot be used
 */
#ifndef SENDENSE_POINT_JSON_H
#define SENDENSE_POINT_JSON_H

#include "repository.h"

#include <jansson.h>

/* The caller's; NULL: out of memory. */
json_t *point_json(const struct repository_point *point);
json_t *point_json_disk(const struct repository_disk_info *disk);
/* "full", "incremental", or "mixed" where its disks differ in that. */
const char *point_json_mode(const struct repository_point *point);

/* From what point_json() made, other members are passed over: ERR_PROTOCOL names what is missing.
 * What JSON does not tell (sums, image_bytes) is NULL or 0.  repository_point_free() frees it. */
struct repository_point *point_json_parse(const json_t *object, struct err *err);

#endif
