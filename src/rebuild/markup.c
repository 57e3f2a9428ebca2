/* See markup.h. */
#include "markup.h"

#include "base.h"

#include <errno.h>
#include <libxml/parserInternals.h>
#include <libxml/xmlwriter.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

struct markup {
	xmlBufferPtr buffer;
	xmlTextWriterPtr writer;
	bool failed;
};

struct markup *markup_new(void)
{
	struct markup *markup = calloc(1, sizeof *markup);
	if (!markup)
		return NULL;
	markup->buffer = xmlBufferCreate();
	markup->writer = markup->buffer ? xmlNewTextWriterMemory(markup->buffer, 0) : NULL;
	if (!markup->writer) {
		markup_free(markup);
		return NULL;
	}
	markup->failed = xmlTextWriterSetIndent(markup->writer, 1) < 0 ||
			 xmlTextWriterSetIndentString(markup->writer, BAD_CAST "  ") < 0 ||
			 xmlTextWriterStartDocument(markup->writer, NULL, "UTF-8", NULL) < 0;
	return markup;
}

void markup_free(struct markup *markup)
{
	if (!markup)
		return;
	if (markup->writer)
		xmlFreeTextWriter(markup->writer);
	if (markup->buffer)
		xmlBufferFree(markup->buffer);
	free(markup);
}

/* The library escapes, but writes what no XML may hold as it is. */
static void make_valid(char *text)
{
	for (char *at = text; *at;) {
		int length = (int)strnlen(at, 4);
		int character = xmlGetUTF8Char(BAD_CAST at, &length);
		bool is_valid = character >= 0 && length > 0 && IS_CHAR(character);
		if (character < 0 || length <= 0)
			length = 1;
		if (!is_valid)
			memset(at, '?', (size_t)length);
		at += length;
	}
}

static char *formatted(struct markup *markup, const char *format, va_list arguments)
{
	char *text = NULL;
	if (vasprintf(&text, format, arguments) < 0) {
		markup->failed = true;
		return NULL;
	}
	make_valid(text);
	return text;
}

void markup_open(struct markup *markup, const char *element)
{
	if (markup && xmlTextWriterStartElement(markup->writer, BAD_CAST element) < 0)
		markup->failed = true;
}

void markup_attribute(struct markup *markup, const char *name, const char *format, ...)
{
	if (!markup)
		return;
	va_list arguments;
	va_start(arguments, format);
	char *AUTO_FREE text = formatted(markup, format, arguments);
	va_end(arguments);
	if (text && xmlTextWriterWriteAttribute(markup->writer, BAD_CAST name, BAD_CAST text) < 0)
		markup->failed = true;
}

static void write_text(struct markup *markup, const char *text)
{
	if (text && xmlTextWriterWriteString(markup->writer, BAD_CAST text) < 0)
		markup->failed = true;
}

void markup_text(struct markup *markup, const char *format, ...)
{
	if (!markup)
		return;
	va_list arguments;
	va_start(arguments, format);
	char *AUTO_FREE text = formatted(markup, format, arguments);
	va_end(arguments);
	write_text(markup, text);
}

void markup_close(struct markup *markup)
{
	if (markup && xmlTextWriterEndElement(markup->writer) < 0)
		markup->failed = true;
}

void markup_element(struct markup *markup, const char *element, const char *format, ...)
{
	if (!markup)
		return;
	va_list arguments;
	va_start(arguments, format);
	char *AUTO_FREE text = formatted(markup, format, arguments);
	va_end(arguments);
	markup_open(markup, element);
	write_text(markup, text);
	markup_close(markup);
}

char *markup_finish(struct markup *markup, struct err *err)
{
	char *text = NULL;
	if (markup && xmlTextWriterEndDocument(markup->writer) >= 0 && !markup->failed)
		text = strdup((const char *)xmlBufferContent(markup->buffer));
	if (!text)
		err_errno(err, ENOMEM, "cannot write a machine's configuration");
	return text;
}
