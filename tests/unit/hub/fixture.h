/* A state, an index and a clock of the test's own, in a folder that goes away. */
#ifndef TEST_HUB_FIXTURE_H
#define TEST_HUB_FIXTURE_H

#include "test_support.h"

#include "index.h"
#include "machine.h"
#include "runs.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define OK(call, err)                               \
	do {                                        \
		if ((call) < 0)                     \
			fail_msg("%s", (err).text); \
	} while (0)

struct fixture {
	char folder[64];
	struct state *state;
	struct index *index;
	struct job_repository repository;
	struct hub_config config;
};

static inline void fixture_open(struct fixture *f)
{
	struct err err = ERR_INIT;
	char path[128];
	snprintf(path, sizeof path, "%s/state.db", f->folder);
	f->state = state_open(path, &err);
	if (!f->state)
		fail_msg("%s", err.text);
	snprintf(path, sizeof path, "%s/index.db", f->folder);
	f->index = index_open(path, NULL, &err);
	if (!f->index)
		fail_msg("%s", err.text);
}

static inline void fixture_close(struct fixture *f)
{
	index_close(f->index);
	state_close(f->state);
}

static inline int fixture_setup(void **context)
{
	struct fixture *f = calloc(1, sizeof *f);
	snprintf(f->folder, sizeof f->folder, "/tmp/sendense-hub-XXXXXX");
	assert_non_null(mkdtemp(f->folder));
	f->repository = (struct job_repository){.name = "main", .path = f->folder};
	f->config = (struct hub_config){
		.repositories = &f->repository, .nr_repositories = 1, .name = (char *)"hub"};
	fixture_open(f);
	*context = f;
	return 0;
}

static inline int fixture_teardown(void **context)
{
	struct fixture *f = *context;
	fixture_close(f);
	DIR *dir = opendir(f->folder);
	for (struct dirent *entry; dir && (entry = readdir(dir));)
		unlinkat(dirfd(dir), entry->d_name, 0);
	if (dir)
		closedir(dir);
	rmdir(f->folder);
	free(f);
	return 0;
}

/* From text with ' for ". */
static inline json_t *fixture_json(const char *text)
{
	char json[4096];
	snprintf(json, sizeof json, "%s", text);
	for (char *at = json; *at; at++)
		if (*at == '\'')
			*at = '"';
	json_t *value = json_loads(json, 0, NULL);
	assert_non_null(value);
	return value;
}

/* An object of the state, the text as fixture_json() takes it. */
static inline void fixture_put(
	struct fixture *f, const char *kind, const char *id, const char *text)
{
	struct err err = ERR_INIT;
	json_t *value = fixture_json(text);
	OK(state_put(f->state, kind, id, value, STATE_ANY, NULL, &err), err);
	json_decref(value);
}

/* A restore point of that time. */
static inline void fixture_point(struct fixture *f, const char *vm, int64_t time, bool is_damaged)
{
	char id[64];
	struct err err = ERR_INIT;
	snprintf(id, sizeof id, "point-%lld", (long long)time);
	json_t *value = json_pack("{s:s, s:s}", "vm", vm, "point", id);
	struct index_point point = {.repository = "main",
		.vm = vm,
		.id = id,
		.mark = "",
		.time = time,
		.is_damaged = is_damaged,
		.stored_bytes = 1000,
		.value = value};
	OK(index_put(f->index, "main", vm, "", &point, 1, NULL, &err), err);
	json_decref(value);
}

static inline struct machine_set *fixture_machines(struct fixture *f)
{
	struct err err = ERR_INIT;
	struct machine_set *set = machine_load(f->state, f->index, &f->config, &err);
	if (!set)
		fail_msg("%s", err.text);
	return set;
}

static inline int64_t fixture_utc(const char *text)
{
	struct tm tm = {0};
	assert_non_null(strptime(text, "%Y-%m-%d %H:%M", &tm));
	return timegm(&tm);
}

#endif
