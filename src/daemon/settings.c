/*
 * The file of settings, read line by line with libinih, which cuts names and sections silently
 * where they are too long, passes over sections without settings, and does not say
 * which line it is at: so the reader that hands it the lines counts them and looks at
 * sections itself.  All errors are told, not only the first.
 */
#include "settings_internal.h"

#include "file.h"
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <ini.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#define FILE_MOST (1u << 20)
#define LINE_MOST 4400 /* a path of 4,095 bytes, and its name */
#define NAME_MOST 48 /* libinih's own limit for sections and names */
#define ERRORS_MOST 50

struct settings_reading {
	const struct settings *settings;
	void *values;
	settings_tell *tell;
	void *context;
	struct err *err;
	unsigned nr_errors;
	const char *at; /* what is not read yet */
	unsigned line;
	/* The line that each setting of the table was given in; of named sections each member has
	 * lines of its own. */
	unsigned *lines;
	struct member_lines *members;
	size_t nr_members;
};

struct member_lines {
	const struct settings_named *named;
	size_t i; /* in the array */
	unsigned *lines; /* as above, and behind them the section's own */
};

static char **path_of(const struct settings *settings, void *values)
{
	return (char **)((char *)values + settings->path);
}

static void wrong(struct settings_reading *r, unsigned line, const struct err *why)
{
	const char *path = *path_of(r->settings, r->values);
	if (r->nr_errors++ == 0) {
		err_copy(r->err, why);
		if (line > 0)
			err_context(r->err, "%s:%u", path, line);
		else
			err_context(r->err, "%s", path);
		if (r->err)
			r->err->code = ERR_USAGE;
	}
	if (r->tell && r->nr_errors <= ERRORS_MOST)
		r->tell(r->context, &(struct settings_finding){
					    .is_error = true, .line = line, .text = why->text});
}

void settings_wrong(struct settings_reading *r, unsigned line, const char *format, ...)
{
	struct err why = ERR_INIT;
	char text[ERR_TEXT_BYTES];
	va_list args;
	va_start(args, format);
	vsnprintf(text, sizeof text, format, args);
	va_end(args);
	err_set(&why, ERR_USAGE, "%s", text);
	wrong(r, line, &why);
}

/* --- named sections ------------------------------------------------------------------------ */

static const struct settings_named *find_named(const struct settings *settings, const char *section)
{
	const struct settings_named *n = settings->named;
	while (n && n->section && strcmp(n->section, section) != 0)
		n++;
	return n && n->section ? n : NULL;
}

/* "repository NAME": what [repository] is, and NAME; NULL for another section. */
static const struct settings_named *split_section(
	const struct settings *settings, const char *section, const char **name)
{
	for (const struct settings_named *n = settings->named; n && n->section; n++) {
		size_t length = strlen(n->section);
		if (strncmp(section, n->section, length) == 0 && section[length] == ' ') {
			*name = section + length + 1;
			return n;
		}
	}
	return NULL;
}

/* The name becomes a part of URLs. */
bool settings_is_name(const char *name)
{
	size_t length =
		strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-");
	return length > 0 && length <= 32 && name[length] == '\0';
}

static size_t *nr_of(const struct settings_named *n, void *values)
{
	return (size_t *)((char *)values + n->nr);
}

static void *member_of(const struct settings_named *n, void *values, size_t i)
{
	return *(char **)((char *)values + n->array) + i * n->bytes;
}

static const char **name_of(const struct settings_named *n, void *member)
{
	return (const char **)((char *)member + n->name);
}

static size_t find_member(const struct settings_named *n, void *values, const char *name)
{
	size_t i = 0, nr = *nr_of(n, values);
	while (i < nr && strcmp(*name_of(n, member_of(n, values, i)), name) != 0)
		i++;
	return i;
}

/* One more member, zeros but for its name. */
static int add_member(
	const struct settings_named *n, void *values, const char *name, struct err *err)
{
	void **array = (void **)((char *)values + n->array);
	size_t *nr = nr_of(n, values);
	char *copy = strdup(name);
	void *longer = copy ? reallocarray(*array, *nr + 1, n->bytes) : NULL;
	if (!longer) {
		free(copy);
		return err_errno(err, ENOMEM, "cannot keep [%s %s]", n->section, name);
	}
	*array = longer;
	void *member = member_of(n, values, *nr);
	memset(member, 0, n->bytes);
	*name_of(n, member) = copy;
	(*nr)++;
	return 0;
}

