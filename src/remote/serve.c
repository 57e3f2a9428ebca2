/*
 * What a hub serves, and disks of its restore points read through that.
 *
 *   POST /serves ─► exports (the hub compares each chunk with its digest) ─► read here
 *     └ lease renewed             digests of what was read ─► a record ─► its root ═ manifest's
 */
#include "remote_internal.h"

#include "nbd.h"
#include "told.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define LEASE_S 120

struct serve_export {
	char key[REPOSITORY_KEY_BYTES];
	char *uri;
	uint64_t size_bytes;
	char *tls_identity, *tls_psk_hex; /* NULL: no TLS */
};

struct serve {
	struct store *store;
	char id[REMOTE_ID_BYTES], point[REPOSITORY_POINT_BYTES], path[REMOTE_PATH_BYTES];
	struct digest_key key;
	bool has_key;
	struct serve_export *exports;
	size_t nr_exports;
	struct keeper *keeper;
};

static int bad_answer(const char *what, struct err *err)
{
	return err_set(err, ERR_PROTOCOL, "the hub's answer has no good \"%s\"", what);
}

/* --- serves -------------------------------------------------------------------------- */

static int parse_export(const struct store *store, const json_t *object,
	struct serve_export *export, struct err *err)
{
	const char *key = remote_text(object, "key");
	const json_t *tls = json_object_get(object, "tls");
	const char *identity = remote_text(tls, "identity"), *psk = remote_text(tls, "psk");
	json_int_t size = json_integer_value(json_object_get(object, "size_bytes"));
	if (!key || repository_name_check_key(key, NULL) < 0)
		return bad_answer("key", err);
	export->uri = hub_export_uri(object);
	if (!export->uri || size <= 0 || (json_is_object(tls) && (!identity || !psk)))
		return bad_answer("uri", err);
	snprintf(export->key, sizeof export->key, "%s", key);
	export->size_bytes = (uint64_t)size;
	export->tls_identity = identity ? strdup(identity) : NULL;
	export->tls_psk_hex = psk ? strdup(psk) : NULL;
	return hub_export_check(store, export->uri, psk != NULL, err);
}

static int parse_answer(struct serve *serve, const json_t *answer, struct err *err)
{
	const json_t *exports = json_object_get(answer, "exports");
	const json_t *digest = json_object_get(answer, "digest");
	const char *id = remote_text(answer, "id"), *point = remote_text(answer, "point");
	json_int_t lease = json_integer_value(json_object_get(answer, "lease_s"));
	size_t nr = json_array_size(exports);
	if (!id || strlen(id) >= sizeof serve->id)
		return bad_answer("id", err);
	snprintf(serve->id, sizeof serve->id, "%s", id);
	if (HUB_PATH(serve->path, err, "/api/v1/serves/", id) < 0)
		return -1;
	if (!point || !repository_name_is_point(point))
		return bad_answer("point", err);
	snprintf(serve->point, sizeof serve->point, "%s", point);
	if (digest && session_parse_key(digest, &serve->key, err) < 0)
		return -1;
	serve->has_key = digest != NULL;
	if (nr == 0 || nr > REPOSITORY_DISKS_MAX)
		return bad_answer("exports", err);
	serve->exports = calloc(nr, sizeof *serve->exports);
	if (!serve->exports)
		return err_errno(err, ENOMEM, "cannot serve");
	serve->nr_exports = nr;
	for (size_t i = 0; i < nr; i++)
		if (parse_export(
			    serve->store, json_array_get(exports, i), &serve->exports[i], err) < 0)
			return -1;
	serve->keeper = keeper_start(serve->store, serve->path, "the hub's export",
		lease > 3 && lease <= 86400 ? (unsigned)lease : LEASE_S, err);
	return serve->keeper ? 0 : -1;
}

