/* Several disks; see disks.h. */
#include "disks.h"

#include "version.h"

#include <string.h>

/* All copies' buffers together; each gets its part. */
#define BUFFER_BYTES (32 * MIB)

void disks_split_key(const char *text, char key[REPOSITORY_KEY_BYTES], const char **rest)
{
	size_t length = strcspn(text, "=:");
	key[0] = '\0';
	*rest = text;
	if (text[length] != '=')
		return;
	snprintf(key, REPOSITORY_KEY_BYTES, "%.*s", (int)min_size(length, REPOSITORY_KEY_BYTES - 1),
		text);
	/* One that is too long must not be cut into another disk's key. */
	if (length >= REPOSITORY_KEY_BYTES)
		key[REPOSITORY_KEY_BYTES - 2] = '?';
	*rest = text + length + 1;
}

struct repository *disks_open_repository(
	const char *repo, enum repository_mode mode, struct err *err)
{
	if (!repo) {
		err_set(err, ERR_USAGE, "which repository? (--repo DIR)");
		return NULL;
	}
	if (store_is_url(repo)) {
		err_set(err, ERR_UNSUPPORTED,
			"%s: this is done where the repository's folder is, not through a hub",
			repo);
		return NULL;
	}
	return repository_open(repo, mode, err);
}

struct store *disks_open_store(struct cli *cli, const struct store_values *values,
	enum repository_mode mode, struct err *err)
{
	if (!values->repo) {
		err_set(err, ERR_USAGE, "which repository? (--repo DIR, or a hub's URL)");
		return NULL;
	}
	char software[128];
	snprintf(software, sizeof software, "sendense %s", version_text());
	struct store_options options = {
		.name = values->repo,
		.mode = mode,
		.token_file = values->token_file,
		.ca_file = values->ca_file,
		.software = software,
		.build = version_build(),
		.cancel = cli->cancel,
	};
	return store_open(&options, err);
}

int disks_refuse_remote(
	const struct store *store, const char *option, const char *why, struct err *err)
{
	if (!option || !store_is_url(store_name(store)))
		return 0;
	return err_set(err, ERR_USAGE, "%s: %s", option, why);
}

/* --- telling of disks ------------------------------------------------------------ */

const char *disks_mode_name(enum repository_disk_mode mode)
{
	return mode == REPOSITORY_FULL ? "full" : "incremental";
}

void disks_json_history(json_t *object, const struct repository_disk_info *disk)
{
	const struct {
		const char *name, *text; /* NULL: left out */
	} members[] = {
		{"mode", disks_mode_name(disk->mode)},
		{"reason", disk->reason},
		{"parent", disk->parent},
		{"changed_by", disk->change == REPOSITORY_CHANGE_NONE
				       ? NULL
				       : repository_change_name(disk->change)},
		{"change_id", disk->change_id},
		{"bitmap", disk->bitmap},
		{"backing", disk->backing},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(members); i++)
		if (members[i].text)
			json_object_set_new(object, members[i].name, json_string(members[i].text));
	json_object_set_new(object, "audited", json_integer((json_int_t)disk->audited_bytes));
}

/* --- copying several at once --------------------------------------------------- */

struct crew {
	struct disks_copy *copies;
	size_t nr_copies;
	unsigned nr_workers;
	uint64_t rate_bytes_per_s;
	struct cancel *cancel;
	pthread_mutex_t mutex; /* over what follows */
	size_t next;
	struct err first; /* the error that ended it */
};

static int copy_one(struct crew *crew, struct disks_copy *copy, struct err *err)
{
	struct copy_options options = copy->options;
	options.memory_bytes = BUFFER_BYTES / crew->nr_workers;
	options.rate_bytes_per_s = crew->rate_bytes_per_s;
	options.progress = &copy->figures;
	options.cancel = crew->cancel;
	if (copy_run(copy->source, copy->target, &options, err) < 0)
		return copy->label ? err_context(err, "%s", copy->label) : -1;
	return 0;
}

static struct disks_copy *take_next(struct crew *crew)
{
	WITH_LOCK(&crew->mutex);
	if (crew->first.code != ERR_NONE || crew->next == crew->nr_copies)
		return NULL;
	return &crew->copies[crew->next++];
}

static void *work(void *arg)
{
	struct crew *crew = arg;
	struct disks_copy *copy;
	while ((copy = take_next(crew))) {
		struct err err = ERR_INIT;
		if (copy_one(crew, copy, &err) == 0)
			continue;
		WITH_LOCK(&crew->mutex);
		if (crew->first.code == ERR_NONE)
			crew->first = err;
		/* After the error is kept: those who stop now say only "cancelled". */
		cancel_request(crew->cancel);
	}
	return NULL;
}

int disks_copy(struct disks_copy *copies, size_t nr_copies, unsigned nr_parallel,
	uint64_t rate_bytes_per_s, struct cancel *cancel, struct err *err)
{
	struct cancel *part = cancel_new_part(cancel, err);
	if (!part)
		return -1;
	struct crew crew = {
		.copies = copies,
		.nr_copies = nr_copies,
		.nr_workers = rate_bytes_per_s > 0 ? 1 : (unsigned)min_size(nr_parallel, nr_copies),
		.rate_bytes_per_s = rate_bytes_per_s,
		.cancel = part,
		.mutex = PTHREAD_MUTEX_INITIALIZER,
	};
	pthread_t threads[64];
	unsigned nr_threads = 0;
	if (crew.nr_workers > ARRAY_LENGTH(threads))
		crew.nr_workers = ARRAY_LENGTH(threads);
	struct err start_err = ERR_INIT;
	while (nr_threads < crew.nr_workers &&
		thread_start(&threads[nr_threads], "disk", work, &crew, &start_err) == 0)
		nr_threads++;
	for (unsigned i = 0; i < nr_threads; i++)
		pthread_join(threads[i], NULL);
	pthread_mutex_destroy(&crew.mutex);
	cancel_free(part);
	/* Fewer workers do the same job; none cannot. */
	if (nr_threads == 0)
		return err_copy(err, &start_err);
	return crew.first.code == ERR_NONE ? 0 : err_copy(err, &crew.first);
}
