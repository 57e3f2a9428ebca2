/* Jobs as they are kept, and as they are shown; see job_internal.h. */
#include "job_internal.h"

#include "allow.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* --- made and freed ---------------------------------------------------------------------- */

static const char *text_in(const json_t *object, const char *name)
{
	return json_string_value(json_object_get(object, name));
}

static void copy_text(char *out, size_t bytes, const json_t *object, const char *name)
{
	const char *text = text_in(object, name);
	snprintf(out, bytes, "%s", text ? text : "");
}

/* A vCenter, or that of the first disk that is not on this machine. */
static void find_host(struct job *job)
{
	static const struct {
		const char *list, *name;
	} places[] = {{"disks", "source"}, {"targets", "target"}};
	const char *vcenter = text_in(job->spec, "vcenter");
	if (vcenter)
		snprintf(job->host, sizeof job->host, "%s", vcenter);
	for (size_t i = 0; i < ARRAY_LENGTH(places); i++) {
		size_t k;
		const json_t *disk;
		json_array_foreach(json_object_get(job->spec, places[i].list), k, disk)
		{
			const char *name = text_in(disk, places[i].name);
			if (name && !job->host[0])
				allow_host(name, job->host);
		}
	}
}

struct job *jobrecord_new(const json_t *spec, const char *requested_by, struct err *err)
{
	struct job *job = calloc(1, sizeof *job);
	json_t *copy = json_deep_copy(spec);
	if (!job || !copy) {
		free(job);
		json_decref(copy);
		err_errno(err, ENOMEM, "cannot make a job");
		return NULL;
	}
	job->spec = copy;
	job->kind = text_in(copy, "kind");
	job->repository = text_in(copy, "repository");
	job->vm = text_in(copy, "vm");
	job->process = job->fence = PROCESS_NONE;
	job->dir_fd = -1;
	job->created = time(NULL);
	snprintf(job->requested_by, sizeof job->requested_by, "%s", requested_by);
	json_int_t reserve = json_integer_value(json_object_get(copy, "reserve_bytes"));
	job->reserved_bytes = reserve > 0 ? (uint64_t)reserve : 0;
	find_host(job);
	return job;
}

void jobrecord_free(struct job *job)
{
	if (!job)
		return;
	process_drop(&job->process);
	process_drop(&job->fence);
	if (job->dir_fd >= 0)
		close(job->dir_fd);
	json_decref(job->spec);
	json_decref(job->progress);
	json_decref(job->disks);
	json_decref(job->held);
	free(job);
}

/* --- in state.db ---------------------------------------------------------------------------- */

static void put_text(json_t *object, const char *name, const char *text)
{
	json_t *value = text[0] ? json_string(text) : NULL;
	if (value)
		json_object_set_new(object, name, value);
}

static void put_error(json_t *object, const char *name, const struct err *why)
{
	if (why->code == ERR_NONE)
		return;
	json_t *text = json_string(why->text);
	json_object_set_new(object, name,
		json_pack("{s:s, s:o}", "code", err_code_name(why->code), "text",
			text ? text : json_string("(the text is no UTF-8)")));
}

static void get_error(const json_t *object, const char *name, struct err *why)
{
	const json_t *value = json_object_get(object, name);
	const char *code = text_in(value, "code"), *text = text_in(value, "text");
	if (code)
		err_set(why, err_code_parse(code, ERR_IO), "%s", text ? text : "");
}

/* All that has no column of its own. */
static json_t *value_of(const struct job *job)
{
	json_t *value = json_pack("{s:O, s:i, s:b}", "spec", job->spec, "attempt",
		(int)job->attempt, "foreign", job->is_foreign);
	put_text(value, "requested_by", job->requested_by);
	put_text(value, "retry_of", job->retry_of);
	put_text(value, "stage", job->stage);
	put_text(value, "stage_since", job->stage_since);
	put_text(value, "point", job->point);
	if (job->progress)
		json_object_set(value, "progress", job->progress);
	if (job->disks)
		json_object_set(value, "disks", job->disks);
	put_error(value, "error", &job->error);
	put_text(value, "note", job->note);
	if (job->owes)
		json_object_set_new(value, "owes", json_true());
	if (job->unsure)
		json_object_set_new(value, "unsure", json_true());
	if (job->is_looking) {
		json_object_set_new(value, "look_end", json_string(job_state_name(job->look_end)));
		put_error(value, "look_why", &job->look_why);
	}
	if (job->asked_to_cancel)
		put_error(value, "cancel", &job->stop_why);
	if (job->next_try > 0)
		json_object_set_new(value, "next_try", json_integer(job->next_try));
	if (job->process.pid > 0)
		json_object_set_new(value, "process", process_to_json(&job->process));
	return value;
}

static void record_of(const struct job *job, const json_t *value, struct state_job *record)
{
	*record = (struct state_job){
		.kind = job->kind,
		.state = job_state_name(job->state),
		.repository = job->repository,
		.vm = job->vm,
		.node = text_in(job->spec, "node"),
		.created = job->created,
		.started = job->started,
		.ended = job->ended,
		.value = value,
	};
	memcpy(record->id, job->id, sizeof record->id);
}

int jobrecord_put(struct jobs *jobs, const struct job *job, struct err *err)
{
	struct state_job record;
	json_t *value = value_of(job);
	if (!value)
		return err_errno(err, ENOMEM, "cannot note job %s", job->id);
	record_of(job, value, &record);
	int rc = state_job_put(jobs->options.state, &record, err);
	json_decref(value);
	return rc < 0 ? err_context(err, "cannot note job %s", job->id) : 0;
}

