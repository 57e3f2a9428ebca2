/* What the tests of repository share. */
#ifndef SENDENSE_TEST_SUPPORT_H
#define SENDENSE_TEST_SUPPORT_H

#include "../scratch.h"

#include "repository_internal.h"

#include <sys/wait.h>

static inline struct repository *support_repository(const char *path)
{
	struct repository_settings settings;
	struct err err = ERR_INIT;
	repository_settings_default(&settings);
	SUPPORT_OK(repository_init(path, &settings, &err), err);
	struct repository *repo = repository_open(path, REPOSITORY_WRITE, &err);
	if (!repo)
		fail_msg("%s", err.text);
	return repo;
}

static inline void support_write(const char *path, const void *bytes, size_t length)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, bytes, length), (ssize_t)length);
	close(fd);
}

#endif
