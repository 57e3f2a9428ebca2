/* sendense prune: takes out the restore points that retention does not keep. */
#include "commands.h"
#include "disks.h"
#include "progress.h"
#include "version.h"

#include <stdio.h>
#include <string.h>

struct values {
	struct store_values store;
	const char *timezone;
	struct option_number last, hourly, daily, weekly, monthly, yearly, within, wait;
	bool dry_run, trust_clock;
};

#define KEEP_ROW(option, member, text)                                                    \
	{                                                                                 \
		.name = "keep-" option, .kind = OPTION_NUMBER,                            \
		.offset = offsetof(struct values, member), .argument = "N", .minimum = 1, \
		.maximum = 1000000, .help = "keep " text                                  \
	}

static const struct option_spec option_table[] = {
	STORE_OPTION_ROWS(struct values),
	KEEP_ROW("last", last, "the newest N restore points"),
	KEEP_ROW("hourly", hourly, "the newest of each of the last N hours that have any"),
	KEEP_ROW("daily", daily, "the newest of each of the last N days that have any"),
	KEEP_ROW("weekly", weekly,
		"the newest of each of the last N weeks that have any (from Monday on)"),
	KEEP_ROW("monthly", monthly, "the newest of each of the last N months that have any"),
	KEEP_ROW("yearly", yearly, "the newest of each of the last N years that have any"),
	{.name = "keep-within",
		.kind = OPTION_DURATION,
		.offset = offsetof(struct values, within),
		.argument = "TIME",
		.minimum = 1,
		.maximum = UINT64_C(1000) * 366 * 86400,
		.help = "keep all that are younger than the newest by less than that (30d, 12h, "
			"2y)"},
	{.name = "timezone",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct values, timezone),
		.argument = "ZONE",
		.help = "of the hours, days, weeks, months and years: Europe/Berlin, UTC (default: "
			"this machine's)"},
	{.name = "dry-run",
		.kind = OPTION_FLAG,
		.offset = offsetof(struct values, dry_run),
		.help = "only tell which restore points would go, and why the others stay"},
	{.name = "wait",
		.kind = OPTION_DURATION,
		.offset = offsetof(struct values, wait),
		.argument = "TIME",
		.maximum = 31536000,
		.help = "wait so long for a backup or prune of the same machine (default: 10s)"},
	{.name = "trust-clock",
		.kind = OPTION_FLAG,
		.offset = offsetof(struct values, trust_clock),
		.help = "prune although the clock is before the newest restore point, or years "
			"behind it"},
};

struct prune {
	struct cli *cli;
	struct progress *progress;
	struct copy_progress figures;
	bool dry_run;
	json_t *points; /* NULL: as text */
	char vm[REPOSITORY_VM_BYTES]; /* whose heading was printed last */
};

static const char *fate_text(const struct prune *p, enum repository_fate fate)
{
	switch (fate) {
	case REPOSITORY_KEPT:
		return "keep";
	case REPOSITORY_PRUNED:
		return p->dry_run ? "prune" : "pruned";
	default:
		return "left";
	}
}

static void tell_point(void *context, const char *vm, const char *point, enum repository_fate fate,
	const char *why, int64_t freed_bytes)
{
	struct prune *p = context;
	char size[SIZE_TEXT_BYTES];
	if (p->points) {
		json_t *object = json_pack("{s:s, s:s, s:s, s:s}", "vm", vm, "point", point, "fate",
			fate_text(p, fate), "why", why);
		if (fate != REPOSITORY_KEPT && !p->dry_run)
			json_object_set_new(object, "freed", json_integer(freed_bytes));
		json_array_append_new(p->points, object);
		return;
	}
	if (p->cli->common.quiet && fate != REPOSITORY_LEFT)
		return;
	if (strcmp(p->vm, vm) != 0)
		printf("%s%s\n", p->vm[0] ? "\n" : "", vm);
	snprintf(p->vm, sizeof p->vm, "%s", vm);
	printf("  %-24s %-7s %s", point, fate_text(p, fate), why);
	if (fate == REPOSITORY_PRUNED && !p->dry_run && freed_bytes != 0)
		printf("; %s%s", cli_size_text((uint64_t)llabs(freed_bytes), size),
			freed_bytes < 0 ? " more" : " freed");
	putchar('\n');
}

static void tell_stage(void *context, const char *vm, const char *point, const char *stage)
{
	struct prune *p = context;
	progress_stage(p->progress, stage);
	log_info("prune of %s@%s: %s", vm, point, stage);
}

