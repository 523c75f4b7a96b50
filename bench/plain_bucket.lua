-- lua/token_bucket.lua without leases: what bench/store_layouts.py exchanges the state of.
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
