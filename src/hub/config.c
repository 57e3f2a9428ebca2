/*
 * The file of settings, read line by line with libinih, which cuts names and sections silently
 * where they are too long, passes over sections without settings, and does not say
 * which line it is at: so the reader that hands it the lines counts them and looks at
 * sections itself.  All errors are told, not only the first.
 */
#include "config_internal.h"

#include "file.h"
#include "job.h"
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

struct loading {
	struct hub_config *config;
	hub_config_tell *tell;
	void *context;
	struct err *err;
	unsigned nr_errors;
	const char *at; /* what is not read yet */
	unsigned line;
	/* The line that each setting was given in; of repositories: [setting * nr + repository] is
	 * too much to ask, so theirs are in repository_lines. */
	unsigned *lines; /* config_nr_settings */
	unsigned **repository_lines; /* nr_repositories, each config_nr_settings + 1; the last: of
					the section */
};

static void wrong(struct loading *l, unsigned line, const struct err *why)
{
	if (l->nr_errors++ == 0) {
		err_copy(l->err, why);
		if (line > 0)
			err_context(l->err, "%s:%u", l->config->path, line);
		else
			err_context(l->err, "%s", l->config->path);
		if (l->err)
			l->err->code = ERR_USAGE;
	}
	if (l->tell && l->nr_errors <= ERRORS_MOST)
		l->tell(l->context, &(struct hub_config_finding){
					    .is_error = true, .line = line, .text = why->text});
}

static void wrong_text(struct loading *l, unsigned line, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

static void wrong_text(struct loading *l, unsigned line, const char *format, ...)
{
	struct err why = ERR_INIT;
	char text[ERR_TEXT_BYTES];
	va_list args;
	va_start(args, format);
	vsnprintf(text, sizeof text, format, args);
	va_end(args);
	err_set(&why, ERR_USAGE, "%s", text);
	wrong(l, line, &why);
}

/* --- sections ----------------------------------------------------------------------------- */

static bool known_section(const char *section)
{
	for (size_t i = 0; i < config_nr_settings; i++)
		if (strcmp(config_settings[i].section, section) == 0)
			return strcmp(section, "repository") != 0;
	return false;
}

/* "repository NAME": NAME; NULL for another section. */
static const char *repository_name(const char *section)
{
	return strncmp(section, "repository ", 11) == 0 ? section + 11 : NULL;
}

/* The name becomes a part of URLs. */
static bool is_repository_name(const char *name)
{
	size_t length =
		strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-");
	return length > 0 && length <= 32 && name[length] == '\0';
}

static size_t find_repository(const struct hub_config *config, const char *name)
{
	size_t i = 0;
	while (i < config->nr_repositories && strcmp(config->repositories[i].name, name) != 0)
		i++;
	return i;
}

static int add_repository(struct loading *l, const char *name, struct err *err)
{
	struct hub_config *c = l->config;
	size_t nr = c->nr_repositories;
	struct job_repository *repositories =
		reallocarray(c->repositories, nr + 1, sizeof *repositories);
	if (repositories)
		c->repositories = repositories;
	unsigned **lines = reallocarray(l->repository_lines, nr + 1, sizeof *lines);
	if (lines)
		l->repository_lines = lines;
	char *copy = strdup(name);
	unsigned *own = calloc(config_nr_settings + 1, sizeof *own);
	if (!repositories || !lines || !copy || !own) {
		free(copy);
		free(own);
		return err_errno(err, ENOMEM, "cannot keep a repository");
	}
	repositories[nr] = (struct job_repository){.name = copy};
	own[config_nr_settings] = l->line;
	lines[nr] = own;
	c->nr_repositories = nr + 1;
	return 0;
}

static void begin_section(struct loading *l, const char *section)
{
	struct err err = ERR_INIT;
	const char *name = repository_name(section);
	if (!name && strcmp(section, "repository") == 0)
		wrong_text(l, l->line, "[repository] needs a name (like [repository main])");
	else if (!name && !known_section(section))
		wrong_text(l, l->line,
			"[%.60s] is no section (one of hub, tls, nbd, repository NAME, limits, "
			"allow, notify, builds)",
			section);
	else if (name && !is_repository_name(name))
		wrong_text(l, l->line,
			"\"%.60s\" is no name for a repository (1 to 32 of letters, digits, _ and "
			"-)",
			name);
	else if (name && find_repository(l->config, name) < l->config->nr_repositories)
		wrong_text(l, l->line, "the repository %s is there twice", name);
	else if (name && add_repository(l, name, &err) < 0)
		wrong(l, l->line, &err);
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
static bool check_line(struct loading *l, const char *line, size_t length)
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
		wrong_text(l, l->line, "the line is longer than %d bytes", LINE_MOST - 4);
		return false;
	}
	if (!is_utf8(line, length)) {
		wrong_text(l, l->line, "this is not UTF-8");
		return false;
	}
	if (*line == '[') {
		char section[NAME_MOST + 1];
		if (line[length - 1] != ']' || length - 2 > NAME_MOST) {
			wrong_text(l, l->line, "this is no section (like [hub])");
			return false;
		}
		memcpy(section, line + 1, length - 2);
		section[length - 2] = '\0';
		begin_section(l, section);
		return true;
	}
	const char *equals = memchr(line, '=', length);
	size_t name = equals ? (size_t)(equals - line) : 0;
	if (name == 0 || name > NAME_MOST || memchr(line, ':', name)) {
		wrong_text(l, l->line, "this is no setting (like listen = 127.0.0.1:8080)");
		return false;
	}
	return true;
}