static void free_members(
	const struct settings *settings, const struct settings_named *n, void *values)
{
	for (size_t i = 0; i < *nr_of(n, values); i++) {
		void *member = member_of(n, values, i);
		for (size_t k = 0; k < settings->nr_table; k++)
			if (strcmp(settings->table[k].section, n->section) == 0)
				settings_text_clear(&settings->table[k], member);
		free((char *)*name_of(n, member));
	}
	void **array = (void **)((char *)values + n->array);
	free(*array);
	*array = NULL;
	*nr_of(n, values) = 0;
}

/* --- sections ------------------------------------------------------------------------------- */

static bool known_section(const struct settings *settings, const char *section)
{
	for (size_t i = 0; i < settings->nr_table; i++)
		if (strcmp(settings->table[i].section, section) == 0)
			return !find_named(settings, section);
	return false;
}

/* "hub, tls, repository NAME", for the message about an unknown one. */
static void list_sections(const struct settings *settings, char *out, size_t bytes)
{
	size_t used = 0;
	const char *before = "";
	for (size_t i = 0; i < settings->nr_table && used < bytes; i++) {
		const char *section = settings->table[i].section;
		if (strcmp(section, before) != 0)
			used += (size_t)snprintf(out + used, bytes - used, "%s%s%s",
				used ? ", " : "", section,
				find_named(settings, section) ? " NAME" : "");
		before = section;
	}
}

static int add_lines(struct settings_reading *r, const struct settings_named *n, struct err *err)
{
	struct member_lines *members = reallocarray(r->members, r->nr_members + 1, sizeof *members);
	if (members)
		r->members = members;
	unsigned *lines = calloc(r->settings->nr_table + 1, sizeof *lines);
	if (!members || !lines) {
		free(lines);
		return err_errno(err, ENOMEM, "cannot keep a section");
	}
	lines[r->settings->nr_table] = r->line;
	members[r->nr_members++] =
		(struct member_lines){.named = n, .i = *nr_of(n, r->values), .lines = lines};
	return 0;
}

static void begin_named(
	struct settings_reading *r, const struct settings_named *n, const char *name)
{
	struct err err = ERR_INIT;
	if (!settings_is_name(name))
		settings_wrong(r, r->line,
			"\"%.60s\" is no name for a %s (1 to 32 of letters, digits, _ and -)", name,
			n->section);
	else if (find_member(n, r->values, name) < *nr_of(n, r->values))
		settings_wrong(r, r->line, "the %s %s is there twice", n->section, name);
	else if (add_lines(r, n, &err) < 0 || add_member(n, r->values, name, &err) < 0)
		wrong(r, r->line, &err);
}

static void begin_section(struct settings_reading *r, const char *section)
{
	const char *name;
	char sections[512] = "";
	const struct settings_named *n = split_section(r->settings, section, &name);
	if (n) {
		begin_named(r, n, name);
	} else if (find_named(r->settings, section)) {
		settings_wrong(r, r->line, "[%s] needs a name (like [%s main])", section, section);
	} else if (!known_section(r->settings, section)) {
		list_sections(r->settings, sections, sizeof sections);
		settings_wrong(r, r->line, "[%.60s] is no section (one of %s)", section, sections);
	}
}

/* --- lines ---------------------------------------------------------------------------------- */

static bool is_space(char c)
{
	return c == ' ' || c == '\t' || c == '\r';
}

/* All that is set may come into plans of jobs and answers of the API, which are JSON. */
static bool is_utf8(const char *line, size_t length)
{
	json_t *text = json_stringn(line, length);
	bool is = text != NULL;
	json_decref(text);
	return is;
}

