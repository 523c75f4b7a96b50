"""What is measured, and which figures are compared with which: tables, and nothing else."""

from dataclasses import dataclass, replace

from load import Load
from peers import Limit, Proxy

HOUR = 3_600
# Buckets in use, neither full nor empty: 10 000 users ask more often than a token comes back, and have enough for a run.
IN_USE = Limit(hourly=HOUR, burst=1_000)
HOT = Limit(hourly=50 * HOUR, burst=10_000)
LEASED = replace(HOT, lease=100)
EMPTY = Limit(hourly=10 * HOUR, burst=10)
# A token that was taken is missing for the whole measurement, so that the store keeps the bucket.
LASTING = Limit(hourly=2, burst=1_000)
TEN_LIMITS = Limit(hourly=HOUR, burst=1_000)

USERS, HOT_USERS = 10_000, 100
FEW_KEYS, MANY_KEYS = 10_000, 1_000_000
MANY = 1_000
IDLE = 9_900

ONE_KEY = Load()
IN_TURN = Load("users", USERS)
HALF = Load(share=0.5)
HALF_IN_TURN = replace(IN_TURN, share=0.5)


@dataclass(frozen=True)
class Variant:
    """One of those that a scenario measures in turn. Its name begins with that of the proxy."""

    name: str
    proxy: Proxy
    load: Load = ONE_KEY
    place: str = "one"
    trial: str = "load"
    fault: str = ""  # of Redis, while it is measured: kill, stop
    fill: int = 0  # users that are in the store before
    idle: int = 0  # connections that keep silent
    round_trip: bool = False  # one to Redis is measured beside it


@dataclass(frozen=True)
class Goal:
    """The bound that is to be kept, on the ratio or on the figure itself: one of these."""

    ratio_max: float = None
    ratio_min: float = None
    value_max: float = None


@dataclass(frozen=True)
class Row:
    """A figure of one variant, beside that of another.

    Forms: cost = CPU time, compared by share and by beats; volume = bytes for CPU time, compared likewise; plain = as it is;
    added = what the figure is above that of the other, compared with a round trip to Redis.
    """

    subject: str
    against: str = ""
    figure: str = "cpu_us"
    form: str = "cost"
    goal: Goal = None


@dataclass(frozen=True)
class Scenario:
    name: str
    what: str
    variants: tuple
    rows: tuple
    runs_max: int = 99


NGINX = Proxy("nginx")
HAPROXY = Proxy("haproxy")
RATEGUARD = Proxy("rateguard")


def limited(kind, limit, **more):
    return Proxy(kind, limit=limit, redis=kind == "nginx-lua", **more)


def by_redis(limit, **more):
    return Proxy("rateguard", limit=limit, redis=True, **more)


def forward():
    variants = [Variant("nginx", NGINX), Variant("haproxy", HAPROXY), Variant("rateguard", RATEGUARD)]
    apart = [replace(each, name=each.name + ", apart", place="split") for each in variants]
    rows = [Row("haproxy", "nginx"), Row("rateguard", "nginx", goal=Goal(ratio_max=0.70))]
    rows += [Row(f"{name}, apart", "nginx, apart", figure, "plain")
             for figure in ("rps", "p99_us") for name in ("haproxy", "rateguard")]
    return Scenario("S1", "forward, no limit", (*variants, *apart), tuple(rows))


def in_memory():
    variants = (
        Variant("nginx limit_req", limited("nginx", IN_USE), IN_TURN),
        Variant("haproxy stick table", limited("haproxy", IN_USE), IN_TURN),
        Variant("rateguard memory:", limited("rateguard", IN_USE), IN_TURN))
    rows = (Row("haproxy stick table", "nginx limit_req"),
            Row("rateguard memory:", "nginx limit_req", goal=Goal(ratio_max=0.73)))
    return Scenario("S2a", "limited in memory, 10 000 users, all allowed", variants, rows)


def in_redis():
    variants = (
        Variant("nginx, no limit", NGINX, IN_TURN),
        Variant("nginx limit_req", limited("nginx", IN_USE), IN_TURN),
        Variant("nginx + Lua + Redis", limited("nginx-lua", IN_USE), IN_TURN),
        Variant("rateguard Redis", by_redis(IN_USE), IN_TURN))
    subject = "rateguard Redis"
    rows = (Row("nginx + Lua + Redis", "nginx limit_req"), Row(subject, "nginx, no limit", goal=Goal(ratio_max=1.0)),
            Row(subject, "nginx limit_req", goal=Goal(ratio_max=0.80)),
            Row(subject, "nginx + Lua + Redis", goal=Goal(ratio_max=0.42)),
            Row(subject, "nginx + Lua + Redis", "redis_us", "plain", Goal(value_max=10)),
            Row(subject, "nginx + Lua + Redis", "evalsha", "plain"))
    return Scenario("S2b", "limited by Redis, each request decided, 10 000 users, all allowed", variants, rows)


