local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

-- One request: its buckets are KEYS[first + 1] to KEYS[first + count], its arguments begin behind ARGV[at].
local function decide(first, count, at, back)
  local levels, lasts, outs = {}, {}, {}
  local allowed, may_come_back = true, false
  for i = 1, count do
    local key, of = KEYS[first + i], at + (i - 1) * 5
    local capacity, refill, token = ARGV[of + 1] + 0, ARGV[of + 2] + 0, ARGV[of + 3] + 0
    local units, last = capacity, now
    local stored = redis.pcall('GET', key)
    if stored then
      if type(stored) == 'table' then
        return stored
      end
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
        if t == token then
          outs[i] = { till + 0, current + 0, prior + 0 }
        end
      end
    end
    levels[i], lasts[i] = units, last
    if units < ARGV[of + 4] + 0 and ARGV[of + 5] == '1' then
      allowed = false
    end
  end
  if not allowed or back == '0' then
    for i = 1, count do
      if levels[i] < ARGV[at + (i - 1) * 5 + 4] + 0 then
        levels[i] = -1 - levels[i]
      end
    end
    if may_come_back then
      levels[count + 1] = -1
    end
    return levels
  end
  for i = 1, count do
    local key, of = KEYS[first + i], at + (i - 1) * 5
    local units, cost = levels[i], ARGV[of + 4] + 0
    if units < cost then
      levels[i] = -1 - units
    else
      units = units - cost
      local capacity, out = ARGV[of + 1] + 0, outs[i]
      levels[i] = units
      local state = string.format('%.0f %.0f %s', units, lasts[i], ARGV[of + 3])
      local full_in_ms = math.ceil((capacity - units) / ARGV[of + 2] / 1000) + 1
      local set = redis.pcall('SET', key, state, 'PX', string.format('%.0f', full_in_ms))
      if set.err then return set end
    end
  end
  return levels
end

local answers, key, at, asked = {}, 0, 0, 0
while ARGV[at + 1] do
  local count, back = ARGV[at + 1] + 0, ARGV[at + 2]
  asked = asked + 1
  answers[asked] = decide(key, count, at + 2, back)
  key, at = key + count, at + 2 + 5 * count
end
return answers
