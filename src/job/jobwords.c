/* Words of a command line, made of a spec's fields; see jobwords.h. */
#include "jobwords.h"

#include <stdio.h>

const char *jobwords_text(const json_t *object, const char *name)
{
	return json_string_value(json_object_get(object, name));
}

void jobwords_add(json_t *argv, const char *format, ...)
{
	va_list list;
	char *word = NULL;
	va_start(list, format);
	if (vasprintf(&word, format, list) >= 0)
		json_array_append_new(argv, json_string(word));
	va_end(list);
	free(word);
}

/* --NAME=[KEY=]TEXT */
void jobwords_add_keyed(json_t *argv, const char *option, const json_t *disk, const char *member)
{
	const char *key = jobwords_text(disk, "key"), *text = jobwords_text(disk, member);
	if (text)
		jobwords_add(argv, "--%s=%s%s%s", option, key ? key : "", key ? "=" : "", text);
}

void jobwords_add_number(json_t *argv, const char *option, const json_t *object, const char *member)
{
	const json_t *value = json_object_get(object, member);
	if (json_is_integer(value))
		jobwords_add(argv, "--%s=%" JSON_INTEGER_FORMAT, option, json_integer_value(value));
}

void jobwords_add_flag(json_t *argv, const char *option, const json_t *object, const char *member)
{
	if (json_is_true(json_object_get(object, member)))
		jobwords_add(argv, "--%s", option);
}

/* A word that names a disk. */
void jobwords_add_disk(json_t *argv, const char *before, const json_t *disk, const char *use)
{
	char text[160] = "";
	const char *key = jobwords_text(disk, "key");
	if (before[0] || key)
		snprintf(text, sizeof text, "%s%s%s", before, key ? key : "", key ? "=" : "");
	json_array_append_new(argv, json_pack("{s:s, s:s, s:s}", "text", text, "use", use, "name",
					    jobwords_text(disk, use)));
}
