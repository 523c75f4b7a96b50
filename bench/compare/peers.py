"""What is compared, as configuration and command: backend, Redis, and the proxies."""

import hashlib
import os
from dataclasses import dataclass

from machine import HOUSE, LUA_MODULES
from processes import files_max

SCRIPT = HOUSE / "lua" / "token_bucket.lua"
GATE = HOUSE / "bench" / "compare" / "gate.lua"
BIG_BYTES = 1 << 20
ANSWER = ('{"id":4711,"name":"tea","origin":"Darjeeling","price":{"amount":12.5,"currency":"EUR"},'
          '"stock":86,"tags":["black","loose"]}')
# Above any number of connections that a measurement opens.
CONNECTIONS_MAX = 12_000
UNITS = 1_000_000
# nginx drops its rights to another user where it has them, and could not write into our folder then.
USER = "user root;" if os.geteuid() == 0 else ""


@dataclass(frozen=True)
class Limit:
    """A token bucket for each user: so many tokens an hour, so many at once."""

    hourly: int
    burst: int
    lease: int = 0

    @property
    def each_second(self):
        return self.hourly // 3_600


@dataclass(frozen=True)
class Proxy:
    """One of the compared, and what is asked of it."""

    kind: str  # rateguard, nginx, nginx-lua, haproxy
    limit: Limit = None
    redis: bool = False
    workers: int = 1
    tuned: bool = False  # nginx for large bodies
    routes: int = 1
    limits: int = 1  # rateguard: so many like `limit` match
    other_limits: int = 0  # rateguard: and so many do not
    fills: bool = False  # rateguard: answers /fill itself, limited as all else, to fill the store with users
    program: str = "rateguard"


NGINX_COMMON = """
  access_log off;
  tcp_nodelay on;
  keepalive_timeout 1h;
  keepalive_requests 2000000000;
  client_max_body_size 16m;
  client_body_temp_path {folder}/{name}-client;
  proxy_temp_path {folder}/{name}-proxy;
  fastcgi_temp_path {folder}/{name}-fastcgi;
  uwsgi_temp_path {folder}/{name}-uwsgi;
  scgi_temp_path {folder}/{name}-scgi;
"""


def nginx_file(folder, name, ahead, body):
    path = folder / f"{name}.conf"
    path.write_text(f"""daemon off;
pid {folder}/{name}.pid;
error_log stderr error;
{USER}
{ahead}
events {{ worker_connections 20000; }}
http {{
{NGINX_COMMON.format(folder=folder, name=name)}
{body}
}}
""")
    return ["nginx", "-p", str(folder), "-e", "stderr", "-c", str(path)]


def backend(folder, ports):
    """A short JSON, 1 MiB under /big, and /upload, which answers when it has taken the whole body."""
    (folder / "big").write_bytes(os.urandom(BIG_BYTES))
    # A request whose body is mirrored has been read to its end when the file is asked for, which refuses POST with 405.
    (folder / "upload").write_bytes(b"")
    body = f"""
  sendfile on;
  default_type application/json;
  server {{
    listen 127.0.0.1:{ports["backend"]} backlog=4096;
    location / {{ return 200 '{ANSWER}'; }}
    location = /big {{ root {folder}; }}
    location = /upload {{
      root {folder};
      client_body_buffer_size 2m;
      mirror /nowhere;
      error_page 405 =200 @taken;
    }}
    location = /nowhere {{ internal; return 204; }}
    location @taken {{ return 200 '{{"taken":true}}'; }}
  }}
"""
    return nginx_file(folder, "backend", "master_process off;", body)


def redis(folder, ports):
    return ["redis-server", "--port", str(ports["redis"]), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
            "--dir", str(folder)]


