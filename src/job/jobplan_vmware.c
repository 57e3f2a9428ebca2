/*
 * Jobs with machines of vCenters.  A spec names a configured vCenter, never a server, a user or
 * a file: what a worker connects to, and with which password, is the configuration's alone.
 */
#include "jobplan_vmware.h"

#include "jobfields.h"
#include "jobplan.h"
#include "jobwords.h"
#include "repository.h"
#include "rest.h"

#include <stdio.h>
#include <string.h>

#define URL_BYTES 16384 /* a machine of 4,096 bytes, each of them escaped */

#define ALL_KINDS                                                                          \
	{"kind", FIELD_TEXT, true, 0, 0, NULL}, {"vcenter", FIELD_TEXT, true, 0, 0, NULL}, \
	{                                                                                  \
		"hub_job", FIELD_TEXT, false, 0, 0, NULL                                   \
	}
#define SOURCE                                                                     \
	{"machine", FIELD_TEXT, true, 0, 0, NULL},                                 \
		{"skip_disks", FIELD_ARRAY, false, 0, REPOSITORY_DISKS_MAX, NULL}, \
		{"skip_unsupported", FIELD_BOOL, false, 0, 0, NULL},               \
		{"quiesce", FIELD_BOOL, false, 0, 0, NULL},                        \
		{"enable_cbt", FIELD_BOOL, false, 0, 0, NULL},                     \
		{"limit_rate", FIELD_INTEGER, false, 1, INT64_MAX, NULL},          \
	{                                                                          \
		"parallel", FIELD_INTEGER, false, 1, 16, NULL                      \
	}

static const char *const modes[] = {"auto", "full", "incremental", NULL};
static const char *const verifications[] = {"sample", "read-back", NULL};

static const struct jobfield backup_fields[] = {ALL_KINDS, SOURCE,
	{"repository", FIELD_TEXT, true, 0, 0, NULL}, {"vm", FIELD_VM, false, 0, 0, NULL},
	{"mode", FIELD_TEXT, false, 0, 0, modes}, {"audit", FIELD_NUMBER, false, 0, 0, NULL},
	{"resume", FIELD_BOOL, false, 0, 0, NULL},
	{"reserve_bytes", FIELD_INTEGER, false, 0, INT64_MAX, NULL}, JOBFIELDS_END};
static const struct jobfield replicate_fields[] = {ALL_KINDS, SOURCE,
	{"vm", FIELD_VM, false, 0, 0, NULL},
	{"targets", FIELD_ARRAY, true, 1, REPOSITORY_DISKS_MAX, NULL},
	{"cutover", FIELD_BOOL, false, 0, 0, NULL},
	{"verify", FIELD_TEXT, false, 0, 0, verifications},
	{"force", FIELD_BOOL, false, 0, 0, NULL}, JOBFIELDS_END};
static const struct jobfield target_fields[] = {{"key", FIELD_KEY, true, 0, 0, NULL},
	{"target", FIELD_TEXT, true, 0, 0, NULL}, JOBFIELDS_END};
static const struct jobfield cleanup_fields[] = {
	ALL_KINDS, {"machine", FIELD_TEXT, false, 0, 0, NULL}, JOBFIELDS_END};

/* --- where ----------------------------------------------------------------------------- */

static const struct job_vcenter *vcenter_of(
	const struct jobs_options *options, const json_t *spec, struct err *err)
{
	const char *name = jobwords_text(spec, "vcenter");
	for (size_t i = 0; i < options->nr_vcenters; i++)
		if (strcmp(options->vcenters[i].name, name) == 0)
			return &options->vcenters[i];
	err_set(err, ERR_USAGE, "vcenter: there is none of the name %.64s", name);
	return NULL;
}

/* vmware://USER@HOST/MACHINE: its slashes are those of a path, all else is escaped. */
static int add_source(
	json_t *argv, const struct job_vcenter *vcenter, const json_t *spec, struct err *err)
{
	char url[URL_BYTES], part[4097];
	const char *machine = jobwords_text(spec, "machine");
	size_t length = strlen(vcenter->url);
	while (length > 0 && vcenter->url[length - 1] == '/')
		length--;
	snprintf(url, sizeof url, "%.*s", (int)length, vcenter->url);
	for (const char *at = machine ? machine : ""; *at;) {
		at += strspn(at, "/");
		size_t part_length = strcspn(at, "/");
		snprintf(part, sizeof part, "%.*s", (int)part_length, at);
		at += part_length;
		size_t used = strlen(url);
		if (part[0] && used + 1 < sizeof url) {
			memcpy(url + used, "/", sizeof "/");
			if (rest_path_append(url, sizeof url, part, err) < 0)
				return err_context(err, "machine");
		}
	}
	jobwords_add(argv, "--");
	jobwords_add(argv, "%s", url);
	return 0;
}

/* ca_name: what the option for the vCenter's CA is called there. */
static void add_access(json_t *argv, const struct job_vcenter *vcenter, const char *ca_name)
{
	jobwords_add(argv, "--password-file=%s", vcenter->password_file);
	if (vcenter->ca_file)
		jobwords_add(argv, "--%s=%s", ca_name, vcenter->ca_file);
	if (vcenter->fingerprint)
		jobwords_add(argv, "--fingerprint=%s", vcenter->fingerprint);
}

static int add_skipped(json_t *argv, const json_t *spec, struct err *err)
{
	size_t i;
	const json_t *key;
	json_array_foreach(json_object_get(spec, "skip_disks"), i, key)
	{
		char name[48];
		snprintf(name, sizeof name, "skip_disks[%zu]", i);
		if (jobfields_check_member(FIELD_KEY, name, key, err) < 0)
			return -1;
		jobwords_add(argv, "--skip-disk=%s", json_string_value(key));
	}
	return 0;
}

