#!/usr/bin/env bash
# How many commands a worker sends to Redis in one write as the load grows, and what a request and a decision cost then.
#
#     bench/store_pipelining.sh [DIRECTORY]
#
# One gateway with one worker (release build), Redis, `rateguard backend` and wrk, over loopback. Two placements: `one` =
# everything on one processor, which is then saturated; `apart` = the gateway alone on one, all others on another.
# ROUNDS (5) times SECONDS_EACH (2) for each number of connections in CONNECTIONS; rounds interleaved. All allowed, 10 000 users in
# turn. Writes raw.csv, one line a run, and summary.md into the directory. Needs redis-server, wrk, curl, taskset, python3.
set -euo pipefail
cd "$(dirname "$0")/.."

out=${1:-bench/runs/$(date +%F)-store-pipelining}
rounds=${ROUNDS:-5}
seconds=${SECONDS_EACH:-2}
connections=${CONNECTIONS:-1 8 32 128 512}
program=${PROGRAM:-target/release/rateguard}
[[ -x $program ]] || nice -n 10 cargo build --release

folder=$(mktemp -d)
processes=()
stop() {
  for process in "${processes[@]}"; do
    kill "$process" 2>/dev/null || true
    wait "$process" 2>/dev/null || true
  done
  processes=()
}
trap 'stop; rm -rf "$folder"' EXIT

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

until_true() {
  for _ in $(seq 500); do
    if "$@" >"$folder/probe" 2>&1; then return; fi
    sleep 0.02
  done
  echo "waited in vain: $*" >&2
  exit 1
}

processors=($(python3 -c 'import os; print(*sorted(os.sched_getaffinity(0)))'))
first=${processors[0]} last=${processors[-1]}

cat >"$folder/users.lua" <<'LUA'
local heads, turn = {}, 0
function init()
  for user = 1, 10000 do
    heads[user] = wrk.format("GET", "/api/data", { ["X-API-Key"] = string.format("user-%05d", user) })
  end
end
function request()
  turn = turn % 10000 + 1
  return heads[turn]
end
function done(summary)
  local e = summary.errors
  print("COUNTS " .. summary.requests .. " " .. summary.duration .. " "
    .. e.connect + e.read + e.write + e.timeout .. " " .. e.status)
end
LUA

# Starts Redis, backend and gateway; the gateway on the first processor given, the rest on the second.
start() {
  redis_port=$(free_port)
  taskset -c "$2" redis-server --port "$redis_port" --bind 127.0.0.1 --save '' --appendonly no --dir "$folder" >"$folder/redis.log" &
  redis=$!
  processes+=("$redis")
  backend_port=$(free_port)
  taskset -c "$2" "$program" backend --listen "127.0.0.1:$backend_port" >"$folder/backend.log" 2>&1 &
  processes+=("$!")
  gateway_port=$(free_port)
  admin_port=$(free_port)
  cat >"$folder/config.toml" <<TOML
[server]
listen = ["127.0.0.1:$gateway_port"]
workers = 1
[admin]
listen = "127.0.0.1:$admin_port"
[store]
url = "redis://127.0.0.1:$redis_port"
# Far away: a busy machine must not make decisions fail where that is not the subject.
deadline = "1s"
[upstreams.api]
servers = ["127.0.0.1:$backend_port"]
[[routes]]
path = "/"
upstream = "api"
[[limits]]
name = "per-user"
by = ["user", "endpoint"]
rate = "100/s"
burst = 100000
TOML
  until_true redis-cli -p "$redis_port" ping
  until_true curl -sf "http://127.0.0.1:$backend_port/healthz"
  taskset -c "$1" "$program" run --config "$folder/config.toml" >"$folder/gateway.log" 2>&1 &
  gateway=$!
  processes+=("$gateway")
  until_true curl -sf "http://127.0.0.1:$admin_port/readyz"
}

# Writes, commands, decisions without the store; CPU of the gateway in ticks; CPU of Redis in seconds.
counts() {
  curl -sf "http://127.0.0.1:$admin_port/metrics" | awk '
    /^rateguard_store_writes_total / { writes = $2 }
    /^rateguard_store_commands_total / { commands = $2 }
    /^rateguard_store_errors_total/ { errors += $2 }
    END { printf "%d %d %d ", writes, commands, errors }'
  awk '{ printf "%d ", $14 + $15 }' "/proc/$gateway/stat"
  redis-cli -p "$redis_port" info cpu | tr -d '\r' | awk -F: '
    /^used_cpu_(sys|user)_main_thread/ { cpu += $2 } END { printf "%.6f\n", cpu }'
}

