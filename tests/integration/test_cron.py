"""When schedules are due, against an independent model: random fields, zones and times."""

import datetime
import os
import random
import zoneinfo

import pytest

from support import SENDENSE, run

TOOL = os.path.join(os.environ.get("SENDENSE_BUILD", os.path.dirname(SENDENSE) + "/../.."),
                    "tests/tools/cron_next")
QUESTIONS = 3000
COUNT = 4
MINUTE = datetime.timedelta(minutes=1)
DAY = datetime.timedelta(days=1)
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
ODD_ZONES = ("UTC", "Europe/Berlin", "Europe/Dublin", "America/New_York", "America/St_Johns",
             "Australia/Lord_Howe", "Pacific/Apia", "Africa/Casablanca", "Antarctica/Troll",
             "Asia/Kathmandu", "America/Sao_Paulo", "Asia/Gaza", "America/Scoresbysund",
             "America/Havana", "Asia/Beirut", "Pacific/Kwajalein")
MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()
WEEKDAYS = "sun mon tue wed thu fri sat".split()
BOUNDS = ((0, 59, None), (0, 23, None), (1, 31, None), (1, 12, MONTHS), (0, 7, WEEKDAYS))

pytestmark = pytest.mark.skipif(not os.path.exists(TOOL), reason="tests/tools are not built")


# --- the model: sets of values, and a walk over the wall clock's minutes -----------------


def random_field(rng, least, most, words):
    """A field's text and the set of its values."""
    if rng.random() < (0.6 if most in (12, 7, 31) else 0.25):
        return "*", set(range(least, most + 1))

    def name(value):
        if words and rng.random() < 0.5 and value - least < len(words):
            word = words[value - least]
            return rng.choice((word, word.upper(), word.title()))
        return str(value)
    texts, values = [], set()
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        kind = rng.random()
        if kind < 0.5:
            value = rng.randint(least, most)
            texts.append(name(value))
            values.add(value)
            continue
        step = rng.choice((1, 2, 3, 5, 7, most)) if kind < 0.8 else 1
        suffix = f"/{step}" if step > 1 else ""
        if rng.random() < 0.3:
            texts.append("*" + (suffix or "/1"))
            values |= set(range(least, (6 if most == 7 else most) + 1, step))
        else:
            first, last = sorted((rng.randint(least, most), rng.randint(least, most)))
            texts.append(f"{name(first)}-{name(last)}{suffix}")
            values |= set(range(first, last + 1, step))
    return ",".join(texts), values


class Fields:
    def __init__(self, rng):
        parsed = [random_field(rng, *bounds) for bounds in BOUNDS]
        self.text = " ".join(text for text, _ in parsed)
        self.minutes, self.hours, self.days, self.months, weekdays = (v for _, v in parsed)
        self.weekdays = {value % 7 for value in weekdays}
        self.either = not parsed[2][0].startswith("*") and not parsed[4][0].startswith("*")

    def day_matches(self, day):
        if day.month not in self.months:
            return False
        by_month, by_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return by_month or by_week if self.either else by_month and by_week

    def possible(self):
        """There is such a day in 30 years (29 February, on any weekday)."""
        if self.either:
            return True
        day = datetime.date(2000, 1, 1)
        return any(self.day_matches(day + n * DAY) for n in range(30 * 366))


def moment_of(wall, zone):
    """The first moment at which the wall clock shows it, or the end of the gap."""
    while True:
        moment = wall.replace(tzinfo=zone, fold=0).astimezone(datetime.timezone.utc)
        if moment.astimezone(zone).replace(tzinfo=None) == wall:
            return int((moment - EPOCH).total_seconds())
        wall += MINUTE


def by_the_wall(fields, zone, after):
    day = datetime.datetime.fromtimestamp(after, zone).date() - DAY
    while True:
        if fields.day_matches(day):
            for hour in sorted(fields.hours):
                for minute in sorted(fields.minutes):
                    wall = datetime.datetime(day.year, day.month, day.day, hour, minute)
                    moment = moment_of(wall, zone)
                    if moment > after:
                        return moment
        day += DAY


def by_the_hour(fields, zone, after):
    moment = after - after % 60 + 60
    while True:
        wall = datetime.datetime.fromtimestamp(moment, zone)
        if fields.day_matches(wall.date()):
            if wall.minute in fields.minutes:
                return moment
            moment += 60
        else:
            moment += 60 * (15 - wall.minute % 15)


def model(fields, zone, after):
    if fields.hours == set(range(24)):
        return by_the_hour(fields, zone, after)
    return by_the_wall(fields, zone, after)


