/*
 * vsphere_tool: one session, step by step, for tests/integration/test_vsphere.py.
 *
 *     vsphere_tool OPTIONS {"url":…,"password_file":…,"ca_file":…|"fingerprint":…,"timeout_ms":…}
 *
 * Each line on stdin is an order {"op":…}, answered by one line {"ok":…} or {"error":{"code":…,
 * "text":…},…}.  The end of stdin closes the session.  SIGTERM requests the cancel.
 */
#include "vsphere.h"

#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#define TASK_MS 60000

static struct cancel *cancel;

static void on_signal(int number)
{
	(void)number;
	cancel_request(cancel);
}

static void on_log(void *context, enum log_level level, const char *text)
{
	(void)context;
	fprintf(stderr, "%s: %s\n", log_level_name(level), text);
}

static const char *text_of(const json_t *order, const char *name)
{
	return json_string_value(json_object_get(order, name));
}

static struct deadline until_of(const json_t *order)
{
	json_int_t ms = json_integer_value(json_object_get(order, "until_ms"));
	return deadline_after_ms(ms ? ms : TASK_MS);
}

static unsigned nr_progress;

static void on_progress(void *context, const char *what, unsigned percent)
{
	(void)context;
	(void)what;
	nr_progress += percent <= 100;
}

/* --- what the server says, as JSON ------------------------------------------------------------ */

static json_t *config_json(const struct vsphere_config *config)
{
	json_t *disks = json_array(), *nics = json_array();
	for (size_t i = 0; i < config->nr_disks; i++) {
		const struct vsphere_disk *d = &config->disks[i];
		json_array_append_new(
			disks, json_pack("{s:i, s:s, s:I, s:i, s:i, s:s, s:s, s:s, s:s, s:s?}",
				       "key", (int)d->key, "label", d->label, "capacity",
				       (json_int_t)d->capacity_bytes, "controller",
				       (int)d->controller_key, "unit", (int)d->unit, "file",
				       d->file, "uuid", d->uuid, "change_id", d->change_id,
				       "backing", d->backing, "unsupported", d->unsupported));
	}
	for (size_t i = 0; i < config->nr_nics; i++)
		json_array_append_new(nics, json_string(config->nics[i].mac));
	return json_pack("{s:s, s:s, s:s, s:i, s:b, s:b, s:s, s:s, s:i, s:o, s:o}", "name",
		config->name, "instance_uuid", config->instance_uuid, "bios_uuid",
		config->bios_uuid, "hardware", (int)config->hardware_version, "template",
		config->template, "cbt", config->cbt_enabled, "vmx", config->vmx_file, "xml",
		config->xml, "controllers", (int)config->nr_controllers, "disks", disks, "nics",
		nics);
}

static json_t *vm_json(const struct vsphere_vm *vm)
{
	json_t *snapshots = json_array();
	for (size_t i = 0; i < vm->nr_snapshots; i++)
		json_array_append_new(snapshots,
			json_pack("{s:s, s:s, s:i, s:b, s:b}", "moref", vm->snapshots[i].moref,
				"name", vm->snapshots[i].name, "depth", (int)vm->snapshots[i].depth,
				"quiesced", vm->snapshots[i].quiesced, "current",
				vm->snapshots[i].current));
	return json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:b, s:b, s:s, s:o, s:o}", "moref",
		vm->moref, "path", vm->path, "datacenter", vm->datacenter, "power",
		vsphere_power_name(vm->power), "connection", vm->connection, "host", vm->host,
		"tools", vm->tools, "cbt_supported", vm->cbt_supported, "consolidation_needed",
		vm->consolidation_needed, "migration", vm->migration, "snapshots", snapshots,
		"config", config_json(vm->config));
}

static int add_vm(void *context, const struct vsphere_listed *vm, struct err *err)
{
	(void)err;
	json_array_append_new(context,
		json_pack("{s:s, s:s, s:s, s:s, s:s, s:b, s:b, s:i}", "moref", vm->moref, "path",
			vm->path, "name", vm->name, "instance_uuid", vm->instance_uuid, "power",
			vsphere_power_name(vm->power), "template", vm->template, "cbt",
			vm->cbt_enabled, "disks", (int)vm->nr_disks));
	return 0;
}

static int add_area(void *context, uint64_t offset, uint64_t length, struct err *err)
{
	(void)err;
	json_array_append_new(context, json_pack("[I, I]", (json_int_t)offset, (json_int_t)length));
	return 0;
}

