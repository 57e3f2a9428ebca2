/* A watch over the scratch space; see space.h. */
#include "space.h"

#include "recovery.h"

#include <errno.h>
#include <inttypes.h>
#include <sys/statvfs.h>

#define LOOK_MS 250

struct space {
	struct qemu_session *session;
	pthread_t thread;
	struct cancel *stop;
};

static int free_bytes(const struct qemu_session *session, uint64_t *bytes, struct err *err)
{
	struct statvfs st;
	if (fstatvfs(session->scratch.dir_fd, &st) < 0)
		return err_errno(
			err, errno, "cannot look at the free space of %s", session->scratch.folder);
	*bytes = (uint64_t)st.f_bavail * st.f_frsize;
	return 0;
}

int space_check(const struct qemu_session *session, struct err *err)
{
	uint64_t bytes = 0;
	if (free_bytes(session, &bytes, err) < 0)
		return -1;
	if (bytes / 2 < session->reserve_bytes)
		return err_set(err, ERR_NO_SPACE,
			"%s has %" PRIu64 " MiB free for what the guest overwrites during the "
			"backup, and %" PRIu64 " MiB are to stay free (--scratch with more)",
			session->scratch.folder, bytes / MIB, session->reserve_bytes / MIB);
	return 0;
}

static void give_up(struct qemu_session *session)
{
	WITH_LOCK(&session->mutex);
	err_set(&session->broken, ERR_NO_SPACE,
		"the backup was given up before the scratch space of %s was full, so that the "
		"guest's writes do not fail (--scratch with more)",
		session->scratch.folder);
	log_error("%s", session->broken.text);
	const struct cancel *cancel = session->qmp.cancel;
	session->qmp.cancel = NULL;
	recovery_clean(&session->qmp, session->scratch.id, false, NULL);
	session->qmp.cancel = cancel;
}

static void *watch(void *arg)
{
	struct space *space = arg;
	uint64_t bytes = 0;
	while (cancel_sleep(space->stop, deadline_after_ms(LOOK_MS), NULL) == 0) {
		if (free_bytes(space->session, &bytes, NULL) < 0 ||
			bytes >= space->session->reserve_bytes)
			continue;
		give_up(space->session);
		break;
	}
	return NULL;
}

struct space *space_watch(struct qemu_session *session, struct err *err)
{
	struct space *space = calloc(1, sizeof *space);
	if (!space) {
		err_errno(err, ENOMEM, "cannot watch the scratch space");
		return NULL;
	}
	space->session = session;
	space->stop = cancel_new(err);
	if (space->stop && thread_start(&space->thread, "scratch-space", watch, space, err) == 0)
		return space;
	cancel_free(space->stop);
	free(space);
	return NULL;
}

void space_stop(struct space *space)
{
	if (!space)
		return;
	cancel_request(space->stop);
	pthread_join(space->thread, NULL);
	cancel_free(space->stop);
	free(space);
}
