/*
 * sendense status: is everything as it should be?
 *
 * A hub answers from what it knows (alarms, repositories, jobs, the schedule); of a folder the
 * restore points themselves are looked at.  Both make the same JSON, from which the text is made.
 */
#include "commands.h"
#include "disks.h"
#include "rest.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <time.h>

#define URL_BYTES 1024
#define RETRY_MS 5000u /* for one that is just being started again */

struct values {
	struct store_values store;
	struct option_number objective;
};

static const struct option_spec option_table[] = {
	STORE_OPTION_ROWS(struct values),
	{.name = "objective",
		.kind = OPTION_DURATION,
		.offset = offsetof(struct values, objective),
		.argument = "TIME",
		.minimum = 1,
		.maximum = 31536000,
		.help = "of a folder: an alarm for each VM whose newest good restore point is "
			"older than that (26h); a hub has its own objectives"},
};

static const char *text_of(const json_t *object, const char *name)
{
	const char *text = json_string_value(json_object_get(object, name));
	return text ? text : "";
}

static int64_t number_of(const json_t *object, const char *name)
{
	return json_integer_value(json_object_get(object, name));
}

/* --- a folder ---------------------------------------------------------------------------- */

struct look {
	struct store *store;
	int64_t now, objective_s; /* 0: none */
	json_t *alarms;
	int nr_vms, nr_late;
	int64_t newest; /* of the VM that is looked at; 0: none that is good */
	unsigned nr_points, nr_damaged;
	struct err err;
};

static int look_at_point(void *context, const struct repository_point *point)
{
	struct look *look = context;
	struct tm tm = {0};
	look->nr_points++;
	if (point->damage || point->verified == REPOSITORY_DAMAGED)
		look->nr_damaged++;
	else if (strptime(point->id, "%Y%m%dT%H%M%SZ", &tm))
		look->newest = timegm(&tm);
	return 0;
}

static void raise_alarm(
	struct look *look, const char *vm, const char *kind, int64_t since, const char *text)
{
	char since_text[CLOCK_UTC_BYTES];
	clock_utc_text(since, since_text);
	json_array_append_new(look->alarms,
		json_pack("{s:s, s:b, s:s, s:s, s:s, s:s}", "kind", kind, "severe", true, "object",
			vm, "vm", vm, "since", since_text, "text", text));
}

static int look_at_vm(void *context, const char *vm)
{
	struct look *look = context;
	char text[200], last[CLOCK_UTC_BYTES];
	look->newest = 0;
	look->nr_points = look->nr_damaged = 0;
	if (store_list_points(look->store, vm, look_at_point, look, &look->err) < 0) {
		if (look->err.code != ERR_NOT_FOUND)
			return 1;
		err_clear(&look->err);
	}
	look->nr_vms++;
	if (look->nr_damaged > 0) {
		snprintf(text, sizeof text, "%u of %u restore points are damaged", look->nr_damaged,
			look->nr_points);
		raise_alarm(look, vm, "damage", look->now, text);
	}
	if (look->objective_s == 0 || look->now - look->newest <= look->objective_s)
		return 0;
	look->nr_late++;
	clock_utc_text(look->newest, last);
	if (look->newest > 0)
		snprintf(text, sizeof text, "the newest good restore point is of %s", last);
	else
		snprintf(text, sizeof text, "there is no good restore point");
	raise_alarm(look, vm, "objective",
		look->newest > 0 ? look->newest + look->objective_s : look->now, text);
	return 0;
}

static json_t *ask_folder(
	struct cli *cli, const struct values *v, struct repository_info *info, struct err *err)
{
	struct look look = {.now = time(NULL), .alarms = json_array()};
	if (v->objective.given)
		look.objective_s = (int64_t)v->objective.value;
	look.store = disks_open_store(cli, &v->store, REPOSITORY_READ, err);
	if (!look.store)
		goto failed;
	int rc = store_info(look.store, info, err);
	if (rc == 0)
		rc = store_list_vms(look.store, look_at_vm, &look, err);
	if (rc == 0 && look.err.code != ERR_NONE)
		rc = err_copy(err, &look.err);
	store_close(look.store);
	if (rc < 0)
		goto failed;
	char now[CLOCK_UTC_BYTES];
	clock_utc_text(look.now, now);
	return json_pack("{s:s, s:s, s:s, s:o, s:{s:i, s:i}, s:[{s:s, s:s, s:I, s:I}]}", "name",
		info->path, "time", now, "status",
		json_array_size(look.alarms) > 0 ? "alarm" : "ok", "alarms", look.alarms, "vms",
		"total", look.nr_vms, "late", look.nr_late, "repositories", "name", info->path,
		"state", "ok", "free_bytes", (json_int_t)info->free_bytes, "total_bytes",
		(json_int_t)info->total_bytes);
failed:
	json_decref(look.alarms);
	return NULL;
}

/* --- a hub ----------------------------------------------------------------------------------- */