static void serve_close(struct serve *serve)
{
	struct err err = ERR_INIT;
	if (!serve)
		return;
	keeper_stop(serve->keeper);
	if (serve->id[0] &&
		rest_call(serve->store->closing, "DELETE", serve->path, NULL, NULL, &err) < 0 &&
		err.code != ERR_NOT_FOUND)
		log_warning("the hub was not told that its export is not needed any more: %s",
			err.text);
	for (size_t i = 0; i < serve->nr_exports; i++) {
		free(serve->exports[i].uri);
		free(serve->exports[i].tls_identity);
		free(serve->exports[i].tls_psk_hex);
	}
	free(serve->exports);
	explicit_bzero(&serve->key, sizeof serve->key);
	free(serve);
}

/* One that was opened by a call whose answer was lost ends with its lease. */
static int post(struct store *store, const json_t *body, json_t **answer, struct err *err)
{
	struct err why = ERR_INIT;
	int rc = rest_call(store->client, "POST", "/api/v1/serves", body, answer, &why);
	if (rc < 0 && why.code == ERR_EXISTS)
		return rest_call(store->client, "POST", "/api/v1/serves", body, answer, err);
	return rc < 0 ? err_copy(err, &why) : 0;
}

static struct serve *serve_open(
	struct store *store, const char *vm, const char *point, const char *key, struct err *err)
{
	struct serve *serve = calloc(1, sizeof *serve);
	json_t *body = json_pack("{s:s, s:s, s:i}", "repository", store->repository, "vm", vm,
		       "lease_s", LEASE_S),
	       *answer = NULL;
	if (!serve || !body) {
		err_errno(err, ENOMEM, "cannot serve %s", vm);
		goto bad;
	}
	serve->store = store;
	if (point && point[0])
		json_object_set_new(body, "point", json_string(point));
	if (key)
		json_object_set_new(body, "key", json_string(key));
	if (post(store, body, &answer, err) < 0 || parse_answer(serve, answer, err) < 0)
		goto bad;
	json_decref(answer);
	json_decref(body);
	return serve;
bad:
	json_decref(answer);
	json_decref(body);
	serve_close(serve);
	return NULL;
}

/* --- a disk of a restore point ----------------------------------------------------------- */

struct served {
	struct serve *serve;
	struct repository_point *point;
	const struct repository_disk_info *info;
	struct block *block;
	char *label;
	struct told *told;
	struct copy_chunk_sink sink;
};

/* The disk of that key, or the only one. */
static int find_disk(struct served *served, const char *key, struct err *err)
{
	const struct repository_point *point = served->point;
	char keys[512] = "";
	size_t used = 0;
	for (size_t i = 0; i < point->nr_disks; i++) {
		if (key ? strcmp(point->disks[i].key, key) == 0 : point->nr_disks == 1)
			served->info = &point->disks[i];
		if (used < sizeof keys - 1)
			used += (size_t)snprintf(keys + used, sizeof keys - used, "%s%s",
				used ? ", " : "", point->disks[i].key);
	}
	if (served->info)
		return 0;
	if (key)
		return err_set(err, ERR_NOT_FOUND,
			"restore point %s of VM \"%s\" has no disk %s (it has %s)", point->id,
			point->vm, key, keys);
	return err_set(err, ERR_USAGE,
		"restore point %s of VM \"%s\" has several disks: name one of %s", point->id,
		point->vm, keys);
}

static int open_block(struct served *served, struct err *err)
{
	const struct serve_export *export = served->serve->exports;
	if (asprintf(&served->label, "disk %s of %s@%s at the hub", served->info->key,
		    served->point->vm, served->point->id) < 0) {
		served->label = NULL;
		return err_errno(err, ENOMEM, "cannot read disk %s", served->info->key);
	}
	struct nbd_client_options options = {
		.read_only = true,
		.label = served->label,
		.tls_username = export->tls_identity,
		.tls_psk_hex = export->tls_psk_hex,
	};
	if (served->serve->nr_exports != 1 || strcmp(export->key, served->info->key) != 0)
		return err_set(err, ERR_PROTOCOL, "the hub serves another disk than %s",
			served->info->key);
	served->block = nbd_client_open(export->uri, &options, served->serve->store->cancel, err);
	if (!served->block)
		return -1;
	uint64_t size_bytes = block_info(served->block)->size_bytes;
	if (size_bytes != served->info->size_bytes)
		return err_set(err, ERR_RANGE,
			"the hub's export has %" PRIu64 " bytes, and the disk %" PRIu64, size_bytes,
			served->info->size_bytes);
	return 0;
}

