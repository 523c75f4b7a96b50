//! Charging a sheet in Redis: in one step where one server has all its buckets, else in two.
//!
//! The script is called by its digest; where the server does not know it (restart, failover, SCRIPT FLUSH), the same
//! question is asked once more, the first of several with the script itself, and where another server of a cluster has the keys, that one is
//! asked. No other command is ever asked twice: NOSCRIPT, MOVED, ASK and TRYAGAIN say that nothing was executed.
//!
//! No one step can charge buckets of two slots. So each server is first asked whether its buckets would allow the request,
//! which takes nothing; where all would, they are charged, those that are nearly empty one after the other and first. Never is
//! more admitted than any limit allows. A denial takes nothing either, but for one race: where others take the last tokens of
//! two slots between the two steps, what was charged before the second stays charged. Pure but for the calls.

use super::lease::Ask;
use super::policy::{Mode, Policy, Sheet};
use super::script::{self, Act, Part, Question, TEXT, Told};
use super::{APPLIED_MAX, StoreFault};
use crate::redis::client::{Client, To};
use crate::redis::cluster::slot_of;
use crate::redis::error::ServerError;
use crate::redis::pipeline::{Answer, Answered};
use crate::redis::resp::{Numbers, Reply};
use crate::time::Micros;
use std::cell::Cell;
use std::time::Duration;

/// Answers that say "elsewhere" or "with the script" before a question is given up: a slot that moves while its new server
/// has lost the script takes three.
const HOPS_MAX: usize = 5;

/// A bucket that covers fewer requests than this may be empty before the second step: it is charged before others are.
const SPARE_MIN: u64 = 16;

/// Charges the buckets on the sheet, or none, asks for leases where there is something to ask for, and writes down the
/// levels.
pub(super) async fn charge(
    client: &Client,
    policy: &Policy,
    sheet: &mut Sheet,
    ask: Option<&Ask>,
    now: Micros,
) -> Result<Told, StoreFault> {
    let all = Part::all(sheet.applied().len());
    let charging = Charging { client, policy, left: Cell::new(client.deadline()) };
    if client.is_cluster() {
        let parts = Parts::by_slot(sheet);
        if parts.count > 1 {
            // Boxed, like the one below: its many answers must not make every request larger.
            return Box::pin(charging.in_two_steps(sheet, parts)).await;
        }
    }
    let question = Question { part: all, act: Act::Charge, ask };
    let asked = charging.ask(sheet, question, Some(now));
    match charging.settle(sheet, question, asked).await {
        // A slot under way has its keys on two servers: each key by itself is on one of them.
        Err(StoreFault::Server(ServerError::TryAgain)) if client.is_cluster() => {
            Box::pin(charging.in_two_steps(sheet, Parts::by_key(all))).await
        }
        told => told,
    }
}

/// The keys of a sheet, those that can be charged in one step together.
struct Parts {
    parts: [Part; APPLIED_MAX],
    count: usize,
}

impl Parts {
    fn by_slot(sheet: &Sheet) -> Parts {
        let mut slots = [0; APPLIED_MAX];
        let mut parts = Parts { parts: [Part::default(); APPLIED_MAX], count: 0 };
        for (i, key) in sheet.keys().enumerate() {
            let slot = slot_of(key);
            let known = slots[..parts.count].iter().position(|known| *known == slot);
            let at = known.unwrap_or(parts.count);
            if known.is_none() {
                slots[at] = slot;
                parts.count += 1;
            }
            parts.parts[at] = parts.parts[at].with(i);
        }
        parts
    }

    fn by_key(part: Part) -> Parts {
        let mut parts = Parts { parts: [Part::default(); APPLIED_MAX], count: 0 };
        for (single, i) in parts.parts.iter_mut().zip((0..APPLIED_MAX).filter(|&i| part.has(i))) {
            *single = Part::default().with(i);
            parts.count += 1;
        }
        parts
    }

    fn as_slice(&self) -> &[Part] {
        &self.parts[..self.count]
    }
}

/// What was asked, and of whom.
type Asked = Result<(To, Answer), StoreFault>;

struct Charging<'c> {
    client: &'c Client,
    policy: &'c Policy,
    /// Of the time that servers may take for all that is asked. What the gateway itself takes in between does not count.
    left: Cell<Duration>,
}

