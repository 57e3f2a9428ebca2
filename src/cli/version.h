/* version: which build this is.  Kept by cmd_version.c. */
#ifndef SENDENSE_CLI_VERSION_H
#define SENDENSE_CLI_VERSION_H

/* "0.1.0 (git 1a2b3c4d5e6f)" */
const char *version_text(void);
/* "1a2b3c4d5e6f" */
const char *version_build(void);

#endif