def changes(zone):
    """Moments near which the zone's clocks change, in the years that are asked about."""
    found, moment = [], datetime.datetime(1980, 1, 1, tzinfo=datetime.timezone.utc)
    offset = moment.astimezone(zone).utcoffset()
    while moment.year < 2060:
        moment += 7 * DAY
        now = moment.astimezone(zone).utcoffset()
        if now != offset:
            found.append(int((moment - EPOCH).total_seconds()) - 7 * 86400)
        offset = now
    return found


def ask(lines):
    done = run(TOOL, stdin="".join(line + "\n" for line in lines).encode())
    return done.out.splitlines()


# --- tests -------------------------------------------------------------------------------


def test_thousands_of_schedules():
    zones = sorted(name for name in zoneinfo.available_timezones()
                   if os.path.exists(f"/usr/share/zoneinfo/{name}") and name != "localtime"
                   and not name.startswith("right/"))
    if not zones:
        pytest.skip("no time zones are installed")
    seed = int(os.environ.get("SENDENSE_SEED", random.randrange(10**9)))
    print(f"SENDENSE_SEED={seed}")
    rng = random.Random(seed)
    pool = set(ODD_ZONES) | set(rng.sample(zones, 20))
    near = {name: changes(zoneinfo.ZoneInfo(name)) for name in sorted(pool)}
    questions, nr_near = [], 0
    while len(questions) < QUESTIONS:
        name = rng.choice(sorted(pool))
        fields = Fields(rng)
        if near[name] and rng.random() < 0.7:
            after = rng.choice(near[name]) + rng.randrange(-86400, 8 * 86400)
            nr_near += 1
        else:
            after = rng.randrange(320000000, 2900000000)
        questions.append((name, after, fields))
    answers = ask(f"{name} {after} {COUNT} {fields.text}" for name, after, fields in questions)
    assert len(answers) == QUESTIONS
    nr_refused = 0
    for (name, after, fields), answer in zip(questions, answers):
        case = f"seed {seed}: {fields.text!r} {name} {after}: {answer}"
        if answer.startswith("error"):
            assert "never due" in answer and not fields.possible(), case
            nr_refused += 1
            continue
        zone = zoneinfo.ZoneInfo(name)
        for moment in answer.split():
            # Years ahead the model would be slow: there it is asked near the answer only.
            if int(moment) - after > 400 * 86400:
                wall = datetime.datetime.fromtimestamp(int(moment), zone)
                assert fields.day_matches(wall.date()), case
                break
            after = model(fields, zone, after)
            assert int(moment) == after, case
    assert nr_near > QUESTIONS / 3 and nr_refused < QUESTIONS / 10


def utc(text):
    return int(datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.timezone.utc)
               .timestamp())


@pytest.mark.parametrize("zone, fields, after, expected", [
    # 29 March 2026: 02:00 to 03:00 does not exist; due at its end, once.
    ("Europe/Berlin", "30 2 * * *", "2026-03-28 12:00", ["2026-03-29 01:00", "2026-03-30 00:30"]),
    ("Europe/Berlin", "0,15,30 2 * * *", "2026-03-29 00:00",
     ["2026-03-29 01:00", "2026-03-30 00:00"]),
    # 25 October 2026: 02:00 to 03:00 comes twice.
    ("Europe/Berlin", "30 2 * * *", "2026-10-24 12:00", ["2026-10-25 00:30", "2026-10-26 01:30"]),
    # What is due in every hour is due in every hour that passes.
    ("Europe/Berlin", "30 * * * *", "2026-10-25 00:00",
     ["2026-10-25 00:30", "2026-10-25 01:30", "2026-10-25 02:30"]),
    ("Europe/Berlin", "30 * * * *", "2026-03-29 00:00",
     ["2026-03-29 00:30", "2026-03-29 01:30", "2026-03-29 02:30"]),
    # A day that does not exist at all.
    ("Pacific/Apia", "0 5 30 12 *", "2011-12-01 00:00", ["2011-12-30 10:00", "2012-12-29 15:00"]),
    ("UTC", "0 0 29 2 *", "2096-03-01 00:00", ["2104-02-29 00:00"]),
    ("UTC", "0 0 29 2 */7", "2088-03-01 00:00", ["2128-02-29 00:00"]),
    ("UTC", "@weekly", "2026-11-22 00:00", ["2026-11-29 00:00"]),
    ("UTC", "0 0 13 * fri", "2026-11-01 00:00", ["2026-11-06 00:00", "2026-11-13 00:00"]),
    ("UTC", "0 0 */2 * fri", "2026-11-01 00:00", ["2026-11-13 00:00", "2026-11-27 00:00"]),
])
def test_chosen_moments(zone, fields, after, expected):
    answer = ask([f"{zone} {utc(after)} {len(expected)} {fields}"])[0]
    assert [int(n) for n in answer.split()] == [utc(text) for text in expected]
