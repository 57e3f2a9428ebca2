/* sendense doctor: is this machine fit, and is this repository? */
#include "commands.h"
#include "disks.h"
#include "repository.h"
#include "vddk.h"
#include "version.h"
#include "vmware.h"

#include <inttypes.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>

enum verdict { DOCTOR_OK, DOCTOR_NOTE, DOCTOR_WARNING, DOCTOR_BAD };

static const char *const verdict_names[] = {"ok", "note", "warning", "bad"};

struct values {
	const char *repo;
	const char *vddk, *nbdkit;
};

static const struct option_spec option_table[] = {
	{.name = "repo",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct values, repo),
		.argument = "DIR",
		.words = WORDS_FOLDER,
		.help = "look at this repository too"},
	{.name = "vddk",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct values, vddk),
		.argument = "DIR",
		.words = WORDS_FOLDER,
		.help = "VMware's library: the folder that holds its lib64 (default: "
			"SENDENSE_VDDK_DIR, or the usual places)"},
	{.name = "nbdkit",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct values, nbdkit),
		.argument = "PROGRAM",
		.words = WORDS_FILE,
		.help = "the nbdkit that reads such disks for nbdkit-vddk:// (default: nbdkit)"},
};

struct doctor {
	json_t *checks;
	enum verdict worst;
};

__attribute__((format(printf, 4, 5))) static void tell(
	struct doctor *doctor, enum verdict verdict, const char *what, const char *format, ...)
{
	char text[1024];
	va_list ap;
	va_start(ap, format);
	vsnprintf(text, sizeof text, format, ap);
	va_end(ap);
	json_array_append_new(doctor->checks, json_pack("{s:s, s:s, s:s}", "check", what, "verdict",
						      verdict_names[verdict], "text", text));
	if (verdict > doctor->worst)
		doctor->worst = verdict;
}

/* --- the machine --------------------------------------------------------------- */

static void check_clock(struct doctor *doctor)
{
	time_t now = time(NULL);
	char text[CLOCK_UTC_BYTES];
	clock_utc_text(now, text);
	/* Restore points are named by the time. */
	if (now < 1735689600)
		tell(doctor, DOCTOR_BAD, "clock",
			"%s is in the past (set the clock: restore points are "
			"named and sorted by time)",
			text);
	else
		tell(doctor, DOCTOR_OK, "clock", "%s", text);
}

static void check_files(struct doctor *doctor)
{
	struct rlimit limit;
	if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < 1024)
		tell(doctor, DOCTOR_WARNING, "open files",
			"%" PRIu64
			" at most (a long chain of restore points needs one each: ulimit -n 4096)",
			(uint64_t)limit.rlim_cur);
	else
		tell(doctor, DOCTOR_OK, "open files", "%" PRIu64 " at most",
			(uint64_t)limit.rlim_cur);
	if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
		tell(doctor, DOCTOR_WARNING, "file size",
			"limited to %" PRIu64 " bytes (ulimit -f)", (uint64_t)limit.rlim_cur);
}

static void check_scratch(struct doctor *doctor)
{
	const char *folder = getenv("TMPDIR");
	if (!folder || !folder[0])
		folder = "/var/tmp";
	struct statvfs fs;
	char size[SIZE_TEXT_BYTES];
	if (access(folder, W_OK) < 0 || statvfs(folder, &fs) < 0)
		tell(doctor, DOCTOR_WARNING, "scratch folder",
			"%s cannot be written to (serve --writable needs --scratch DIR)", folder);
	else
		tell(doctor, DOCTOR_OK, "scratch folder", "%s, %s free (for serve --writable)",
			folder, cli_size_text((uint64_t)fs.f_bavail * fs.f_frsize, size));
}

static bool has_program(const char *name)
{
	const char *path = getenv("PATH");
	char file[4096];
	while (path && *path) {
		size_t length = strcspn(path, ":");
		snprintf(file, sizeof file, "%.*s/%s", (int)length, path, name);
		if (access(file, X_OK) == 0)
			return true;
		path += length + (path[length] == ':');
	}
	return false;
}

static void check_programs(struct doctor *doctor)
{
	static const struct {
		const char *name, *what_for;
	} programs[] = {
		{"qemu-img", "restores without Sendense, a second opinion on images (qemu-utils)"},
		{"nbdinfo", "looks at what is exported (libnbd-bin)"},
		{"ssh", "tunnels to another site (openssh-client)"},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(programs); i++) {
		bool has = has_program(programs[i].name);
		tell(doctor, has ? DOCTOR_OK : DOCTOR_NOTE, programs[i].name, "%s: %s",
			has ? "found" : "not found, not needed for backups", programs[i].what_for);
	}
}