impl Charging<'_> {
    async fn in_two_steps(&self, sheet: &mut Sheet, parts: Parts) -> Result<Told, StoreFault> {
        let mut parts = parts;
        let mut checked = self.all(sheet, parts.as_slice(), Act::Check).await;
        if let Err(StoreFault::Server(ServerError::TryAgain)) = checked {
            parts = Parts::by_key(Part::all(sheet.applied().len()));
            checked = self.all(sheet, parts.as_slice(), Act::Check).await;
        }
        let mut told = checked?;
        if sheet.denied(self.policy) {
            return Ok(told);
        }
        parts.parts[..parts.count].sort_by_key(|part| !self.is_close(sheet, *part));
        let close = parts.as_slice().iter().filter(|part| self.is_close(sheet, **part)).count();
        let (close, ample) = parts.as_slice().split_at(close);
        for part in close.chunks(1).chain([ample]) {
            told.may_gain |= self.all(sheet, part, Act::Charge).await?.may_gain;
            if sheet.denied(self.policy) {
                break;
            }
        }
        Ok(told)
    }

    /// Asks all the servers at once, then takes their answers one after the other. Where one has none, another's denial
    /// counts all the same.
    async fn all(&self, sheet: &mut Sheet, parts: &[Part], act: Act) -> Result<Told, StoreFault> {
        let mut asked: [Option<Asked>; APPLIED_MAX] = [const { None }; APPLIED_MAX];
        for (asked, part) in asked.iter_mut().zip(parts) {
            *asked = Some(self.ask(sheet, Question { part: *part, act, ask: None }, None));
        }
        let mut all = Told::default();
        let mut failed = None;
        for (asked, part) in asked.into_iter().flatten().zip(parts) {
            match self.settle_apart(sheet, Question { part: *part, act, ask: None }, asked).await {
                Ok(told) => all.may_gain |= told.may_gain,
                Err(fault) => failed = Some(fault),
            }
        }
        match failed {
            Some(fault) if !sheet.denied(self.policy) => Err(fault),
            _ => Ok(all),
        }
    }

    /// As [`Charging::settle`]; a part whose keys have come to be on two servers since the first step is charged key by key.
    async fn settle_apart(&self, sheet: &mut Sheet, question: Question<'_>, asked: Asked) -> Result<Told, StoreFault> {
        let told = self.settle(sheet, question, asked).await;
        if question.act == Act::Check || told != Err(StoreFault::Server(ServerError::TryAgain)) {
            return told;
        }
        let mut all = Told::default();
        for single in Parts::by_key(question.part).as_slice() {
            let question = Question { part: *single, ..question };
            let asked = self.ask(sheet, question, None);
            all.may_gain |= self.settle(sheet, question, asked).await?.may_gain;
        }
        Ok(all)
    }

    /// Whether the part has a bucket that might deny before long.
    fn is_close(&self, sheet: &Sheet, part: Part) -> bool {
        sheet.applied().iter().zip(&sheet.levels).enumerate().any(|(i, (applied, level))| {
            let spare = self.policy.tier(applied).shape.cost.saturating_mul(SPARE_MIN);
            let is_low = level.is_none_or(|level| level.units < spare);
            part.has(i) && is_low && self.policy.rule(applied).mode == Mode::Enforce
        })
    }

    /// Sends the question; at `now`, or where that was a while ago, at the moment.
    fn ask(&self, sheet: &Sheet, question: Question<'_>, now: Option<Micros>) -> Asked {
        let to = self.client.server_of(sheet.keys().nth(question.part.first()).unwrap_or_default())?;
        let write = |purpose, digest: &[u8], out: &mut Vec<u8>| {
            script::command(b"EVALSHA", digest, purpose, self.policy, sheet, question, out);
        };
        let answer = match now {
            Some(now) => self.client.ask(&to, now, self.left.get(), write)?,
            None => self.client.ask_next(&to, self.left.get(), write)?,
        };
        Ok((to, answer))
    }

    /// Waits for the answer, and asks again where it says that nothing was executed: with the script itself, or another
    /// server. Writes the levels on the sheet.
    async fn settle(&self, sheet: &mut Sheet, question: Question<'_>, asked: Asked) -> Result<Told, StoreFault> {
        let (to, answer) = asked?;
        let numbers = self.numbers(sheet, question, to, answer).await?;
        script::read(numbers.as_slice(), question, sheet).ok_or(StoreFault::Protocol)
    }

    async fn numbers(
        &self,
        sheet: &Sheet,
        question: Question<'_>,
        mut to: To,
        answer: Answer,
    ) -> Result<Numbers, StoreFault> {
        let mut answered = self.heard(answer).await?;
        let mut brings_script = false;
        for hop in 0..HOPS_MAX {
            match answered.reply {
                Reply::Numbers(numbers) => return Ok(numbers),
                Reply::Error(ServerError::NoScript) if !brings_script => {
                    brings_script = to.brings_script(&answered) || hop > 0;
                }
                Reply::Redirect(redirect) if self.client.is_cluster() => {
                    let left;
                    (to, left) = self.client.follow(&redirect, &to, self.left.get()).await?;
                    self.left.set(left);
                }
                Reply::Redirect(_) => return Err(StoreFault::Server(ServerError::Moved)),
                Reply::Error(error) => return Err(StoreFault::Server(error)),
                Reply::Other | Reply::Unasked => return Err(StoreFault::Protocol),
            }
            let write = |purpose, digest: &[u8], out: &mut Vec<u8>| match brings_script {
                false => script::command(b"EVALSHA", digest, purpose, self.policy, sheet, question, out),
                true => script::command(b"EVAL", TEXT.as_bytes(), purpose, self.policy, sheet, question, out),
            };
            answered = self.heard(self.client.ask_next(&to, self.left.get(), write)?).await?;
        }
        Err(StoreFault::Server(ServerError::Moved))
    }

    async fn heard(&self, answer: Answer) -> Result<Answered, StoreFault> {
        let answered = answer.await?;
        self.left.set(self.left.get().min(answered.left));
        Ok(answered)
    }
}
