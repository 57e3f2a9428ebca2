/* What no folder needs: reached once hubs can be opened. */
#include "remote_internal.h"

#include <assert.h>

int hub_info(struct store *store, struct repository_info *info, struct err *err)
{
	(void)store;
	(void)info;
	(void)err;
	return 0;
}

json_t *hub_info_json(struct store *store, struct err *err)
{
	(void)store;
	(void)err;
	return NULL;
}

int hub_list_vms(
	struct store *store, repository_vm_callback *callback, void *context, struct err *err)
{
	(void)store;
	(void)callback;
	(void)context;
	(void)err;
	return 0;
}

int hub_list_points(struct store *store, const char *vm, repository_point_callback *callback,
	void *context, struct err *err)
{
	(void)store;
	(void)vm;
	(void)callback;
	(void)context;
	(void)err;
	return 0;
}

struct repository_point *hub_point_load(
	struct store *store, const char *vm, const char *point, struct err *err)
{
	(void)store;
	(void)vm;
	(void)point;
	(void)err;
	return NULL;
}

int hub_protect(struct store *store, const char *vm, const char *point, bool off, int64_t until,
	struct err *err)
{
	(void)store;
	(void)vm;
	(void)point;
	(void)off;
	(void)until;
	(void)err;
	return 0;
}

int hub_verify(struct store *store, const struct repository_verify_options *options,
	struct repository_verify_result *result, struct err *err)
{
	(void)store;
	(void)options;
	(void)result;
	(void)err;
	return 0;
}

int hub_prune(struct store *store, const struct repository_prune_options *options,
	struct repository_prune_result *result, struct err *err)
{
	(void)store;
	(void)options;
	(void)result;
	(void)err;
	return 0;
}

struct session *session_begin(struct store *store, const struct store_backup_options *options,
	struct repository_decision *decisions, struct err *err)
{
	(void)store;
	(void)options;
	(void)decisions;
	(void)err;
	return NULL;
}

const char *session_point(const struct session *session)
{
	(void)session;
	return NULL;
}

void session_stage(struct session *session, const char *stage)
{
	(void)session;
	(void)stage;
}

enum repository_resumed session_resumed(
	const struct session *session, size_t disk, uint64_t *kept_bytes)
{
	(void)session;
	(void)disk;
	(void)kept_bytes;
	return 0;
}

int session_copy(struct session *session, size_t disk, struct block *source,
	struct copy_options *options, struct block **from, struct block **to, struct err *err)
{
	(void)session;
	(void)disk;
	(void)source;
	(void)options;
	(void)from;
	(void)to;
	(void)err;
	return 0;
}

int session_audit(struct session *session, size_t disk, struct block *source, unsigned per_mille,
	uint64_t *audited_bytes, struct err *err)
{
	(void)session;
	(void)disk;
	(void)source;
	(void)per_mille;
	(void)audited_bytes;
	(void)err;
	return 0;
}

void session_figures(struct session *session, size_t disk, const struct repository_figures *figures)
{
	(void)session;
	(void)disk;
	(void)figures;
}

int session_config(struct session *session, const char *name, const void *bytes, size_t length,
	struct err *err)
{
	(void)session;
	(void)name;
	(void)bytes;
	(void)length;
	(void)err;
	return 0;
}

int session_commit(struct session *session, struct err *err)
{
	(void)session;
	(void)err;
	return 0;
}

bool session_is_committed(const struct session *session)
{
	(void)session;
	return false;
}

void session_end(struct session *session, bool keep)
{
	(void)session;
	(void)keep;
}

bool session_is_lost(const struct session *session, const struct err *why)
{
	(void)session;
	(void)why;
	return false;
}

struct served *served_open(
	struct store *store, const char *vm, const char *point, const char *key, struct err *err)
{
	(void)store;
	(void)vm;
	(void)point;
	(void)key;
	(void)err;
	return NULL;
}

struct block *served_block(struct served *served)
{
	(void)served;
	return NULL;
}

const struct repository_disk_info *served_info(const struct served *served)
{
	(void)served;
	return NULL;
}

const char *served_point(const struct served *served)
{
	(void)served;
	return NULL;
}

const struct copy_chunk_sink *served_sink(struct served *served)
{
	(void)served;
	return NULL;
}

const struct digest_key *served_digest_key(struct served *served)
{
	(void)served;
	return NULL;
}

int served_check(struct served *served, struct err *err)
{
	(void)served;
	(void)err;
	return 0;
}

void served_explain(struct served *served, struct err *err)
{
	(void)served;
	(void)err;
}

void served_close(struct served *served)
{
	(void)served;
}