/* How the machine is read. */
static int add_wishes(
	const struct jobs_options *options, json_t *argv, const json_t *spec, struct err *err)
{
	if (options->vddk_dir)
		jobwords_add(argv, "--vddk=%s", options->vddk_dir);
	if (options->vddk_modes)
		jobwords_add(argv, "--transport-modes=%s", options->vddk_modes);
	if (json_is_false(json_object_get(spec, "quiesce")))
		jobwords_add(argv, "--no-quiesce");
	if (json_is_false(json_object_get(spec, "enable_cbt")))
		jobwords_add(argv, "--no-enable-cbt");
	jobwords_add_flag(argv, "skip-unsupported", spec, "skip_unsupported");
	jobwords_add_number(argv, "limit-rate", spec, "limit_rate");
	jobwords_add_number(argv, "parallel", spec, "parallel");
	return add_skipped(argv, spec, err);
}

/* --- kinds ------------------------------------------------------------------------------ */

static int backup_argv(const struct jobs_options *options, const struct job_vcenter *vcenter,
	const json_t *spec, json_t *argv, struct err *err)
{
	const json_t *audit = json_object_get(spec, "audit"), *resume;
	const char *vm = jobwords_text(spec, "vm"), *mode = jobwords_text(spec, "mode");
	const struct job_repository *r =
		jobplan_repository(options, jobwords_text(spec, "repository"));
	if (!r)
		return jobplan_no_repository(spec, err);
	jobwords_add(argv, "backup");
	jobwords_add(argv, "--json");
	jobplan_add_repository(argv, r);
	add_access(argv, vcenter, "vcenter-ca-file");
	if (options->vmware_state_dir)
		jobwords_add(argv, "--state-dir=%s", options->vmware_state_dir);
	if (vm)
		jobwords_add(argv, "--vm=%s", vm);
	if (mode)
		jobwords_add(argv, "--mode=%s", mode);
	if (json_number_value(audit) > 0)
		jobwords_add(argv, "--audit=%.1f%%", json_number_value(audit));
	resume = json_object_get(spec, "resume");
	if (json_is_boolean(resume))
		jobwords_add(argv, "%s", json_is_true(resume) ? "--resume" : "--no-resume");
	return add_wishes(options, argv, spec, err);
}

static int replicate_argv(const struct jobs_options *options, const struct job_vcenter *vcenter,
	const json_t *spec, json_t *argv, struct err *err)
{
	const char *vm = jobwords_text(spec, "vm"), *verify = jobwords_text(spec, "verify");
	size_t i;
	const json_t *target;
	jobwords_add(argv, "replicate");
	jobwords_add(argv, "--json");
	add_access(argv, vcenter, "vcenter-ca-file");
	if (options->replica_state_dir)
		jobwords_add(argv, "--state-dir=%s", options->replica_state_dir);
	if (options->vmware_state_dir)
		jobwords_add(argv, "--vmware-state-dir=%s", options->vmware_state_dir);
	if (vm)
		jobwords_add(argv, "--vm=%s", vm);
	json_array_foreach(json_object_get(spec, "targets"), i, target)
	{
		char where[32];
		snprintf(where, sizeof where, "targets[%zu].", i);
		if (jobfields_check(target_fields, where, target, err) < 0)
			return -1;
		jobwords_add_disk(argv, "--target=", target, "target");
	}
	jobwords_add_flag(argv, "cutover", spec, "cutover");
	jobwords_add_flag(argv, "force", spec, "force");
	if (verify)
		jobwords_add(argv, "--verify=%s", verify);
	return add_wishes(options, argv, spec, err);
}

static int cleanup_argv(const struct jobs_options *options, const struct job_vcenter *vcenter,
	const json_t *spec, json_t *argv, struct err *err)
{
	(void)spec;
	(void)err;
	jobwords_add(argv, "vmware");
	jobwords_add(argv, "collect");
	jobwords_add(argv, "--json");
	add_access(argv, vcenter, "ca-file");
	if (options->vmware_state_dir)
		jobwords_add(argv, "--state-dir=%s", options->vmware_state_dir);
	return 0;
}

static const struct kind {
	const char *kind;
	const struct jobfield *fields;
	int (*argv)(const struct jobs_options *options, const struct job_vcenter *vcenter,
		const json_t *spec, json_t *argv, struct err *err);
} kinds[] = {
	{"backup", backup_fields, backup_argv},
	{"replicate", replicate_fields, replicate_argv},
	{"cleanup", cleanup_fields, cleanup_argv},
};

static const struct kind *kind_of(const json_t *spec)
{
	for (size_t i = 0; i < ARRAY_LENGTH(kinds); i++)
		if (strcmp(kinds[i].kind, jobwords_text(spec, "kind")) == 0)
			return &kinds[i];
	return NULL;
}

bool jobplan_vmware_is(const json_t *spec)
{
	const struct kind *kind = kind_of(spec);
	return kind && (kind->argv != backup_argv || json_object_get(spec, "vcenter"));
}

int jobplan_vmware_argv(
	const struct jobs_options *options, const json_t *spec, json_t *argv, struct err *err)
{
	const struct kind *kind = kind_of(spec);
	if (jobfields_check(kind->fields, "", spec, err) < 0)
		return -1;
	const struct job_vcenter *vcenter = vcenter_of(options, spec, err);
	if (!vcenter || kind->argv(options, vcenter, spec, argv, err) < 0)
		return -1;
	return add_source(argv, vcenter, spec, err);
}
