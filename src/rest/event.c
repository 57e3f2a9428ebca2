/* Server-sent events as text, both ways (HTML Living Standard, 9.2). */
#include "rest_internal.h"

#include <inttypes.h>
#include <stdio.h>

char *rest_event_text(const char *name, uint64_t id, const json_t *data, size_t *length)
{
	/* Compact JSON has no line ends. */
	char *json = data ? json_dumps(data, JSON_COMPACT | JSON_ENCODE_ANY) : strdup("{}");
	char *text = NULL;
	int printed =
		json ? asprintf(&text, "id: %" PRIu64 "\nevent: %s\ndata: %s\n\n", id, name, json)
		     : -1;
	free(json);
	*length = printed < 0 ? 0 : (size_t)printed;
	return printed < 0 ? NULL : text;
}

/* --- taking apart ----------------------------------------------------------------------------- */

static int append(
	char **buffer, size_t *length, size_t *room, const char *bytes, size_t nr, struct err *err)
{
	if (nr > REST_EVENT_MOST - *length)
		return err_set(
			err, ERR_PROTOCOL, "an event is longer than %u bytes", REST_EVENT_MOST);
	if (*length + nr + 1 > *room) {
		size_t more = (*length + nr + 1) * 2;
		char *grown = realloc(*buffer, more);
		if (!grown)
			return err_set(err, ERR_NO_MEMORY, "taking an event in: no memory");
		*buffer = grown;
		*room = more;
	}
	memcpy(*buffer + *length, bytes, nr);
	*length += nr;
	(*buffer)[*length] = 0;
	return 0;
}

static int take_data(struct rest_event_parser *parser, const char *value, struct err *err)
{
	/* Several data lines are one text with line ends between. */
	if (parser->data_length &&
		append(&parser->data, &parser->data_length, &parser->data_room, "\n", 1, err))
		return -1;
	return append(
		&parser->data, &parser->data_length, &parser->data_room, value, strlen(value), err);
}

static int take_field(struct rest_event_parser *parser, char *line, struct err *err)
{
	char *value = strchr(line, ':');
	if (value == line)
		return 0; /* a comment */
	if (value) {
		*value++ = 0;
		value += *value == ' ';
	} else {
		value = line + strlen(line);
	}
	if (!strcmp(line, "data"))
		return take_data(parser, value, err);
	if (!strcmp(line, "event"))
		snprintf(parser->name, sizeof parser->name, "%s", value);
	else if (!strcmp(line, "id") && strlen(value) < sizeof parser->id)
		strcpy(parser->id, value); /* NOLINT: measured above */
	return 0;
}

typedef int event_taker(void *context, const char *name, const char *data, size_t data_length);

static int take_line(
	struct rest_event_parser *parser, event_taker *event, void *context, struct err *err)
{
	int rc = 0;
	if (parser->line_length) {
		rc = take_field(parser, parser->line, err);
	} else if (parser->data_length) {
		rc = event(context, parser->name[0] ? parser->name : "message", parser->data,
			parser->data_length);
		parser->data_length = 0;
		parser->name[0] = 0;
	} else {
		parser->name[0] = 0;
	}
	parser->line_length = 0;
	return rc;
}

int rest_event_parse(struct rest_event_parser *parser, const char *bytes, size_t length,
	event_taker *event, void *context, struct err *err)
{
	const char *end = bytes + length;
	while (bytes < end) {
		if (parser->after_cr && *bytes == '\n') {
			parser->after_cr = false;
			bytes++;
			continue;
		}
		const char *stop = bytes;
		while (stop < end && *stop != '\n' && *stop != '\r')
			stop++;
		if (append(&parser->line, &parser->line_length, &parser->line_room, bytes,
			    (size_t)(stop - bytes), err))
			return -1;
		parser->after_cr = stop < end && *stop == '\r';
		bytes = stop + 1;
		int rc = stop < end ? take_line(parser, event, context, err) : 0;
		if (rc)
			return rc;
	}
	return 0;
}

void rest_event_restart(struct rest_event_parser *parser)
{
	parser->line_length = parser->data_length = 0;
	parser->name[0] = 0;
	parser->after_cr = false;
}

void rest_event_clear(struct rest_event_parser *parser)
{
	free(parser->line);
	free(parser->data);
	*parser = (struct rest_event_parser){0};
}
