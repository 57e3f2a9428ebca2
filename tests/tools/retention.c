/*
 * Retention decided for schedules from standard input, one a line:
 *
 *   LAST HOURLY DAILY WEEKLY MONTHLY YEARLY WITHIN ZONE TIME[h]...
 *
 * times ascending, 'h' behind one that is held.  For each a line "keep WHY" or "remove WHY" a
 * point, then an empty line; or "error TEXT".
 */
#include "repository.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define POINTS_MOST 4096

static struct retention_point points[POINTS_MOST];

int main(void)
{
	char *line = NULL;
	size_t room = 0;
	while (getline(&line, &room, stdin) > 0) {
		struct retention_policy policy = {0};
		struct err err = ERR_INIT;
		char zone[100];
		int used = 0;
		if (sscanf(line, "%u %u %u %u %u %u %" SCNd64 " %99s%n", &policy.last,
			    &policy.hourly, &policy.daily, &policy.weekly, &policy.monthly,
			    &policy.yearly, &policy.within_s, zone, &used) != 8)
			return 2;
		policy.timezone = strcmp(zone, "local") == 0 ? NULL : zone;
		size_t nr = 0;
		for (char *at = line + used, *end; nr < POINTS_MOST;
			at = end + points[nr - 1].held) {
			int64_t time = strtoll(at, &end, 10);
			if (end == at)
				break;
			points[nr++] = (struct retention_point){.time = time, .held = *end == 'h'};
		}
		if (retention_apply(&policy, points, nr, &err) < 0)
			printf("error %s\n", err.text);
		else
			for (size_t i = 0; i < nr; i++)
				printf("%s %s\n", points[i].keep ? "keep" : "remove",
					points[i].why);
		putchar('\n');
	}
	free(line);
	return 0;
}
