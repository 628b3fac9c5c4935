//! The ledger in Redis: the protocol's steps as scripts, one round trip per batch.
//!
//! Names, after a prefix: `i` the incarnation, `b:{lane}:{number}` a hash per bucket, `n:{lane}` the
//! bucket numbers of a lane (a sorted set), `o:{delivery}` an entry on its own. The scripts touch keys
//! of several names, so a cluster is not served; one primary, with `maxmemory-policy noeviction`.

use std::sync::LazyLock;
use std::time::Duration;

use async_trait::async_trait;
use redis::{AsyncCommands, RedisError, Script, ScriptInvocation};
use tidings_schemas::time::Instant;

use super::{
    Attempt, Bucket, Claim, Claimed, ENTRY_KEPT_MAX, Entry, Incarnation, Key, Ledger, LedgerError, PASSED_KEPT, Phase,
    Settle, bucket_number, buckets_passed, own_until,
};
use crate::connection::Connection;
use crate::log::TopicPartition;

/// How long an answer may take. A batch takes well under a millisecond; beyond this the ledger counts as
/// unreachable and is asked again. As long as the directory's: on a machine that is out of breath, asking
/// sooner only adds to its work. Critical messages have a shorter patience of their own.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// Finds an entry: the third of its names is where it belongs, the second is its own.
const FIND: &str = r"
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return redis.error_reply('LOST incarnation') end
local function find(bucket, own, field)
  if bucket ~= own then
    local value = redis.call('HGET', bucket, field)
    if value then return bucket, value end
  end
  local value = redis.call('GET', own)
  if value or bucket == own then return own, value end
  return bucket, false
end
local function drop(home, own, field)
  if home == own then redis.call('DEL', own) else redis.call('HDEL', home, field) end
end
local function newest(value)
  return string.match(value, '^(%a) (%d+) (%-?%d+) (%S+)')
end
";