/* Looks at a line as it is in the file, before libinih does; false: it is passed over. */
static bool check_line(struct settings_reading *r, const char *line, size_t length)
{
	while (length > 0 && is_space(line[length - 1]))
		length--;
	while (length > 0 && is_space(*line)) {
		line++;
		length--;
	}
	if (length == 0 || *line == '#' || *line == ';')
		return false;
	if (length >= LINE_MOST - 4) {
		settings_wrong(r, r->line, "the line is longer than %d bytes", LINE_MOST - 4);
		return false;
	}
	if (!is_utf8(line, length)) {
		settings_wrong(r, r->line, "this is not UTF-8");
		return false;
	}
	if (*line == '[') {
		char section[NAME_MOST + 1];
		if (line[length - 1] != ']' || length - 2 > NAME_MOST) {
			settings_wrong(
				r, r->line, "this is no section (like [%s])", r->settings->owner);
			return false;
		}
		memcpy(section, line + 1, length - 2);
		section[length - 2] = '\0';
		begin_section(r, section);
		return true;
	}
	const char *equals = memchr(line, '=', length);
	size_t name = equals ? (size_t)(equals - line) : 0;
	if (name == 0 || name > NAME_MOST || memchr(line, ':', name)) {
		settings_wrong(r, r->line, "this is no setting (like listen = 127.0.0.1:8080)");
		return false;
	}
	return true;
}

/* An ini_reader: the next line of those that are any; the others come as empty ones. */
static char *next_line(char *out, int bytes, void *context)
{
	struct settings_reading *r = context;
	if (!*r->at)
		return NULL;
	size_t length = strcspn(r->at, "\n");
	const char *line = r->at;
	r->at += length + (line[length] == '\n');
	r->line++;
	if (!check_line(r, line, length) || length + 2 > (size_t)bytes)
		length = 0;
	memcpy(out, line, length);
	out[length] = '\n';
	out[length + 1] = '\0';
	return out;
}

static const struct setting *find_setting(
	const struct settings *settings, const char *section, const char *name)
{
	for (size_t i = 0; i < settings->nr_table; i++)
		if (strcmp(settings->table[i].section, section) == 0 &&
			strcmp(settings->table[i].name, name) == 0)
			return &settings->table[i];
	return NULL;
}

/* Appends the names of a section's settings, for the message about an unknown one. */
static void list_settings(
	const struct settings *settings, const char *section, char *out, size_t bytes)
{
	size_t used = 0;
	for (size_t i = 0; i < settings->nr_table && used < bytes; i++)
		if (strcmp(settings->table[i].section, section) == 0)
			used += (size_t)snprintf(out + used, bytes - used, "%s%s", used ? ", " : "",
				settings->table[i].name);
}

static void set(struct settings_reading *r, const char *section, const char *name, const char *text,
	void *base, unsigned *lines)
{
	const struct settings *settings = r->settings;
	const struct setting *setting = find_setting(settings, section, name);
	if (!setting) {
		char names[512] = "";
		list_settings(settings, section, names, sizeof names);
		settings_wrong(r, r->line, "[%s] has no setting \"%s\" (there is: %s)", section,
			name, names);
		return;
	}
	unsigned *line = &lines[setting - settings->table];
	if (*line > 0 && setting->kind != SETTING_LIST) {
		settings_wrong(
			r, r->line, "[%s] %s is there already, in line %u", section, name, *line);
		return;
	}
	*line = r->line;
	struct err why = ERR_INIT;
	if (!text[0])
		err_set(&why, ERR_USAGE, "there is no value (leave the line out for the default)");
	else if ((!settings->check || settings->check(setting, text, &why) == 0) &&
		 settings_text_set(setting, base, text, &why) == 0)
		return;
	err_context(&why, "[%s] %s", section, name);
	wrong(r, r->line, &why);
}

static const struct member_lines *find_lines(
	const struct settings_reading *r, const struct settings_named *n, size_t i)
{
	for (size_t k = 0; k < r->nr_members; k++)
		if (r->members[k].named == n && r->members[k].i == i)
			return &r->members[k];
	return NULL;
}

/* An ini_handler. */
static int take_setting(void *context, const char *section, const char *name, const char *text)
{
	struct settings_reading *r = context;
	const char *member;
	const struct settings_named *n = split_section(r->settings, section, &member);
	if (n) {
		size_t i = find_member(n, r->values, member);
		if (i < *nr_of(n, r->values))
			set(r, n->section, name, text, member_of(n, r->values, i),
				find_lines(r, n, i)->lines);
	} else if (section[0] == '\0') {
		settings_wrong(r, r->line, "\"%s\" stands before the first section (like [%s])",
			name, r->settings->owner);
	} else if (known_section(r->settings, section)) {
		set(r, section, name, text, r->values, r->lines);
	}
	return 1; /* unknown sections were told once */
}

