-- What wrk sends for bench/run, and what it tells: wrk -s bench/load.lua URL -- MODE [USERS]
--   key     one API key, one request made beforehand
--   users   USERS API keys in turn, their requests made beforehand
--   fresh   the same, each request made as it is sent: for more users than there is room for
--   upload  POST of 1 MiB with one key
-- The last line is a JSON object: answers, microseconds, percentiles, and what was no answer of 200 to 399.
local UPLOAD_BYTES = 1024 * 1024

local function with_key(number)
  wrk.headers["X-API-Key"] = "user-" .. number
  return wrk.format()
end

local function in_turn(users)
  local requests, last = {}, 0
  for number = 1, users do
    requests[number] = with_key(number)
  end
  return function()
    last = last % users + 1
    return requests[last]
  end
end

local function made_when_sent(users)
  local before, after = string.match(with_key("@"), "^(.*)@(.*)$")
  local last = 0
  return function()
    last = last % users + 1
    return before .. last .. after
  end
end

function init(arguments)
  local mode, users = arguments[1], tonumber(arguments[2] or "1")
  if mode == "users" then
    request = in_turn(users)
  elseif mode == "fresh" then
    request = made_when_sent(users)
  else
    if mode == "upload" then
      wrk.method, wrk.body = "POST", string.rep("x", UPLOAD_BYTES)
    end
    -- Where there is no function, wrk sends what it has made of its fields once.
    with_key(1)
  end
end

function done(summary, latency)
  local errors = summary.errors
  local told = '{"requests":%d,"duration_us":%d,"bytes":%d,"p50_us":%d,"p99_us":%d,"refused":%d,"broken":%d}\n'
  io.write(string.format(told, summary.requests, summary.duration, summary.bytes, latency:percentile(50),
    latency:percentile(99), errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
