/* What becomes of a job whose worker has ended: its end, or another attempt. */
#include "job_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define ATTEMPTS_OTHERWISE 4u
#define RETRY_OTHERWISE_MS 5000u
#define RETRY_MOST_MS 900000u
#define LAST_WORDS_BYTES 600
#define FINISH_AGAIN_MS 5000

/* --- what became of it ---------------------------------------------------------------------- */

/* The last lines that it wrote to standard error, on one line. */
static void last_words(const struct job *job, struct err *why)
{
	char tail[LAST_WORDS_BYTES];
	if (job->dir_fd < 0)
		return;
	jobdir_tail(job->dir_fd, JOBDIR_STDERR, tail, sizeof tail);
	size_t length = strlen(tail);
	while (length > 0 && (unsigned char)tail[length - 1] <= ' ')
		tail[--length] = '\0';
	for (char *at = tail; *at; at++)
		if ((unsigned char)*at < 0x20 || (unsigned char)*at >= 0x7f)
			*at = *at == '\n' ? '|' : '?';
	if (tail[0])
		err_hint(why, "its last words: %s", tail);
}

/* A crash will happen again; what was killed from outside need not be. */
static bool is_crash(int status)
{
	if (status == -1)
		return false;
	int number = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
	return number == SIGSEGV || number == SIGABRT || number == SIGBUS || number == SIGILL ||
	       number == SIGFPE || number == SIGSYS || number == 0;
}

static void judge_death(const struct job *job, int status, struct err *why)
{
	char how[PROCESS_END_BYTES];
	err_set(why, is_crash(status) ? ERR_IO : ERR_DISCONNECTED,
		"its worker %s in stage %s, without telling why", process_end_text(status, how),
		job->stage);
	last_words(job, why);
}

bool finish_judge(const struct job *job, int status, struct err *why)
{
	json_t *end = job->dir_fd < 0 ? NULL : jobdir_load(job->dir_fd, JOBDIR_EXIT, NULL);
	const json_t *number = json_object_get(end, "status");
	bool told = json_is_integer(number);
	*why = ERR_INIT;
	if (!told) {
		judge_death(job, status, why);
	} else if (json_integer_value(number) != 0) {
		const char *code = json_string_value(json_object_get(end, "code"));
		const char *text = json_string_value(json_object_get(end, "error"));
		err_set(why, err_code_parse(code, ERR_IO), "%s", text ? text : "");
	}
	json_decref(end);
	return told;
}

static bool is_worth_it(
	const struct jobs *jobs, const struct job *job, const struct err *why, bool told)
{
	unsigned attempts = jobs->options.attempts ? jobs->options.attempts : ATTEMPTS_OTHERWISE;
	/* A target that was half written is not there for the taking. */
	if (job->attempt >= attempts || job->asked_to_cancel ||
		(!told && strcmp(job->kind, "restore") == 0))
		return false;
	return why->code == ERR_DISCONNECTED || why->code == ERR_TIMEOUT || why->code == ERR_BUSY ||
	       why->code == ERR_REFUSED;
}

/* Four times as long each time, and up to a quarter more, so that not all come at once. */
static void plan_retry(struct jobs *jobs, struct job *job)
{
	uint64_t wait_ms = jobs->options.retry_ms ? jobs->options.retry_ms : RETRY_OTHERWISE_MS;
	for (unsigned i = 1; i < job->attempt && wait_ms < RETRY_MOST_MS; i++)
		wait_ms *= 4;
	wait_ms = min_u64(wait_ms, RETRY_MOST_MS);
	uint32_t chance = 0;
	if (file_random(&chance, sizeof chance, NULL) == 0)
		wait_ms += chance % (wait_ms / 4 + 1);
	job->next_at = deadline_after_ms((int64_t)wait_ms);
	job->next_try = time(NULL) + (int64_t)div_round_up(wait_ms, 1000);
}

/* --- giving back ------------------------------------------------------------------------------ */

