-- Charges every token bucket of one request, or none of them.
--
-- KEYS: the buckets. ARGV: five whole numbers for each key, in the same order:
--   capacity  units of a full bucket        refill  units gained in a microsecond
--   token     units of one token            cost    units that this request takes
--   enforce   1: too few units deny the request; 0: shadow, it is only counted
-- Answers one number for each key: the units it holds now, or -1 - units where it did not hold the cost.
-- The request is allowed where no enforced bucket is negative; only then was anything charged.
--
-- Time is the server's, and a bucket's clock never runs backwards, so no client's clock matters. Every number is a
-- whole one below 2^53, where doubles are exact. A missing key is a full bucket: the time to live is the time to full.
-- State: "units last token", last in microseconds, token to notice that the limit has changed.
-- Plain Lua 5.1 and plain commands only. limit/bucket.rs is this script's twin.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local levels, lasts = {}, {}
local allowed = true

for i, key in ipairs(KEYS) do
  local at = (i - 1) * 5
  local capacity, refill, token = ARGV[at + 1] + 0, ARGV[at + 2] + 0, ARGV[at + 3] + 0
  local units, last = capacity, now
  local stored = redis.call('GET', key)
  if stored then
    local u, l, t = string.match(stored, '^(%d+) (%d+) ([1-9]%d*)$')
    if not u then
      return redis.error_reply('WRONGTYPE ' .. key .. ' does not hold a token bucket')
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
  end
  levels[i], lasts[i] = units, last
  if units < ARGV[at + 4] + 0 and ARGV[at + 5] == '1' then
    allowed = false
  end
end

for i, key in ipairs(KEYS) do
  local at = (i - 1) * 5
  local units, cost = levels[i], ARGV[at + 4] + 0
  if units < cost then
    levels[i] = -1 - units
  elseif allowed then
    units = units - cost
    levels[i] = units
    local full_in_ms = math.ceil((ARGV[at + 1] - units) / ARGV[at + 2] / 1000) + 1
    redis.call('SET', key, string.format('%.0f %.0f %s', units, lasts[i], ARGV[at + 3]), 'PX', string.format('%.0f', full_in_ms))
  end
end
return levels