static int report(struct prune *p, const struct repository_prune_result *result, struct err *err)
{
	char size[SIZE_TEXT_BYTES];
	if (p->points)
		return cli_print_json(
			json_pack("{s:b, s:i, s:i, s:i, s:I, s:O}", "dry_run", p->dry_run, "kept",
				(int)result->kept, "pruned", (int)result->pruned, "left",
				(int)result->left, "freed", (json_int_t)result->freed_bytes,
				"points", p->points),
			err);
	if (p->cli->common.quiet)
		return cli_flush(err);
	printf("%u kept, %u %s, %u left", result->kept, result->pruned,
		p->dry_run ? "to be pruned" : "pruned", result->left);
	if (!p->dry_run)
		printf("; %s%s", cli_size_text((uint64_t)llabs(result->freed_bytes), size),
			result->freed_bytes < 0 ? " more in use" : " freed");
	printf(".\n");
	return cli_flush(err);
}

static void policy_of(const struct values *v, struct retention_policy *policy)
{
	*policy = (struct retention_policy){
		.last = (unsigned)v->last.value,
		.hourly = (unsigned)v->hourly.value,
		.daily = (unsigned)v->daily.value,
		.weekly = (unsigned)v->weekly.value,
		.monthly = (unsigned)v->monthly.value,
		.yearly = (unsigned)v->yearly.value,
		.within_s = (int64_t)v->within.value,
		.timezone = v->timezone,
	};
}

static int prune(struct prune *p, struct store *store, const struct values *v, struct err *err)
{
	struct retention_policy policy;
	char software[128];
	policy_of(v, &policy);
	snprintf(software, sizeof software, "sendense %s", version_text());
	struct repository_prune_options options = {
		.vm = p->cli->arguments.nr > 0 ? p->cli->arguments.items[0] : NULL,
		.policy = &policy,
		.dry_run = v->dry_run,
		.trust_clock = v->trust_clock,
		.software = software,
		.wait_ms = v->wait.given ? (unsigned)v->wait.value * 1000 : 10000,
		.cancel = p->cli->cancel,
		.point = tell_point,
		.stage = tell_stage,
		.progress = &p->figures,
		.context = p,
	};
	struct repository_prune_result result;
	struct err why = ERR_INIT;
	p->progress = progress_start(&p->cli->common, err);
	if (!p->progress)
		return -1;
	/* How much is to be moved shows only as it goes on: no size. */
	int rc = progress_add_disk(p->progress, NULL, 0, &p->figures, &why);
	memset(&result, 0, sizeof result);
	if (rc == 0)
		rc = store_prune(store, &options, &result, &why);
	progress_end(p->progress, rc < 0 ? &why : NULL);
	/* What was done until then is told too, except where the error is the answer. */
	bool has_result = rc == 0 || (!p->points && result.kept + result.pruned + result.left > 0);
	if (has_result && report(p, &result, err) < 0 && rc == 0)
		return -1;
	if (rc < 0)
		return err_copy(err, &why);
	if (result.failed == 0)
		return 0;
	/* The report is whole: with --json no second object tells of it. */
	err_set(&why, ERR_IO, "%u restore point%s that no rule keeps could not be taken out: %s%s",
		result.failed, result.failed == 1 ? "" : "s", result.failure,
		result.failed == 1 ? "" : " (the first one; the report has all)");
	cli_report_error(false, command_prune.name, &why);
	return EXIT_FAILED;
}

static int run(struct cli *cli, const void *values, struct err *err)
{
	const struct values *v = values;
	struct prune p = {.cli = cli, .dry_run = v->dry_run};
	struct store *store = disks_open_store(
		cli, &v->store, v->dry_run ? REPOSITORY_READ : REPOSITORY_WRITE, err);
	if (!store)
		return -1;
	if (disks_refuse_remote(store, v->wait.given ? "--wait" : NULL,
		    "the hub's own jobs wait for each other", err) < 0) {
		store_close(store);
		return -1;
	}
	if (cli->common.json)
		p.points = json_array();
	int rc = prune(&p, store, v, err);
	json_decref(p.points);
	store_close(store);
	return rc;
}

const struct command command_prune = {
	.name = "prune",
	.arguments = "[VM]",
	.summary = "Take out the restore points that no rule keeps, and give back their space",
	.details =
		"Each rule keeps the newest restore point of each of its periods; what no rule "
		"keeps\n"
		"goes, and those that stood on it are not harmed. The newest point, protected "
		"ones, the\n"
		"last one verified good and damaged ones always stay; what is being read is left "
		"for the\n"
		"next time. Without VM every machine is pruned by itself.",
	COMMAND_OPTIONS(option_table),
	.common = COMMON_JSON | COMMON_PROGRESS,
	.max_arguments = 1,
	.values_bytes = sizeof(struct values),
	.run = run,
};