def leased():
    hot = Load("users", HOT_USERS)
    variants = (Variant("nginx limit_req", limited("nginx", HOT), hot), Variant("rateguard Redis", by_redis(HOT), hot),
                Variant("rateguard lease", by_redis(LEASED), hot))
    rows = (Row("rateguard Redis", "nginx limit_req"), Row("rateguard lease", "nginx limit_req", goal=Goal(ratio_max=0.73)),
            Row("rateguard lease", "rateguard Redis", "evalsha", "plain"))
    return Scenario("S2c", "limited by Redis, 100 hot keys, with leases of 100", variants, rows)


def denied():
    hot = Load(denied=True)
    variants = (
        Variant("nginx limit_req", limited("nginx", EMPTY), hot),
        Variant("haproxy stick table", limited("haproxy", EMPTY), hot),
        Variant("nginx + Lua + Redis", limited("nginx-lua", EMPTY), hot),
        Variant("rateguard memory:", limited("rateguard", EMPTY), hot),
        Variant("rateguard Redis", by_redis(EMPTY), hot))
    goals = {"rateguard memory:": Goal(ratio_max=0.68), "rateguard Redis": Goal(ratio_max=0.68)}
    rows = [Row(variant.name, "nginx limit_req", goal=goals.get(variant.name)) for variant in variants[1:]]
    return Scenario("S3", "one hot key, denied", variants, tuple(rows))


def store_failed():
    failed = by_redis(IN_USE)
    kinds = (("rateguard S1", RATEGUARD, ""), ("rateguard killed", failed, "kill"), ("rateguard stopped", failed, "stop"))
    variants = [Variant(name, proxy, IN_TURN, fault=fault) for name, proxy, fault in kinds]
    # Latency at saturation would be that of a queue whose length the load chooses.
    apart = [replace(each, name=each.name + ", apart", load=HALF_IN_TURN, place="paced") for each in variants]
    goal = Goal(ratio_max=1.03)
    rows = []
    for fault in ("killed", "stopped"):
        rows.append(Row(f"rateguard {fault}", "rateguard S1", goal=goal))
        rows.append(Row(f"rateguard {fault}, apart", "rateguard S1, apart", "p99_us", "plain", goal))
    return Scenario("S4", "Redis killed, or stopped by SIGSTOP, with on_failure = open", (*variants, *apart), tuple(rows))


def bodies():
    variants, rows = [], []
    proxies = (("nginx", NGINX), ("nginx tuned", replace(NGINX, tuned=True)), ("haproxy", HAPROXY),
               ("rateguard", RATEGUARD))
    down, up = Load(path="/big", connections=16), Load("upload", path="/upload", connections=16)
    for way, load in (("down", down), ("up", up)):
        variants += [Variant(f"{name}, {way}", proxy, load) for name, proxy in proxies]
        subject = f"rateguard, {way}"
        rows += [Row(f"{name}, {way}", f"nginx, {way}", "mb_per_cpu_s", "volume") for name, _ in proxies[1:]]
        rows.append(Row(subject, f"nginx tuned, {way}", "mb_per_cpu_s", "volume", Goal(ratio_min=1.1)))
        rows.append(Row(subject, f"haproxy, {way}", "mb_per_cpu_s", "volume", Goal(ratio_min=1.0)))
    return Scenario("S5", "bodies of 1 MiB, 16 connections", tuple(variants), tuple(rows), runs_max=3)


def idle():
    proxies = (("nginx", NGINX), ("haproxy", HAPROXY), ("rateguard", RATEGUARD))
    variants = [Variant(name, proxy, trial="idle", idle=IDLE) for name, proxy in proxies]
    rows = [Row("haproxy", "nginx", "rss_mib", "plain"),
            Row("rateguard", "nginx", "rss_mib", "plain", Goal(value_max=24)),
            Row("haproxy", "nginx", "idle_bytes", "plain"), Row("rateguard", "nginx", "idle_bytes", "plain")]
    what = "idle connections, 9 900 where so many files may be open"
    return Scenario("S6", what, tuple(variants), tuple(rows), runs_max=1)


def alone():
    single, keyed = Load(connections=1), Load("users", USERS, connections=1)
    proxies = (("nginx", NGINX, single), ("haproxy", HAPROXY, single), ("rateguard", RATEGUARD, single),
               ("nginx + Lua + Redis", limited("nginx-lua", IN_USE), keyed), ("rateguard Redis", by_redis(IN_USE), keyed))
    variants = [Variant(name, proxy, load, place="split") for name, proxy, load in proxies]
    rows = (Row("haproxy", "nginx", "p50_us", "plain"), Row("rateguard", "nginx", "p50_us", "plain", Goal(value_max=73)),
            Row("nginx + Lua + Redis", "nginx", "p50_us", "plain"),
            Row("rateguard Redis", "nginx + Lua + Redis", "p50_us", "plain", Goal(value_max=140)))
    return Scenario("S8", "one connection, apart", tuple(variants), rows)


