/* Reading back the VM's own configuration files of a restore point. */
#include "repository_internal.h"

#include <stdlib.h>
#include <string.h>

int kept_read(struct repository *repo, const char *path, const json_t *entry, char **bytes,
	size_t *length, struct err *err)
{
	char hex[DIGEST_ROOT_HEX_BYTES];
	uint8_t digest[DIGEST_ROOT_BYTES];
	const char *sha256 = json_string_value(json_object_get(entry, "sha256"));
	if (file_load(repo->dir_fd, path, REPOSITORY_CONFIG_BYTES_MOST, bytes, length, err) < 0)
		return -1;
	digest_sha256(*bytes, *length, digest);
	digest_hex(digest, sizeof digest, hex);
	if (sha256 && strcmp(hex, sha256) == 0)
		return 0;
	free(*bytes);
	*bytes = NULL;
	return err_set(err, ERR_CORRUPT, "its content is not what was backed up");
}

const json_t *kept_entry(const struct repository_point *point, const char *name)
{
	const json_t *facts = json_object_get(manifest_json(point), "facts"), *entry;
	size_t i;
	json_array_foreach(json_object_get(facts, "config"), i, entry)
	{
		const char *known = json_string_value(json_object_get(entry, "name"));
		if (known && strcmp(known, name) == 0)
			return entry;
	}
	return NULL;
}

static int load(struct repository *repo, const struct repository_point *point, const char *name,
	char **bytes, size_t *length, struct err *err)
{
	char folder[NAME_PATH_BYTES], path[NAME_PATH_BYTES];
	const json_t *entry = name[0] != '.' && !strchr(name, '/') ? kept_entry(point, name) : NULL;
	if (!entry)
		return err_set(err, ERR_NOT_FOUND,
			"the restore point %s@%s has no configuration file \"%.64s\"", point->vm,
			point->id, name);
	path_point(point->vm, point->id, "config", folder);
	snprintf(path, sizeof path, "%.400s/%.64s", folder, name);
	/* One that the manifest tells of and that is gone is damage, not an answer. */
	if (kept_read(repo, path, entry, bytes, length, err) < 0) {
		if (err && err->code == ERR_NOT_FOUND)
			err->code = ERR_CORRUPT;
		return err_context(
			err, "the configuration file \"%s\" of %s@%s", name, point->vm, point->id);
	}
	return 0;
}

int repository_config_load(struct repository *repo, const char *vm, const char *id,
	const char *name, char **bytes, size_t *length, struct err *err)
{
	struct repository_point *point = repository_point_load(repo, vm, id, err);
	if (!point)
		return -1;
	int rc = load(repo, point, name, bytes, length, err);
	repository_point_free(point);
	return rc;
}