busy() {
  awk '/^cpu / { print $2 + $3 + $4 + $7 + $8 + $9 }' /proc/stat
}

mkdir -p "$out"
raw=$out/raw.csv
echo "placement,connections,round,io,requests,seconds,failed,writes,commands,store_errors,gateway_s,redis_s,machine_busy_s" >"$raw"
tick=$(getconf CLK_TCK)
for placement in one apart; do
  if [[ $placement == apart && $first == "$last" ]]; then continue; fi
  case $placement in
    one) start "$last" "$last" ;;
    apart) start "$first" "$last" ;;
  esac
  io=$(curl -sf "http://127.0.0.1:$admin_port/metrics" | sed -n 's/^rateguard_build_info.*io="\([^"]*\)".*/\1/p')
  load() {
    taskset -c "$last" wrk -t1 -c"$1" -d"$2" -s "$folder/users.lua" "http://127.0.0.1:$gateway_port/" | awk '/^COUNTS/ { print $2, $3, $4, $5 }'
  }
  load 64 1s >"$folder/warm"
  for round in $(seq "$rounds"); do
    for number in $connections; do
      echo "$placement: $number connections, round $round of $rounds" >&2
      before=($(counts)) busy_before=$(busy)
      did=($(load "$number" "${seconds}s"))
      after=($(counts)) busy_after=$(busy)
      python3 - "$placement" "$number" "$round" "$io" "$tick" "${did[*]}" "${before[*]}" "${after[*]}" "$busy_before $busy_after" >>"$raw" <<'PY'
import sys
placement, number, turn, io, tick = sys.argv[1:6]
did, before, after, busy = ([float(x) for x in text.split()] for text in sys.argv[6:])
d = [b - a for a, b in zip(before, after)]
print(placement, number, turn, io, int(did[0]), f"{did[1] / 1e6:.3f}", int(did[2] + did[3]), int(d[0]), int(d[1]), int(d[2]),
      f"{d[3] / float(tick):.2f}", f"{d[4]:.4f}", f"{(busy[1] - busy[0]) / float(tick):.2f}", sep=",")
PY
    done
  done
  stop
done

python3 - "$raw" "$rounds" "$seconds" "$(redis-server --version | cut -d' ' -f1-3)" "$(wrk -v 2>&1 | head -1 | cut -d' ' -f1-2)" \
  "$(git rev-parse --short HEAD)" >"$out/summary.md" <<'PY'
import csv, platform, statistics, sys
raw, rounds, seconds, redis, wrk, commit = sys.argv[1:]
rows = list(csv.DictReader(open(raw)))
# wrk cannot end such a run in time: its processor was somebody else's.
starved = [row for row in rows if float(row["seconds"]) > 1.25 * float(seconds)]

def spread(values, digits):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"

print("Median (least–most) of the rounds.\n")
print("| placement | connections | requests/s | commands per write | gateway CPU a request, us | Redis CPU a decision, us |")
print("|---|---|---|---|---|---|")
for cell in dict.fromkeys((row["placement"], row["connections"]) for row in rows):
    of = [{name: float(value) for name, value in row.items() if name not in ("placement", "io")}
          for row in rows if (row["placement"], row["connections"]) == cell and row not in starved]
    if not of:
        continue
    print("| {} | {} | {} | {} | {} | {} |".format(
        *cell,
        spread([r["requests"] / r["seconds"] for r in of], 0),
        spread([r["commands"] / r["writes"] for r in of], 2),
        spread([r["gateway_s"] / r["requests"] * 1e6 for r in of], 1),
        spread([r["redis_s"] / r["commands"] * 1e6 for r in of], 1)))
total = {name: sum(float(row[name]) for row in rows if row not in starved) for name in ("failed", "store_errors", "requests", "commands")}
print(f"\n{total['requests']:.0f} requests, {total['commands']:.0f} commands; answers that failed: {total['failed']:.0f}; "
      f"decisions that the store did not give: {total['store_errors']:.0f}.")
print(f"Left out: {len(starved)} of {len(rows)} runs, which took over 1.25 of their time because the machine was taken away.")
model = [line.partition(":")[2].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
print(f"\n`bench/store_pipelining.sh`, {rounds} rounds of {seconds} s, commit {commit}; {redis}; {wrk}; driver {rows[0]['io']}; "
      f"{platform.system()} {platform.release().split('-')[0]}; {len(model)} × {model[0]}.")
PY
cat "$out/summary.md"