def two_workers():
    variants = [Variant(f"{proxy.kind}, {number} worker{'s' * (number > 1)}", replace(proxy, workers=number),
                        Load(threads=2), place="two")
                for proxy in (NGINX, RATEGUARD) for number in (1, 2)]
    rows = (Row("nginx, 2 workers", "nginx, 1 worker"),
            Row("rateguard, 2 workers", "rateguard, 1 worker", goal=Goal(ratio_max=1.03)))
    return Scenario("S7", "two workers, the proxy on two processors", tuple(variants), rows)


def halved():
    # First the one of the gateway's that saturates first, or its decisions would be asked for beyond what it can do.
    variants = (
        Variant("rateguard Redis", by_redis(IN_USE), HALF_IN_TURN, place="paced", round_trip=True),
        Variant("nginx", NGINX, HALF, place="paced"), Variant("rateguard", RATEGUARD, HALF, place="paced"),
        Variant("nginx + Lua + Redis", limited("nginx-lua", IN_USE), HALF_IN_TURN, place="paced"))
    figures = (("p50_us", None), ("p99_us", Goal(ratio_max=1.0)))
    rows = [Row(name, "nginx", figure, "plain", goal if name.startswith("rateguard") else None)
            for figure, goal in figures for name in ("nginx + Lua + Redis", "rateguard", "rateguard Redis")]
    rows = [Row("rateguard Redis", "nginx", "rps", "plain"), *rows,
            Row("rateguard Redis", "rateguard", "p50_us", "added"),
            Row("rateguard Redis", "rateguard", "p99_us", "added", Goal(ratio_max=1.5)),
            Row("rateguard Redis", "nginx", "late_p99_us", "plain")]
    return Scenario("half", "at half of the rate that rateguard saturates at with Redis, apart",
                    variants, tuple(rows))


def growth():
    limits = dict(limit=TEN_LIMITS, limits=10)
    busy = Variant("rateguard, 1 route", RATEGUARD)
    variants = [
        busy, Variant("rateguard, 1 000 routes", replace(RATEGUARD, routes=MANY)),
        replace(busy, name="rateguard, 9 900 idle", idle=IDLE),
        Variant("rateguard, 10 limits", Proxy("rateguard", **limits), IN_TURN),
        Variant("rateguard, 10 limits of 1 000", Proxy("rateguard", other_limits=MANY - 10, **limits), IN_TURN)]
    rows = [Row("rateguard, 1 000 routes", busy.name), Row("rateguard, 10 limits of 1 000", "rateguard, 10 limits"),
            Row("rateguard, 9 900 idle", busy.name)]
    for store, proxy in (("memory:", limited("rateguard", LASTING, fills=True)), ("Redis", by_redis(LASTING, fills=True))):
        sizes = ((f"rateguard {store}, 10 000 keys", FEW_KEYS), (f"rateguard {store}, 1 000 000 keys", MANY_KEYS))
        variants += [Variant(name, proxy, Load("fresh", keys), fill=keys) for name, keys in sizes]
        rows.append(Row(sizes[1][0], sizes[0][0]))
    rows.append(Row("rateguard Redis, 1 000 000 keys", "rateguard Redis, 10 000 keys", "redis_us", "plain"))
    return Scenario("growth", "cost with what is not used", tuple(variants), tuple(rows), runs_max=3)


ALL = (forward(), in_memory(), in_redis(), leased(), denied(), store_failed(), bodies(), idle(), two_workers(), alone(),
       halved(), growth())


def named(name, program):
    """The name of a variant or row for another build of the gateway."""
    return name.replace("rateguard", program, 1) if name.startswith("rateguard") else name


def with_programs(scenario, programs):
    """Each build of the gateway in turn with the others, compared as the first one is, and with the first one."""
    variants, rows = [], []
    for variant in scenario.variants:
        builds = programs if variant.proxy.kind == "rateguard" else programs[:1]
        variants += [replace(variant, name=named(variant.name, program), proxy=replace(variant.proxy, program=program))
                     for program in builds]
    for row in scenario.rows:
        builds = programs if row.subject.startswith("rateguard") else programs[:1]
        rows += [replace(row, subject=named(row.subject, program), against=named(row.against, program))
                 for program in builds]
    first = dict.fromkeys((row.subject, row.figure, "plain" if row.form == "added" else row.form)
                          for row in scenario.rows if row.subject.startswith("rateguard"))
    rows += [Row(named(subject, program), subject, figure, form)
             for subject, figure, form in first for program in programs[1:]]
    return replace(scenario, variants=tuple(variants), rows=tuple(rows))


def without(scenario, peers):
    """What is left of a scenario where only these can take part."""
    variants = tuple(variant for variant in scenario.variants if variant.proxy.kind in peers)
    names = {variant.name for variant in variants}
    rows = tuple(row for row in scenario.rows if row.subject in names and row.against in names)
    return replace(scenario, variants=variants, rows=rows)


def placed(scenario, places):
    """What is left of it on a machine that has only these placements."""
    return replace(scenario, variants=tuple(variant for variant in scenario.variants if variant.place in places))
