-- Gives back what is unspent of a lease that lua/token_bucket.lua has granted.
--
-- KEYS: the bucket. ARGV, whole numbers:
--   capacity, refill, token  as there
--   units    how many are given back           leased   how many the lease was of
--   level    what the bucket held right after the grant, with what others had on lease
--   granted  the time of the grant             back     the microseconds in which units may come back
-- Answers how many units came back. As a lease grows old its units are lost to it, since without it the bucket could
-- have been full: bucket and leases together never hold more than the capacity.
-- Plain Lua 5.1 and plain commands only. limit/out.rs is this script's twin.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local capacity, refill, token = ARGV[1] + 0, ARGV[2] + 0, ARGV[3] + 0
local unspent, leased, level, granted, back = ARGV[4] + 0, ARGV[5] + 0, ARGV[6] + 0, ARGV[7] + 0, ARGV[8] + 0
local stored = redis.call('GET', KEYS[1])
if not stored then
  return 0
end
local u, l, t, till, current, prior = string.match(stored, '^(%d+) (%d+) ([1-9]%d*) (%d+) (%d+) (%d+)$')
if not u or t + 0 ~= token then
  return 0
end
local units, last = u + 0, l + 0
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
local out = { till + 0, current + 0, prior + 0 }
local which = granted > out[1] - 2 * back and 2 or 3
local age = last - granted
-- What is not there has been settled, or belongs to a bucket that was removed.
if age < 0 or age > back or out[which] < leased then
  return 0
end
local lost = level + age * refill
local given = 0
if lost < capacity then
  given = math.min(unspent, capacity - lost, capacity - units)
end
units = units + given
out[which] = out[which] - leased
local state = string.format('%.0f %.0f %s', units, last, ARGV[3])
local full_in_ms = math.ceil((capacity - units) / refill / 1000) + 1
if out[2] + out[3] > 0 then
  state = string.format('%s %.0f %.0f %.0f', state, out[1], out[2], out[3])
  full_in_ms = math.max(full_in_ms, math.ceil((out[1] - last) / 1000) + 1)
end
redis.call('SET', KEYS[1], state, 'PX', full_in_ms)
return given
