/*
 * Bytes as the answer of a vCenter: the tree, an answer's or a fault's meaning, a configuration,
 * changed areas.  What is taken has the properties that callers rely on.
 */
#include "areas.h"
#include "config.h"
#include "soap.h"

#include <assert.h>

#define CAPACITY ((uint64_t)1 << 26)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct xml_parser *parse(
	const char *bytes, size_t length, size_t step, const struct xml **root)
{
	struct err err = ERR_INIT;
	struct xml_parser *parser = xml_parser_new(&err);
	int rc = 0;
	assert(parser);
	*root = NULL;
	for (size_t at = 0; at < length && !rc; at += step)
		rc = xml_parser_feed(parser, bytes + at, min_size(step, length - at), &err);
	if (!rc)
		*root = xml_parser_end(parser, &err);
	assert(*root || (err.code == ERR_PROTOCOL && err.text[0]));
	return parser;
}

static unsigned check_tree(const struct xml *xml)
{
	unsigned deepest = 0;
	assert(xml->name[0] && xml->type && xml->ref && xml->text);
	assert(!xml->first || !xml->text[0]);
	for (const struct xml *child = xml->first; child; child = child->next) {
		unsigned depth = check_tree(child);
		deepest = depth > deepest ? depth : deepest;
	}
	assert(deepest < XML_DEPTH_MOST);
	return deepest + 1;
}

/* However it is cut, and when it is printed, it is the same. */
static void check_print(const char *bytes, size_t length, const struct xml *root)
{
	size_t printed, again;
	const struct xml *other;
	char *text = xml_print(root, "root", &printed);
	assert(text);
	struct xml_parser *parser = parse(bytes, length, 7, &other);
	assert(other);
	char *second = xml_print(other, "root", &again);
	assert(second && printed == again && !memcmp(text, second, printed));
	free(second);
	xml_parser_free(parser);
	parser = parse(text, printed, printed, &other);
	assert(other);
	second = xml_print(other, "root", &again);
	assert(second && printed == again && !memcmp(text, second, printed));
	free(second);
	free(text);
	xml_parser_free(parser);
}

struct told {
	uint64_t end, bytes;
};

static int take(void *context, uint64_t offset, uint64_t length, struct err *err)
{
	struct told *told = context;
	(void)err;
	assert(length && offset >= told->end && range_fits(offset, length, CAPACITY));
	told->end = offset + length;
	told->bytes += length;
	return 0;
}

static void check_areas(const struct xml *info)
{
	struct told told = {0};
	struct vsphere_changes changes = {.gone = false};
	struct err err = ERR_INIT;
	uint64_t next = 0;
	int64_t start = 0;
	if (xml_number(info, "startOffset", 0, CAPACITY - 1, &start, &err) <= 0)
		start = 0;
	if (areas_read(info, (uint64_t)start, CAPACITY, take, &told, &changes, &next, &err)) {
		assert(err.code == ERR_PROTOCOL);
		return;
	}
	assert(next > (uint64_t)start && next <= CAPACITY && told.end <= next);
	assert(told.bytes == changes.bytes);
}

static void check_config(const struct xml *xml)
{
	struct err err = ERR_INIT;
	struct vsphere_config *config = xml ? config_read(xml, &err) : NULL;
	if (!config) {
		assert(!xml || err.code == ERR_PROTOCOL);
		return;
	}
	for (size_t i = 0; i < config->nr_disks; i++) {
		const struct vsphere_disk *disk = &config->disks[i];
		assert(disk->capacity_bytes && disk->capacity_bytes % 512 == 0);
		assert(disk->key >= 0 && vsphere_config_disk(config, disk->key) == disk);
		assert(disk->unsupported || disk->file[0]);
	}
	assert(strlen(config->xml) == config->xml_length);
	vsphere_config_free(config);
}

static void check_answer(const struct xml *root)
{
	struct soap_fault fault;
	struct err err = ERR_INIT;
	const struct xml *answer = soap_answer(root, "RetrievePropertiesEx", &fault, &err);
	assert(!answer || !fault.name[0]);
	assert(answer || err.code != ERR_NONE);
	soap_fault_read(root, &fault);
	assert(fault.name[0]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const struct xml *root;
	struct xml_parser *parser = parse((const char *)data, size, size ? size : 1, &root);
	if (root) {
		check_tree(root);
		check_print((const char *)data, size, root);
		check_answer(root);
		check_areas(root);
		check_areas(xml_at(root, "Body/QueryChangedDiskAreasResponse/returnval"));
		check_config(root);
		check_config(xml_at(
			root, "Body/RetrievePropertiesExResponse/returnval/objects/propSet/val"));
	}
	xml_parser_free(parser);
	return 0;
}