def nginx(proxy, folder, ports):
    zone, charge, gate_setup, ahead = "", "", "", f"worker_processes {proxy.workers};"
    if proxy.kind == "nginx-lua":
        ahead += "".join(f"\nload_module {module};" for module in LUA_MODULES)
        gate_setup, charge = lua_gate(proxy.limit, ports)
    elif proxy.limit:
        zone = (f"limit_req_zone $http_x_api_key zone=users:64m rate={proxy.limit.each_second}r/s;\n"
                "  limit_req_status 429;\n  limit_req_log_level info;")
        charge = f"limit_req zone=users burst={proxy.limit.burst} nodelay;"
    streaming = ("proxy_request_buffering off; proxy_max_temp_file_size 0; proxy_buffer_size 16k; "
                 "proxy_buffers 8 64k; proxy_busy_buffers_size 128k;") if proxy.tuned else ""
    body = f"""
  {zone}
  {gate_setup}
  upstream app {{
    server 127.0.0.1:{ports["backend"]};
    keepalive 1000;
    keepalive_requests 2000000000;
    keepalive_timeout 1h;
  }}
  server {{
    listen 127.0.0.1:{ports["proxy"]} backlog=4096{" reuseport" if proxy.workers > 1 else ""};
    location / {{
      {charge}
      {streaming}
      proxy_pass http://app;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
    }}
  }}
"""
    return nginx_file(folder, "proxy", ahead, body)


def lua_gate(limit, ports):
    """nginx asks Redis once a request, by the script and the numbers that the gateway asks with."""
    token = UNITS // limit.each_second
    setup = f"""lua_socket_log_errors off;
  lua_package_path "/usr/share/lua/5.1/?.lua;;";
  init_by_lua_block {{
    gate = dofile("{GATE}")
    gate.prepare("127.0.0.1", {ports["redis"]}, "{SCRIPT}", "{hashlib.sha1(SCRIPT.read_bytes()).hexdigest()}",
      {{{limit.burst * token}, 1, {token}, {token}, 1}})
  }}"""
    return setup, "access_by_lua_block { gate.pass() }"


def haproxy(proxy, folder, ports):
    limit = ""
    if proxy.limit:
        # It counts requests in a window: as many in it as the bucket grants in that time, or holds.
        seconds = max(1, min(10, proxy.limit.burst // proxy.limit.each_second))
        limit = f"""
  stick-table type string len 32 size 1m expire 60s store http_req_rate({seconds}s)
  http-request track-sc0 req.hdr(X-API-Key)
  http-request deny deny_status 429 if {{ sc_http_req_rate(0) gt {proxy.limit.burst} }}"""
    path = folder / "haproxy.cfg"
    path.write_text(f"""global
  nbthread {proxy.workers}
  # It wants two files for each.
  maxconn {min(9_950, (files_max() - 100) // 2)}
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  timeout http-keep-alive 1h
  http-reuse always
frontend in
  bind 127.0.0.1:{ports["proxy"]} backlog 4096{limit}
  default_backend app
backend app
  server one 127.0.0.1:{ports["backend"]} pool-max-conn -1 pool-purge-delay 1h
""")
    return ["haproxy", "-db", "-f", str(path)]


def rateguard(proxy, folder, ports, programs):
    store = f'redis://127.0.0.1:{ports["redis"]}' if proxy.redis else "memory:"
    text = [f"""[server]
listen = "127.0.0.1:{ports["proxy"]}"
workers = {proxy.workers}
max_connections = {CONNECTIONS_MAX}
timeouts.idle = "1h"
[admin]
listen = "off"
[store]
url = "{store}"
[upstreams.app]
servers = ["127.0.0.1:{ports["backend"]}"]
timeouts.idle = "1h"
[[routes]]
path = "/"
upstream = "app"
"""]
    if proxy.fills:
        text.append('[[routes]]\npath = "/fill"\nredirect.to = "/filled"\n')
    text += [f'[[routes]]\npath = "/other-{number}/"\nupstream = "app"\n' for number in range(1, proxy.routes)]
    if proxy.limit:
        text += [limit_text(proxy.limit, f"limit-{number}", "/") for number in range(proxy.limits)]
        text += [limit_text(proxy.limit, f"other-{number}", f"/other-{number}/")
                 for number in range(proxy.other_limits)]
    path = folder / "rateguard.toml"
    path.write_text("".join(text))
    return [str(programs[proxy.program]), "run", "--config", str(path)]


def limit_text(limit, name, path):
    return (f'[[limits]]\nname = "{name}"\nmatch.path = "{path}"\nby = ["user"]\nrate = "{limit.hourly}/h"\n'
            f"burst = {limit.burst}\nlease = {limit.lease}\n")


def command(proxy, folder, ports, programs):
    if proxy.kind == "rateguard":
        return rateguard(proxy, folder, ports, programs)
    return {"nginx": nginx, "nginx-lua": nginx, "haproxy": haproxy}[proxy.kind](proxy, folder, ports)
