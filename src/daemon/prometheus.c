/* Text for Prometheus; see prometheus.h. */
#include "prometheus.h"

#include <stddef.h>
#include <stdint.h>

void prometheus_head(FILE *out, const char *name, const char *type, const char *help)
{
	fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void put_escaped(FILE *out, const char *text)
{
	for (; *text; text++) {
		if (*text == '\n')
			fputs("\\n", out);
		else if (*text == '"' || *text == '\\')
			fprintf(out, "\\%c", *text);
		else
			fputc(*text, out);
	}
}

void prometheus_put(FILE *out, const char *name, const char *const *labels, double value)
{
	fputs(name, out);
	for (size_t i = 0; labels && labels[i]; i += 2) {
		fprintf(out, "%s%s=\"", i == 0 ? "{" : ",", labels[i]);
		put_escaped(out, labels[i + 1]);
		fputs("\"", out);
	}
	if (labels && labels[0])
		fputs("}", out);
	/* Up to there each whole number is one of its own. */
	if (value > -9e15 && value < 9e15 && value == (double)(int64_t)value)
		fprintf(out, " %.0f\n", value);
	else
		fprintf(out, " %.9g\n", value);
}

void prometheus_one(FILE *out, const char *name, const char *type, const char *help, double value)
{
	prometheus_head(out, name, type, help);
	prometheus_put(out, name, NULL, value);
}
