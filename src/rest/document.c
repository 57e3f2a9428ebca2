/* The API's document, as built in (docs/openapi.json). */
#include "rest_internal.h"

extern const char rest_document_text[]; /* made by the build */

const char *rest_document(void)
{
	return rest_document_text;
}

static int get_document(void *context, struct rest_request *request, struct err *err)
{
	(void)context;
	return rest_reply_text(request, "application/json", rest_document_text, err);
}

const struct rest_route rest_document_routes[] = {
	{"GET", "/api/v1/openapi.json", "getDocument", REST_NONE, 0, get_document, 0},
	{0},
};
