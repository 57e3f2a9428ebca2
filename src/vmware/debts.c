/* Debts and locks; see debts.h. */
#include "debts.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#define PREFIX "debt-"
#define SUFFIX ".json"
#define DEBT_MOST 16384u
#define LOCK_TRIES 100

/* --- folders and names -------------------------------------------------------------------------
 */

int vmware_state_folder(const char *given, char path[STATEDIR_BYTES], struct err *err)
{
	return statedir_find(given, "vmware", path, err);
}

int debts_name(char name[DEBTS_NAME_BYTES], struct err *err)
{
	uint64_t random;
	if (file_random(&random, sizeof random, err) < 0)
		return -1;
	snprintf(name, DEBTS_NAME_BYTES, "sendense-%016" PRIx64, random);
	return 0;
}

void debts_file(const char *folder, const char *snapshot, char path[DEBTS_PATH_BYTES])
{
	/* Checked when the folder was chosen: there is room. */
	int length = snprintf(path, DEBTS_PATH_BYTES, "%s/" PREFIX "%s" SUFFIX, folder, snapshot);
	if (length >= DEBTS_PATH_BYTES)
		path[0] = '\0';
}

/* --- the lock ----------------------------------------------------------------------------------
 */

static void lock_name(const struct debts_place *place, char path[DEBTS_PATH_BYTES])
{
	const char *server = place->vcenter_uuid[0] ? place->vcenter_uuid : place->host;
	uint8_t digest[DIGEST_ROOT_BYTES];
	char hex[DIGEST_ROOT_HEX_BYTES], text[1024];
	int length = snprintf(text, sizeof text, "%s %s", server, place->vm_uuid);
	digest_sha256(text, min_size((size_t)length, sizeof text - 1), digest);
	digest_hex(digest, sizeof digest, hex);
	length = snprintf(path, DEBTS_PATH_BYTES, "%s/vm-%.16s.lock", place->folder, hex);
	if (length >= DEBTS_PATH_BYTES)
		path[0] = '\0';
}

static int refuse_held(const struct debts_place *place, int fd, struct err *err)
{
	char holder[32] = "";
	ssize_t n = pread(fd, holder, sizeof holder - 1, 0);
	holder[n > 0 ? n : 0] = '\0';
	long long pid = strtoll(holder, NULL, 10);
	if (pid <= 0)
		return err_set(err, ERR_BUSY, "another backup of %s is at work", place->path);
	return err_set(
		err, ERR_BUSY, "another backup of %s is at work (process %lld)", place->path, pid);
}

static int lock_once(const struct debts_place *place, const char *path, struct err *err)
{
	struct stat held, named;
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return err_errno(err, errno, "cannot open the lock %s", path);
	int rc = 0;
	if (flock(fd, LOCK_EX | LOCK_NB) < 0)
		rc = errno == EWOULDBLOCK ? refuse_held(place, fd, err)
					  : err_errno(err, errno, "cannot take the lock %s", path);
	/* Whoever had it unlinked it: then it is no lock any more. */
	else if (fstat(fd, &held) < 0 || stat(path, &named) < 0 || held.st_ino != named.st_ino ||
		 held.st_dev != named.st_dev)
		rc = err_set(err, ERR_CONFLICT, "the lock %s was given back", path);
	if (rc == 0)
		return fd;
	close(fd);
	return -1;
}

int debts_lock(const struct debts_place *place, struct err *err)
{
	char path[DEBTS_PATH_BYTES], text[32];
	struct err why = ERR_INIT;
	int fd = -1;
	lock_name(place, path);
	for (int i = 0; i < LOCK_TRIES && fd < 0; i++) {
		err_clear(&why);
		fd = lock_once(place, path, &why);
		if (fd < 0 && why.code != ERR_CONFLICT)
			break;
	}
	if (fd < 0)
		return err_copy(err, &why);
	int length = snprintf(text, sizeof text, "%lld\n", (long long)getpid());
	if (ftruncate(fd, 0) == 0 && file_pwrite(fd, text, (size_t)length, 0, path, err) == 0)
		return fd;
	close(fd);
	return err_context(err, "cannot take the lock of %s", place->path);
}

void debts_unlock(const struct debts_place *place, int fd)
{
	char path[DEBTS_PATH_BYTES];
	if (fd < 0)
		return;
	lock_name(place, path);
	if (unlink(path) < 0)
		log_warning("cannot remove %s: %s", path, strerror(errno));
	close(fd);
}

/* --- writing -----------------------------------------------------------------------------------
 */