/* Loaded by the helper, as for a backup, but connected to nothing. */
static void check_vddk(struct doctor *doctor, const char *folder, struct cancel *cancel)
{
	struct err err = ERR_INIT;
	struct vddk_facts facts;
	char loaded[VDDK_PATH_BYTES];
	if (vddk_probe(folder, NULL, &facts, loaded, cancel, &err) == 0)
		tell(doctor, DOCTOR_OK, "vddk", "VMware's library can be loaded: %s", loaded);
	else if (err.code == ERR_NOT_FOUND && !folder)
		tell(doctor, DOCTOR_NOTE, "vddk", "only for VMware's machines: %s", err.text);
	else
		tell(doctor, DOCTOR_WARNING, "vddk", "%s", err.text);
}

/* The other way to the same library. */
static void check_nbdkit(struct doctor *doctor, const char *program, struct cancel *cancel)
{
	struct err err = ERR_INIT;
	if (vmware_probe_nbdkit(program ? program : "nbdkit", cancel, &err) == 0)
		tell(doctor, DOCTOR_OK, "nbdkit", "has the vddk plugin (for nbdkit-vddk://)");
	else if (!program)
		tell(doctor, DOCTOR_NOTE, "nbdkit", "only for nbdkit-vddk://: %s", err.text);
	else
		tell(doctor, DOCTOR_WARNING, "nbdkit", "%s", err.text);
}

/* --- the repository -------------------------------------------------------------- */

static void check_space(struct doctor *doctor, const struct repository_info *info)
{
	char free_text[SIZE_TEXT_BYTES], total_text[SIZE_TEXT_BYTES];
	bool is_low = info->total_bytes > 0 && info->free_bytes < info->total_bytes / 20;
	tell(doctor, is_low ? DOCTOR_WARNING : DOCTOR_OK, "repository space", "%s free of %s%s",
		cli_size_text(info->free_bytes, free_text),
		cli_size_text(info->total_bytes, total_text),
		is_low ? " (less than a twentieth)" : "");
}

static int count_job(void *context, const struct repository_job *job)
{
	*(unsigned *)context += !job->alive;
	return 0;
}

static void check_repository(struct doctor *doctor, const char *path)
{
	struct err err = ERR_INIT;
	struct repository *repo = disks_open_repository(path, REPOSITORY_WRITE, &err);
	bool writable = repo != NULL;
	if (!repo && err.code == ERR_DENIED)
		repo = repository_open(path, REPOSITORY_READ, NULL);
	if (!repo) {
		tell(doctor, DOCTOR_BAD, "repository", "%s", err.text);
		return;
	}
	if (writable)
		tell(doctor, DOCTOR_OK, "repository", "%s can be written to", path);
	else
		tell(doctor, DOCTOR_BAD, "repository", "%s (restores and verification work)",
			err.text);
	struct repository_info info;
	if (repository_info(repo, &info, &err) == 0)
		check_space(doctor, &info);
	unsigned nr_dead = 0;
	if (repository_jobs(repo, count_job, &nr_dead, &err) == 0 && nr_dead > 0)
		tell(doctor, DOCTOR_NOTE, "unfinished jobs",
			"%u (sendense repo info shows them; they are cleaned when their time is "
			"over)",
			nr_dead);
	repository_close(repo);
}

static int run(struct cli *cli, const void *values, struct err *err)
{
	const struct values *v = values;
	struct doctor doctor = {.checks = json_array()};
	tell(&doctor, DOCTOR_OK, "build", "%s", version_text());
	tell(&doctor, DOCTOR_OK, "processors", "%u", thread_nr_cpus());
	check_clock(&doctor);
	check_files(&doctor);
	check_scratch(&doctor);
	check_programs(&doctor);
	check_vddk(&doctor, v->vddk, cli->cancel);
	check_nbdkit(&doctor, v->nbdkit, cli->cancel);
	if (v->repo)
		check_repository(&doctor, v->repo);
	int rc;
	if (cli->common.json) {
		rc = cli_print_json(json_pack("{s:b, s:o}", "fit", doctor.worst != DOCTOR_BAD,
					    "checks", doctor.checks),
			err);
	} else {
		size_t i;
		json_t *check;
		json_array_foreach(doctor.checks, i, check) printf("%-8s %-18s %s\n",
			json_string_value(json_object_get(check, "verdict")),
			json_string_value(json_object_get(check, "check")),
			json_string_value(json_object_get(check, "text")));
		json_decref(doctor.checks);
		rc = cli_flush(err);
	}
	if (rc < 0)
		return -1;
	return doctor.worst == DOCTOR_BAD ? EXIT_FAILED : 0;
}

const struct command command_doctor = {
	.name = "doctor",
	.summary = "Check whether this machine, and a repository, are fit for the job",
	.details = "Ends with status 1 when something is bad; warnings and notes are for reading.",
	COMMAND_OPTIONS(option_table),
	.common = COMMON_JSON,
	.values_bytes = sizeof(struct values),
	.run = run,
};
