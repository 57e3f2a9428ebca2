/*
 * When a schedule is due, asked on standard input, one question a line:
 *
 *   ZONE AFTER COUNT FIELDS...
 *
 * Answered with COUNT moments in one line, or with "error TEXT".
 */
#include "cron.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int answer(const char *zone_name, int64_t after, int count, const char *text)
{
	struct err err = ERR_INIT;
	struct cron cron;
	struct zone *zone = zone_open(zone_name, &err);
	if (!zone || cron_parse(text, &cron, &err) < 0) {
		printf("error %s\n", err.text);
		zone_free(zone);
		return 0;
	}
	for (int i = 0; i < count; i++) {
		after = cron_next(&cron, zone, after);
		printf("%" PRId64 " ", after);
	}
	putchar('\n');
	zone_free(zone);
	return 0;
}

int main(void)
{
	char *line = NULL;
	size_t room = 0;
	while (getline(&line, &room, stdin) > 0) {
		char zone[100];
		int64_t after;
		int count, used = 0;
		line[strcspn(line, "\n")] = '\0';
		if (sscanf(line, "%99s %" SCNd64 " %d %n", zone, &after, &count, &used) != 3)
			return 2;
		answer(zone, after, count, line + used);
	}
	free(line);
	return 0;
}
