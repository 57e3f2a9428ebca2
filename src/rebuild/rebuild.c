/* The machine, from what is stored and what is said; see rebuild.h. */
#include "rebuild_internal.h"

#include <errno.h>
#include <string.h>

#define VERSION 1
#define CPUS_MOST 4096

const char *rebuild_text(const json_t *object, const char *name)
{
	const char *text = json_string_value(json_object_get(object, name));
	return text ? text : "";
}

int64_t rebuild_number(const json_t *object, const char *name)
{
	return json_integer_value(json_object_get(object, name));
}

const json_t *rebuild_find(const json_t *array, const char *name, int64_t number)
{
	const json_t *each;
	size_t i;
	json_array_foreach(array, i, each)
	{
		const json_t *value = json_object_get(each, name);
		if (json_is_integer(value) && json_integer_value(value) == number)
			return each;
	}
	return NULL;
}

/* x stands for a hex digit. */
static bool has_form(const char *text, const char *form)
{
	for (; *form; form++, text++)
		if (*form == 'x' ? !strchr("0123456789abcdefABCDEF", *text) || !*text
				 : *text != *form)
			return false;
	return !*text;
}

const char *rebuild_uuid(const struct rebuild_machine *machine)
{
	const char *uuid = rebuild_text(machine->json, "bios_uuid");
	return has_form(uuid, "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx") ? uuid : "";
}

const char *rebuild_mac(const json_t *nic)
{
	const char *mac = rebuild_text(nic, "mac");
	return has_form(mac, "xx:xx:xx:xx:xx:xx") ? mac : "";
}

static json_t *parse(const char *text, size_t length, struct err *err)
{
	static const char *const lists[] = {"disks", "controllers", "nics"};
	json_error_t why;
	if (!text)
		return json_object();
	json_t *json = json_loadb(text, length, JSON_REJECT_DUPLICATES, &why);
	int64_t version = rebuild_number(json, "sendense-vsphere");
	if (!json)
		err_set(err, ERR_FORMAT, "%s: line %d: %s", REBUILD_FILE, why.line, why.text);
	else if (version > VERSION)
		err_set(err, ERR_UNSUPPORTED,
			"%s is of version %lld, and this program knows %d (take a newer one)",
			REBUILD_FILE, (long long)version, VERSION);
	else if (version != VERSION)
		err_set(err, ERR_FORMAT, "%s does not describe a machine", REBUILD_FILE);
	else {
		for (size_t i = 0; i < ARRAY_LENGTH(lists); i++) {
			if (json_is_array(json_object_get(json, lists[i])))
				continue;
			err_set(err, ERR_FORMAT, "%s has no list of %s", REBUILD_FILE, lists[i]);
			goto bad;
		}
		return json;
	}
bad:
	json_decref(json);
	return NULL;
}

static int read_numbers(
	struct rebuild_machine *machine, const struct rebuild_wishes *wishes, struct err *err)
{
	int64_t cpus = wishes->nr_cpus ? wishes->nr_cpus : rebuild_number(machine->json, "cpus");
	int64_t cores = rebuild_number(machine->json, "cores_per_socket");
	int64_t memory = wishes->memory_bytes ? (int64_t)wishes->memory_bytes
					      : rebuild_number(machine->json, "memory_bytes");
	const char *firmware =
		wishes->firmware ? wishes->firmware : rebuild_text(machine->json, "firmware");
	if (cpus <= 0 || memory <= 0 || !firmware[0])
		return err_set(err, ERR_USAGE,
			"the restore point does not tell its machine's%s%s%s (say it: "
			"--cpus N --memory SIZE --firmware bios|efi)",
			cpus <= 0 ? " CPUs" : "", memory <= 0 ? " memory" : "",
			firmware[0] ? "" : " firmware");
	if (cpus > CPUS_MOST || memory < (int64_t)MIB)
		return err_set(err, ERR_FORMAT,
			"%s: a machine cannot have %lld CPUs and %lld bytes", REBUILD_FILE,
			(long long)cpus, (long long)memory);
	if (strcmp(firmware, "bios") != 0 && strcmp(firmware, "efi") != 0)
		return err_set(err, ERR_UNSUPPORTED,
			"the machine's firmware \"%s\" is none that is known (--firmware bios|efi)",
			firmware);
	machine->nr_cpus = (unsigned)cpus;
	machine->cores_per_socket =
		cores > 0 && cores <= cpus && cpus % cores == 0 ? (unsigned)cores : 1;
	machine->memory_bytes = (uint64_t)memory;
	machine->firmware = strcmp(firmware, "efi") == 0 ? "efi" : "bios";
	return 0;
}

struct rebuild_machine *rebuild_machine(
	const char *text, size_t length, const struct rebuild_wishes *wishes, struct err *err)
{
	struct rebuild_machine *machine = calloc(1, sizeof *machine);
	if (!machine) {
		err_errno(err, ENOMEM, "cannot describe the machine");
		return NULL;
	}
	machine->json = parse(text, length, err);
	if (machine->json && read_numbers(machine, wishes, err) == 0) {
		const char *name = rebuild_text(machine->json, "name");
		machine->name = strdup(name[0] ? name : wishes->name);
		if (machine->name)
			return machine;
		err_errno(err, ENOMEM, "cannot describe the machine");
	}
	rebuild_free(machine);
	return NULL;
}

void rebuild_free(struct rebuild_machine *machine)
{
	if (!machine)
		return;
	json_decref(machine->json);
	free(machine->name);
	free(machine);
}
