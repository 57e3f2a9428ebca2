/* UTF-8; see utf8.h. */
#include "utf8.h"

size_t utf8_step(const uint8_t *p)
{
	if (p[0] < 0x80)
		return 1;
	size_t length = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
	if (p[0] < 0xc2 || p[0] > 0xf4)
		return 0;
	for (size_t i = 1; i < length; i++)
		if ((p[i] & 0xc0) != 0x80)
			return 0;
	/* Overlong forms, surrogates, beyond U+10FFFF. */
	if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] >= 0xa0) ||
		(p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] >= 0x90))
		return 0;
	return length;
}

void utf8_mend(char *text)
{
	while (*text) {
		size_t step = utf8_step((const uint8_t *)text);
		if (step == 0)
			*text = '?';
		text += step > 0 ? step : 1;
	}
}