const CLAIM: &str = r"
local now, kept = tonumber(ARGV[2]), ARGV[3]
local out = {}
for i = 0, (#KEYS - 1) / 3 - 1 do
  local bucket, own, numbers = KEYS[2 + 3 * i], KEYS[3 + 3 * i], KEYS[4 + 3 * i]
  local field, owner, lease, before, number = unpack(ARGV, 4 + 5 * i, 8 + 5 * i)
  local home, value = find(bucket, own, field)
  local granted, write = 0, nil
  if not value then
    granted, write = 1, 'P ' .. (before + 1) .. ' ' .. lease .. ' ' .. owner
  else
    local phase, attempt, at, who = newest(value)
    if phase == 'P' and who == owner then
      granted = 1
    elseif (phase == 'P' or phase == 'W') and tonumber(at) <= now then
      granted, write = 1, 'P ' .. (math.max(tonumber(attempt), tonumber(before)) + 1) .. ' ' .. lease .. ' ' .. owner .. '\n' .. value
    end
  end
  if write then
    value = write
    if home == own then
      redis.call('SET', own, value, 'PX', kept)
    else
      if redis.call('HSET', home, field, value) == 1 and redis.call('HLEN', home) == 1 then
        redis.call('PEXPIRE', home, kept)
        redis.call('ZADD', numbers, number, home)
        redis.call('PEXPIRE', numbers, kept)
      end
    end
  end
  out[#out + 1] = tostring(granted)
  out[#out + 1] = value
end
return out
";

const SETTLE: &str = r"
local kept = ARGV[2]
local out = {}
for i = 0, (#KEYS - 1) / 2 - 1 do
  local bucket, own = KEYS[2 + 2 * i], KEYS[3 + 2 * i]
  local field, owner, line, keep, refound, left = unpack(ARGV, 3 + 6 * i, 8 + 6 * i)
  local home, value = find(bucket, own, field)
  local before, ours = '', false
  if not value then
    ours = refound == '1'
  else
    local phase, _, _, who = newest(value)
    ours = phase == 'P' and who == owner
    local cut = string.find(value, '\n', 1, true)
    if cut then before = string.sub(value, cut + 1) end
    if not ours and line ~= '' and (value == line or string.sub(value, 1, #line + 1) == line .. '\n') then
      out[#out + 1] = '1'
    elseif not ours then
      out[#out + 1] = '0'
    end
  end
  if not value and not ours then out[#out + 1] = '0' end
  if ours then
    out[#out + 1] = '1'
    local write = line
    if before ~= '' then write = (line ~= '' and line .. '\n' or '') .. before end
    if write == '' then
      drop(home, own, field)
    else
      if keep == '1' and home ~= own then
        drop(home, own, field)
        home = own
      end
      if home == own then
        redis.call('SET', own, write, 'PX', kept)
        if left ~= '' then redis.call('PEXPIRE', own, left) end
      else
        redis.call('HSET', home, field, write)
      end
    end
  end
end
return out
";

const LOOK: &str = r"
local out = {}
for i = 0, (#KEYS - 1) / 2 - 1 do
  local _, value = find(KEYS[2 + 2 * i], KEYS[3 + 2 * i], ARGV[2 + i])
  out[#out + 1] = value or ''
end
return out
";

const PASSED: &str = r"
local passed = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', '(' .. ARGV[2], 'LIMIT', 0, 1000)
for _, bucket in ipairs(passed) do redis.call('PEXPIRE', bucket, ARGV[3]) end
for _, bucket in ipairs(passed) do redis.call('ZREM', KEYS[2], bucket) end
return {}
";

struct Scripts {
    claim: Script,
    settle: Script,
    look: Script,
    passed: Script,
}

static SCRIPTS: LazyLock<Scripts> = LazyLock::new(|| {
    let script = |body: &str| Script::new(&format!("{FIND}{body}"));
    Scripts { claim: script(CLAIM), settle: script(SETTLE), look: script(LOOK), passed: script(PASSED) }
});

/// A ledger in Redis. Each instance has a connection of its own: give critical lanes theirs.
pub struct RedisLedger {
    connection: Connection,
    prefix: String,
    nonce: String,
}

impl RedisLedger {
    /// A ledger at `url` (`redis://host:port/db`), its keys under `prefix`. `nonce` is a word that no other
    /// process uses: it becomes the incarnation where this one founds the store. Connects with the first call.
    ///
    /// # Errors
    /// When the URL is not one.
    pub fn new(url: &str, prefix: &str, nonce: &str) -> Result<Self, LedgerError> {
        let connection = Connection::new(url, ANSWER_MAX).map_err(LedgerError::Refused)?;
        Ok(Self { connection, prefix: prefix.to_owned(), nonce: nonce.to_owned() })
    }

    fn own_name(&self, key: &Key) -> String {
        format!("{}:o:{}", self.prefix, key.delivery)
    }

    fn bucket_name(&self, key: &Key) -> (String, String, u64) {
        match &key.bucket {
            Bucket::Own => (self.own_name(key), self.own_name(key), 0),
            Bucket::Lane { lane, epoch } => {
                let number = bucket_number(*epoch);
                (format!("{}:b:{lane}:{number}", self.prefix), format!("{}:n:{lane}", self.prefix), number)
            }
        }
    }

    /// A call with what all scripts share; each adds its own names and words after it.
    fn begin<'a>(&self, script: &'a Script, incarnation: &Incarnation) -> ScriptInvocation<'a> {
        let mut call = script.prepare_invoke();
        call.key(format!("{}:i", self.prefix)).arg(&*incarnation.0);
        call
    }

    async fn run<T: redis::FromRedisValue>(&self, call: &ScriptInvocation<'_>) -> Result<T, LedgerError> {
        let mut connection = self.connection.get().map_err(failed)?;
        call.invoke_async(&mut connection).await.map_err(failed)
    }
}

#[async_trait]
impl Ledger for RedisLedger {
    async fn incarnation(&self, now: Instant) -> Result<Incarnation, LedgerError> {
        let mut connection = self.connection.get().map_err(failed)?;
        let info: String = redis::cmd("INFO").arg("memory").query_async(&mut connection).await.map_err(failed)?;
        let policy = info.lines().find_map(|line| line.strip_prefix("maxmemory_policy:")).unwrap_or("").trim();
        if !policy.is_empty() && policy != "noeviction" {
            return Err(LedgerError::Refused(format!(
                "Redis evicts entries (`maxmemory-policy {policy}`), which would send twice unnoticed; set `noeviction`"
            )));
        }
        let name = format!("{}:i", self.prefix);
        let _founded: bool = connection.set_nx(&name, &*Incarnation::new(&self.nonce, now).0).await.map_err(failed)?;
        let word: String = connection.get(&name).await.map_err(failed)?;
        Ok(Incarnation(word.into()))
    }

    async fn claim(
        &self,
        incarnation: &Incarnation,
        claims: &[Claim],
        now: Instant,
    ) -> Result<Vec<Claimed>, LedgerError> {
        let mut call = self.begin(&SCRIPTS.claim, incarnation);
        call.arg(now.0).arg(millis(ENTRY_KEPT_MAX));
        for claim in claims {
            let (bucket, numbers, number) = self.bucket_name(&claim.key);
            call.key(bucket).key(self.own_name(&claim.key)).key(numbers);
            call.arg(&claim.key.delivery.0[..]).arg(&*claim.owner).arg(claim.lease_until.0);
            call.arg(claim.attempts_before).arg(number);
        }
        let answers: Vec<String> = self.run(&call).await?;
        expect(answers.len(), 2 * claims.len())?;
        let pairs = answers.chunks_exact(2).map(|pair| {
            let entry = Entry::parse(&pair[1])?;
            Ok(if pair[0] == "1" { Claimed::Granted(entry) } else { Claimed::Met(entry) })
        });
        pairs.collect()
    }

    async fn settle(
        &self,
        incarnation: &Incarnation,
        settles: &[Settle],
        now: Instant,
    ) -> Result<Vec<bool>, LedgerError> {
        let mut call = self.begin(&SCRIPTS.settle, incarnation);
        call.arg(millis(ENTRY_KEPT_MAX));
        for settle in settles {
            call.key(self.bucket_name(&settle.key).0).key(self.own_name(&settle.key));
            let ended = matches!(settle.attempt, Some(Attempt { phase: Phase::Sent { .. } | Phase::Dead { .. }, .. }));
            call.arg(&settle.key.delivery.0[..]).arg(&*settle.owner);
            call.arg(settle.attempt.as_ref().map(Attempt::line).unwrap_or_default());
            call.arg(u8::from(settle.keep)).arg(u8::from(settle.refound));
            // As a span: the store's clock need not be ours.
            call.arg(if ended { millis(own_until(now).since(now)).to_string() } else { String::new() });
        }
        let answers: Vec<String> = self.run(&call).await?;
        expect(answers.len(), settles.len())?;
        Ok(answers.iter().map(|answer| answer == "1").collect())
    }

    async fn look(&self, incarnation: &Incarnation, keys: &[Key]) -> Result<Vec<Option<Entry>>, LedgerError> {
        let mut call = self.begin(&SCRIPTS.look, incarnation);
        for key in keys {
            call.key(self.bucket_name(key).0).key(self.own_name(key)).arg(&key.delivery.0[..]);
        }
        let answers: Vec<String> = self.run(&call).await?;
        expect(answers.len(), keys.len())?;
        let entries = answers.iter().map(|text| if text.is_empty() { Ok(None) } else { Entry::parse(text).map(Some) });
        entries.collect()
    }

    async fn passed(
        &self,
        incarnation: &Incarnation,
        lane: &TopicPartition,
        said_through: u64,
        _now: Instant,
    ) -> Result<(), LedgerError> {
        let mut call = self.begin(&SCRIPTS.passed, incarnation);
        call.key(format!("{}:n:{lane}", self.prefix));
        call.arg(buckets_passed(said_through)).arg(millis(PASSED_KEPT));
        self.run::<Vec<String>>(&call).await.map(|_| ())
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn expect(found: usize, expected: usize) -> Result<(), LedgerError> {
    if found == expected {
        Ok(())
    } else {
        Err(LedgerError::Damaged(format!("{found} answers to {expected} questions")))
    }
}

/// A connection that was never made did nothing; one that broke or stayed silent may have.
fn failed(error: RedisError) -> LedgerError {
    if error.code() == Some("LOST") {
        LedgerError::Lost
    } else if error.is_connection_refusal() {
        LedgerError::Unreachable(error.to_string())
    } else if error.is_timeout() || error.is_connection_dropped() || error.is_io_error() {
        LedgerError::Ambiguous(error.to_string())
    } else {
        LedgerError::Unreachable(error.to_string())
    }
}
