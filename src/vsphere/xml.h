/*
 * xml: answers of the server as a small tree, built while their bytes come in.
 *
 * Not trusted: no document type, no entities beyond XML's own five, nothing is fetched; depth and
 * memory are bounded.  Of attributes only two count, and are told apart by namespace, because
 * prefixes differ from server to server:
 *     xsi:type="XMLSchema:Foo"   what the element really is: type "Foo"
 *     type="VirtualMachine"      the kind of a managed object reference: ref "VirtualMachine"
 * An element with children has no text (blanks between them are layout).
 */
#ifndef SENDENSE_VSPHERE_XML_H
#define SENDENSE_VSPHERE_XML_H

#include "base.h"

#define XML_DEPTH_MOST 200u
#define XML_TREE_MOST (64u << 20) /* of memory */

struct xml {
	const char *name; /* without its namespace */
	const char *type, *ref, *text; /* never NULL */
	const struct xml *first, *next;
};

struct xml_parser;

struct xml_parser *xml_parser_new(struct err *err);
/* ERR_PROTOCOL saying where and why; after an error only free is of use. */
int xml_parser_feed(struct xml_parser *parser, const char *bytes, size_t length, struct err *err);
/* The root, once all bytes were fed; lives as long as the parser.  NULL (err) when the document
 * is not whole. */
const struct xml *xml_parser_end(struct xml_parser *parser, struct err *err);
void xml_parser_free(struct xml_parser *parser);

/* --- looking at it; all of them take NULL for "no such element" ------------------------------ */

/* The first child of that name; NULL when there is none. */
const struct xml *xml_child(const struct xml *xml, const char *name);
/* The next one of the same name as xml behind it. */
const struct xml *xml_again(const struct xml *xml);
/* Down a path of names, "info/error/fault"; each time the first one. */
const struct xml *xml_at(const struct xml *xml, const char *path);

/* The text of the element at the path ("": xml itself), "" when it is not there. */
const char *xml_text(const struct xml *xml, const char *path);
bool xml_is_true(const struct xml *xml, const char *path);

/*
 * The number at the path: decimal digits alone (a '-' before them), at least least and at most
 * most.  1; 0 when there is no such element; -1 (ERR_PROTOCOL naming it) when it is no such
 * number.  *value is changed with 1 alone.
 */
int xml_number(const struct xml *xml, const char *path, int64_t least, int64_t most, int64_t *value,
	struct err *err);

/* As XML again, indented, under another name for the root; the caller frees.  NULL: no memory. */
char *xml_print(const struct xml *xml, const char *root, size_t *length);

#endif
