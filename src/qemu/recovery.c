/* Clean-up in QEMU; see recovery.h. */
#include "recovery.h"

#include <errno.h>
#include <poll.h>
#include <string.h>

#define PROBE_MS 2000

/* --- what is there ------------------------------------------------------------------------ */

typedef const char *item_name(const json_t *item);

static const char *text_of(const json_t *object, const char *name)
{
	const char *text = json_string_value(json_object_get(object, name));
	return text ? text : "";
}

static const char *id_of(const json_t *item)
{
	return text_of(item, "id");
}

static const char *node_of(const json_t *item)
{
	return text_of(item, "node-name");
}

static const char *opaque_of(const json_t *item)
{
	return text_of(json_array_get(json_object_get(item, "fds"), 0), "opaque");
}

static const struct kind {
	const char *query, *what;
	item_name *name;
} exports = {"query-block-exports", "exports", id_of}, jobs = {"query-jobs", "jobs", id_of},
  nodes = {"query-named-block-nodes", "nodes", node_of},
  fdsets = {"query-fdsets", "descriptors", opaque_of};

static json_t *query(struct qmp *qmp, const struct kind *kind, struct err *err)
{
	json_t *arguments = kind == &nodes ? json_pack("{s:b}", "flat", 1) : NULL;
	return qmp_call(qmp, kind->query, arguments, -1, err);
}

/* "sendense-1a2b3c4d", or that and something behind it. */
static bool belongs_to(const char *name, const char *id)
{
	size_t length = strlen(id);
	return strncmp(name, id, length) == 0 &&
	       (name[length] == '\0' || name[length] == '-' || name[length] == ' ');
}

/* --- removing one session's things ------------------------------------------------------------ */

typedef void remove_item(struct qmp *qmp, const json_t *item);

static void remove_export(struct qmp *qmp, const json_t *item)
{
	if (!json_is_true(json_object_get(item, "shutting-down")))
		qmp_do(qmp, "block-export-del",
			json_pack("{s:s, s:s}", "id", id_of(item), "mode", "hard"), NULL);
}

static void remove_job(struct qmp *qmp, const json_t *item)
{
	bool concluded = strcmp(text_of(item, "status"), "concluded") == 0;
	qmp_do(qmp, concluded ? "job-dismiss" : "job-cancel", json_pack("{s:s}", "id", id_of(item)),
		NULL);
}

static void remove_node(struct qmp *qmp, const json_t *item)
{
	/* A file that an image stands on is refused now and goes in the next round. */
	qmp_do(qmp, "blockdev-del", json_pack("{s:s}", "node-name", node_of(item)), NULL);
}

static void remove_fdset(struct qmp *qmp, const json_t *item)
{
	qmp_do(qmp, "remove-fd", json_pack("{s:O}", "fdset-id", json_object_get(item, "fdset-id")),
		NULL);
}

/* One round over what is there: how many belonged to id, -1 on an error. */
static int round_of(struct qmp *qmp, const struct kind *kind, const char *id, remove_item *remove,
	struct err *err)
{
	json_t *list = query(qmp, kind, err);
	if (!list)
		return -1;
	int nr = 0;
	size_t at;
	json_t *item;
	json_array_foreach(list, at, item)
	{
		if (!belongs_to(kind->name(item), id))
			continue;
		nr++;
		remove(qmp, item);
	}
	json_decref(list);
	return nr;
}

static int remove_all(struct qmp *qmp, const struct kind *kind, const char *id, remove_item *remove,
	struct err *err)
{
	struct deadline until = deadline_after_ms(qmp->timeout_ms);
	char what[96];
	snprintf(what, sizeof what, "removing the %s of %s", kind->what, id);
	int before = 0;
	for (;;) {
		int nr = round_of(qmp, kind, id, remove, err);
		if (nr <= 0)
			return nr;
		/* What went at once shows in the next look; only what takes time is waited for. */
		if (nr == before && qmp_wait_event(qmp, until, what, err) < 0)
			return -1;
		before = nr;
	}
}

/* Another program may use our server for exports of its own: then it stays. */
static int stop_server(struct qmp *qmp, struct err *err)
{
	json_t *list = query(qmp, &exports, err);
	if (!list)
		return -1;
	bool used = false;
	size_t at;
	json_t *item;
	json_array_foreach(list, at, item) if (strcmp(text_of(item, "type"), "nbd") == 0) used =
		true;
	json_decref(list);
	if (used) {
		log_warning("QEMU's NBD server has exports of another program and stays");
		return 0;
	}
	return qmp_do(qmp, "nbd-server-stop", NULL, err);
}