/* An ini_reader: the next line of those that are any; the others come as empty ones. */
static char *next_line(char *out, int bytes, void *context)
{
	struct loading *l = context;
	if (!*l->at)
		return NULL;
	size_t length = strcspn(l->at, "\n");
	const char *line = l->at;
	l->at += length + (line[length] == '\n');
	l->line++;
	if (!check_line(l, line, length) || length + 2 > (size_t)bytes)
		length = 0;
	memcpy(out, line, length);
	out[length] = '\n';
	out[length + 1] = '\0';
	return out;
}

static const struct config_setting *find_setting(const char *section, const char *name)
{
	for (size_t i = 0; i < config_nr_settings; i++)
		if (strcmp(config_settings[i].section, section) == 0 &&
			strcmp(config_settings[i].name, name) == 0)
			return &config_settings[i];
	return NULL;
}

/* Appends the names of a section's settings, for the message about an unknown one. */
static void list_settings(const char *section, char *out, size_t bytes)
{
	size_t used = 0;
	for (size_t i = 0; i < config_nr_settings && used < bytes; i++)
		if (strcmp(config_settings[i].section, section) == 0)
			used += (size_t)snprintf(out + used, bytes - used, "%s%s", used ? ", " : "",
				config_settings[i].name);
}

/* What jobs may read and write is understood by the room that runs them. */
static int check_rule(const struct config_setting *setting, const char *text, struct err *err)
{
	if (strcmp(setting->section, "allow") != 0)
		return 0;
	if (strcmp(setting->name, "credentials") == 0) {
		json_t *one = credentials_parse(text, err);
		json_decref(one);
		return one ? 0 : -1;
	}
	enum allow_use use = strcmp(setting->name, "source") == 0   ? ALLOW_SOURCE
			     : strcmp(setting->name, "target") == 0 ? ALLOW_TARGET
								    : ALLOW_WEBHOOK;
	return allow_check_rule(text, use, err);
}

static void set(struct loading *l, const char *section, const char *name, const char *text,
	void *base, unsigned *lines)
{
	const struct config_setting *setting = find_setting(section, name);
	if (!setting) {
		char names[512] = "";
		list_settings(section, names, sizeof names);
		wrong_text(l, l->line, "[%s] has no setting \"%s\" (there is: %s)", section, name,
			names);
		return;
	}
	unsigned *line = &lines[setting - config_settings];
	if (*line > 0 && setting->kind != CONFIG_LIST) {
		wrong_text(
			l, l->line, "[%s] %s is there already, in line %u", section, name, *line);
		return;
	}
	*line = l->line;
	struct err why = ERR_INIT;
	if (!text[0])
		err_set(&why, ERR_USAGE, "there is no value (leave the line out for the default)");
	else if (check_rule(setting, text, &why) == 0 && config_set(setting, base, text, &why) == 0)
		return;
	err_context(&why, "[%s] %s", section, name);
	wrong(l, l->line, &why);
}

