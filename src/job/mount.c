/*
 * What a repository's folder lies on, and the hub's note of it; see job.h.
 *
 * It is told by what stays the same wherever, and under whatever device's name, the file system is
 * mounted: its kind, its source where that is no device of this machine (a server's share, a
 * pool), and the folder within it.  A folder whose file system is not mounted is another folder
 * of another one, be that the root's or /var's.
 */
#include "job_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

/* --- what it is ---------------------------------------------------------------------------- */

/* The kernel writes blanks and the like as \ and three octal digits. */
static void unescape(char *text)
{
	char *to = text;
	for (const char *from = text; *from; to++) {
		unsigned code;
		if (*from == '\\' && sscanf(from + 1, "%3o", &code) == 1) {
			*to = (char)code;
			from += 4;
		} else {
			*to = *from++;
		}
	}
	*to = '\0';
}

/* ID PARENT DEVICE ROOT POINT OPTIONS [FIELD...] - KIND SOURCE OPTIONS: of folder, an absolute
 * path below POINT, "KIND [SOURCE], folder FOLDER"; NULL: no memory, or not such a line. */
static char *describe(char *line, const char *folder)
{
	enum { ROOT = 3, POINT = 4, BEFORE = 6 };
	char *rest = NULL, *root = NULL, *point = NULL, *text;
	char *word = strtok_r(line, " \n", &rest);
	for (int i = 0; word && (i < BEFORE || strcmp(word, "-") != 0); i++) {
		if (i == ROOT)
			root = word;
		else if (i == POINT)
			point = word;
		word = strtok_r(NULL, " \n", &rest);
	}
	const char *kind = strtok_r(NULL, " \n", &rest);
	char *source = strtok_r(NULL, " \n", &rest);
	if (!word || !root || !point || !kind || !source)
		return NULL;
	unescape(root);
	unescape(point);
	unescape(source);
	const char *below = strcmp(point, "/") == 0 ? folder : folder + strlen(point);
	bool is_named = strncmp(source, "/dev/", 5) != 0;
	if (strcmp(root, "/") == 0 && *below)
		root = (char *)"";
	int n = asprintf(&text, "%s%s%s, folder %s%s", kind, is_named ? " " : "",
		is_named ? source : "", root, below);
	return n < 0 ? NULL : text;
}

/* The line of the mount with that number. */
static char *find_line(uint64_t id, const char *folder)
{
	FILE *file = fopen("/proc/self/mountinfo", "re");
	char *AUTO_FREE line = NULL;
	char *text = NULL;
	size_t size = 0;
	while (file && !text && getline(&line, &size, file) > 0)
		if (strtoull(line, NULL, 10) == id)
			text = describe(line, folder);
	if (file)
		fclose(file);
	return text;
}

char *job_mount_text(const char *path, struct err *err)
{
	struct statx st;
	char link[64], folder[PATH_MAX];
	/* Opened, so that what is mounted when it is asked for is. */
	int AUTO_CLOSE fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t n = fd < 0 ? -1 : readlink(link, folder, sizeof folder - 1);
	if (n < 0 || statx(fd, "", AT_EMPTY_PATH, STATX_MNT_ID, &st) < 0) {
		err_errno(err, errno, "cannot look at %s", path);
		return NULL;
	}
	folder[n] = '\0';
	char *text = (st.stx_mask & STATX_MNT_ID) ? find_line(st.stx_mnt_id, folder) : NULL;
	if (!text)
		err_set(err, ERR_UNSUPPORTED, "cannot tell what %s is mounted on", path);
	return text;
}

/* --- the note of it ------------------------------------------------------------------------- */

static const char *note_name(const struct job_repository *r, char name[300])
{
	snprintf(name, 300, "mount %s", r->name);
	return name;
}

int job_mount_noted(
	struct state *state, const struct job_repository *r, json_t **note, struct err *err)
{
	struct state_object object;
	struct err why = ERR_INIT;
	char name[300];
	*note = NULL;
	if (!state)
		return 0;
	if (state_get(state, "setting", note_name(r, name), &object, &why) < 0)
		return why.code == ERR_NOT_FOUND ? 0 : err_copy(err, &why);
	const char *path = json_string_value(json_object_get(object.value, "path"));
	int rc = 0;
	/* It is of other settings.  Others may find that too. */
	if (!r->require_mount || !path || strcmp(path, r->path) != 0)
		rc = state_delete(state, "setting", name, STATE_ANY, &why);
	else
		*note = json_incref(object.value);
	state_object_clear(&object);
	return rc < 0 && why.code != ERR_NOT_FOUND ? err_copy(err, &why) : 0;
}

void job_mount_use(struct job_repository *r, const json_t *note)
{
	r->mount = json_string_value(json_object_get(note, "mount"));
	if (!r->id)
		r->id = json_string_value(json_object_get(note, "id"));
}

int job_mount_note(
	struct state *state, const struct job_repository *r, const char *id, struct err *err)
{
	char name[300];
	char *AUTO_FREE mount = job_mount_text(r->path, err);
	if (!mount)
		return -1;
	json_t *note = json_pack("{s:s, s:s, s:s}", "path", r->path, "mount", mount, "id", id);
	int rc = note ? state_put(state, "setting", note_name(r, name), note, STATE_ANY, NULL, err)
		      : err_errno(err, ENOMEM, "cannot note the mount of repository %s", r->name);
	json_decref(note);
	if (rc == 0)
		log_info("repository %s lies on %s: from now on it must", r->name, mount);
	return rc;
}