unsigned settings_line(const struct settings_reading *r, const char *section, const char *name)
{
	return r->lines[find_setting(r->settings, section, name) - r->settings->table];
}

unsigned settings_named_line(const struct settings_reading *r, const char *section, size_t i)
{
	return find_lines(r, find_named(r->settings, section), i)->lines[r->settings->nr_table];
}

/* --- loading --------------------------------------------------------------------------------- */

static int set_defaults(const struct settings *settings, void *values, struct err *err)
{
	for (size_t i = 0; i < settings->nr_table; i++) {
		const struct setting *s = &settings->table[i];
		if (s->otherwise && !find_named(settings, s->section) &&
			settings_text_set(s, values, s->otherwise, err) < 0)
			return err_context(err, "[%s] %s", s->section, s->name);
	}
	return 0;
}

static void parse(struct settings_reading *r)
{
	/* libinih's settings are the process's; nobody else uses it meanwhile. */
	ini_use_stack = false;
	ini_max_line = LINE_MOST + 4;
	ini_initial_alloc = LINE_MOST + 4;
	ini_allow_multiline = false;
	ini_allow_inline_comments = false;
	int bad = ini_parse_stream(next_line, r, take_setting, r);
	if (bad != 0 && r->nr_errors == 0)
		settings_wrong(r, bad > 0 ? (unsigned)bad : 0, "this cannot be read");
}

static void read_text(struct settings_reading *r, const char *text, size_t length)
{
	const struct settings *settings = r->settings;
	struct err err = ERR_INIT;
	if (strlen(text) != length) {
		settings_wrong(r, 0, "it holds zero bytes: this is no file of settings");
		return;
	}
	if (set_defaults(settings, r->values, &err) < 0) {
		wrong(r, 0, &err);
		return;
	}
	r->at = text;
	parse(r);
	if (settings->derive && settings->derive(r, r->values, &err) < 0)
		wrong(r, 0, &err);
}

/* The path, which is taken, is that of the text. */
static void *read_whole(struct settings_reading *r, char *path, const char *text, size_t length)
{
	r->values = calloc(1, r->settings->bytes);
	r->lines = calloc(r->settings->nr_table, sizeof *r->lines);
	if (!r->values || !r->lines || !path) {
		err_errno(r->err, ENOMEM, "cannot read the %s's settings", r->settings->owner);
		r->nr_errors++;
		free(path);
	} else {
		*path_of(r->settings, r->values) = path;
		read_text(r, text, length);
	}
	for (size_t i = 0; i < r->nr_members; i++)
		free(r->members[i].lines);
	free(r->members);
	free(r->lines);
	if (r->nr_errors == 0)
		return r->values;
	settings_free(r->settings, r->values);
	return NULL;
}

void *settings_parse(const struct settings *settings, const char *path, char *text, size_t length,
	struct err *err)
{
	struct settings_reading r = {.settings = settings, .err = err};
	return read_whole(&r, strdup(path), text, length);
}

void *settings_load(const struct settings *settings, const char *path, settings_tell *tell,
	void *context, struct err *err)
{
	char *AUTO_FREE text = NULL;
	size_t length = 0;
	struct err why = ERR_INIT;
	struct settings_reading r = {
		.settings = settings, .tell = tell, .context = context, .err = err};
	char *absolute = NULL;
	if (file_load(AT_FDCWD, path, FILE_MOST, &text, &length, &why) == 0 &&
		!(absolute = realpath(path, NULL)))
		err_errno(&why, errno, "cannot find %s", path);
	if (absolute)
		return read_whole(&r, absolute, text, length);
	err_context(&why, "the %s's settings", settings->owner);
	if (settings->made_by)
		err_hint(&why, "\"%s\" makes them", settings->made_by);
	if (tell)
		tell(context, &(struct settings_finding){.is_error = true, .text = why.text});
	err_copy(err, &why);
	return NULL;
}

void settings_free(const struct settings *settings, void *values)
{
	if (!values)
		return;
	for (size_t k = 0; k < settings->nr_table; k++)
		if (!find_named(settings, settings->table[k].section))
			settings_text_clear(&settings->table[k], values);
	for (const struct settings_named *n = settings->named; n && n->section; n++)
		free_members(settings, n, values);
	free(*path_of(settings, values));
	free(values);
}

