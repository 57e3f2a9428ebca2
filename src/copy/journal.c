/*
 * What a lane wrote and did not flush yet.
 *
 *   entries  | sent before the flush that is under way | since |
 *              0 .. nr_flushing                           .. nr
 *   lost       what must be copied again
 *
 * A server that dies takes all its connections along, so each lane sees the
 * loss of its own writes by itself, and its own flush on the connection that
 * carried them is what makes them safe.  An item keeps one entry whatever
 * happens to it, so items that are copied again always find room.
 */
#include "copy_internal.h"

#include <assert.h>
#include <string.h>

bool journal_has_room(const struct journal *journal)
{
	return journal->nr + journal->nr_lost + COPY_SLOTS_MAX < JOURNAL_ENTRIES_MAX;
}

void journal_add(struct journal *journal, const struct copy_item *item, bool lost)
{
	struct journal_entry entry = {item->offset, item->length, item->zero};
	assert(journal->nr + journal->nr_lost < JOURNAL_ENTRIES_MAX);
	if (lost) {
		journal->lost[journal->nr_lost++] = entry;
		return;
	}
	journal->entries[journal->nr++] = entry;
	if (!item->zero)
		journal->bytes += item->length;
}

bool journal_wants_flush(const struct journal *journal)
{
	return journal->bytes >= JOURNAL_FLUSH_BYTES >> journal->flush_shift ||
	       !journal_has_room(journal);
}

void journal_flush_begin(struct journal *journal)
{
	journal->nr_flushing = journal->nr;
	journal->bytes = 0;
}

void journal_flush_end(struct journal *journal)
{
	journal->nr -= journal->nr_flushing;
	memmove(journal->entries, journal->entries + journal->nr_flushing,
		journal->nr * sizeof journal->entries[0]);
	journal->nr_flushing = 0;
	journal->nr_losses = 0;
	if (journal->flush_shift > 0)
		journal->flush_shift--;
}

bool journal_is_hopeless(const struct journal *journal)
{
	return journal->nr_losses >= JOURNAL_LOSSES_MAX;
}

void journal_lose(struct journal *journal)
{
	assert(journal->nr + journal->nr_lost <= JOURNAL_ENTRIES_MAX);
	memcpy(journal->lost + journal->nr_lost, journal->entries,
		journal->nr * sizeof journal->entries[0]);
	journal->nr_lost += journal->nr;
	journal->nr = journal->nr_flushing = 0;
	journal->bytes = 0;
	journal->nr_losses++;
	journal->flush_shift += 2;
	if (journal->flush_shift > JOURNAL_SHIFT_MAX)
		journal->flush_shift = JOURNAL_SHIFT_MAX;
}

bool journal_take(struct journal *journal, struct copy_item *item)
{
	if (journal->nr_lost == 0)
		return false;
	const struct journal_entry *entry = &journal->lost[--journal->nr_lost];
	item->offset = entry->offset;
	item->length = entry->length;
	item->unchanged = false;
	item->zero = entry->zero;
	item->again = true;
	item->nr_spans = entry->zero ? 0 : 1;
	item->spans[0] = (struct copy_span){0, entry->zero ? 0 : (uint32_t)entry->length};
	return true;
}
