/*
 * Wrong tokens, counted by address.  A right token is never refused for somebody else's wrong
 * ones: behind a tunnel all have one address, and 256 random bits can't be guessed anyway.
 */
#include "rest_internal.h"

#define MINUTE_NS ((int64_t)60 * 1000000000)

void rest_wrong_init(struct rest_wrong *wrong, unsigned per_minute)
{
	*wrong = (struct rest_wrong){.per_minute = per_minute};
	pthread_mutex_init(&wrong->mutex, NULL);
}

void rest_wrong_clear(struct rest_wrong *wrong)
{
	pthread_mutex_destroy(&wrong->mutex);
}

/* Its place, or the one whose minute began first. */
static size_t place_of(const struct rest_wrong *wrong, const struct rest_address *address)
{
	size_t oldest = 0;
	for (size_t i = 0; i < REST_WRONG_ADDRESSES; i++) {
		if (wrong->of[i].since_ns &&
			!memcmp(wrong->of[i].key, address->key, sizeof address->key))
			return i;
		if (wrong->of[i].since_ns < wrong->of[oldest].since_ns)
			oldest = i;
	}
	return oldest;
}

unsigned rest_wrong_count(
	struct rest_wrong *wrong, const struct rest_address *address, int64_t now_ns)
{
	WITH_LOCK(&wrong->mutex);
	size_t i = place_of(wrong, address);
	bool other = memcmp(wrong->of[i].key, address->key, sizeof address->key) != 0;
	if (!wrong->of[i].since_ns || other || now_ns - wrong->of[i].since_ns >= MINUTE_NS) {
		memcpy(wrong->of[i].key, address->key, sizeof address->key);
		wrong->of[i].since_ns = now_ns;
		wrong->of[i].count = 0;
	}
	wrong->of[i].count++;
	if (wrong->of[i].count <= wrong->per_minute)
		return 0;
	if (wrong->of[i].count == wrong->per_minute + 1)
		log_warning("REST: more than %u wrong tokens in a minute from %s",
			wrong->per_minute, address->text);
	return (unsigned)((MINUTE_NS - (now_ns - wrong->of[i].since_ns)) / 1000000000 + 1);
}
