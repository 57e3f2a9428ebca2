/* Answers as a tree; see xml.h.  Elements and their texts lie in chunks that are freed at once. */
#include "xml.h"

#include <libxml/parser.h>
#include <stdio.h>

#define CHUNK_BYTES ((size_t)64 << 10)
#define XSI "http://www.w3.org/2001/XMLSchema-instance"
#define PARSE_MOST (1 << 20) /* bytes told to libxml2 at once: it counts in int */

struct chunk {
	struct chunk *next;
	size_t used, room;
	char bytes[];
};

/* An open element: what its children are hung to. */
struct level {
	struct xml *xml, *last;
};

struct xml_parser {
	xmlParserCtxtPtr context;
	struct chunk *chunks;
	size_t tree_bytes;
	struct level levels[XML_DEPTH_MOST];
	unsigned depth;
	struct xml *root;
	char *text; /* since the last tag */
	size_t text_length, text_room;
	struct err err; /* the first one */
};

static pthread_once_t library_once = PTHREAD_ONCE_INIT;

static void start_library(void)
{
	xmlInitParser();
}

/* --- memory ------------------------------------------------------------------------------------
 */

static void give_up(struct xml_parser *parser, enum err_code code, const char *why)
{
	if (parser->err.code == ERR_NONE)
		err_set(&parser->err, code, "%s", why);
	xmlStopParser(parser->context);
}

static void *take(struct xml_parser *parser, size_t bytes)
{
	struct chunk *chunk = parser->chunks;
	bytes = (size_t)round_up(bytes, sizeof(void *));
	if (!chunk || bytes > chunk->room - chunk->used) {
		size_t room = bytes > CHUNK_BYTES ? bytes : CHUNK_BYTES;
		if (room > XML_TREE_MOST - parser->tree_bytes) {
			give_up(parser, ERR_PROTOCOL, "it is too large");
			return NULL;
		}
		chunk = malloc(sizeof *chunk + room);
		if (!chunk) {
			give_up(parser, ERR_NO_MEMORY, "no memory");
			return NULL;
		}
		*chunk = (struct chunk){.next = parser->chunks, .room = room};
		parser->chunks = chunk;
		parser->tree_bytes += room;
	}
	void *taken = chunk->bytes + chunk->used;
	chunk->used += bytes;
	return taken;
}

static const char *keep(struct xml_parser *parser, const void *bytes, size_t length)
{
	char *text = length ? take(parser, length + 1) : NULL;
	if (!text)
		return "";
	memcpy(text, bytes, length);
	text[length] = 0;
	return text;
}

/* --- what libxml2 tells ------------------------------------------------------------------------
 */

/* attributes: five pointers each: name, prefix, namespace, begin and end of the value. */
static void take_attributes(
	struct xml_parser *parser, struct xml *xml, int nr, const xmlChar **attributes)
{
	for (int i = 0; i < nr; i++, attributes += 5) {
		const char *name = (const char *)attributes[0],
			   *space = (const char *)attributes[2];
		const char *value = (const char *)attributes[3];
		size_t length = (size_t)(attributes[4] - attributes[3]);
		if (strcmp(name, "type") != 0)
			continue;
		if (!space) {
			xml->ref = keep(parser, value, length);
		} else if (!strcmp(space, XSI)) {
			const char *colon = memrchr(value, ':', length);
			size_t prefix = colon ? (size_t)(colon - value) + 1 : 0;
			xml->type = keep(parser, value + prefix, length - prefix);
		}
	}
}

static void on_start(void *context, const xmlChar *name, const xmlChar *prefix, const xmlChar *uri,
	int nr_namespaces, const xmlChar **namespaces, int nr_attributes, int nr_defaulted,
	const xmlChar **attributes)
{
	struct xml_parser *parser = context;
	(void)prefix;
	(void)uri;
	(void)nr_namespaces;
	(void)namespaces;
	(void)nr_defaulted;
	parser->text_length = 0;
	if (parser->err.code != ERR_NONE)
		return;
	if (parser->depth == XML_DEPTH_MOST) {
		give_up(parser, ERR_PROTOCOL, "its elements are nested too deep");
		return;
	}
	struct xml *xml = take(parser, sizeof *xml);
	if (!xml)
		return;
	*xml = (struct xml){.type = "", .ref = "", .text = ""};
	xml->name = keep(parser, name, strlen((const char *)name));
	take_attributes(parser, xml, nr_attributes, attributes);
	if (!parser->depth) {
		parser->root = xml;
	} else {
		struct level *parent = &parser->levels[parser->depth - 1];
		if (parent->last)
			parent->last->next = xml;
		else
			parent->xml->first = xml;
		parent->last = xml;
	}
	parser->levels[parser->depth++] = (struct level){.xml = xml};
}

