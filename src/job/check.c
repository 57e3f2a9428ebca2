/* Whether a repository may be worked with; see job.h. */
#include "job_internal.h"

#include "repository.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

/* An unmounted file system's folder lies on the root's. */
static int check_mount(const struct job_repository *r, struct err *err)
{
	struct stat st, root;
	if (!r->require_mount)
		return 0;
	if (stat(r->path, &st) < 0 || stat("/", &root) < 0)
		return err_errno(err, errno, "repository %s: cannot look at %s", r->name, r->path);
	if (st.st_dev == root.st_dev) {
		err_set(err, ERR_DENIED, "repository %s: %s lies on the root file system", r->name,
			r->path);
		return err_hint(err, "is it mounted? require-mount wants a file system of its own");
	}
	if (!r->mount)
		return 0;
	char *AUTO_FREE mount = job_mount_text(r->path, err);
	if (!mount)
		return err_context(err, "repository %s", r->name);
	if (strcmp(mount, r->mount) == 0)
		return 0;
	err_set(err, ERR_DENIED, "repository %s: %s lies on %s now, and not on %s", r->name,
		r->path, mount, r->mount);
	return err_hint(err, "is it mounted? If it was moved: start the daemon once with "
			     "require-mount = no, which forgets where it lay");
}

int job_check_space(const struct job_repository *r, uint64_t free_bytes, uint64_t reserved_bytes,
	struct err *err)
{
	uint64_t wanted;
	if (r->stop_free_bytes == 0)
		return 0;
	if (free_bytes < r->stop_free_bytes) {
		err_set(err, ERR_NO_SPACE,
			"repository %s: %" PRIu64 " MiB are free, less than the %" PRIu64
			" MiB at which no more is stored",
			r->name, free_bytes / MIB, r->stop_free_bytes / MIB);
		return err_hint(err, "make room there, prune, or lower stop-free");
	}
	if (add_u64(r->stop_free_bytes, reserved_bytes, &wanted) && free_bytes >= wanted)
		return 0;
	err_set(err, ERR_BUSY,
		"repository %s: %" PRIu64
		" MiB are free, but jobs that run are going to take %" PRIu64 " MiB, and %" PRIu64
		" MiB stay free",
		r->name, free_bytes / MIB, reserved_bytes / MIB, r->stop_free_bytes / MIB);
	return err_hint(err, "it goes on when they have ended, if there is room then");
}

static int check(const struct job_repository *r, uint64_t reserved_bytes,
	struct repository_info *info, struct err *err)
{
	if (check_mount(r, err) < 0)
		return -1;
	struct repository *repo = repository_open(r->path, REPOSITORY_READ, err);
	if (!repo) {
		err_context(err, "repository %s", r->name);
		return r->require_mount ? err_hint(err, "is it mounted?") : -1;
	}
	int rc = repository_info(repo, info, err);
	repository_close(repo);
	if (rc < 0)
		return err_context(err, "repository %s", r->name);
	if (r->id && strcmp(r->id, info->id) != 0) {
		err_set(err, ERR_DENIED, "repository %s: in %s is the repository %s, and not %s",
			r->name, r->path, info->id, r->id);
		return err_hint(err, "is another file system mounted there? else correct the id in "
				     "the configuration");
	}
	return job_check_space(r, info->free_bytes, reserved_bytes, err);
}

int job_repository_check(const struct job_repository *r, uint64_t reserved_bytes, struct err *err)
{
	struct repository_info info;
	return check(r, reserved_bytes, &info, err);
}

int job_repository_check_noted(struct state *state, const struct job_repository *r,
	uint64_t reserved_bytes, uint64_t *free_bytes, struct err *err)
{
	struct repository_info info;
	struct job_repository noted = *r;
	json_t *note;
	if (job_mount_noted(state, r, &note, err) < 0)
		return -1;
	job_mount_use(&noted, note);
	int rc = check(&noted, reserved_bytes, &info, err);
	if (rc == 0 && free_bytes)
		*free_bytes = info.free_bytes;
	if (rc == 0 && state && r->require_mount && !note)
		rc = job_mount_note(state, r, info.id, err);
	json_decref(note);
	return rc;
}
