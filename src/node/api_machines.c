/* REST: vCenters, their machines, the snapshots that are owed; metrics. */
#include "node_internal.h"

#include "discover.h"
#include "vmware.h"

#include <errno.h>
#include <stdlib.h>

/* --- vCenters and machines ------------------------------------------------------------- */

static int reply_vcenters(
	struct node *node, struct rest_request *request, unsigned status, struct err *err)
{
	return rest_reply(request, status,
		json_pack("{s:o}", "items", discover_vcenters(node->discover)), err);
}

static int get_vcenters(void *context, struct rest_request *request, struct err *err)
{
	return reply_vcenters(context, request, 200, err);
}

static int post_discover(void *context, struct rest_request *request, struct err *err)
{
	static const struct rest_field fields[] = {{.name = "vcenter", .type = REST_STRING}, {0}};
	struct node *node = context;
	const json_t *body = rest_body(request);
	if (rest_check(body, fields, err) < 0 ||
		discover_wake(node->discover, json_string_value(json_object_get(body, "vcenter")),
			err) < 0)
		return -1;
	return reply_vcenters(node, request, 202, err);
}

static int get_machines(void *context, struct rest_request *request, struct err *err)
{
	struct node *node = context;
	struct discover_filter filter = {
		.vcenter = rest_query(request, "vcenter"),
		.name = rest_query(request, "name"),
	};
	char *AUTO_FREE next = NULL;
	uint64_t version = 0;
	if (rest_page(request, &filter.limit, &filter.after, err) < 0)
		return -1;
	json_t *items = discover_machines(node->discover, &filter, &next, &version, err);
	if (!items)
		return -1;
	rest_set_etag(request, version);
	return rest_reply_page(request, items, next, err);
}

/* --- debts -------------------------------------------------------------------------------- */

static int add_debt(void *context, const struct vmware_debt *debt, struct err *err)
{
	json_t *one = vmware_debt_json(debt);
	/* Where it lies is this machine's business. */
	json_object_del(one, "file");
	return json_array_append_new(context, one) == 0
		       ? 0
		       : err_errno(err, ENOMEM, "cannot list what is owed");
}

static int get_debts(void *context, struct rest_request *request, struct err *err)
{
	struct node *node = context;
	json_t *items = json_array();
	if (vmware_debts(node->vmware_dir, add_debt, items, err) == 0)
		return rest_reply(request, 200, json_pack("{s:o}", "items", items), err);
	json_decref(items);
	return -1;
}

/* --- metrics ------------------------------------------------------------------------------ */

struct figure {
	const char *name, *help;
	double (*of)(const struct discover_figures *figures);
};

static double is_up(const struct discover_figures *figures)
{
	return figures->looked > 0 && !figures->failed;
}

static double looked_at(const struct discover_figures *figures)
{
	return (double)figures->looked;
}

static double nr_of_machines(const struct discover_figures *figures)
{
	return (double)figures->nr_machines;
}

static const struct figure vcenter_figures[] = {
	{"sendense_vcenter_up", "1: the last look at the vCenter was good.", is_up},
	{"sendense_vcenter_last_look_timestamp_seconds", "End of the last good look.", looked_at},
	{"sendense_vcenter_machines", "Machines that the last good look found.", nr_of_machines},
};

struct writing {
	FILE *out;
	const struct figure *figure;
};

static void put_vcenter(void *context, const struct discover_figures *figures)
{
	const struct writing *w = context;
	prometheus_put(w->out, w->figure->name, PROMETHEUS_LABELS("vcenter", figures->name),
		w->figure->of(figures));
}

static int count_debt(void *context, const struct vmware_debt *debt, struct err *err)
{
	unsigned *nr = context;
	(void)err;
	*nr += !debt->alive;
	return 0;
}

static void put_all(FILE *out, struct node *node)
{
	unsigned nr_queued = 0, nr_running = 0, nr_debts = 0;
	struct err err = ERR_INIT;
	jobs_count(node->jobs, &nr_queued, &nr_running);
	prometheus_head(out, "sendense_jobs", "gauge", "Jobs that have not ended.");
	prometheus_put(out, "sendense_jobs", PROMETHEUS_LABELS("state", "queued"), nr_queued);
	prometheus_put(out, "sendense_jobs", PROMETHEUS_LABELS("state", "running"), nr_running);
	for (size_t i = 0; i < ARRAY_LENGTH(vcenter_figures); i++) {
		struct writing w = {out, &vcenter_figures[i]};
		prometheus_head(out, w.figure->name, "gauge", w.figure->help);
		discover_each(node->discover, put_vcenter, &w);
	}
	if (vmware_debts(node->vmware_dir, count_debt, &nr_debts, &err) == 0)
		prometheus_one(out, "sendense_debts", "gauge",
			"Snapshots of backups that died, which nobody has removed yet.", nr_debts);
	prometheus_head(out, "sendense_build_info", "gauge", "The exact build; always 1.");
	prometheus_put(out, "sendense_build_info",
		PROMETHEUS_LABELS("version", node->options->version, "build", node->options->build),
		1);
}

static int get_metrics(void *context, struct rest_request *request, struct err *err)
{
	char *AUTO_FREE text = NULL;
	size_t length = 0;
	FILE *out = open_memstream(&text, &length);
	if (!out)
		return err_errno(err, errno, "cannot write metrics");
	put_all(out, context);
	if (fclose(out) != 0)
		return err_errno(err, errno, "cannot write metrics");
	return rest_reply_text(request, PROMETHEUS_TYPE, text, err);
}

const struct rest_route node_machine_routes[] = {
	{"GET", "/api/v1/vcenters", "listVcenters", REST_READ, 0, get_vcenters, 0},
	{"GET", "/api/v1/machines?vcenter&name&limit&after", "listMachines", REST_READ, 0,
		get_machines, 0},
	{"POST", "/api/v1/discover", "discover", REST_OPERATE, 0, post_discover, 0},
	{"GET", "/api/v1/debts", "listDebts", REST_READ, 0, get_debts, 0},
	{"GET", "/metrics", "getMetrics", REST_READ, 0, get_metrics, 0},
	{0},
};
