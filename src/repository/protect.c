/* Protecting restore points from prune: a field of state.json, written under the guard, so that
 * neither a prune nor whoever else records something passes over it. */
#include "repository_internal.h"

#include <errno.h>
#include <time.h>

#define LAST_SECOND INT64_C(253402300799) /* of the year 9999 */

int repository_protect(struct repository *repo, const char *vm, const char *point, bool off,
	int64_t until, struct err *err)
{
	char manifest[NAME_PATH_BYTES], text[CLOCK_UTC_BYTES] = "";
	if (repository_name_check_vm(vm, err) < 0)
		return -1;
	if (repo->read_only)
		return err_set(
			err, ERR_DENIED, "repository %s cannot be written to", repo->info.path);
	bool is_there = repository_name_is_point(point);
	if (is_there) {
		path_point(vm, point, "manifest.json", manifest);
		if (path_look(repo->dir_fd, manifest, &is_there, err) < 0)
			return -1;
	}
	if (!is_there) {
		char shown[64];
		name_printable(point, shown, sizeof shown);
		return err_set(err, ERR_NOT_FOUND, "VM \"%s\" has no restore point %s", vm, shown);
	}
	json_t *change;
	if (off) {
		change = json_pack("{s:n}", "protected");
	} else {
		if (until < 0 || until > LAST_SECOND)
			return err_set(
				err, ERR_USAGE, "no restore point can be protected until then");
		if (until > 0) {
			clock_utc_text(until, text);
			if (until <= time(NULL))
				return err_set(err, ERR_USAGE, "%s is in the past", text);
		}
		change = json_pack("{s:{s:s?}}", "protected", "until", until > 0 ? text : NULL);
	}
	return manifest_update_state(repo, vm, point, change, err);
}
