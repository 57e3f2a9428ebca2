/* What happens by the clock: starts and stops it. */
#include "hub_internal.h"

const struct rest_route hub_time_routes[] = {{0}};

int hub_time_start(struct hub *hub, struct err *err)
{
	(void)hub;
	(void)err;
	return 0;
}

void hub_time_stop(struct hub *hub)
{
	(void)hub;
}

void hub_time_job_changed(struct hub *hub, const char *id, enum job_state state, const json_t *job)
{
	(void)hub;
	(void)id;
	(void)state;
	(void)job;
}

void hub_time_event(struct hub *hub, const struct state_event *event)
{
	(void)hub;
	(void)event;
}

void hub_time_reload(struct hub *hub)
{
	(void)hub;
}
