/* Tokens: 32 random bytes as text; only their hash is ever stored. */
#include "rest_internal.h"

#include <stdio.h>

#define TOKEN_RANDOM_BYTES 32

static const char base64url[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/* 43 characters: the last one carries four bits. */
static void encode(const uint8_t bytes[TOKEN_RANDOM_BYTES], char *out)
{
	uint32_t bits = 0;
	unsigned nr_bits = 0;
	for (size_t i = 0; i < TOKEN_RANDOM_BYTES; i++) {
		bits = bits << 8 | bytes[i];
		for (nr_bits += 8; nr_bits >= 6; nr_bits -= 6)
			*out++ = base64url[bits >> (nr_bits - 6) & 63];
	}
	*out++ = base64url[bits << (6 - nr_bits) & 63];
	*out = 0;
}

int rest_token_make(char token[REST_TOKEN_BYTES], struct err *err)
{
	uint8_t bytes[TOKEN_RANDOM_BYTES];
	if (file_random(bytes, sizeof bytes, err))
		return err_context(err, "making a token");
	static const char prefix[] = "sdt_";
	snprintf(token, REST_TOKEN_BYTES, "%s", prefix);
	encode(bytes, token + sizeof prefix - 1);
	explicit_bzero(bytes, sizeof bytes);
	return 0;
}

void rest_token_hash(const char *token, char hash[REST_TOKEN_HASH_BYTES])
{
	uint8_t sum[DIGEST_ROOT_BYTES];
	digest_sha256(token, strlen(token), sum);
	digest_hex(sum, sizeof sum, hash);
}
