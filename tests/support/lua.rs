//! The script on a real Redis under a clock that the test sets.

use super::redis::Redis;
use rateguard::limit::script;

/// Redis with the scripts of the product, byte for byte, behind a prefix that takes over two commands: `TIME` answers the
/// time given as the last two arguments, and `SET` puts its time to live beside the bucket instead of on it, since the
/// real time in which a test runs must not make buckets vanish.
pub struct Virtual {
    pub connection: redis::Connection,
    digest: String,
    give_back: String,
    _redis: Redis,
}

const PREFIX: &str = r#"
local real, seconds, micros = redis, ARGV[#ARGV - 1], ARGV[#ARGV]
local ARGV = { unpack(ARGV, 1, #ARGV - 2) }
local redis = {
  error_reply = real.error_reply,
  call = function(command, key, value, option, ttl, ...)
    if command == 'TIME' then
      return { seconds, micros }
    end
    if command == 'GET' then
      return real.call('GET', key)
    end
    if command ~= 'SET' or option ~= 'PX' or select('#', ...) > 0 then
      error('the script calls ' .. command .. ' in a way that the tests do not know')
    end
    real.call('SET', 'ttl:' .. key, ttl)
    return real.call('SET', key, value)
  end,
}
"#;

/// A bucket's key and the script's five arguments for it.
pub type Asked = (String, [u64; 5]);

impl Virtual {
    pub fn start() -> Virtual {
        let redis = Redis::start();
        let mut connection = redis.connection();
        let mut load = |text: &str| {
            let text = format!("{PREFIX}{text}");
            redis::cmd("SCRIPT").arg("LOAD").arg(text).query(&mut connection).unwrap()
        };
        let (digest, give_back) = (load(script::TEXT), load(script::GIVE_BACK));
        Virtual { connection, digest, give_back, _redis: redis }
    }

    /// The script's call at a time in microseconds.
    pub fn call(&self, buckets: &[Asked], now: u64) -> redis::Cmd {
        self.call_for(buckets, &[], now)
    }

    /// As `call`, with the arguments that ask for leases.
    pub fn call_for(&self, buckets: &[Asked], leases: &[u64], now: u64) -> redis::Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.digest).arg(buckets.len());
        for (key, _) in buckets {
            command.arg(key);
        }
        for (_, arguments) in buckets {
            command.arg(&arguments[..]);
        }
        command.arg(leases).arg(now / 1_000_000).arg(now % 1_000_000);
        command
    }

    /// The call of the script that gives back, at a time in microseconds.
    pub fn give_back(&self, key: &str, arguments: [u64; 8], now: u64) -> redis::Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.give_back).arg(1).arg(key).arg(&arguments[..]);
        command.arg(now / 1_000_000).arg(now % 1_000_000);
        command
    }
}
