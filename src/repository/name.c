/*
 * Names: what a VM, a disk, a point and a job may be called, and how a VM's name
 * is written as a folder's.
 */
#include "repository_internal.h"

#include <assert.h>
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Longest folder name; a lock's name holds it together with a point and a job. */
#define FOLDER_MOST 160
#define FOLDER_PREFIX 120
#define FOLDER_HASH_BYTES 16

/* The same for what is no control character; those behind ASCII are U+0080..9F. */
static size_t printable_step(const uint8_t *p)
{
	bool is_control = p[0] < 0x20 || p[0] == 0x7f || (p[0] == 0xc2 && p[1] < 0xa0);
	return is_control ? 0 : utf8_step(p);
}

int repository_name_check_vm(const char *vm, struct err *err)
{
	size_t length = strlen(vm);
	if (length == 0)
		return err_set(err, ERR_USAGE, "a VM's name must not be empty");
	if (length >= REPOSITORY_VM_BYTES)
		return err_set(err, ERR_USAGE, "a VM's name of %zu bytes is too long (at most %d)",
			length, REPOSITORY_VM_BYTES - 1);
	for (const uint8_t *p = (const uint8_t *)vm; *p;) {
		size_t step = printable_step(p);
		if (step == 0)
			return err_set(err, ERR_USAGE,
				"a VM's name must be UTF-8 without control characters; byte %td "
				"is 0x%02x",
				p - (const uint8_t *)vm + 1, *p);
		p += step;
	}
	return 0;
}

static bool is_key_byte(char c)
{
	return isascii(c) && (isalnum((unsigned char)c) || c == '_' || c == '-');
}

int repository_name_check_key(const char *key, struct err *err)
{
	size_t length = strlen(key);
	bool good = length > 0 && length < REPOSITORY_KEY_BYTES;
	for (size_t i = 0; good && i < length; i++)
		good = is_key_byte(key[i]);
	if (good)
		return 0;
	char shown[REPOSITORY_KEY_BYTES];
	name_printable(key, shown, sizeof shown);
	return err_set(err, ERR_USAGE,
		"disk key \"%s\" is refused: a key is 1 to 64 letters, digits, '_' and '-'", shown);
}

void name_printable(const char *text, char *out, size_t room)
{
	size_t used = 0;
	for (const uint8_t *p = (const uint8_t *)text; *p;) {
		size_t step = printable_step(p);
		size_t take = step ? step : 1;
		if (used + take + 1 > room)
			break;
		if (step)
			memcpy(out + used, p, step);
		else
			out[used] = '?';
		used += take;
		p += take;
	}
	out[used] = '\0';
}

/* "20261121T200000Z-" and nr_tail lower-case hex digits. */
static bool has_id_shape(const char *text, size_t nr_tail)
{
	static const char shape[] = "ddddddddTddddddZ-";
	size_t nr_time = sizeof shape - 1;
	if (strlen(text) != nr_time + nr_tail)
		return false;
	for (size_t i = 0; i < nr_time; i++)
		if (shape[i] == 'd' ? !isdigit((unsigned char)text[i]) : text[i] != shape[i])
			return false;
	return strspn(text + nr_time, "0123456789abcdef") == nr_tail;
}

bool repository_name_is_point(const char *text)
{
	return has_id_shape(text, 6);
}

bool name_is_job(const char *text)
{
	return has_id_shape(text, 8);
}

int repository_name_split(const char *text, char vm[REPOSITORY_VM_BYTES],
	char point[REPOSITORY_POINT_BYTES], struct err *err)
{
	const char *at = strrchr(text, '@');
	size_t length = strlen(text);
	point[0] = '\0';
	if (at && repository_name_is_point(at + 1)) {
		snprintf(point, REPOSITORY_POINT_BYTES, "%s", at + 1);
		length = (size_t)(at - text);
	}
	if (length >= REPOSITORY_VM_BYTES)
		return err_set(err, ERR_USAGE, "a VM's name of %zu bytes is too long (at most %d)",
			length, REPOSITORY_VM_BYTES - 1);
	memcpy(vm, text, length);
	vm[length] = '\0';
	return repository_name_check_vm(vm, err);
}

