//! The same rows on the parsers alone, at every prefix.

use super::message::{latin, raw};
use super::row::{Row, Setting};
use rateguard::http::body::Decoder;
use rateguard::http::head::RequestHead;
use rateguard::http::{Bounds, Framing, Refusal};
use rateguard::reply::Failure;

fn bounds(setting: Setting) -> Bounds {
    match setting {
        Setting::Usual | Setting::Trusting => Bounds { head_max: 16 * 1024, fields_max: 100, body_max: None },
        Setting::Tight => Bounds { head_max: 1024, fields_max: 8, body_max: Some(16) },
    }
}

/// How reading ended.
#[derive(Debug, PartialEq, Eq)]
struct Reading {
    /// The bodies of the whole messages.
    bodies: Vec<String>,
    refused: Option<Refusal>,
}

/// Reads messages until the bytes end or are refused.
fn read(bytes: &[u8], setting: Setting) -> Reading {
    let mut reading = Reading { bodies: Vec::new(), refused: None };
    let mut head = RequestHead::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        match head.parse(rest, &bounds(setting)) {
            Ok(false) => return reading,
            Ok(true) => rest = &rest[head.len..],
            Err(refusal) => {
                reading.refused = Some(refusal);
                return reading;
            }
        }
        match decode(rest, head.framing) {
            Ok(Some((body, used))) => {
                reading.bodies.push(latin(&body));
                rest = &rest[used..];
            }
            Ok(None) => return reading,
            Err(refusal) => {
                reading.refused = Some(refusal);
                return reading;
            }
        }
    }
    reading
}

/// The body at the front of `bytes`, read as it stands there, with the bytes that it takes.
fn decode(bytes: &[u8], framing: Framing) -> Result<Option<(Vec<u8>, usize)>, Refusal> {
    let mut decoder = Decoder::new(framing);
    let mut data = Vec::new();
    let mut used = 0;
    while !decoder.is_done() && used < bytes.len() {
        let step = decoder.step(&bytes[used..])?;
        data.extend_from_slice(&bytes[used..][step.data]);
        used += step.used;
    }
    Ok(decoder.is_done().then_some((data, used)))
}

/// The length of the shortest beginning that is refused, where the parsers refuse the row.
pub fn faulty_from(row: &Row) -> Option<usize> {
    let feed = row.feed();
    let is_refused = |end: usize| read(&feed[..end], row.setting).refused.is_some();
    // What is refused stays refused, so halving finds it.
    let (mut taken, mut faulty) = (0, feed.len());
    if !is_refused(faulty) {
        return None;
    }
    while faulty - taken > 1 {
        let middle = usize::midpoint(taken, faulty);
        match is_refused(middle) {
            true => faulty = middle,
            false => taken = middle,
        }
    }
    Some(faulty)
}

/// What the parsers make of the row as a whole, and that no prefix of it makes them think otherwise.
pub fn check(row: &Row) -> Result<(), String> {
    let feed = row.feed();
    let whole = read(&feed, row.setting);
    let status = whole.refused.map(|refusal| Failure::Refused(refusal).answer().status);
    let is_right = match (row.refusal(), row.ends) {
        // What is cut short is nothing to the parsers.
        (_, true) => status.is_none() && whole.bodies.len() == row.saw().count(),
        (Some(_), _) if row.passes_parsers => true,
        (None, _) if row.closes => whole.bodies.len() >= row.replies.len(),
        (Some(wanted), _) => status == Some(wanted) && whole.bodies.len() + 1 == row.replies.len(),
        (None, _) => status.is_none() && whole.bodies.len() == row.replies.len() + 1,
    };
    if !is_right {
        return Err(format!("{:?} on the parsers is {whole:?}", row.replies));
    }
    let wanted: Vec<&String> = row.saw().map(|saw| &saw.body).collect();
    let bodies: Vec<&String> = whole.bodies.iter().collect();
    if row.saw().count() == row.replies.len() && bodies[..wanted.len()] != wanted {
        return Err(format!("the bodies are to be {wanted:?}: {bodies:?}"));
    }
    for end in 0..feed.len() {
        let part = read(&feed[..end], row.setting);
        let is_beginning = whole.bodies.starts_with(&part.bodies);
        let is_refused_alike = part.refused.is_none() || part.refused == whole.refused;
        let is_early = end < row.bytes.len() && part.bodies.len() > row.replies.len();
        if !is_beginning || !is_refused_alike || is_early {
            return Err(format!("the first {end} bytes are {part:?}, all are {whole:?}"));
        }
    }
    one_message_is_whole_at_its_last_byte(row, &feed)
}

/// No head is whole and no body is done before the byte that ends it.
fn one_message_is_whole_at_its_last_byte(row: &Row, feed: &[u8]) -> Result<(), String> {
    let mut head = RequestHead::default();
    let bounds = bounds(row.setting);
    if head.parse(feed, &bounds) != Ok(true) {
        return Ok(());
    }
    let (len, framing) = (head.len, head.framing);
    for end in 0..len {
        if head.parse(&feed[..end], &bounds) != Ok(false) {
            return Err(format!("a head of {len} bytes has a verdict after {end}"));
        }
    }
    let Ok(Some((data, used))) = decode(&feed[len..], framing) else { return Ok(()) };
    let mut decoder = Decoder::new(framing);
    let mut got = Vec::new();
    for (at, byte) in feed[len..len + used].iter().enumerate() {
        if decoder.is_done() {
            return Err(format!("a body of {used} bytes is done after {at}"));
        }
        let piece = [*byte];
        let step = decoder.step(&piece).map_err(|bad| format!("{bad} at byte {at} of the body"))?;
        got.extend_from_slice(&piece[step.data]);
    }
    match decoder.is_done() && got == data {
        true => Ok(()),
        false => Err(format!("byte by byte the body is {:?}, not {:?}", latin(&got), latin(&data))),
    }
}

#[test]
fn reading_tells_messages_apart() {
    let two = raw("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhiGET / HTTP/1.1\r\nHost: h\r\n\r\nGET");
    let reading = read(&two, Setting::Usual);
    assert_eq!(reading, Reading { bodies: vec!["hi".into(), String::new()], refused: None });
}