/* An ini_handler. */
static int take_setting(void *context, const char *section, const char *name, const char *text)
{
	struct loading *l = context;
	const char *repository = repository_name(section);
	if (repository) {
		size_t i = find_repository(l->config, repository);
		if (i < l->config->nr_repositories)
			set(l, "repository", name, text, &l->config->repositories[i],
				l->repository_lines[i]);
	} else if (section[0] == '\0') {
		wrong_text(l, l->line, "\"%s\" stands before the first section (like [hub])", name);
	} else if (known_section(section)) {
		set(l, section, name, text, l->config, l->lines);
	}
	return 1; /* unknown sections were told once */
}

/* --- what must fit together ---------------------------------------------------------------- */

static unsigned line_of(const struct loading *l, const char *section, const char *name)
{
	return l->lines[find_setting(section, name) - config_settings];
}

static void check_tls(struct loading *l)
{
	const struct hub_config *c = l->config;
	if (!c->certificate != !c->key)
		wrong_text(l, line_of(l, "tls", c->key ? "key" : "certificate"),
			"[tls] certificate and key go together (give both, or none)");
	if (!c->listen.loopback && !c->certificate)
		wrong_text(l, line_of(l, "hub", "listen"),
			"[hub] listen = %s:%u is beyond loopback, and there is no TLS (give [tls] "
			"certificate and key, \"sendense hub init\" makes them, or listen on "
			"127.0.0.1)",
			c->listen.host, c->listen.port);
	if (c->clients == HUB_CLIENTS_REQUIRED && (!c->ca || !c->certificate))
		wrong_text(l, line_of(l, "tls", "clients"),
			"[tls] clients = required needs certificate, key and ca");
	if (!c->nbd_listen.loopback && c->nbd_tls == HUB_NBD_TLS_OFF)
		wrong_text(l, line_of(l, "nbd", line_of(l, "nbd", "tls") ? "tls" : "listen"),
			"[nbd] listen = %s:%u is beyond loopback, and TLS is off (set tls = "
			"required, or listen on 127.0.0.1)",
			c->nbd_listen.host, c->nbd_listen.port);
}

static void check_listen(struct loading *l)
{
	const struct hub_config *c = l->config;
	if (c->listen.port != 0 && c->nbd_mode == HUB_NBD_SINGLE &&
		c->listen.port == c->nbd_listen.port &&
		strcmp(c->listen.host, c->nbd_listen.host) == 0)
		wrong_text(l, line_of(l, "nbd", "listen"),
			"[nbd] listen and [hub] listen are the same address");
	if (c->nbd_mode == HUB_NBD_RANGE && c->listen.port >= c->nbd_port_first &&
		c->listen.port <= c->nbd_port_last)
		wrong_text(l, line_of(l, "nbd", "port-range"),
			"[nbd] port-range holds the port %u of [hub] listen", c->listen.port);
	if (c->most_jobs_per_source > c->most_jobs && line_of(l, "limits", "jobs-per-source"))
		wrong_text(l, line_of(l, "limits", "jobs-per-source"),
			"[limits] jobs-per-source = %u is more than jobs = %u",
			c->most_jobs_per_source, c->most_jobs);
	if (strcmp(c->state_dir, c->runtime_dir) == 0)
		wrong_text(l, line_of(l, "hub", "runtime-dir"),
			"[hub] state-dir and runtime-dir are the same folder");
}

static void check_webhook(struct loading *l)
{
	const struct hub_config *c = l->config;
	const char *url = c->webhook;
	if (url && strncmp(url, "https://", 8) != 0 && strncmp(url, "http://127.0.0.1", 16) != 0 &&
		strncmp(url, "http://[::1]", 12) != 0)
		wrong_text(l, line_of(l, "notify", "webhook"),
			"[notify] webhook must begin with https:// (http:// to a loopback address "
			"alone)");
	if (url && !c->webhook_secret_file)
		wrong_text(l, line_of(l, "notify", "webhook"),
			"[notify] webhook needs webhook-secret-file (it signs what is sent)");
}

static void check_repositories(struct loading *l)
{
	const struct hub_config *c = l->config;
	for (size_t i = 0; i < c->nr_repositories; i++) {
		const struct job_repository *r = &c->repositories[i];
		unsigned line = l->repository_lines[i][config_nr_settings];
		if (!r->path)
			wrong_text(l, line, "[repository %s] has no path", r->name);
		for (size_t k = 0; k < i && r->path; k++)
			if (c->repositories[k].path &&
				strcmp(c->repositories[k].path, r->path) == 0)
				wrong_text(l, line,
					"[repository %s] and [repository %s] are the "
					"same folder",
					r->name, c->repositories[k].name);
		if (r->warn_free_bytes > 0 && r->warn_free_bytes < r->stop_free_bytes)
			wrong_text(l, line, "[repository %s] warn-free is less than stop-free",
				r->name);
	}
}