void finish_keep_files(struct jobs *jobs, const struct job *job)
{
	struct err why = ERR_INIT;
	if (job->dir_fd < 0)
		return;
	int AUTO_CLOSE kept_fd = -1;
	if (file_make_dir(jobs->kept_fd, job->id, 0700, &why) == 0) {
		kept_fd = openat(
			jobs->kept_fd, job->id, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (kept_fd < 0)
			err_errno(&why, errno, "cannot open its folder");
		else
			jobdir_keep(job->dir_fd, kept_fd, &why);
	}
	if (why.code != ERR_NONE)
		log_warning("job %s: its log cannot be kept: %s", job->id, why.text);
}

/* All that it took. */
static void give_back(struct jobs *jobs, struct job *job)
{
	struct err why = ERR_INIT;
	struct state *state = jobs->options.state;
	if (job->dir_fd >= 0)
		close(job->dir_fd);
	job->dir_fd = -1;
	fence_give_back(jobs, job);
	if (jobdir_remove(jobs->runtime_fd, job->id, &why) < 0 ||
		state_gave_back(state, job->id, "process", "worker", &why) < 0 ||
		state_gave_back(state, job->id, "folder", job->id, &why) < 0)
		log_warning("job %s: %s", job->id, why.text);
}

static void unlink_job(struct job **list, const struct job *job)
{
	while (*list && *list != job)
		list = &(*list)->next;
	if (*list)
		*list = job->next;
}

static void take_report(struct job *job)
{
	json_t *report = job->dir_fd < 0 ? NULL : jobdir_load(job->dir_fd, JOBDIR_REPORT, NULL);
	const char *point = json_string_value(json_object_get(report, "point"));
	const char *note = json_string_value(json_object_get(report, "note"));
	if (point)
		snprintf(job->point, sizeof job->point, "%.63s", point);
	if (note)
		snprintf(job->note, sizeof job->note, "%.255s", note);
	json_decref(report);
}

void finish_note_late_cancel(struct job *job)
{
	if (job->asked_to_cancel && job->stop_why.code == ERR_CANCELLED)
		snprintf(job->note, sizeof job->note,
			"it was to be cancelled, which came too late: %.200s", job->stop_why.text);
}

/* --- the end ------------------------------------------------------------------------------------
 */

static enum job_state decide(struct jobs *jobs, struct job *job, struct err *why, bool told)
{
	bool was_stopped = job->stop != STOP_NOT || job->asked_to_cancel;
	if (why->code == ERR_NONE)
		return JOB_DONE; /* also when it was to be cancelled, and had just come to its end
				  */
	if (was_stopped)
		*why = job->stop_why;
	else if (why->code == ERR_CANCELLED) {
		err_context(why, "somebody else stopped its worker");
		why->code = ERR_DISCONNECTED;
	}
	if (was_stopped && why->code == ERR_CANCELLED)
		return JOB_CANCELLED;
	return is_worth_it(jobs, job, why, told) ? JOB_QUEUED : JOB_FAILED;
}

/* What becomes of it; JOB_COMMITTING: that is looked for first. */
static enum job_state conclude(
	struct jobs *jobs, struct job *job, int status, const struct err *failed, struct err *why)
{
	struct err trouble = ERR_INIT;
	bool told = true;
	if (job->is_looking)
		return look_end(job, status, why);
	if (failed) {
		*why = *failed;
		told = failed->code != ERR_DISCONNECTED; /* a worker that is gone */
	} else {
		told = finish_judge(job, status, why);
	}
	/* Who told how it ended has given back what it had, and before that what others had left.
	 */
	if (supervise_has_snapshot(job))
		job->owes = !told;
	job->unsure |= look_is_needed(job, told, why);
	enum job_state state = decide(jobs, job, why, told);
	if (state == JOB_DONE || state == JOB_QUEUED || !job->unsure)
		return state;
	if (look_start(jobs, job, state, why, &trouble) == 0)
		return JOB_COMMITTING;
	err_hint(why, "whether its restore point was made all the same is not known: %s",
		trouble.text);
	return state;
}

int finish_job(struct jobs *jobs, struct job *job, int status, const struct err *failed)
{
	struct err why = ERR_INIT, trouble = ERR_INIT;
	enum job_state state = conclude(jobs, job, status, failed, &why);
	if (state == JOB_COMMITTING)
		return 0;
	take_report(job);
	finish_keep_files(jobs, job);
	job->error = why;
	if (state == JOB_DONE)
		finish_note_late_cancel(job);
	if (state == JOB_QUEUED)
		plan_retry(jobs, job);
	else
		job->ended = time(NULL);
	if (supervise_change(jobs, job, state, &trouble) < 0) {
		log_error("job %s: %s", job->id, trouble.text);
		job->ended = 0;
		job->finish_at = deadline_after_ms(FINISH_AGAIN_MS);
		return -1;
	}
	give_back(jobs, job);
	job->stop = STOP_NOT;
	if (state == JOB_QUEUED) {
		log_warning("job %s: attempt %u: %s; it is tried again", job->id, job->attempt,
			why.text);
		return 0;
	}
	jobs_put_cleanup(jobs, job);
	unlink_job(&jobs->open, job);
	jobrecord_free(job);
	return 0;
}

/* As far as is known: whoever takes its locks away may be held up himself. */
static enum job_state conclude_fenced(struct job *job)
{
	const struct err *why = job->is_looking ? &job->look_why : &job->stop_why;
	if (job->is_made) {
		snprintf(job->note, sizeof job->note,
			"its process %d made the restore point, and does not end",
			(int)job->process.pid);
		finish_note_late_cancel(job);
		return JOB_DONE;
	}
	job->error = *why;
	err_hint(&job->error, "its process %d does not end, the kernel holds it",
		(int)job->process.pid);
	if (!job->is_fenced && (job->is_looking || look_is_needed(job, false, why)))
		err_hint(&job->error, "whether its restore point was made is not known yet");
	if (job->is_looking)
		return job->look_end;
	return why->code == ERR_CANCELLED ? JOB_CANCELLED : JOB_FAILED;
}

void finish_fenced(struct jobs *jobs, struct job *job)
{
	struct err trouble = ERR_INIT;
	job->owes |= supervise_has_snapshot(job);
	enum job_state state = conclude_fenced(job);
	job->ended = time(NULL);
	if (supervise_change(jobs, job, state, &trouble) < 0) {
		log_error("job %s: %s", job->id, trouble.text);
		job->ended = 0;
		return;
	}
	log_error("job %s: %s", job->id, state == JOB_DONE ? job->note : job->error.text);
	unlink_job(&jobs->open, job);
	job->next = jobs->unreaped;
	jobs->unreaped = job;
}

void finish_note_late_point(struct jobs *jobs, struct job *job)
{
	struct err trouble = ERR_INIT;
	if (!job->is_made || job->state == JOB_DONE || job->note[0])
		return;
	snprintf(job->note, sizeof job->note, "its restore point %s was made all the same",
		job->point);
	log_warning("job %s: %s", job->id, job->note);
	if (jobrecord_put(jobs, job, &trouble) < 0)
		log_warning("job %s: %s", job->id, trouble.text);
}

void finish_reaped(struct jobs *jobs, struct job *job)
{
	struct err trouble = ERR_INIT;
	finish_note_late_point(jobs, job);
	finish_keep_files(jobs, job);
	give_back(jobs, job);
	if (jobrecord_put(jobs, job, &trouble) < 0)
		log_warning("job %s: %s", job->id, trouble.text);
	log_warning("job %s: its process went at last", job->id);
	jobs_put_cleanup(jobs, job);
	unlink_job(&jobs->unreaped, job);
	jobrecord_free(job);
}
