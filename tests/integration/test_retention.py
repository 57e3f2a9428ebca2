"""Retention against an independent model: random schedules, rules and time zones."""

import datetime
import os
import random
import zoneinfo

import pytest

from support import SENDENSE, run

TOOL = os.path.join(os.environ.get("SENDENSE_BUILD", os.path.dirname(SENDENSE) + "/../.."),
                    "tests/tools/retention")
SCHEDULES = 10000
RULES = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
ODD_ZONES = ("UTC", "Europe/Berlin", "Europe/Dublin", "America/New_York", "America/St_Johns",
             "Australia/Lord_Howe", "Pacific/Apia", "Africa/Casablanca", "Antarctica/Troll",
             "Asia/Kathmandu", "America/Sao_Paulo", "Asia/Gaza", "America/Scoresbysund")
SPACINGS = (61, 900, 3600, 7200, 86400, 3 * 86400, 7 * 86400, 31 * 86400)

pytestmark = pytest.mark.skipif(not os.path.exists(TOOL), reason="tests/tools are not built")


def period(rule, moment):
    iso = moment.isocalendar()
    return {"hourly": (moment.year, moment.month, moment.day, moment.hour),
            "daily": moment.date(),
            "weekly": (iso[0], iso[1]),
            "monthly": (moment.year, moment.month),
            "yearly": moment.year}[rule]


def model(policy, within, zone, times, held):
    """The set of what stays: in each period its newest, of the newest so many periods."""
    kept = {times[-1]} | held | set(times[::-1][:policy["last"]])
    local = {t: datetime.datetime.fromtimestamp(t, zone) for t in times}
    for rule in RULES[1:]:
        newest = {}
        for t in times:
            newest[period(rule, local[t])] = t
        kept |= set(sorted(newest.values(), reverse=True)[:policy[rule]])
    return kept | {t for t in times if times[-1] - t < within}


def schedule(rng, zones):
    """Policy, within, zone's name, times, held ones."""
    policy = {rule: rng.choice((0, 0, 1, 2, 3, 7, rng.randrange(60))) for rule in RULES}
    within = rng.choice((0, 0, 0, rng.randrange(1, 40 * 86400)))
    if not any(policy.values()) and not within:
        policy["daily"] = 1
    name = rng.choice(ODD_ZONES) if rng.random() < 0.6 else rng.choice(zones)
    times, spacing = [rng.randrange(0, 2500000000)], rng.choice(SPACINGS)
    for _ in range(rng.randrange(rng.choice((2, 40, 80)))):
        times.append(times[-1] + 1 + int(rng.expovariate(1 / spacing)))
    held = {t for t in times if rng.random() < rng.choice((0, 0.1))}
    return policy, within, name, times, held


def decide(schedules):
    lines = []
    for policy, within, name, times, held in schedules:
        points = " ".join(f"{t}h" if t in held else str(t) for t in times)
        lines.append(f"{' '.join(str(policy[r]) for r in RULES)} {within} {name} {points}\n")
    done = run(TOOL, stdin="".join(lines).encode())
    return [block.splitlines() for block in done.out.split("\n\n")[:-1]]


def zone_names():
    return sorted(name for name in zoneinfo.available_timezones()
                  if os.path.exists(f"/usr/share/zoneinfo/{name}") and name != "localtime")


def test_ten_thousand_schedules():
    zones = zone_names()
    if not zones:
        pytest.skip("no time zones are installed")
    seed = int(os.environ.get("SENDENSE_SEED", random.randrange(10**9)))
    print(f"SENDENSE_SEED={seed}")
    rng = random.Random(seed)
    schedules = [schedule(rng, zones) for _ in range(SCHEDULES)]
    answers = decide(schedules)
    assert len(answers) == SCHEDULES
    nr_removed = 0
    for (policy, within, name, times, held), answer in zip(schedules, answers):
        expected = model(policy, within, zoneinfo.ZoneInfo(name), times, held)
        kept = {t for t, line in zip(times, answer) if line.startswith("keep ")}
        case = f"seed {seed}: {policy} within {within} {name} {times}"
        assert len(answer) == len(times) and kept == expected, case
        assert held <= kept and times[-1] in kept, case
        nr_removed += len(times) - len(kept)
    assert nr_removed > SCHEDULES  # the rules had something to do


def test_reasons():
    """Each rule that keeps a point is told, with its period."""
    def at(*moment):
        return int(datetime.datetime(*moment, tzinfo=datetime.timezone.utc).timestamp())
    times = [at(2025, 1, 2, 10), at(2026, 1, 3, 10), at(2026, 1, 4, 23, 30), at(2026, 1, 5, 0, 30),
             at(2026, 1, 5, 10)]
    none = dict.fromkeys(RULES, 0)
    answers = decide([
        ({**none, "last": 1, "daily": 2, "weekly": 2, "yearly": 9}, 0, "UTC", times, set()),
        ({**none, "daily": 2, "hourly": 1}, 0, "Europe/Berlin", times, {times[1]}),
        (none, 2 * 86400, "UTC", times, set()),
        (none, 0, "UTC", times, set()),
        ({**none, "last": 1}, 0, "Europe/Nowhere", times, set()),
        ({**none, "daily": 2}, 0, "CET-1CEST,M3.5.0,M10.5.0/3", times, set())])
    assert answers[0] == ["keep yearly 2025", "remove no rule keeps it",
                          "keep daily 2026-01-04, weekly 2026-W01", "remove no rule keeps it",
                          "keep last 1, daily 2026-01-05, weekly 2026-W02, yearly 2026"]
    assert answers[1] == ["remove no rule keeps it", "keep daily 2026-01-03",
                          "remove no rule keeps it", "remove no rule keeps it",
                          "keep hourly 2026-01-05 11h, daily 2026-01-05"]
    assert answers[2] == ["remove no rule keeps it"] * 2 + ["keep within 2d"] * 3
    assert answers[3] == ["error no rule says which restore points are to be kept"]
    assert "time zone \"Europe/Nowhere\" is unknown" in answers[4][0]
    assert answers[5] == answers[1][:4] + ["keep daily 2026-01-05"]


@pytest.mark.parametrize("zone", ["Europe/Berlin", ":Europe/Berlin", "/usr/share/zoneinfo/UTC",
                                  "", "EST5EDT", "<+0545>-5:45"])
def test_local_zone(zone):
    """The local zone is found as the C library finds it (Python asks that)."""
    times = [1700000000 + 3600 * i for i in range(100)]
    line = f"0 0 3 0 0 0 0 local {' '.join(map(str, times))}\n"
    environment = dict(os.environ, TZ=zone)
    answer = run(TOOL, stdin=line.encode(), env=environment).out.splitlines()[:-1]
    shown = run("/usr/bin/python3", "-c",
                "import sys, time\n"
                "for t in sys.argv[1:]: print(time.strftime('%F', time.localtime(int(t))))",
                *times, env=environment).out.split()
    newest = {}
    for t, day in zip(times, shown):
        newest[day] = t
    kept = {t for t, text in zip(times, answer) if text.startswith("keep")}
    assert kept == set(sorted(newest.values())[-3:])