/* --- loading --------------------------------------------------------------------------------- */

static int set_defaults(struct hub_config *config, struct err *err)
{
	for (size_t i = 0; i < config_nr_settings; i++) {
		const struct config_setting *s = &config_settings[i];
		if (strcmp(s->section, "repository") != 0 && s->otherwise &&
			config_set(s, config, s->otherwise, err) < 0)
			return err_context(err, "[%s] %s", s->section, s->name);
	}
	return 0;
}

/* Defaults that depend on other settings. */
static int derive(struct loading *l, struct err *err)
{
	struct hub_config *c = l->config;
	if (!line_of(l, "nbd", "tls"))
		c->nbd_tls = c->nbd_listen.loopback && !c->certificate ? HUB_NBD_TLS_OFF
								       : HUB_NBD_TLS_REQUIRED;
	if (!line_of(l, "limits", "jobs-per-source") && c->most_jobs_per_source > c->most_jobs)
		c->most_jobs_per_source = c->most_jobs;
	char host[256] = "hub";
	if (!c->name && gethostname(host, sizeof host - 1) < 0)
		host[0] = '\0';
	if (!c->name)
		c->name = strdup(host[0] ? host : "hub");
	return c->name ? 0 : err_errno(err, ENOMEM, "cannot keep the name");
}

static void parse(struct loading *l)
{
	/* libinih's settings are the process's; nobody else uses it. */
	ini_use_stack = false;
	ini_max_line = LINE_MOST + 4;
	ini_initial_alloc = LINE_MOST + 4;
	ini_allow_multiline = false;
	ini_allow_inline_comments = false;
	int bad = ini_parse_stream(next_line, l, take_setting, l);
	if (bad != 0 && l->nr_errors == 0)
		wrong_text(l, bad > 0 ? (unsigned)bad : 0, "this cannot be read");
}

static struct hub_config *load(struct loading *l, char *text, size_t length)
{
	struct err err = ERR_INIT;
	if (strlen(text) != length) {
		wrong_text(l, 0, "it holds zero bytes: this is no file of settings");
		return NULL;
	}
	if (set_defaults(l->config, &err) < 0) {
		wrong(l, 0, &err);
		return NULL;
	}
	l->at = text;
	parse(l);
	if (derive(l, &err) < 0)
		wrong(l, 0, &err);
	check_tls(l);
	check_listen(l);
	check_webhook(l);
	check_repositories(l);
	return l->nr_errors == 0 ? l->config : NULL;
}

/* Gives back all that loading took; done, or NULL. */
static struct hub_config *loaded(struct loading *l, struct hub_config *done)
{
	for (size_t i = 0; l->config && l->repository_lines && i < l->config->nr_repositories; i++)
		free(l->repository_lines[i]);
	free(l->repository_lines);
	free(l->lines);
	if (!done)
		hub_config_free(l->config);
	return done;
}

struct hub_config *hub_config_parse(const char *path, char *text, size_t length, struct err *err)
{
	struct loading l = {.err = err};
	struct hub_config *done = NULL;
	l.config = calloc(1, sizeof *l.config);
	l.lines = calloc(config_nr_settings, sizeof *l.lines);
	if (!l.config || !l.lines || !(l.config->path = strdup(path)))
		err_errno(err, ENOMEM, "cannot read %s", path);
	else
		done = load(&l, text, length);
	return loaded(&l, done);
}

struct hub_config *hub_config_load(
	const char *path, hub_config_tell *tell, void *context, struct err *err)
{
	char *AUTO_FREE text = NULL;
	size_t length = 0;
	struct loading l = {.tell = tell, .context = context, .err = err};
	l.config = calloc(1, sizeof *l.config);
	l.lines = calloc(config_nr_settings, sizeof *l.lines);
	struct hub_config *done = NULL;
	if (!l.config || !l.lines) {
		err_errno(err, ENOMEM, "cannot read %s", path);
	} else if (file_load(AT_FDCWD, path, FILE_MOST, &text, &length, err) < 0 ||
		   !(l.config->path = realpath(path, NULL))) {
		err_context(err, "the hub's settings");
		err_hint(err, "\"sendense hub init\" makes them");
		if (tell && err)
			tell(context,
				&(struct hub_config_finding){.is_error = true, .text = err->text});
	} else {
		done = load(&l, text, length);
	}
	return loaded(&l, done);
}

