/* Memory that is freed at once; see memo.h. */
#include "memo.h"

#include <stdarg.h>
#include <stdio.h>

struct memo_bit {
	struct memo_bit *next;
	void *bytes;
};

static bool hold(struct memo *memo, void *bytes)
{
	struct memo_bit *bit = bytes ? malloc(sizeof *bit) : NULL;
	if (!bit) {
		free(bytes);
		memo->failed = true;
		return false;
	}
	*bit = (struct memo_bit){.next = memo->bits, .bytes = bytes};
	memo->bits = bit;
	return true;
}

void *memo_take(struct memo *memo, size_t nr, size_t bytes_each)
{
	void *bytes = calloc(nr ? nr : 1, bytes_each);
	return hold(memo, bytes) ? bytes : NULL;
}

const char *memo_adopt(struct memo *memo, char *text)
{
	return hold(memo, text) ? text : "";
}

const char *memo_text(struct memo *memo, const char *text)
{
	return *text ? memo_adopt(memo, strdup(text)) : "";
}

const char *memo_format(struct memo *memo, const char *format, ...)
{
	char *text;
	va_list arguments;
	va_start(arguments, format);
	int length = vasprintf(&text, format, arguments);
	va_end(arguments);
	return memo_adopt(memo, length < 0 ? NULL : text);
}

void memo_free(struct memo *memo)
{
	while (memo->bits) {
		struct memo_bit *bit = memo->bits;
		memo->bits = bit->next;
		free(bit->bytes);
		free(bit);
	}
}
