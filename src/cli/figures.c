/* The table of figures; see figures.h. */
#include "figures.h"

static void print_row(const char *key, size_t width, const uint64_t values[6])
{
	if (width > 0)
		printf("%-*s", (int)width + 2, key);
	for (size_t i = 0; i < 6; i++) {
		char text[SIZE_TEXT_BYTES];
		printf("%12s", cli_size_text(values[i], text));
	}
	putchar('\n');
}

void figures_print(const struct figures_row *rows, size_t nr_rows)
{
	static const char *const names[6] = {"size", "logical", "read", "sent", "stored", "zeros"};
	size_t width = 0;
	for (size_t i = 0; i < nr_rows; i++)
		if (rows[i].key && strlen(rows[i].key) > width)
			width = strlen(rows[i].key);
	if (width > 0 && width < 4)
		width = 4; /* "disk" */
	if (width > 0)
		printf("%-*s", (int)width + 2, "disk");
	for (size_t i = 0; i < 6; i++)
		printf("%12s", names[i]);
	putchar('\n');
	uint64_t sum[6] = {0};
	for (size_t i = 0; i < nr_rows; i++) {
		const struct copy_progress *f = rows[i].figures;
		uint64_t values[6] = {rows[i].size_bytes, atomic_load(&f->logical),
			atomic_load(&f->read), atomic_load(&f->sent), atomic_load(&f->stored),
			atomic_load(&f->zeros_skipped)};
		print_row(rows[i].key, width, values);
		for (size_t k = 0; k < 6; k++)
			sum[k] += values[k];
	}
	if (nr_rows > 1)
		print_row("all", width, sum);
}
