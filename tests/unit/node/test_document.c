/* The node's API. */
#include "node_internal.h"

#define API_DOCUMENT node_document_text
#define API_TABLES node_route_tables
#include "../api_document.h"