static void on_end(void *context, const xmlChar *name, const xmlChar *prefix, const xmlChar *uri)
{
	struct xml_parser *parser = context;
	(void)name;
	(void)prefix;
	(void)uri;
	if (parser->err.code != ERR_NONE || !parser->depth)
		return;
	struct xml *xml = parser->levels[--parser->depth].xml;
	if (!xml->first)
		xml->text = keep(parser, parser->text, parser->text_length);
	parser->text_length = 0;
}

static void on_text(void *context, const xmlChar *text, int length)
{
	struct xml_parser *parser = context;
	size_t more = (size_t)length;
	if (parser->err.code != ERR_NONE)
		return;
	if (more > XML_TREE_MOST - parser->text_length) {
		give_up(parser, ERR_PROTOCOL, "it is too large");
		return;
	}
	if (parser->text_length + more > parser->text_room) {
		size_t room = (parser->text_length + more) * 2;
		char *grown = realloc(parser->text, room);
		if (!grown) {
			give_up(parser, ERR_NO_MEMORY, "no memory");
			return;
		}
		parser->text = grown;
		parser->text_room = room;
	}
	memcpy(parser->text + parser->text_length, text, more);
	parser->text_length += more;
}

static void on_document_type(
	void *context, const xmlChar *name, const xmlChar *id, const xmlChar *system)
{
	(void)name;
	(void)id;
	(void)system;
	give_up(context, ERR_PROTOCOL, "it has a document type");
}

/* Warnings (an unknown namespace's prefix) come here as well. */
static void on_error(void *context, xmlErrorPtr error)
{
	struct xml_parser *parser = context;
	if (error->level < XML_ERR_ERROR || parser->err.code != ERR_NONE)
		return;
	size_t length = strcspn(error->message ? error->message : "", "\n");
	err_set(&parser->err, error->code == XML_ERR_NO_MEMORY ? ERR_NO_MEMORY : ERR_PROTOCOL,
		"line %d: %.*s", error->line, (int)length, error->message ? error->message : "");
}

/* --- parsing -----------------------------------------------------------------------------------
 */

struct xml_parser *xml_parser_new(struct err *err)
{
	pthread_once(&library_once, start_library);
	xmlSAXHandler handler = {
		.initialized = XML_SAX2_MAGIC,
		.startElementNs = on_start,
		.endElementNs = on_end,
		.characters = on_text,
		.ignorableWhitespace = on_text,
		.cdataBlock = on_text,
		.internalSubset = on_document_type,
		.serror = on_error,
	};
	struct xml_parser *parser = calloc(1, sizeof *parser);
	if (parser)
		parser->context = xmlCreatePushParserCtxt(&handler, parser, NULL, 0, NULL);
	if (!parser || !parser->context) {
		free(parser);
		err_set(err, ERR_NO_MEMORY, "reading XML: no memory");
		return NULL;
	}
	/* NOENT: "&amp;" in an attribute is given as "&"; no entity is ever declared, as document
	 * types are refused.  IGNORE_ENC: it is UTF-8, whatever else it says of itself. */
	xmlCtxtUseOptions(
		parser->context, XML_PARSE_NONET | XML_PARSE_NOENT | XML_PARSE_IGNORE_ENC);
	return parser;
}

void xml_parser_free(struct xml_parser *parser)
{
	if (!parser)
		return;
	while (parser->chunks) {
		struct chunk *chunk = parser->chunks;
		parser->chunks = chunk->next;
		free(chunk);
	}
	xmlFreeParserCtxt(parser->context);
	free(parser->text);
	free(parser);
}

static int tell(const struct xml_parser *parser, struct err *err)
{
	err_copy(err, &parser->err);
	return err_context(err, "the answer is not XML that can be read");
}

int xml_parser_feed(struct xml_parser *parser, const char *bytes, size_t length, struct err *err)
{
	while (length && parser->err.code == ERR_NONE) {
		int part = (int)min_size(length, PARSE_MOST);
		if (xmlParseChunk(parser->context, bytes, part, 0) && parser->err.code == ERR_NONE)
			err_set(&parser->err, ERR_PROTOCOL, "its form is wrong");
		bytes += part;
		length -= (size_t)part;
	}
	return parser->err.code == ERR_NONE ? 0 : tell(parser, err);
}

