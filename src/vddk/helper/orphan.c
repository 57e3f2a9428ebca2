/* The helper's end when its parent has died; see orphan.h. */
#include "orphan.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <time.h>

#define LAST_SECONDS 5

static timer_t last_timer;

/* Safe in a signal handler. */
static void begin_last(void)
{
	const struct itimerspec last = {.it_value = {.tv_sec = LAST_SECONDS}};
	timer_settime(last_timer, 0, &last, NULL);
}

static void on_orphaned(int signal_nr)
{
	(void)signal_nr;
	int number = errno;
	begin_last();
	errno = number;
}

int orphan_prepare(void)
{
	struct sigevent kill_us = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGKILL};
	const struct sigaction orphaned = {.sa_handler = on_orphaned, .sa_flags = SA_RESTART};
	if (timer_create(CLOCK_MONOTONIC, &kill_us, &last_timer) < 0 ||
		sigaction(SIGUSR1, &orphaned, NULL) < 0)
		return -1;
	return prctl(PR_SET_PDEATHSIG, SIGUSR1);
}

/* The parent keeps its end of the socket until this process is gone, or it itself is. */
static void *watch(void *unused)
{
	struct pollfd socket = {.fd = 0, .events = POLLRDHUP};
	while (poll(&socket, 1, -1) < 0 && errno == EINTR)
		;
	begin_last();
	return unused;
}

void orphan_watch(void)
{
	pthread_t thread;
	sigset_t all, before;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	if (pthread_create(&thread, NULL, watch, NULL) == 0)
		pthread_detach(thread);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}
