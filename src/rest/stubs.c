#include "rest.h"
#pragma GCC diagnostic ignored "-Wunused-parameter"

int rest_token_make(char token[REST_TOKEN_BYTES], struct err *err)
{ return err_set(err, ERR_UNSUPPORTED, "not built yet"); }
void rest_token_hash(const char *token, char hash[REST_TOKEN_HASH_BYTES])
{}
const char *rest_scope_name(enum rest_scope scope)
{ return NULL; }
bool rest_scope_parse(const char *name, enum rest_scope *scope)
{ return false; }
bool rest_actor_may(const struct rest_actor *actor, const char *vm)
{ return false; }
void rest_actor_clear(struct rest_actor *actor)
{}
struct rest_server *rest_server_start(const struct rest_server_options *options, struct err *err)
{ err_set(err, ERR_UNSUPPORTED, "not built yet"); return NULL; }
unsigned rest_server_port(const struct rest_server *server)
{ return 0; }
int rest_server_reload(struct rest_server *server, struct err *err)
{ return err_set(err, ERR_UNSUPPORTED, "not built yet"); }
void rest_server_stop(struct rest_server *server)
{}
const char *rest_param(const struct rest_request *request, const char *name)
{ return NULL; }
const char *rest_query(const struct rest_request *request, const char *name)
{ return NULL; }
int rest_query_number(const struct rest_request *request, const char *name, uint64_t least,
	uint64_t most, uint64_t otherwise, uint64_t *value, struct err *err)
{ return err_set(err, ERR_UNSUPPORTED, "not built yet"); }
const char *rest_header(const struct rest_request *request, const char *name)
{ return NULL; }
const struct rest_actor *rest_actor(const struct rest_request *request)
{ return NULL; }
const char *rest_peer(const struct rest_request *request)
{ return NULL; }
const json_t *rest_body(const struct rest_request *request)
{ return NULL; }
const void *rest_octets(const struct rest_request *request, size_t *length)
{ return NULL; }
int rest_page(
	const struct rest_request *request, unsigned *limit, const char **after, struct err *err)
{ return err_set(err, ERR_UNSUPPORTED, "not built yet"); }
int rest_reply(struct rest_request *request, unsigned status, json_t *body, struct err *err)
{ return err_set(err, ERR_UNSUPPORTED, "not built yet"); }
int rest_reply_made(struct rest_request *request, unsigned status, const char *location,
	json_t *body, struct err *err)
{ return err_set(err, ERR_UNSUPPORTED, "not built yet"); }
int rest_reply_page(struct rest_request *request, json_t *items, const char *next, struct err *err)
{ return err_set(err, ERR_UNSUPPORTED, "not built yet"); }
int rest_reply_octets(struct rest_request *request, const char *type, const void *bytes,
	size_t length, struct err *err)
{ return err_set(err, ERR_UNSUPPORTED, "not built yet"); }
int rest_reply_text(
	struct rest_request *request, const char *type, const char *text, struct err *err)
{ return err_set(err, ERR_UNSUPPORTED, "not built yet"); }
void rest_set_etag(struct rest_request *request, uint64_t version)
{}
int rest_check_match(const struct rest_request *request, uint64_t version, struct err *err)
{ return err_set(err, ERR_UNSUPPORTED, "not built yet"); }
int rest_problem(struct rest_request *request, unsigned status, const struct err *why)
{ return -1; }
void rest_set_job(struct rest_request *request, const char *job)
{}
unsigned rest_status_of(enum err_code code)
{ return 0; }
int rest_reply_stream(struct rest_request *request, rest_stream_next *next,
	void (*done)(void *context), void *context, struct err *err)
{ return err_set(err, ERR_UNSUPPORTED, "not built yet"); }
int rest_check(const json_t *object, const struct rest_field *fields, struct err *err)
{ return err_set(err, ERR_UNSUPPORTED, "not built yet"); }
int rest_check_in(const char *where, const json_t *object, const struct rest_field *fields,
	struct err *err)
{ return err_set(err, ERR_UNSUPPORTED, "not built yet"); }
int rest_check_each(const char *where, const json_t *array, const struct rest_field *fields,
	struct err *err)
{ return err_set(err, ERR_UNSUPPORTED, "not built yet"); }
json_t *rest_json_parse(const void *text, size_t length, struct err *err)
{ err_set(err, ERR_UNSUPPORTED, "not built yet"); return NULL; }
const char *rest_document(void)
{ return NULL; }
const struct rest_route rest_document_routes[] = {{0}};
struct rest_client *rest_client_new(const struct rest_client_options *options, struct err *err)
{ err_set(err, ERR_UNSUPPORTED, "not built yet"); return NULL; }
void rest_client_free(struct rest_client *client)
{}
int rest_call(struct rest_client *client, const char *method, const char *path, const json_t *body,
	json_t **reply, struct err *err)
{ return err_set(err, ERR_UNSUPPORTED, "not built yet"); }
int rest_call_octets(struct rest_client *client, const char *method, const char *path,
	const void *body, size_t body_length, void **reply, size_t *reply_length, size_t reply_most,
	struct err *err)
{ return err_set(err, ERR_UNSUPPORTED, "not built yet"); }
int rest_follow(struct rest_client *client, const char *path,
	int (*event)(void *context, const char *name, const json_t *data), void *context,
	struct err *err)
{ return err_set(err, ERR_UNSUPPORTED, "not built yet"); }
int rest_path_append(char *out, size_t bytes, const char *text, struct err *err)
{ return err_set(err, ERR_UNSUPPORTED, "not built yet"); }