/* --- orders ------------------------------------------------------------------------------------
 */

static json_t *do_vm(struct vsphere *vsphere, const json_t *order, struct err *err)
{
	const char *what = text_of(order, "what");
	struct vsphere_vm *vm = what ? vsphere_find_vm(vsphere, what, err)
				     : vsphere_vm(vsphere, text_of(order, "vm"), err);
	json_t *out = vm ? vm_json(vm) : NULL;
	vsphere_vm_free(vm);
	return out;
}

static json_t *do_list(struct vsphere *vsphere, const json_t *order, struct err *err)
{
	(void)order;
	json_t *out = json_array();
	if (!vsphere_list_vms(vsphere, add_vm, out, err))
		return out;
	json_decref(out);
	return NULL;
}

static json_t *do_cbt(struct vsphere *vsphere, const json_t *order, struct err *err)
{
	struct vsphere_cbt cbt;
	if (vsphere_cbt_enable(vsphere, text_of(order, "vm"), "stun", until_of(order), &cbt, err))
		return NULL;
	return json_pack("{s:b, s:b, s:i, s:i}", "was_enabled", cbt.was_enabled, "stunned",
		cbt.stunned, "disks", (int)cbt.nr_disks, "tracked", (int)cbt.nr_tracked);
}

static json_t *do_snapshot(struct vsphere *vsphere, const json_t *order, struct err *err)
{
	struct vsphere_taken taken;
	if (vsphere_snapshot_create(vsphere, text_of(order, "vm"), text_of(order, "name"),
		    "a test's", json_is_true(json_object_get(order, "quiesce")), until_of(order),
		    &taken, err))
		return NULL;
	return json_pack("{s:s, s:b, s:s, s:i}", "moref", taken.moref, "quiesced", taken.quiesced,
		"why_not", taken.why_not, "progress", (int)nr_progress);
}

static json_t *do_find(struct vsphere *vsphere, const json_t *order, struct err *err)
{
	char moref[VSPHERE_MOREF_BYTES];
	int rc = vsphere_snapshot_find(
		vsphere, text_of(order, "vm"), text_of(order, "name"), moref, err);
	return rc < 0 ? NULL : rc ? json_string(moref) : json_null();
}

static json_t *do_settle(struct vsphere *vsphere, const json_t *order, struct err *err)
{
	char moref[VSPHERE_MOREF_BYTES];
	int rc = vsphere_snapshot_settle(
		vsphere, text_of(order, "vm"), text_of(order, "name"), until_of(order), moref, err);
	return rc < 0 ? NULL : rc ? json_string(moref) : json_null();
}

static json_t *do_config(struct vsphere *vsphere, const json_t *order, struct err *err)
{
	struct vsphere_config *config =
		vsphere_snapshot_config(vsphere, text_of(order, "snapshot"), err);
	json_t *out = config ? config_json(config) : NULL;
	vsphere_config_free(config);
	return out;
}

static json_t *do_remove(struct vsphere *vsphere, const json_t *order, struct err *err)
{
	bool needed = false;
	if (vsphere_snapshot_remove(vsphere, text_of(order, "vm"), text_of(order, "snapshot"),
		    until_of(order), &needed, err))
		return NULL;
	return json_pack("{s:b}", "consolidation_needed", needed);
}

static json_t *do_areas(struct vsphere *vsphere, const json_t *order, struct err *err)
{
	struct vsphere_changes changes;
	json_t *areas = json_array();
	int rc = vsphere_changed_areas(vsphere, text_of(order, "vm"), text_of(order, "snapshot"),
		(int32_t)json_integer_value(json_object_get(order, "key")),
		text_of(order, "change_id"),
		(uint64_t)json_integer_value(json_object_get(order, "capacity")), add_area, areas,
		&changes, err);
	json_t *out = json_pack("{s:o, s:I, s:i, s:b}", "areas", areas, "bytes",
		(json_int_t)changes.bytes, "calls", (int)changes.nr_calls, "gone", changes.gone);
	if (!rc)
		return out;
	if (changes.gone)
		err_hint(err, "gone");
	json_decref(out);
	return NULL;
}