const struct xml *xml_parser_end(struct xml_parser *parser, struct err *err)
{
	if (parser->err.code == ERR_NONE && xmlParseChunk(parser->context, "", 0, 1) &&
		parser->err.code == ERR_NONE)
		err_set(&parser->err, ERR_PROTOCOL, "it is not whole");
	if (parser->err.code == ERR_NONE && (!parser->root || parser->depth))
		err_set(&parser->err, ERR_PROTOCOL, "it is not whole");
	if (parser->err.code == ERR_NONE)
		return parser->root;
	tell(parser, err);
	return NULL;
}

/* --- looking -----------------------------------------------------------------------------------
 */

static const struct xml *find(const struct xml *xml, const char *name, size_t length)
{
	while (xml && (strncmp(xml->name, name, length) != 0 || xml->name[length]))
		xml = xml->next;
	return xml;
}

const struct xml *xml_child(const struct xml *xml, const char *name)
{
	return xml ? find(xml->first, name, strlen(name)) : NULL;
}

const struct xml *xml_again(const struct xml *xml)
{
	return xml ? find(xml->next, xml->name, strlen(xml->name)) : NULL;
}

const struct xml *xml_at(const struct xml *xml, const char *path)
{
	while (xml && *path) {
		size_t length = strcspn(path, "/");
		xml = find(xml->first, path, length);
		path += length + (path[length] == '/');
	}
	return xml;
}

const char *xml_text(const struct xml *xml, const char *path)
{
	xml = xml_at(xml, path);
	return xml ? xml->text : "";
}

bool xml_is_true(const struct xml *xml, const char *path)
{
	const char *text = xml_text(xml, path);
	return !strcmp(text, "true") || !strcmp(text, "1");
}

static bool parse_number(const char *text, int64_t *value)
{
	bool negative = *text == '-';
	int64_t number = 0;
	text += negative;
	if (!*text)
		return false;
	for (; *text; text++)
		if (*text < '0' || *text > '9' || __builtin_mul_overflow(number, 10, &number) ||
			__builtin_sub_overflow(number, *text - '0', &number))
			return false;
	/* Counted downwards, because the lowest number has no positive one. */
	return negative ? (*value = number, true) : !__builtin_sub_overflow(0, number, value);
}

int xml_number(const struct xml *xml, const char *path, int64_t least, int64_t most, int64_t *value,
	struct err *err)
{
	const struct xml *at = xml_at(xml, path);
	int64_t number;
	if (!at)
		return 0;
	if (!parse_number(at->text, &number) || number < least || number > most)
		return err_set(err, ERR_PROTOCOL, "the answer's %s is \"%.40s\", which cannot be",
			at->name, at->text);
	*value = number;
	return 1;
}

/* --- printing ----------------------------------------------------------------------------------
 */

static void print_text(FILE *out, const char *text, bool in_attribute)
{
	for (; *text; text++) {
		switch (*text) {
		case '&':
			fputs("&amp;", out);
			break;
		case '<':
			fputs("&lt;", out);
			break;
		case '>':
			fputs("&gt;", out);
			break;
		case '"':
			fputs("&quot;", out);
			break;
		case '\r': /* would be read as a line's end */
			fputs("&#13;", out);
			break;
		case '\n':
		case '\t': /* in an attribute they would be read as spaces */
			if (in_attribute)
				fprintf(out, "&#%d;", *text);
			else
				putc(*text, out);
			break;
		default:
			putc(*text, out);
		}
	}
}

static void print_attribute(FILE *out, const char *name, const char *value)
{
	if (!*value)
		return;
	fprintf(out, " %s=\"", name);
	print_text(out, value, true);
	putc('"', out);
}

static void print_element(FILE *out, const struct xml *xml, const char *name, unsigned depth)
{
	fprintf(out, "%*s<%s", (int)(2 * depth), "", name);
	if (!depth)
		fputs(" xmlns:xsi=\"" XSI "\"", out);
	print_attribute(out, "xsi:type", xml->type);
	print_attribute(out, "type", xml->ref);
	if (!xml->first && !*xml->text) {
		fputs("/>\n", out);
		return;
	}
	putc('>', out);
	if (xml->first) {
		putc('\n', out);
		for (const struct xml *child = xml->first; child; child = child->next)
			print_element(out, child, child->name, depth + 1);
		fprintf(out, "%*s", (int)(2 * depth), "");
	} else {
		print_text(out, xml->text, false);
	}
	fprintf(out, "</%s>\n", name);
}

char *xml_print(const struct xml *xml, const char *root, size_t *length)
{
	char *text = NULL;
	FILE *out = open_memstream(&text, length);
	if (!out)
		return NULL;
	print_element(out, xml, root, 0);
	bool failed = ferror(out);
	if (fclose(out) || failed) {
		free(text);
		return NULL;
	}
	return text;
}
