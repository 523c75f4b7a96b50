-- A rate limit in nginx's access phase: one EVALSHA for each request, on connections that are kept. Where Redis gives no
-- answer within 50 ms, the request passes.
local TIMEOUT_MS, IDLE_MS, IDLE_CONNECTIONS = 50, 60000, 1000
local gate = {}
local host, port, before_key, after_key, load_script

local function bulk(text)
  text = tostring(text)
  return "$" .. #text .. "\r\n" .. text .. "\r\n"
end

function gate.prepare(redis_host, redis_port, path, digest, numbers)
  host, port = redis_host, redis_port
  local file = assert(io.open(path))
  load_script = "*3\r\n" .. bulk("SCRIPT") .. bulk("LOAD") .. bulk(file:read("*a"))
  file:close()
  before_key = "*" .. 4 + #numbers .. "\r\n" .. bulk("EVALSHA") .. bulk(digest) .. bulk(1)
  after_key = ""
  for _, number in ipairs(numbers) do
    after_key = after_key .. bulk(string.format("%d", number))
  end
end

-- The first number of an array, the text of a bulk string, or nothing and the error.
local function answer(socket)
  local line, err = socket:receive()
  if not line then
    return nil, err
  end
  local kind, rest = string.sub(line, 1, 1), string.sub(line, 2)
  if kind == "-" then
    return nil, rest
  elseif kind == "$" then
    return socket:receive(tonumber(rest) + 2)
  end
  local first
  for number = 1, tonumber(rest) do
    line, err = socket:receive()
    if not line then
      return nil, err
    end
    first = first or tonumber(string.sub(line, 2))
  end
  return first
end

local function ask(socket, key)
  local command = { before_key, bulk(key), after_key }
  socket:send(command)
  local level, err = answer(socket)
  if err and string.find(err, "^NOSCRIPT") then
    socket:send(load_script)
    if answer(socket) then
      socket:send(command)
      level, err = answer(socket)
    end
  end
  return level, err
end

function gate.pass()
  local socket = ngx.socket.tcp()
  socket:settimeout(TIMEOUT_MS)
  if not socket:connect(host, port) then
    return
  end
  local level = ask(socket, "gate:" .. (ngx.var.http_x_api_key or ngx.var.remote_addr))
  if not level then
    socket:close()
    return
  end
  socket:setkeepalive(IDLE_MS, IDLE_CONNECTIONS)
  if level < 0 then
    ngx.exit(429)
  end
end

return gate