void repository_name_folder(const char *vm, char folder[REPOSITORY_FOLDER_BYTES])
{
	char encoded[3 * REPOSITORY_VM_BYTES];
	size_t used = 0, cut = 0;
	for (const char *p = vm; *p; p++) {
		if (is_key_byte(*p) || (*p == '.' && p != vm))
			encoded[used++] = *p;
		else
			used += (size_t)snprintf(encoded + used, 4, "%%%02X", (uint8_t)*p);
		if (used <= FOLDER_PREFIX)
			cut = used;
	}
	encoded[used] = '\0';
	if (used <= FOLDER_MOST) {
		memcpy(folder, encoded, used + 1);
		return;
	}
	uint8_t hash[DIGEST_ROOT_BYTES];
	digest_sha256(vm, strlen(vm), hash);
	memcpy(folder, encoded, cut);
	folder[cut] = '~';
	digest_hex(hash, FOLDER_HASH_BYTES, folder + cut + 1);
}

bool name_unfolder(const char *folder, char vm[REPOSITORY_VM_BYTES])
{
	size_t used = 0;
	if (strlen(folder) >= REPOSITORY_FOLDER_BYTES)
		return false;
	for (const char *p = folder; *p; p++) {
		unsigned value = (uint8_t)*p;
		if (*p == '%') {
			if (!isxdigit((unsigned char)p[1]) || !isxdigit((unsigned char)p[2]) ||
				sscanf(p, "%%%2X", &value) != 1)
				return false;
			p += 2;
		}
		if (used + 1 >= REPOSITORY_VM_BYTES)
			return false;
		vm[used++] = (char)value;
	}
	vm[used] = '\0';
	/* Only what encodes back to the same name was written by us. */
	char again[REPOSITORY_FOLDER_BYTES];
	if (strlen(vm) != used || repository_name_check_vm(vm, NULL) < 0)
		return false;
	repository_name_folder(vm, again);
	return strcmp(again, folder) == 0;
}

static int make_id(
	int64_t unix_seconds, unsigned nr_tail_bytes, char *out, size_t room, struct err *err)
{
	uint8_t random[4];
	char tail[9], text[CLOCK_UTC_BYTES], compact[CLOCK_UTC_BYTES];
	if (file_random(random, nr_tail_bytes, err) < 0)
		return -1;
	digest_hex(random, nr_tail_bytes, tail);
	clock_utc_text(unix_seconds, text);
	size_t used = 0;
	for (const char *p = text; *p; p++)
		if (*p != '-' && *p != ':')
			compact[used++] = *p;
	compact[used] = '\0';
	int length = snprintf(out, room, "%.16s-%s", compact, tail);
	assert(length > 0 && (size_t)length < room);
	return 0;
}

int name_make_point(int64_t unix_seconds, char point[REPOSITORY_POINT_BYTES], struct err *err)
{
	return make_id(unix_seconds, 3, point, REPOSITORY_POINT_BYTES, err);
}

int name_make_job(int64_t unix_seconds, char job[REPOSITORY_JOB_BYTES], struct err *err)
{
	return make_id(unix_seconds, 4, job, REPOSITORY_JOB_BYTES, err);
}

int64_t name_seconds(const char *id)
{
	struct tm tm = {0};
	if (sscanf(id, "%4d%2d%2dT%2d%2d%2dZ", &tm.tm_year, &tm.tm_mon, &tm.tm_mday, &tm.tm_hour,
		    &tm.tm_min, &tm.tm_sec) != 6)
		return 0;
	tm.tm_year -= 1900;
	tm.tm_mon -= 1;
	return timegm(&tm);
}

int64_t name_seconds_utc(const char *utc)
{
	struct tm tm = {0};
	if (sscanf(utc, "%4d-%2d-%2dT%2d:%2d:%2dZ", &tm.tm_year, &tm.tm_mon, &tm.tm_mday,
		    &tm.tm_hour, &tm.tm_min, &tm.tm_sec) != 6)
		return 0;
	tm.tm_year -= 1900;
	tm.tm_mon -= 1;
	return timegm(&tm);
}

void name_now(char utc[CLOCK_UTC_BYTES])
{
	clock_utc_text(time(NULL), utc);
}