/* The hub itself: no repository needs to be named, and one that is does not matter. */
static json_t *ask_hub(struct cli *cli, const struct values *v, struct err *err)
{
	char url[URL_BYTES];
	const char *host = strstr(v->store.repo, "://") + 3;
	size_t length = (size_t)(host - v->store.repo) + strcspn(host, "/");
	const char *token = v->store.token_file, *ca = v->store.ca_file;
	json_t *status = NULL;
	if (v->objective.given) {
		err_set(err, ERR_USAGE, "--objective is for folders (a hub has its own)");
		return NULL;
	}
	if (length >= sizeof url) {
		err_set(err, ERR_USAGE, "--repo: the URL is too long");
		return NULL;
	}
	snprintf(url, sizeof url, "%.*s", (int)length, v->store.repo);
	const struct rest_client_options options = {.url = url,
		.token_file = token ? token : getenv("SENDENSE_TOKEN_FILE"),
		.ca_file = ca ? ca : getenv("SENDENSE_CA_FILE"),
		.retry_ms = RETRY_MS,
		.cancel = cli->cancel};
	struct rest_client *client = rest_client_new(&options, err);
	if (!client)
		return NULL;
	if (rest_call(client, "GET", "/api/v1/status", NULL, &status, err) == 0 &&
		!json_is_string(json_object_get(status, "status"))) {
		err_set(err, ERR_PROTOCOL, "%s: that is no hub's status (is it a hub?)", url);
		json_decref(status);
		status = NULL;
	}
	rest_client_free(client);
	return status;
}

/* --- text ---------------------------------------------------------------------------------------
 */

static void print_alarm(const json_t *alarm)
{
	const char *subject = text_of(alarm, "vm")[0]     ? "VM"
			      : text_of(alarm, "node")[0] ? "node"
							  : "repository";
	printf("%-8s %s %s: %s (since %s)\n",
		json_is_true(json_object_get(alarm, "severe")) ? "alarm" : "warning", subject,
		text_of(alarm, "object"), text_of(alarm, "text"), text_of(alarm, "since"));
}

static void print_repository(const json_t *repository)
{
	char free_text[SIZE_TEXT_BYTES], total_text[SIZE_TEXT_BYTES];
	printf("repository %s: %s, %s of %s free\n", text_of(repository, "name"),
		text_of(repository, "state"),
		cli_size_text((uint64_t)number_of(repository, "free_bytes"), free_text),
		cli_size_text((uint64_t)number_of(repository, "total_bytes"), total_text));
}

static void print_status(const json_t *status)
{
	size_t i;
	json_t *item;
	const json_t *jobs = json_object_get(status, "jobs");
	const json_t *vms = json_object_get(status, "vms");
	const json_t *next = json_object_get(status, "next_run");
	printf("%s: %s", text_of(status, "name"), text_of(status, "status"));
	if (text_of(status, "version")[0])
		printf(" (sendense %s, %s)", text_of(status, "version"), text_of(status, "build"));
	putchar('\n');
	json_array_foreach(json_object_get(status, "alarms"), i, item) print_alarm(item);
	json_array_foreach(json_object_get(status, "repositories"), i, item) print_repository(item);
	printf("%" PRId64 " VM%s, %" PRId64 " without a good restore point for too long\n",
		number_of(vms, "total"), number_of(vms, "total") == 1 ? "" : "s",
		number_of(vms, "late"));
	if (jobs)
		printf("%" PRId64 " job%s queued, %" PRId64 " running\n", number_of(jobs, "queued"),
			number_of(jobs, "queued") == 1 ? "" : "s", number_of(jobs, "running"));
	if (json_is_object(next))
		printf("next: schedule %s at %s\n", text_of(next, "schedule"), text_of(next, "at"));
}

static int run(struct cli *cli, const void *values, struct err *err)
{
	const struct values *v = values;
	struct repository_info info;
	if (!v->store.repo)
		return err_set(err, ERR_USAGE, "which repository or hub? (--repo DIR|URL)");
	json_t *status =
		store_is_url(v->store.repo) ? ask_hub(cli, v, err) : ask_folder(cli, v, &info, err);
	if (!status)
		return -1;
	int result = strcmp(text_of(status, "status"), "alarm") == 0 ? EXIT_FAILED : 0;
	if (cli->common.json)
		return cli_print_json(status, err) < 0 ? -1 : result;
	if (!cli->common.quiet)
		print_status(status);
	json_decref(status);
	return cli_flush(err) < 0 ? -1 : result;
}

const struct command command_status = {
	.name = "status",
	.summary = "Tell whether everything is as it should be: alarms, space, jobs",
	.details = "Ends with status 1 when there is an alarm: a VM that has had no good restore\n"
		   "point for longer than its objective, restore points that are damaged, a\n"
		   "repository that is full or gone, a node that is silent. Warnings (little "
		   "space, a backup that\n"
		   "failed) are told, and end with 0.",
	COMMAND_OPTIONS(option_table),
	.common = COMMON_JSON,
	.values_bytes = sizeof(struct values),
	.run = run,
};