static void free_repositories(struct hub_config *config)
{
	for (size_t i = 0; i < config->nr_repositories; i++) {
		for (size_t k = 0; k < config_nr_settings; k++)
			if (strcmp(config_settings[k].section, "repository") == 0)
				config_clear(&config_settings[k], &config->repositories[i]);
		free((char *)config->repositories[i].name);
	}
	free(config->repositories);
	config->repositories = NULL;
	config->nr_repositories = 0;
}

void hub_config_free(struct hub_config *config)
{
	if (!config)
		return;
	for (size_t k = 0; k < config_nr_settings; k++)
		if (strcmp(config_settings[k].section, "repository") != 0)
			config_clear(&config_settings[k], config);
	free_repositories(config);
	free(config->path);
	free(config);
}

/* --- looking ------------------------------------------------------------------------------------
 */

const struct job_repository *hub_config_repository(
	const struct hub_config *config, const char *name)
{
	size_t i = find_repository(config, name);
	return i < config->nr_repositories ? &config->repositories[i] : NULL;
}

static void append_name(char *out, size_t bytes, const char *section, const char *name)
{
	size_t used = strlen(out);
	snprintf(out + used, bytes - used, "%s[%s] %s", used ? ", " : "", section, name);
}

static bool same_repositories(const struct hub_config *a, const struct hub_config *b)
{
	if (a->nr_repositories != b->nr_repositories)
		return false;
	for (size_t i = 0; i < a->nr_repositories; i++) {
		if (strcmp(a->repositories[i].name, b->repositories[i].name) != 0)
			return false;
		for (size_t k = 0; k < config_nr_settings; k++)
			if (strcmp(config_settings[k].section, "repository") == 0 &&
				!config_equal(&config_settings[k], &a->repositories[i],
					&b->repositories[i]))
				return false;
	}
	return true;
}

void hub_config_differences(
	const struct hub_config *old, const struct hub_config *new, char *out, size_t bytes)
{
	out[0] = '\0';
	for (size_t i = 0; i < config_nr_settings; i++) {
		const struct config_setting *s = &config_settings[i];
		if (!s->live && strcmp(s->section, "repository") != 0 && !config_equal(s, old, new))
			append_name(out, bytes, s->section, s->name);
	}
	if (!same_repositories(old, new))
		append_name(out, bytes, "repository NAME", "");
}

static int copy_repository(
	struct hub_config *to, const struct job_repository *from, struct err *err)
{
	struct job_repository *r = &to->repositories[to->nr_repositories];
	*r = (struct job_repository){.name = strdup(from->name)};
	if (!r->name)
		return err_errno(err, ENOMEM, "cannot keep a repository");
	to->nr_repositories++;
	for (size_t k = 0; k < config_nr_settings; k++)
		if (strcmp(config_settings[k].section, "repository") == 0 &&
			config_copy(&config_settings[k], r, from, err) < 0)
			return -1;
	return 0;
}

int hub_config_settle(const struct hub_config *old, struct hub_config *new, struct err *err)
{
	for (size_t k = 0; k < config_nr_settings; k++) {
		const struct config_setting *s = &config_settings[k];
		if (s->live || strcmp(s->section, "repository") == 0)
			continue;
		config_clear(s, new);
		if (config_copy(s, new, old, err) < 0)
			return -1;
	}
	free_repositories(new);
	new->repositories = calloc(old->nr_repositories + 1, sizeof *new->repositories);
	if (!new->repositories)
		return err_errno(err, ENOMEM, "cannot keep the repositories");
	for (size_t i = 0; i < old->nr_repositories; i++)
		if (copy_repository(new, &old->repositories[i], err) < 0)
			return -1;
	return 0;
}

json_t *hub_config_settings(void)
{
	json_t *all = json_object();
	for (size_t i = 0; i < config_nr_settings; i++) {
		const struct config_setting *s = &config_settings[i];
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
