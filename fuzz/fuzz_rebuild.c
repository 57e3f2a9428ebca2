/*
 * Bytes as a restore point's vsphere.json: whatever it says, what comes of it is XML, in which
 * each disk that was restored hangs once, at a place of its own.
 */
#include "rebuild.h"

#include <assert.h>
#include <libxml/parser.h>
#include <libxml/tree.h>
#include <stdio.h>
#include <string.h>

#define TEXT_MOST 65536u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static const struct rebuild_target targets[] = {
	{"2000", "/restored/2000.raw", REBUILD_RAW, false, 1 << 20},
	{"2001", "/restored/2001.qcow2", REBUILD_QCOW2, false, 1 << 20},
	{"3000", "/restored/3000.raw", REBUILD_RAW, false, 512},
	{"16000", "/restored/16000.raw", REBUILD_RAW, false, 1 << 30},
	{"disk0", "/restored/disk0.raw", REBUILD_RAW, false, 1 << 20},
};

static void forget_line(void *context, enum log_level level, const char *text)
{
	(void)context;
	(void)level;
	assert(text);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	log_set_sink(forget_line, NULL, LOG_LEVEL_WARNING);
	return 0;
}

/* Elements of that name, each with another text in that attribute, where it has it. */
static unsigned count(const xmlNode *from, const char *name, const char *text)
{
	unsigned nr = 0;
	for (const xmlNode *node = from; node; node = node->next) {
		if (node->type != XML_ELEMENT_NODE)
			continue;
		xmlChar *file = xmlGetProp(node, BAD_CAST "file");
		if (strcmp((const char *)node->name, name) == 0 &&
			(!text || (file && strcmp((const char *)file, text) == 0)))
			nr++;
		xmlFree(file);
		nr += count(node->children, name, text);
	}
	return nr;
}

static void add(const xmlNode *node, const char *attribute, char *text, size_t room)
{
	xmlChar *value = xmlGetProp(node, BAD_CAST attribute);
	size_t length = strlen(text);
	snprintf(text + length, room - length, "%s ", value ? (const char *)value : "");
	xmlFree(value);
}

/* Where a domain's disks hang: nr of them so far. */
static size_t take_places(const xmlNode *from, char places[][128], size_t nr)
{
	for (const xmlNode *node = from; node; node = node->next) {
		if (node->type != XML_ELEMENT_NODE ||
			strcmp((const char *)node->name, "disk") != 0) {
			nr = take_places(node->children, places, nr);
			continue;
		}
		places[nr][0] = '\0';
		for (const xmlNode *child = node->children; child; child = child->next) {
			if (strcmp((const char *)child->name, "target") == 0)
				add(child, "bus", places[nr], sizeof places[nr]);
			if (strcmp((const char *)child->name, "address") != 0)
				continue;
			add(child, "controller", places[nr], sizeof places[nr]);
			add(child, "bus", places[nr], sizeof places[nr]);
			add(child, "target", places[nr], sizeof places[nr]);
			add(child, "unit", places[nr], sizeof places[nr]);
		}
		for (size_t i = 0; i < nr; i++)
			assert(strcmp(places[i], places[nr]) != 0);
		nr++;
	}
	return nr;
}

static void check_domain(const char *text)
{
	xmlDoc *document = xmlReadMemory(text, (int)strlen(text), NULL, NULL, XML_PARSE_NONET);
	assert(document);
	const xmlNode *root = xmlDocGetRootElement(document);
	assert(count(root, "disk", NULL) == ARRAY_LENGTH(targets));
	for (size_t i = 0; i < ARRAY_LENGTH(targets); i++)
		assert(count(root, "source", targets[i].path) == 1);
	char places[ARRAY_LENGTH(targets)][128];
	assert(take_places(root, places, 0) == ARRAY_LENGTH(targets));
	xmlFreeDoc(document);
}

static void check_ovf(const char *text)
{
	xmlDoc *document = xmlReadMemory(text, (int)strlen(text), NULL, NULL, XML_PARSE_NONET);
	assert(document);
	assert(count(xmlDocGetRootElement(document), "Disk", NULL) == ARRAY_LENGTH(targets));
	xmlFreeDoc(document);
}

static void rebuild(const char *text, size_t length, const struct rebuild_wishes *wishes)
{
	struct err err = ERR_INIT;
	struct rebuild_machine *machine = rebuild_machine(text, length, wishes, &err);
	if (!machine) {
		assert(err.code != ERR_NONE && err.text[0]);
		return;
	}
	char *made = rebuild_domain(machine, targets, ARRAY_LENGTH(targets), &err);
	assert(made);
	check_domain(made);
	free(made);
	made = rebuild_ovf(machine, targets, ARRAY_LENGTH(targets), &err);
	assert(made || err.code == ERR_UNSUPPORTED);
	if (made)
		check_ovf(made);
	free(made);
	rebuild_free(machine);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const struct rebuild_wishes as_stored = {.name = "vm"};
	const struct rebuild_wishes told = {
		.name = "vm", .nr_cpus = 2, .memory_bytes = 1 << 30, .firmware = "efi"};
	if (size > TEXT_MOST)
		return 0;
	rebuild((const char *)data, size, &as_stored);
	rebuild((const char *)data, size, &told);
	return 0;
}
