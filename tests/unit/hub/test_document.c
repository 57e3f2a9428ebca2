/* The hub's API. */
#include "hub_internal.h"

#define API_DOCUMENT rest_document()
#define API_TABLES hub_route_tables
#include "../api_document.h"
