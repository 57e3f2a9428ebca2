/*
 * allow: which sources and targets jobs that come from outside may name.
 *
 * A rule is written like what it allows:
 *
 *   nbd://HOST[:PORT]/NAME      this export; NAME ending in '*': all that begin so; no NAME: all
 *   nbds://HOST[:PORT]/NAME     the same with TLS; PORT "*": any; without: 10809
 *   nbd+unix:/FOLDER/           sockets below that folder, any export
 *   raw:/FOLDER/  qcow2:/FOLDER/   files below it (raw:/FILE: this one)
 *   qemu:/FOLDER/               QMP sockets below it
 *   extents:/FOLDER/            lists of changes below it (sources)
 *   null:                       null disks
 *   https://HOST[:PORT]/PATH/   webhooks: with http:// too; PORT: 443, 80
 *   !/PATH                      nothing local there or below it, whatever other rules allow
 *
 * Both sides are parsed and compared part by part, never as texts: HOST without regard to case,
 * escapes undone, no user parts, no "..", no parameters but a socket's.  Local paths are
 * looked up beneath the rule's folder (openat2), so that no symbolic link leads out of it, and
 * what comes out is the path that was found, without links.  Nothing inside a repository is
 * allowed.
 *
 * Thread rule: any thread.  Local names may hang where their file system does.
 */
#ifndef SENDENSE_JOB_ALLOW_H
#define SENDENSE_JOB_ALLOW_H

#include "base.h"

#define ALLOW_NAME_BYTES 8192

enum allow_use { ALLOW_SOURCE, ALLOW_TARGET, ALLOW_WEBHOOK };

/* Whether a rule can be used: ERR_USAGE says what is wrong with it. */
int allow_check_rule(const char *rule, enum allow_use use, struct err *err);

/*
 * rules: ended by NULL; NULL: none.  checked (may be NULL): the name to go on with.
 * ERR_USAGE: the name is malformed; ERR_DENIED: no rule allows it; ERR_NOT_FOUND and the like:
 * a rule does, but it is not there (a target's file need not be).
 */
int allow_check(const char *const *rules, enum allow_use use, const char *name,
	char checked[ALLOW_NAME_BYTES], struct err *err);

/*
 * The same of a file that is open, or is about to be, by a name that was checked: what that leads
 * to may have changed, and an image names the one that it stands on itself.  fd, path and above are
 * guard.h's.  To be written it must be covered by a rule for targets, else by any; the folder of an
 * image that a rule names counts for what it stands on.
 */
struct allow_job {
	const char *const *sources, *const *targets; /* as above */
	const char *own; /* the repository that the job works in, without links: what is named by
			    its path there, or by an image there, is no disk from outside; NULL: it
			    has none here */
};
int allow_opened(
	const struct allow_job *job, int fd, const char *path, const char *above, struct err *err);

/* The host that a disk is read from or written to, "" for disks of this machine. */
void allow_host(const char *name, char host[256]);

#endif