struct job *jobrecord_from(const struct state_job *record, json_t **process, struct err *err)
{
	const json_t *value = record->value, *spec = json_object_get(value, "spec");
	enum job_state state;
	if (!json_is_object(spec) || !text_in(spec, "kind") ||
		!job_state_parse(record->state, &state)) {
		err_set(err, ERR_CORRUPT, "job %s: its record is none", record->id);
		return NULL;
	}
	struct job *job = jobrecord_new(spec, "", err);
	if (!job)
		return NULL;
	memcpy(job->id, record->id, sizeof job->id);
	job->state = state;
	job->created = record->created;
	job->started = record->started;
	job->ended = record->ended;
	job->attempt = (unsigned)json_integer_value(json_object_get(value, "attempt"));
	job->is_foreign = json_is_true(json_object_get(value, "foreign"));
	copy_text(job->requested_by, sizeof job->requested_by, value, "requested_by");
	copy_text(job->retry_of, sizeof job->retry_of, value, "retry_of");
	copy_text(job->stage, sizeof job->stage, value, "stage");
	copy_text(job->stage_since, sizeof job->stage_since, value, "stage_since");
	copy_text(job->point, sizeof job->point, value, "point");
	job->progress = json_incref(json_object_get(value, "progress"));
	job->disks = json_incref(json_object_get(value, "disks"));
	get_error(value, "error", &job->error);
	copy_text(job->note, sizeof job->note, value, "note");
	job->owes = json_is_true(json_object_get(value, "owes"));
	job->unsure = json_is_true(json_object_get(value, "unsure"));
	const char *look_end = text_in(value, "look_end");
	job->is_looking = look_end && job_state_parse(look_end, &job->look_end);
	get_error(value, "look_why", &job->look_why);
	job->asked_to_cancel = json_object_get(value, "cancel") != NULL;
	get_error(value, "cancel", &job->stop_why);
	job->next_try = json_integer_value(json_object_get(value, "next_try"));
	*process = json_incref(json_object_get(value, "process"));
	return job;
}

/* --- as the API shows it ---------------------------------------------------------------------- */

static void show_text(json_t *out, const char *name, const char *text)
{
	json_object_set_new(out, name, text && text[0] ? json_string(text) : json_null());
}

static void show_time(json_t *out, const char *name, int64_t at)
{
	char text[CLOCK_UTC_BYTES];
	if (at > 0)
		clock_utc_text(at, text);
	show_text(out, name, at > 0 ? text : NULL);
}

static void show(json_t *out, const char *name, const json_t *value)
{
	json_object_set_new(out, name, value ? json_incref((json_t *)value) : json_null());
}

json_t *jobrecord_stored_json(const struct state_job *record)
{
	static const char *const of_others[] = {"vcenter", "machine", "hub_job", "node", "for_job"};
	const json_t *value = record->value, *spec = json_object_get(value, "spec");
	const char *point = text_in(value, "point");
	json_t *out = json_object();
	show_text(out, "id", record->id);
	show_text(out, "kind", record->kind);
	show_text(out, "state", record->state);
	show_text(out, "stage", text_in(value, "stage"));
	show_text(out, "stage_since", text_in(value, "stage_since"));
	show_text(out, "vm", record->vm);
	show_text(out, "repository", record->repository);
	show_text(out, "point", point ? point : text_in(spec, "point"));
	for (size_t i = 0; i < ARRAY_LENGTH(of_others); i++)
		if (text_in(spec, of_others[i]))
			show_text(out, of_others[i], text_in(spec, of_others[i]));
	show_time(out, "created", record->created);
	show_time(out, "started", record->started);
	show_time(out, "ended", record->ended);
	show(out, "progress", json_object_get(value, "progress"));
	show(out, "disks", json_object_get(value, "disks"));
	show(out, "attempt", json_object_get(value, "attempt"));
	show(out, "error", json_object_get(value, "error"));
	if (text_in(value, "note"))
		show_text(out, "note", text_in(value, "note"));
	show_text(out, "requested_by", text_in(value, "requested_by"));
	if (text_in(value, "retry_of"))
		show_text(out, "retry_of", text_in(value, "retry_of"));
	json_int_t next = json_integer_value(json_object_get(value, "next_try"));
	if (next > 0)
		show_time(out, "next_try", next);
	return out;
}

json_t *jobrecord_json(const struct job *job)
{
	struct state_job record;
	json_t *value = value_of(job);
	record_of(job, value, &record);
	json_t *out = jobrecord_stored_json(&record);
	json_decref(value);
	if (job->state == JOB_QUEUED && job->waits_for[0])
		show_text(out, "waits_for", job->waits_for);
	if (job->stop != STOP_NOT && !job_state_is_end(job->state))
		show_text(out, "stopping", job->stop_why.text);
	if (job_state_is_end(job->state) && job->process.pid > 0)
		json_object_set_new(
			out, "process_left", json_integer((json_int_t)job->process.pid));
	return out;
}

void jobrecord_tell(struct jobs *jobs, struct job *job)
{
	job->changes++;
	pthread_cond_broadcast(&jobs->changed);
	struct job_change *change = calloc(1, sizeof *change);
	if (!change)
		return;
	memcpy(change->id, job->id, sizeof change->id);
	change->state = job->state;
	change->json = jobrecord_json(job);
	*jobs->last = change;
	jobs->last = &change->next;
}