struct served *served_open(
	struct store *store, const char *vm, const char *point, const char *key, struct err *err)
{
	struct served *served = calloc(1, sizeof *served);
	if (!served) {
		err_errno(err, ENOMEM, "cannot open a disk of %s", vm);
		return NULL;
	}
	served->point = hub_point_load(store, vm, point, err);
	if (!served->point || find_disk(served, key, err) < 0)
		goto bad;
	served->serve = serve_open(store, vm, served->point->id, served->info->key, err);
	if (!served->serve)
		goto bad;
	if (!served->serve->has_key) {
		err_set(err, ERR_PROTOCOL,
			"the hub tells nothing of the digests of what it serves");
		goto bad;
	}
	served->told = told_new(served->serve->key.algorithm, served->info->size_bytes, err);
	if (!served->told || open_block(served, err) < 0)
		goto bad;
	served->sink = (struct copy_chunk_sink){
		.context = served->told, .chunks = told_chunks, .zeros = told_zeros};
	return served;
bad:
	served_close(served);
	return NULL;
}

struct block *served_block(struct served *served)
{
	return served->block;
}

const struct repository_disk_info *served_info(const struct served *served)
{
	return served->info;
}

const char *served_point(const struct served *served)
{
	return served->point->id;
}

const struct copy_chunk_sink *served_sink(struct served *served)
{
	return &served->sink;
}

const struct digest_key *served_digest_key(struct served *served)
{
	return &served->serve->key;
}

int served_check(struct served *served, struct err *err)
{
	uint8_t root[DIGEST_ROOT_BYTES];
	char hex[DIGEST_ROOT_HEX_BYTES];
	if (told_root(served->told, served->serve->store->cancel, root, err) < 0)
		return -1;
	digest_hex(root, sizeof root, hex);
	if (strcmp(hex, served->info->root_hex) == 0)
		return 0;
	return err_set(err, ERR_CORRUPT,
		"what was read has the digest %s, and the restore point %s (sendense verify %s@%s "
		"tells what is damaged)",
		hex, served->info->root_hex, served->point->vm, served->point->id);
}

/* NBD has no word for damage: a chunk whose digest is wrong is an input error to the client, as is
 * one that the hub could not read.  The hub knows which. */
void served_explain(struct served *served, struct err *err)
{
	json_t *now = NULL;
	if (!err || err->code != ERR_IO || !served->label || !strstr(err->text, served->label))
		return;
	rest_call(served->serve->store->closing, "GET", served->serve->path, NULL, &now, NULL);
	const json_t *of = json_array_get(json_object_get(now, "exports"), 0);
	const json_t *why = json_object_get(of, "error");
	const char *code = remote_text(why, "code"), *text = remote_text(why, "text");
	bool damaged = err_code_parse(code, ERR_IO) == ERR_CORRUPT;
	if (damaged)
		err->code = ERR_CORRUPT;
	if (text)
		err_hint(err, "the hub says: %s", text);
	err_hint(err,
		damaged ? "sendense verify %s@%s tells what is damaged"
			: "that need not be damage: sendense verify %s@%s tells",
		served->point->vm, served->point->id);
	json_decref(now);
}

void served_close(struct served *served)
{
	if (!served)
		return;
	block_close(served->block, NULL);
	told_free(served->told);
	serve_close(served->serve);
	repository_point_free(served->point);
	free(served->label);
	free(served);
}