/* --- reading anew ------------------------------------------------------------------------------
 */

static void append_name(char *out, size_t bytes, const char *section, const char *name)
{
	size_t used = strlen(out);
	snprintf(out + used, bytes - used, "%s[%s] %s", used ? ", " : "", section, name);
}

static bool same_members(
	const struct settings *settings, const struct settings_named *n, void *a, void *b)
{
	size_t nr = *nr_of(n, a);
	if (nr != *nr_of(n, b))
		return false;
	for (size_t i = 0; i < nr; i++) {
		void *x = member_of(n, a, i), *y = member_of(n, b, i);
		if (strcmp(*name_of(n, x), *name_of(n, y)) != 0)
			return false;
		for (size_t k = 0; k < settings->nr_table; k++)
			if (strcmp(settings->table[k].section, n->section) == 0 &&
				!settings_text_equal(&settings->table[k], x, y))
				return false;
	}
	return true;
}

static void tell_differences(
	const struct settings *settings, const void *old, const void *new, char *out, size_t bytes)
{
	out[0] = '\0';
	for (size_t i = 0; i < settings->nr_table; i++) {
		const struct setting *s = &settings->table[i];
		if (!s->live && !find_named(settings, s->section) &&
			!settings_text_equal(s, old, new))
			append_name(out, bytes, s->section, s->name);
	}
	for (const struct settings_named *n = settings->named; n && n->section; n++) {
		char section[64];
		snprintf(section, sizeof section, "%s NAME", n->section);
		if (!same_members(settings, n, (void *)old, (void *)new))
			append_name(out, bytes, section, "");
	}
}

static int copy_member(const struct settings *settings, const struct settings_named *n, void *from,
	void *to, struct err *err)
{
	if (add_member(n, to, *name_of(n, from), err) < 0)
		return -1;
	void *member = member_of(n, to, *nr_of(n, to) - 1);
	for (size_t k = 0; k < settings->nr_table; k++)
		if (strcmp(settings->table[k].section, n->section) == 0 &&
			settings_text_copy(&settings->table[k], member, from, err) < 0)
			return -1;
	return 0;
}

static int settle(const struct settings *settings, const void *old, void *new, struct err *err)
{
	for (size_t k = 0; k < settings->nr_table; k++) {
		const struct setting *s = &settings->table[k];
		if (s->live || find_named(settings, s->section))
			continue;
		settings_text_clear(s, new);
		if (settings_text_copy(s, new, old, err) < 0)
			return -1;
	}
	for (const struct settings_named *n = settings->named; n && n->section; n++) {
		free_members(settings, n, new);
		for (size_t i = 0; i < *nr_of(n, (void *)old); i++)
			if (copy_member(settings, n, member_of(n, (void *)old, i), new, err) < 0)
				return -1;
	}
	return 0;
}

static void log_finding(void *context, const struct settings_finding *finding)
{
	const char *path = context;
	if (finding->line > 0)
		log_error("%s:%u: %s", path, finding->line, finding->text);
	else
		log_error("%s: %s", path, finding->text);
}

void *settings_reload(const struct settings *settings, const void *old)
{
	char *path = *(char *const *)((const char *)old + settings->path);
	char differences[1024] = "";
	struct err err = ERR_INIT;
	void *new = settings_load(settings, path, log_finding, path, &err);
	if (new)
		tell_differences(settings, old, new, differences, sizeof differences);
	if (!new || settle(settings, old, new, &err) < 0) {
		log_error("the old settings stay: %s", err.text);
		settings_free(settings, new);
		return NULL;
	}
	if (differences[0])
		log_warning("counts after a restart only: %s", differences);
	return new;
}

json_t *settings_defaults(const struct settings *settings)
{
	json_t *all = json_object();
	for (size_t i = 0; i < settings->nr_table; i++) {
		const struct setting *s = &settings->table[i];
		json_t *section = json_object_get(all, s->section);
		if (!section) {
			section = json_object();
			json_object_set_new(all, s->section, section);
		}
		json_object_set_new(
			section, s->name, s->otherwise ? json_string(s->otherwise) : json_null());
	}
	return all;
}
