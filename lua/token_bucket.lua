-- Charges every token bucket of one request, or none of them; where asked to, leases further tokens of them.
--
-- KEYS: the buckets. ARGV: five whole numbers for each key, in the same order:
--   capacity  units of a full bucket        refill  units gained in a microsecond
--   token     units of one token            cost    units that this request takes
--   enforce   1: too few units deny the request; 0: shadow, it is only counted
-- Then, where there are leases to ask for, `back`: the microseconds in which leased units may come back, the same in
-- every call; and three whole numbers for each key:
--   want      units to take beyond the cost, a multiple of it; 0 for none
--   granted   when the asker's last lease of this key was granted, and
--   settled   how many units it was of, none of which is left; 0 for none
-- Or, alone behind the five, a `back` of 0: nothing is charged, it is only asked whether it could be.
-- Answers one number for each key: the units it holds now, or -1 - units where it did not hold the cost.
-- The request is allowed where no enforced bucket is negative; only then was anything charged.
-- Behind the levels: where it is denied while units may come back to one of the buckets, -1 (the denial is not to be
-- remembered); where it is allowed and leases were asked for, the time of the charge, for each key the units leased,
-- and for each key the units that others may have on lease.
--
-- Time is the server's, and a bucket's clock never runs backwards, so no client's clock matters. Every number is a
-- whole one below 2^53, where doubles are exact. A missing key is a full bucket: the time to live is the time to full,
-- and no shorter than that of leases.
-- State: "units last token", last in microseconds, token to notice that the limit has changed; while units may be out
-- on lease, "units last token until current prior": those granted after until - 2 back, and those before.
-- Plain Lua 5.1 and plain commands only. limit/bucket.rs and limit/out.rs are this script's twins.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local count = #KEYS
local back = ARGV[count * 5 + 1]
local levels, lasts, outs = {}, {}, nil
local allowed, may_come_back = true, false

for i = 1, count do
  local key, at = KEYS[i], (i - 1) * 5
  local capacity, refill, token = ARGV[at + 1] + 0, ARGV[at + 2] + 0, ARGV[at + 3] + 0
  local units, last = capacity, now
  local stored = redis.call('GET', key)
  if stored then
    local u, l, t = string.match(stored, '^(%d+) (%d+) ([1-9]%d*)$')
    local till, current, prior
    if not u then
      u, l, t, till, current, prior = string.match(stored, '^(%d+) (%d+) ([1-9]%d*) (%d+) (%d+) (%d+)$')
      if not u then
        return redis.error_reply('WRONGTYPE ' .. key .. ' does not hold a token bucket')
      end
    end
    units, last, t = u + 0, l + 0, t + 0
    if t ~= token then
      units = math.floor(units / t) * token
    end
    if units > capacity then
      units = capacity
    end
    if now > last then
      local gained = (now - last) * refill
      last = now
      if gained >= capacity - units then
        units = capacity
      else
        units = units + gained
      end
    end
    if till and till + 0 >= last then
      may_come_back = true
      -- Units on lease under another limit are not kept, so they cannot come back once this is written.
      if t == token then
        outs = outs or {}
        outs[i] = { till + 0, current + 0, prior + 0 }
      end
    end
  end
  levels[i], lasts[i] = units, last
  if units < ARGV[at + 4] + 0 and ARGV[at + 5] == '1' then
    allowed = false
  end
end

if not allowed or back == '0' then
  for i = 1, count do
    if levels[i] < ARGV[(i - 1) * 5 + 4] + 0 then
      levels[i] = -1 - levels[i]
    end
  end
  if may_come_back then
    levels[count + 1] = -1
  end
  return levels
end

local leases, besides
if back then
  leases, besides = {}, {}
end
for i = 1, count do
  local key, at = KEYS[i], (i - 1) * 5
  local units, cost = levels[i], ARGV[at + 4] + 0
  if back then
    leases[i], besides[i] = 0, 0
  end
  if units < cost then
    levels[i] = -1 - units
  else
    units = units - cost
    local capacity, out = ARGV[at + 1] + 0, outs and outs[i]
    -- A bucket whose clock is ahead of the server's leases nothing: its time is not that of the reply.
    if back and lasts[i] == now then
      local asked = count * 5 + 1 + (i - 1) * 3
      local want, granted, settled = ARGV[asked + 1] + 0, ARGV[asked + 2] + 0, ARGV[asked + 3] + 0
      out = out or { now + 2 * back - 1, 0, 0 }
      if now > out[1] - back then
        out = { out[1] + back, 0, out[2] }
      end
      if settled > 0 and now - granted <= back + 0 then
        local which = granted > out[1] - 2 * back and 2 or 3
        out[which] = math.max(out[which] - settled, 0)
      end
      besides[i] = out[2] + out[3]
      -- Never the last tokens, and none that would have overflowed.
      if units + besides[i] <= capacity then
        local half = math.floor(units / 2)
        leases[i] = math.min(want, half - math.fmod(half, cost))
        units = units - leases[i]
        out[2] = out[2] + leases[i]
      end
      if out[2] + out[3] == 0 then
        out = nil
      end
    end
    levels[i] = units
    local state = string.format('%.0f %.0f %s', units, lasts[i], ARGV[at + 3])
    local full_in_ms = math.ceil((capacity - units) / ARGV[at + 2] / 1000) + 1
    if out then
      state = string.format('%s %.0f %.0f %.0f', state, out[1], out[2], out[3])
      full_in_ms = math.max(full_in_ms, math.ceil((out[1] - lasts[i]) / 1000) + 1)
    end
    redis.call('SET', key, state, 'PX', full_in_ms)
  end
end
if back then
  levels[count + 1] = now
  for i = 1, count do
    levels[count + 1 + i] = leases[i]
    levels[2 * count + 1 + i] = besides[i]
  end
end
return levels
