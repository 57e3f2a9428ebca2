/* The VM's own configuration files of a restore point, against the manifest. */
#include "check_internal.h"

#include <inttypes.h>
#include <string.h>

/* What is wrong with one file, or an empty text. */
static void check_file(struct check_run *run, const char *path, const json_t *entry,
	enum repository_finding_kind *kind, struct err *err)
{
	char *AUTO_FREE bytes = NULL;
	size_t length;
	*kind = REPOSITORY_FINDING_DAMAGE;
	if (kept_read(run->repo, path, entry, &bytes, &length, err) < 0 &&
		err->code == ERR_NOT_FOUND)
		*kind = REPOSITORY_FINDING_MISSING;
}

bool check_config(struct check_run *run, const struct repository_point *point)
{
	const json_t *facts = json_object_get(manifest_json(point), "facts"), *entry;
	bool good = true;
	size_t i;
	json_array_foreach(json_object_get(facts, "config"), i, entry)
	{
		char path[NAME_PATH_BYTES], folder[NAME_PATH_BYTES];
		const char *name = json_string_value(json_object_get(entry, "name"));
		struct err err = ERR_INIT;
		struct repository_finding finding = {.vm = point->vm,
			.point = point->id,
			.remedy =
				"the disks are not harmed; bring the file back from a copy of the "
				"repository"};
		path_point(point->vm, point->id, "config", folder);
		snprintf(path, sizeof path, "%.400s/%.64s", folder, name ? name : "");
		finding.file = path;
		if (!name || !name[0] || name[0] == '.' || strchr(name, '/')) {
			finding.kind = REPOSITORY_FINDING_DAMAGE;
			err_set(&err, ERR_FORMAT, "a configuration file cannot be named like that");
		} else {
			check_file(run, path, entry, &finding.kind, &err);
		}
		if (err.code == ERR_NONE)
			continue;
		good = false;
		check_report(run, &finding, "%s", err.text);
	}
	return good;
}

bool check_config_knows(const struct repository_point *point, const char *name)
{
	return kept_entry(point, name);
}
