/* A daemon's life; see life.h. */
#include "life.h"

#include "log.h"
#include "systemd.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

static int reload_fd = -1;

static void on_reload(int number)
{
	int saved = errno;
	uint64_t one = 1;
	(void)number;
	ssize_t done = write(reload_fd, &one, sizeof one);
	(void)done;
	errno = saved;
}

static int catch_reload(struct err *err)
{
	struct sigaction action = {.sa_handler = on_reload, .sa_flags = SA_RESTART};
	sigemptyset(&action.sa_mask);
	reload_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (reload_fd < 0 || sigaction(SIGHUP, &action, NULL) < 0)
		return err_errno(err, errno, "cannot catch signals");
	return 0;
}

static void ignore_reload(void)
{
	signal(SIGHUP, SIG_IGN);
	if (reload_fd >= 0)
		close(reload_fd);
	reload_fd = -1;
}

static int serve(const struct life *life, struct err *err)
{
	int64_t watchdog_ms = systemd_watchdog_ms();
	struct pollfd fds[] = {
		{.fd = cancel_fd(life->cancel), .events = POLLIN},
		{.fd = reload_fd, .events = POLLIN},
	};
	while (!cancel_requested(life->cancel)) {
		int ready = poll(fds, ARRAY_LENGTH(fds),
			watchdog_ms > 0 ? (int)min_u64((uint64_t)watchdog_ms, 60000) : -1);
		if (ready < 0 && errno != EINTR)
			return err_errno(err, errno, "cannot wait for signals");
		if (watchdog_ms > 0)
			systemd_tell("WATCHDOG=1");
		uint64_t count;
		if (ready > 0 && fds[1].revents && read(reload_fd, &count, sizeof count) > 0) {
			systemd_tell("RELOADING=1");
			life->reload(life->context);
			systemd_tell("READY=1");
		}
	}
	return 0;
}

static void stop(const struct life *life, size_t nr_started)
{
	systemd_tell("STOPPING=1");
	life->stopping(life->context);
	while (nr_started-- > 0)
		if (life->steps[nr_started].stop)
			life->steps[nr_started].stop(life->context);
}

int life_run(const struct life *life, struct err *err)
{
	size_t nr_started = 0;
	int rc = catch_reload(err);
	while (rc == 0 && nr_started < life->nr_steps) {
		log_debug("starting: %s", life->steps[nr_started].name);
		rc = life->steps[nr_started].start(life->context, err);
		nr_started++; /* a stop copes with a start that failed half-way */
	}
	if (rc == 0)
		rc = life->ready(life->context, err);
	if (rc == 0) {
		systemd_tell("READY=1");
		rc = serve(life, err);
	}
	stop(life, nr_started);
	ignore_reload();
	return rc;
}