int recovery_clean(struct qmp *qmp, const char *id, bool listens, struct err *err)
{
	struct err first = ERR_INIT, next = ERR_INIT;
	/* What stands on something goes first: an export on its node, a node on its file. */
	remove_all(qmp, &exports, id, remove_export, &first);
	if (listens)
		stop_server(qmp, first.code == ERR_NONE ? &first : &next);
	remove_all(qmp, &jobs, id, remove_job, first.code == ERR_NONE ? &first : &next);
	remove_all(qmp, &nodes, id, remove_node, first.code == ERR_NONE ? &first : &next);
	/* While the machine is paused QEMU keeps them in its list all the same. */
	round_of(qmp, &fdsets, id, remove_fdset, first.code == ERR_NONE ? &first : &next);
	return first.code == ERR_NONE ? 0 : err_copy(err, &first);
}

/* --- finding dead sessions
 * ------------------------------------------------------------------------ */

struct dead {
	char id[SCRATCH_ID_BYTES];
	bool had_export;
	bool only_fdsets; /* it may have ended well: a paused QEMU keeps them in its list */
	struct scratch_other other;
};

struct search {
	const char *own_id;
	char qmp[PATH_MAX];
	struct dead *dead;
	size_t nr;
};

static int refuse_live(const struct scratch_other *other, struct err *err)
{
	return err_set(err, ERR_BUSY,
		"the machine is being backed up by process %ld (its session is %s)", other->pid,
		other->folder);
}

static struct dead *find(struct search *search, const char *id)
{
	for (size_t i = 0; i < search->nr; i++)
		if (strcmp(search->dead[i].id, id) == 0)
			return &search->dead[i];
	return NULL;
}

static struct dead *note(
	struct search *search, const char *id, const struct scratch_other *other, struct err *err)
{
	struct dead *known = find(search, id);
	if (known)
		return known;
	struct dead *more = realloc(search->dead, (search->nr + 1) * sizeof *more);
	if (!more) {
		err_errno(err, ENOMEM, "cannot list what dead backups left");
		return NULL;
	}
	search->dead = more;
	known = &more[search->nr++];
	*known = (struct dead){.only_fdsets = true};
	snprintf(known->id, sizeof known->id, "%.*s", SCRATCH_ID_BYTES - 1, id);
	if (other)
		known->other = *other;
	return known;
}

/* Nobody listens there any more: its QEMU has ended, and all that it had of ours with it. */
static bool is_deserted(const char *qmp_socket)
{
	struct wire wire;
	struct err err = ERR_INIT;
	if (wire_open(&wire, "QMP socket", qmp_socket, QMP_LINE_MOST, NULL, deadline_after_ms(0),
		    &err) == 0)
		wire_close(&wire);
	return err.code == ERR_REFUSED || err.code == ERR_NOT_FOUND;
}

static int see_folder(void *context, const struct scratch_other *other, struct err *err)
{
	struct search *search = context;
	const char *id = strrchr(other->folder, '/') + 1;
	if (search->own_id && strcmp(id, search->own_id) == 0)
		return 0;
	bool same = strcmp(other->qmp, search->qmp) == 0;
	if (same && other->state == SCRATCH_ALIVE)
		return refuse_live(other, err);
	if (same && search->own_id) {
		struct dead *dead = note(search, id, other, err);
		if (dead)
			dead->only_fdsets = false;
		return dead ? 0 : -1;
	}
	if (other->state == SCRATCH_DEAD && (!other->qmp[0] || is_deserted(other->qmp)))
		scratch_remove(other);
	return 0;
}

static void set_socket(struct search *search, const char *qmp_socket)
{
	char real[PATH_MAX];
	snprintf(search->qmp, sizeof search->qmp, "%s",
		realpath(qmp_socket, real) ? real : qmp_socket);
}

int recovery_check(const char *base, const char *qmp_socket, struct err *err)
{
	struct search search = {.own_id = NULL};
	set_socket(&search, qmp_socket);
	return scratch_scan(base, see_folder, &search, err);
}

