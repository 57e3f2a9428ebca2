/* sendense verify: are the restore points what they were? */
#include "commands.h"
#include "disks.h"
#include "findings.h"
#include "progress.h"

#include <string.h>

struct values {
	struct store_values store;
	struct option_number time_box;
};

static const struct option_spec option_table[] = {
	STORE_OPTION_ROWS(struct values),
	{.name = "time-box",
		.kind = OPTION_DURATION,
		.offset = offsetof(struct values, time_box),
		.argument = "TIME",
		.minimum = 1,
		.maximum = 31536000,
		.help = "end after that time; the next run goes on (default: no limit)"},
};

struct verify {
	struct cli *cli;
	struct store *store;
	char vm[REPOSITORY_VM_BYTES], point[REPOSITORY_POINT_BYTES];
	uint64_t size_bytes; /* of all disks that are looked at */
	struct copy_progress figures;
	struct findings findings;
	struct err err;
};

static int add_size(void *context, const struct repository_point *point)
{
	struct verify *v = context;
	bool wanted = !v->point[0] || strcmp(point->id, v->point) == 0;
	for (size_t i = 0; wanted && !point->damage && i < point->nr_disks; i++)
		v->size_bytes += point->disks[i].size_bytes;
	return 0;
}

/* What the bar counts up to.  Errors are left to the verification itself. */
static int add_vm_size(void *context, const char *vm)
{
	struct verify *v = context;
	store_list_points(v->store, vm, add_size, v, NULL);
	return 0;
}

static void begins(void *context, const struct repository_point *point, unsigned nr_left)
{
	(void)context;
	log_info("verifying %s@%s (%u left)", point->vm, point->id, nr_left);
}

static int print_report(struct verify *v, const struct repository_verify_result *result,
	int64_t took_ns, struct err *err)
{
	bool damaged = result->damages > 0 || result->points_damaged > 0;
	if (v->findings.list) {
		json_t *list = json_incref(v->findings.list);
		json_t *object = json_pack("{s:b, s:i, s:i, s:i, s:I, s:i, s:f, s:o}", "good",
			!damaged, "points_good", (int)result->points_good, "points_damaged",
			(int)result->points_damaged, "points_left", (int)result->points_left,
			"bytes_checked", (json_int_t)result->bytes_checked, "damages",
			(int)result->damages, "seconds", (double)took_ns / 1e9, "findings", list);
		return cli_print_json(object, err) < 0 ? -1 : damaged ? EXIT_DAMAGE : 0;
	}
	char size[SIZE_TEXT_BYTES], took[SIZE_TEXT_BYTES];
	if (!v->cli->common.quiet) {
		printf("%u restore point%s good, %u damaged", result->points_good,
			result->points_good == 1 ? "" : "s", result->points_damaged);
		if (result->points_left > 0)
			printf(", %u left for the next run", result->points_left);
		printf("; %s compared with their digests in %s.\n",
			cli_size_text(result->bytes_checked, size),
			cli_duration_text(took_ns, took));
	}
	return cli_flush(err) < 0 ? -1 : damaged ? EXIT_DAMAGE : 0;
}

static int verify(struct verify *v, const struct values *values, struct err *err)
{
	int64_t began_ns = clock_now_ns();
	struct progress *progress = progress_start(&v->cli->common, err);
	if (!progress)
		return -1;
	if (v->vm[0])
		add_vm_size(v, v->vm);
	else
		store_list_vms(v->store, add_vm_size, v, NULL);
	struct repository_verify_options options = {
		.vm = v->vm[0] ? v->vm : NULL,
		.point = v->point[0] ? v->point : NULL,
		.time_box_ms = (int64_t)values->time_box.value * 1000,
		.progress = &v->figures,
		.cancel = v->cli->cancel,
		.begins = begins,
		.finding = findings_tell,
		.context = &v->findings,
	};
	struct repository_verify_result result = {0};
	int rc = progress_add_disk(progress, NULL, v->size_bytes, &v->figures, err);
	progress_stage(progress, "verify");
	if (rc == 0)
		rc = store_verify(v->store, &options, &result, err);
	progress_end(progress, err);
	return rc < 0 ? -1 : print_report(v, &result, clock_now_ns() - began_ns, err);
}

static int run(struct cli *cli, const void *values, struct err *err)
{
	const struct values *options_given = values;
	struct verify v = {.cli = cli, .findings = {.quiet = cli->common.quiet}};
	if (cli->arguments.nr > 0 &&
		repository_name_split(cli->arguments.items[0], v.vm, v.point, err) < 0)
		return -1;
	/* Where it can be written to, the result is kept there. */
	v.store = disks_open_store(cli, &options_given->store, REPOSITORY_WRITE, err);
	if (!v.store && err->code == ERR_DENIED && !store_is_url(options_given->store.repo))
		v.store = disks_open_store(cli, &options_given->store, REPOSITORY_READ, err);
	if (!v.store)
		return -1;
	if (cli->common.json)
		v.findings.list = json_array();
	int rc = verify(&v, options_given, err);
	json_decref(v.findings.list);
	store_close(v.store);
	return rc;
}

const struct command command_verify = {
	.name = "verify",
	.arguments = "[VM[@POINT]]",
	.summary = "Compare restore points with their digests, and check that none is missing",
	.details = "Says what is damaged, what still can be restored, and what to do; ends with "
		   "status\n"
		   "3 then. Without VM all restore points are looked at, those first that were\n"
		   "verified longest ago.",
	COMMAND_OPTIONS(option_table),
	.common = COMMON_JSON | COMMON_PROGRESS,
	.max_arguments = 1,
	.values_bytes = sizeof(struct values),
	.run = run,
};