static json_t *do_file(struct vsphere *vsphere, const json_t *order, struct err *err)
{
	char *bytes;
	size_t length;
	struct vsphere_vm *vm = vsphere_vm(vsphere, text_of(order, "vm"), err);
	if (!vm)
		return NULL;
	int rc = vsphere_load_file(vsphere, vm, text_of(order, "file"),
		(size_t)json_integer_value(json_object_get(order, "most")), &bytes, &length, err);
	vsphere_vm_free(vm);
	if (rc)
		return NULL;
	json_t *out = json_stringn(bytes, length);
	free(bytes);
	return out;
}

static json_t *do_about(struct vsphere *vsphere, const json_t *order, struct err *err)
{
	const struct vsphere_about *about = vsphere_about(vsphere);
	(void)order;
	(void)err;
	return json_pack("{s:s, s:s, s:s, s:b, s:s, s:s}", "name", about->full_name, "version",
		about->api_version, "uuid", about->instance_uuid, "is_vcenter", about->is_vcenter,
		"sha1", about->sha1, "sha256", about->sha256);
}

static json_t *do_no_cancel(struct vsphere *vsphere, const json_t *order, struct err *err)
{
	(void)order;
	(void)err;
	vsphere_set_cancel(vsphere, NULL);
	return json_true();
}

static const struct {
	const char *op;
	json_t *(*run)(struct vsphere *vsphere, const json_t *order, struct err *err);
} orders[] = {
	{"about", do_about},
	{"vm", do_vm},
	{"list", do_list},
	{"cbt", do_cbt},
	{"snapshot", do_snapshot},
	{"find", do_find},
	{"settle", do_settle},
	{"config", do_config},
	{"remove", do_remove},
	{"areas", do_areas},
	{"file", do_file},
	{"no-cancel", do_no_cancel},
};

static void answer(json_t *ok, const struct err *err)
{
	json_t *object = ok ? json_pack("{s:o}", "ok", ok)
			    : json_pack("{s:{s:s, s:s}}", "error", "code", err_code_name(err->code),
				      "text", err->text);
	json_dumpf(object, stdout, JSON_COMPACT);
	json_decref(object);
	putchar('\n');
	fflush(stdout);
}

static void obey(struct vsphere *vsphere, const json_t *order)
{
	struct err err = ERR_INIT;
	const char *op = text_of(order, "op");
	json_t *out = NULL;
	err_set(&err, ERR_USAGE, "no such order");
	for (size_t i = 0; op && i < ARRAY_LENGTH(orders); i++)
		if (!strcmp(op, orders[i].op)) {
			err_clear(&err);
			out = orders[i].run(vsphere, order, &err);
		}
	answer(out, &err);
}

static struct vsphere *open_session(const json_t *settings, struct err *err)
{
	struct vsphere_url url;
	char *password = NULL;
	size_t length;
	struct vsphere *vsphere = NULL;
	if (vsphere_url_parse(text_of(settings, "url"), &url, err))
		return NULL;
	if (!file_load(
		    AT_FDCWD, text_of(settings, "password_file"), 4096, &password, &length, err)) {
		password[strcspn(password, "\n")] = 0;
		struct vsphere_options options = {
			.host = url.host,
			.port = url.port,
			.user = url.user,
			.password = password,
			.ca_file = text_of(settings, "ca_file"),
			.fingerprint = text_of(settings, "fingerprint"),
			.call_timeout_ms = (unsigned)json_integer_value(
				json_object_get(settings, "timeout_ms")),
			.cancel = cancel,
			.progress = on_progress,
		};
		vsphere = vsphere_open(&options, err);
	}
	free(password);
	vsphere_url_free(&url);
	return vsphere;
}

int main(int argc, char **argv)
{
	struct err err = ERR_INIT;
	char line[65536];
	json_t *settings = argc == 2 ? json_loads(argv[1], 0, NULL) : NULL;
	cancel = cancel_new(&err);
	if (!settings || !cancel)
		return 2;
	log_set_sink(on_log, NULL, LOG_LEVEL_INFO);
	signal(SIGTERM, on_signal);
	struct vsphere *vsphere = open_session(settings, &err);
	answer(vsphere ? json_true() : NULL, &err);
	while (vsphere && fgets(line, sizeof line, stdin)) {
		json_t *order = json_loads(line, 0, NULL);
		obey(vsphere, order);
		json_decref(order);
	}
	vsphere_close(vsphere);
	cancel_free(cancel);
	json_decref(settings);
	return vsphere ? 0 : 1;
}
