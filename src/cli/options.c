/* Options as tables; see options.h. */
#include "options.h"

#include "locator.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define NEAREST_WORD_BYTES 40
#define HELP_COLUMN 28
#define HELP_WIDTH 80

/* --- words that are near --------------------------------------------------- */

/* Letters to change, insert or drop to get from a to b (Levenshtein). */
static size_t word_distance(const char *a, const char *b)
{
	size_t la = strlen(a), lb = strlen(b);
	if (la >= NEAREST_WORD_BYTES || lb >= NEAREST_WORD_BYTES)
		return SIZE_MAX;
	size_t row[NEAREST_WORD_BYTES];
	for (size_t j = 0; j <= lb; j++)
		row[j] = j;
	for (size_t i = 1; i <= la; i++) {
		size_t diagonal = row[0];
		row[0] = i;
		for (size_t j = 1; j <= lb; j++) {
			size_t change = diagonal + (a[i - 1] != b[j - 1]);
			size_t other = min_size(row[j], row[j - 1]) + 1;
			diagonal = row[j];
			row[j] = min_size(change, other);
		}
	}
	return row[lb];
}

const char *options_nearest(const char *word, const char *const *words, size_t nr)
{
	const char *best = NULL;
	size_t best_distance = strlen(word) > 4 ? 3 : 2; /* fewer than that */
	for (size_t i = 0; i < nr; i++) {
		size_t distance = word_distance(word, words[i]);
		if (distance < best_distance) {
			best = words[i];
			best_distance = distance;
		}
	}
	return best;
}

/* --- values ------------------------------------------------------------------ */

static int list_add(struct option_list *list, const char *text, struct err *err)
{
	const char **items = reallocarray(list->items, list->nr + 1, sizeof *items);
	if (!items)
		return err_errno(err, ENOMEM, "cannot keep the options");
	list->items = items;
	items[list->nr++] = text;
	return 0;
}

void option_list_free(struct option_list *list)
{
	free(list->items);
	*list = (struct option_list){0};
}

static int parse_number(const char *text, uint64_t *value, struct err *err)
{
	char *end;
	errno = 0;
	unsigned long long v = strtoull(text, &end, 10);
	if (!isdigit((unsigned char)text[0]) || *end != '\0' || errno != 0)
		return err_set(err, ERR_USAGE, "\"%s\" is not a whole number", text);
	*value = v;
	return 0;
}

static int parse_rate(const char *text, uint64_t *rate, struct err *err)
{
	char size[32];
	size_t length = strlen(text);
	if (length > 2 && strcmp(text + length - 2, "/s") == 0)
		length -= 2;
	snprintf(size, sizeof size, "%.*s", (int)length, text);
	if (length >= sizeof size || locator_parse_size(size, rate, NULL) < 0)
		return err_set(err, ERR_USAGE, "\"%s\" is not a rate (like 512k, 20MiB/s)", text);
	return 0;
}

static int set_number(const struct option_spec *spec, struct option_number *number,
	const char *text, struct err *err)
{
	int rc;
	switch (spec->kind) {
	case OPTION_SIZE:
		rc = locator_parse_size(text, &number->value, err);
		break;
	case OPTION_RATE:
		rc = parse_rate(text, &number->value, err);
		break;
	case OPTION_DURATION:
		rc = clock_parse_duration(text, &number->value, err);
		break;
	default:
		rc = parse_number(text, &number->value, err);
	}
	if (rc < 0)
		return -1;
	bool limited = spec->minimum != 0 || spec->maximum != 0;
	if (limited && (number->value < spec->minimum || number->value > spec->maximum))
		return err_set(err, ERR_USAGE, "%s is not within %" PRIu64 "..%" PRIu64, text,
			spec->minimum, spec->maximum);
	number->given = true;
	return 0;
}

static int set_choice(
	const struct option_spec *spec, const char **value, const char *text, struct err *err)
{
	char all[256] = "";
	for (size_t i = 0; spec->choices[i]; i++) {
		if (strcmp(text, spec->choices[i]) == 0) {
			*value = text;
			return 0;
		}
		size_t used = strlen(all);
		snprintf(
			all + used, sizeof all - used, "%s%s", i > 0 ? ", " : "", spec->choices[i]);
	}
	return err_set(err, ERR_USAGE, "\"%s\" is not one of: %s", text, all);
}

static int set_value(
	const struct option_spec *spec, void *values, const char *text, struct err *err)
{
	void *value = (char *)values + spec->offset;
	switch (spec->kind) {
	case OPTION_FLAG:
		*(bool *)value = true;
		return 0;
	case OPTION_TEXT:
		*(const char **)value = text;
		return 0;
	case OPTION_LIST:
		return list_add(value, text, err);
	case OPTION_CHOICE:
		return set_choice(spec, value, text, err);
	case OPTION_NUMBER:
	case OPTION_SIZE:
	case OPTION_RATE:
	case OPTION_DURATION:
		return set_number(spec, value, text, err);
	}
	return 0;
}

/* --- parsing ----------------------------------------------------------------- */

struct parser {
	const struct option_group *groups;
	size_t nr_groups;
	uint64_t seen[8]; /* of each group, the options that were given */
	int argc, at;
	const char *const *argv;
};