/* A scratch file is known to QEMU as "ID FOLDER", wherever that folder is. */
static int see_fdset(struct search *search, const char *opaque, struct err *err)
{
	char id[SCRATCH_ID_BYTES];
	struct scratch_other other;
	snprintf(id, sizeof id, "%.*s", SCRATCH_ID_BYTES - 1, opaque);
	if (!scratch_is_id(id) || opaque[strlen(id)] != ' ' || find(search, id))
		return 0;
	const char *folder = opaque + strlen(id) + 1;
	const char *slash = strrchr(folder, '/');
	if (!slash || strcmp(slash + 1, id) != 0)
		return 0;
	scratch_look(folder, &other);
	if (other.state == SCRATCH_ALIVE)
		return refuse_live(&other, err);
	struct dead *dead = note(search, id, &other, err);
	if (dead)
		dead->only_fdsets = other.state == SCRATCH_GONE;
	return dead ? 0 : -1;
}

static int see_items(
	struct qmp *qmp, const struct kind *kind, struct search *search, struct err *err)
{
	json_t *list = query(qmp, kind, err);
	if (!list)
		return -1;
	int rc = 0;
	size_t at;
	json_t *item;
	json_array_foreach(list, at, item)
	{
		char id[SCRATCH_ID_BYTES];
		const char *name = kind->name(item);
		snprintf(id, sizeof id, "%.*s", SCRATCH_ID_BYTES - 1, name);
		if (rc < 0 || !scratch_is_id(id) || !belongs_to(name, id))
			continue;
		if (kind == &fdsets) {
			rc = see_fdset(search, name, err);
			continue;
		}
		struct dead *dead = note(search, id, NULL, err);
		if (dead)
			dead->only_fdsets = false;
		if (dead && kind == &exports)
			dead->had_export = true;
		rc = dead ? 0 : -1;
	}
	json_decref(list);
	return rc;
}

/* --- cleaning after them
 * ---------------------------------------------------------------------------- */

/* Whether QEMU's NBD server listens in that folder: it says so itself. */
static bool listens_in(const char *folder)
{
	struct wire wire;
	char path[PATH_MAX + sizeof SCRATCH_SOCKET + 1], magic[8];
	struct deadline until = deadline_after_ms(PROBE_MS);
	snprintf(path, sizeof path, "%s/" SCRATCH_SOCKET, folder);
	if (wire_open(&wire, "NBD socket", path, sizeof magic, NULL, until, NULL) < 0)
		return false;
	bool speaks = cancel_poll(NULL, wire.fd, POLLIN, until, "greeting", NULL) > 0 &&
		      read(wire.fd, magic, sizeof magic) == (ssize_t)sizeof magic &&
		      memcmp(magic, "NBDMAGIC", sizeof magic) == 0;
	wire_close(&wire);
	return speaks;
}

static int clean_dead(struct qmp *qmp, const struct dead *dead, struct err *err)
{
	if (dead->only_fdsets) {
		log_debug("QEMU still lists descriptors of session %s, which has ended", dead->id);
		return round_of(qmp, &fdsets, dead->id, remove_fdset, err) < 0 ? -1 : 0;
	}
	bool listens =
		dead->had_export || (dead->other.folder[0] && listens_in(dead->other.folder));
	log_warning("session %s of a backup that died is cleaned up", dead->id);
	if (dead->other.agent[0])
		agent_recover(dead->other.agent);
	if (recovery_clean(qmp, dead->id, listens, err) < 0)
		return err_context(err, "cannot clean up after the dead session %s", dead->id);
	qmp_do(qmp, "closefd", json_pack("{s:s}", "fdname", dead->id), NULL);
	scratch_remove(&dead->other);
	return 0;
}

int recovery_run(
	struct qemu_session *session, const char *base, const char *qmp_socket, struct err *err)
{
	struct search search = {.own_id = session->scratch.id};
	struct qmp *qmp = &session->qmp;
	set_socket(&search, qmp_socket);
	int rc = scratch_scan(base, see_folder, &search, err);
	if (rc == 0)
		rc = see_items(qmp, &fdsets, &search, err);
	if (rc == 0)
		rc = see_items(qmp, &exports, &search, err);
	if (rc == 0)
		rc = see_items(qmp, &jobs, &search, err);
	if (rc == 0)
		rc = see_items(qmp, &nodes, &search, err);
	for (size_t i = 0; rc == 0 && i < search.nr; i++)
		rc = clean_dead(qmp, &search.dead[i], err);
	free(search.dead);
	return rc;
}