int debts_write(
	const struct debts_place *place, const char *snapshot, const char *moref, struct err *err)
{
	char path[DEBTS_PATH_BYTES], created[CLOCK_UTC_BYTES], boot[PROC_BOOT_BYTES];
	struct proc_stat stat = {.start = 0};
	debts_file(place->folder, snapshot, path);
	clock_utc_text(time(NULL), created);
	proc_boot(boot);
	proc_stat(getpid(), &stat);
	json_t *debt = json_pack("{s:i, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:s}",
		"sendense-debt", 1, "snapshot", snapshot, "moref", moref, "vcenter",
		place->vcenter_uuid, "host", place->host, "vm-uuid", place->vm_uuid, "vm",
		place->vm, "path", place->path, "created", created, "pid", (json_int_t)getpid(),
		"start", (json_int_t)stat.start, "boot", boot);
	char *AUTO_FREE text = debt ? json_dumps(debt, JSON_COMPACT) : NULL;
	json_decref(debt);
	if (!text)
		return err_errno(err, ENOMEM, "cannot write %s", path);
	return file_replace(AT_FDCWD, path, text, strlen(text), 0600, err);
}

int debts_drop(const char *folder, const char *snapshot, struct err *err)
{
	char path[DEBTS_PATH_BYTES];
	debts_file(folder, snapshot, path);
	if (unlink(path) < 0 && errno != ENOENT)
		return err_errno(err, errno, "cannot remove %s", path);
	return file_sync_dir(AT_FDCWD, folder, err);
}

/* --- listing -----------------------------------------------------------------------------------
 */

static bool is_alive(int64_t pid, uint64_t start, const char *boot)
{
	char now[PROC_BOOT_BYTES];
	struct proc_stat stat;
	proc_boot(now);
	return strcmp(boot, now) == 0 && proc_stat(pid, &stat) && stat.start == start &&
	       stat.state != 'Z' && stat.state != 'X';
}

/* debt's strings are object's, which the caller gives back. */
static int read_debt(const char *path, json_t **object, struct vmware_debt *debt, struct err *err)
{
	char *AUTO_FREE text = NULL;
	const char *boot;
	size_t length;
	int format;
	json_int_t pid, start;
	json_error_t why;
	*object = NULL;
	if (file_load(AT_FDCWD, path, DEBT_MOST, &text, &length, err) < 0)
		return -1;
	*object =
		jsontext_shape(text, length).depth <= 2 ? json_loadb(text, length, 0, &why) : NULL;
	if (!*object ||
		json_unpack(*object, "{s:i, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:s}",
			"sendense-debt", &format, "snapshot", &debt->snapshot, "moref",
			&debt->moref, "vcenter", &debt->vcenter_uuid, "host", &debt->host,
			"vm-uuid", &debt->vm_uuid, "vm", &debt->vm, "path", &debt->path, "created",
			&debt->created, "pid", &pid, "start", &start, "boot", &boot) != 0)
		return err_set(err, ERR_CORRUPT, "%s is no record of a snapshot", path);
	if (format != 1 || strchr(debt->snapshot, '/'))
		return err_set(err, ERR_UNSUPPORTED,
			"%s is a record of another version of this program", path);
	debt->file = path;
	debt->pid = pid;
	debt->alive = is_alive(pid, (uint64_t)start, boot);
	return 0;
}

static int take_file(const char *path, vmware_take_debt *take, void *context, struct err *err)
{
	struct err why = ERR_INIT;
	struct vmware_debt debt;
	json_t *object;
	int rc = read_debt(path, &object, &debt, &why);
	if (rc == 0)
		rc = take(context, &debt, err);
	else if (why.code == ERR_NOT_FOUND)
		rc = 0; /* its session has ended meanwhile */
	else {
		log_warning("%s (the snapshot that it names may still be there)", why.text);
		rc = 0;
	}
	json_decref(object);
	return rc;
}

static int is_debt(const struct dirent *entry)
{
	size_t length = strlen(entry->d_name), suffix = strlen(SUFFIX);
	return strncmp(entry->d_name, PREFIX, strlen(PREFIX)) == 0 && length > suffix &&
	       strcmp(entry->d_name + length - suffix, SUFFIX) == 0;
}

int vmware_debts(const char *state_folder, vmware_take_debt *take, void *context, struct err *err)
{
	char folder[STATEDIR_BYTES], path[DEBTS_PATH_BYTES];
	struct dirent **entries = NULL;
	if (vmware_state_folder(state_folder, folder, err) < 0)
		return -1;
	int nr = scandir(folder, &entries, is_debt, alphasort), rc = 0;
	if (nr < 0)
		return errno == ENOENT ? 0 : err_errno(err, errno, "cannot read %s", folder);
	for (int i = 0; i < nr; i++) {
		int length = snprintf(path, sizeof path, "%s/%s", folder, entries[i]->d_name);
		if (rc == 0 && length < (int)sizeof path)
			rc = take_file(path, take, context, err);
		free(entries[i]);
	}
	free(entries);
	return rc;
}

json_t *vmware_debt_json(const struct vmware_debt *debt)
{
	return json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:b, s:s}", "snapshot",
		debt->snapshot, "id", debt->moref, "host", debt->host, "vcenter_uuid",
		debt->vcenter_uuid, "path", debt->path, "instance_uuid", debt->vm_uuid, "vm",
		debt->vm, "created", debt->created, "pid", (json_int_t)debt->pid, "alive",
		(int)debt->alive, "file", debt->file);
}