/* Finds an option by name[0..length) or by letter. */
static const struct option_spec *find_spec(
	const struct parser *parser, const char *name, size_t length, char letter, size_t *group)
{
	for (*group = 0; *group < parser->nr_groups; ++*group) {
		const struct option_group *g = &parser->groups[*group];
		for (size_t i = 0; i < g->nr_specs; i++) {
			const struct option_spec *spec = &g->specs[i];
			if (letter ? spec->letter == letter
				   : strlen(spec->name) == length &&
						strncmp(spec->name, name, length) == 0)
				return spec;
		}
	}
	return NULL;
}

static int unknown_option(const struct parser *parser, const char *word, const char *name,
	size_t length, struct err *err)
{
	const char *names[64 * 2];
	size_t nr = 0;
	for (size_t g = 0; g < parser->nr_groups; g++)
		for (size_t i = 0; i < parser->groups[g].nr_specs && nr < ARRAY_LENGTH(names); i++)
			names[nr++] = parser->groups[g].specs[i].name;
	char text[NEAREST_WORD_BYTES] = "";
	if (length < sizeof text)
		snprintf(text, sizeof text, "%.*s", (int)length, name);
	const char *near = text[0] ? options_nearest(text, names, nr) : NULL;
	if (near)
		return err_set(
			err, ERR_USAGE, "%s: unknown option (did you mean --%s?)", word, near);
	return err_set(err, ERR_USAGE, "%s: unknown option", word);
}

static int parse_option(struct parser *parser, struct err *err)
{
	const char *word = parser->argv[parser->at++];
	bool is_long = word[1] == '-';
	const char *name = word + (is_long ? 2 : 1);
	const char *equals = is_long ? strchr(name, '=') : NULL;
	size_t length = equals ? (size_t)(equals - name) : strlen(name);
	size_t group;
	const struct option_spec *spec = NULL;
	if (is_long || length == 1)
		spec = find_spec(parser, name, length, is_long ? 0 : name[0], &group);
	if (!spec)
		return unknown_option(parser, word, name, length, err);

	const char *value = equals ? equals + 1 : NULL;
	if (spec->kind == OPTION_FLAG && value)
		return err_set(err, ERR_USAGE, "--%s: takes no value", spec->name);
	if (spec->kind != OPTION_FLAG && !value) {
		if (parser->at >= parser->argc)
			return err_set(err, ERR_USAGE, "--%s: needs a value (--%s %s)", spec->name,
				spec->name, spec->argument);
		value = parser->argv[parser->at++];
	}
	uint64_t bit = (uint64_t)1 << (spec - parser->groups[group].specs);
	if (spec->kind != OPTION_FLAG && spec->kind != OPTION_LIST && parser->seen[group] & bit)
		return err_set(err, ERR_USAGE, "--%s: given twice", spec->name);
	parser->seen[group] |= bit;
	if (set_value(spec, parser->groups[group].values, value, err) < 0)
		return err_context(err, "--%s", spec->name);
	return 0;
}

int options_parse(const struct option_group *groups, size_t nr_groups, int argc,
	const char *const *argv, struct option_list *arguments, struct err *err)
{
	struct parser parser = {
		.groups = groups, .nr_groups = nr_groups, .argc = argc, .argv = argv};
	bool ended = false;
	while (parser.at < argc) {
		const char *word = argv[parser.at];
		if (!ended && strcmp(word, "--") == 0) {
			ended = true;
			parser.at++;
		} else if (!ended && word[0] == '-' && word[1] != '\0') {
			if (parse_option(&parser, err) < 0)
				return -1;
		} else {
			if (list_add(arguments, word, err) < 0)
				return -1;
			parser.at++;
		}
	}
	return 0;
}

void options_free(const struct option_group *groups, size_t nr_groups)
{
	for (size_t g = 0; g < nr_groups; g++)
		for (size_t i = 0; i < groups[g].nr_specs; i++)
			if (groups[g].specs[i].kind == OPTION_LIST)
				option_list_free((struct option_list *)((char *)groups[g].values +
									groups[g].specs[i].offset));
}

bool options_ask_help(int argc, const char *const *argv)
{
	for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++)
		if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
			return true;
	return false;
}

/* --- help -------------------------------------------------------------------- */

/* Prints text wrapped, each line but the first indented; at is the column now. */
static void print_wrapped(FILE *out, const char *text, size_t indent, size_t at)
{
	while (*text) {
		size_t length = strcspn(text, " ");
		if (at > indent && at + 1 + length > HELP_WIDTH) {
			fprintf(out, "\n%*s", (int)indent, "");
			at = indent;
		} else if (at > indent) {
			fputc(' ', out);
			at++;
		}
		fwrite(text, 1, length, out);
		at += length;
		text += length;
		text += strspn(text, " ");
	}
	fputc('\n', out);
}

static void print_option(FILE *out, const struct option_spec *spec)
{
	char head[128];
	int n = snprintf(head, sizeof head, "  --%s%s%s", spec->name, spec->argument ? " " : "",
		spec->argument ? spec->argument : "");
	if (spec->letter)
		n += snprintf(head + n, sizeof head - (size_t)n, ", -%c", spec->letter);
	fputs(head, out);
	if (n + 2 > HELP_COLUMN)
		fprintf(out, "\n%*s", HELP_COLUMN, "");
	else
		fprintf(out, "%*s", HELP_COLUMN - n, "");
	print_wrapped(out, spec->help, HELP_COLUMN, HELP_COLUMN);
}

void options_print_help(FILE *out, const struct option_group *groups, size_t nr_groups)
{
	for (size_t g = 0; g < nr_groups; g++)
		for (size_t i = 0; i < groups[g].nr_specs; i++)
			print_option(out, &groups[g].specs[i]);
}
