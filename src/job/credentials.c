/* What nbds:// disks take; see credentials.h. */
#include "credentials.h"

#include "allow.h"

#include <errno.h>
#include <string.h>

#define WORDS_MOST 3u

static int wrong(const char *line, const char *why, struct err *err)
{
	return err_set(err, ERR_USAGE,
		"%s: %s (like nbds://HOST/ psk:/FILE, or nbds://HOST/ certificates:/FOLDER)", line,
		why);
}

/* Cuts the text at its blanks; how many words there are, WORDS_MOST + 1 for too many. */
static size_t split(char *text, const char *words[WORDS_MOST])
{
	size_t nr = 0;
	char *rest = NULL;
	for (char *word = strtok_r(text, " \t", &rest); word; word = strtok_r(NULL, " \t", &rest)) {
		if (nr == WORDS_MOST)
			return nr + 1;
		words[nr++] = word;
	}
	return nr;
}

static const char *path_behind(const char *word, const char *prefix)
{
	size_t length = strlen(prefix);
	return strncmp(word, prefix, length) == 0 && word[length] == '/' ? word + length : NULL;
}

json_t *credentials_parse(const char *line, struct err *err)
{
	const char *words[WORDS_MOST] = {0};
	char *AUTO_FREE text = strdup(line);
	if (!text) {
		err_errno(err, ENOMEM, "cannot keep credentials");
		return NULL;
	}
	size_t nr = split(text, words);
	if (nr < 2 || nr > WORDS_MOST) {
		wrong(line, "two words or three", err);
		return NULL;
	}
	const char *psk = path_behind(words[1], "psk:");
	const char *certificates = path_behind(words[1], "certificates:");
	if (strncmp(words[0], "nbds://", 7) != 0)
		wrong(line, "it is of no nbds:// disk", err);
	else if (!psk && !certificates)
		wrong(line, "the second word is neither psk:/FILE nor certificates:/FOLDER", err);
	else if (certificates && nr == WORDS_MOST)
		wrong(line, "certificates have no identity", err);
	else if (allow_check_rule(words[0], ALLOW_SOURCE, err) == 0)
		return json_pack("{s:s, s:s*, s:s*, s:s*}", "rule", words[0], "psk_file", psk,
			"certificates", certificates, "username", words[2]);
	return NULL;
}

const json_t *credentials_find(const json_t *list, const char *name)
{
	const json_t *item;
	size_t i;
	if (strncmp(name, "nbds://", 7) != 0)
		return NULL;
	json_array_foreach(list, i, item)
	{
		const char *rule = json_string_value(json_object_get(item, "rule"));
		const char *const rules[] = {rule, NULL};
		if (rule && allow_check(rules, ALLOW_SOURCE, name, NULL, NULL) == 0)
			return item;
	}
	return NULL;
}
