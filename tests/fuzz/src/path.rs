//! Endpoints: all spellings of a path are one endpoint, and no others are.

use super::heads::{BOUNDS, parse_request};
use super::{dice, shown};
use rateguard::identity::endpoint;
use rateguard::route::rewrite::PathChange;

/// A byte of a path segment as RFC 3986 sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Atom {
    /// Stands for itself; encoded or not, where it is visible.
    Plain(u8),
    /// Percent-encoded, and different from the byte itself.
    Encoded(u8),
}

/// What a target asks for.
type Path = Vec<Vec<Atom>>;

fn endpoint_of(target: &[u8]) -> Vec<u8> {
    let mut out = b"left over".to_vec();
    endpoint(target, &mut out);
    out
}

/// The endpoint is what a slow reading makes of the target, it is the same for every spelling of that, and another one
/// for what is not the same.
pub fn path(bytes: &[u8]) {
    let once = endpoint_of(bytes);
    assert_eq!(endpoint_of(&once), once, "twice: {}", shown(bytes));
    assert!(once.len() <= 3 * bytes.len() + 1, "{} from {}", once.len(), shown(bytes));
    if bytes.split(|&b| b == b'?').next() == Some(b"*") {
        assert_eq!(once, b"*", "{}", shown(bytes));
        return;
    }
    let read = read(bytes);
    assert_eq!(shown(&once), shown(render(&read).as_slice()), "{}", shown(bytes));
    in_shape(bytes, &once);
    let mut dice = dice(bytes);
    for _ in 0..3 {
        let spelling = spell(&read, &mut dice);
        assert_eq!(shown(&endpoint_of(&spelling)), shown(&once), "{} and {}", shown(bytes), shown(&spelling));
        let other = change(&spelling, &mut dice);
        let is_same = self::read(&other) == read;
        assert_eq!(endpoint_of(&other) == once, is_same, "{} and {}", shown(bytes), shown(&other));
    }
}

/// A route that changes the path of a request changes its endpoint in the same way, or refuses it.
fn changed(target: &[u8], endpoint: &[u8]) {
    let mut out = b"left over".to_vec();
    let none = PathChange::default();
    assert_eq!(none.apply(target, &mut out), Ok(()), "{}", shown(target));
    assert_eq!(shown(&endpoint_of(&out)), shown(endpoint), "{} as {}", shown(target), shown(&out));
    assert!(out == b"*" || (out[0] == b'/' && out.get(1) != Some(&b'/')), "{}", shown(&out));
    let segments: Vec<&[u8]> = endpoint.split(|&b| b == b'/').skip(1).collect();
    for count in 1..=segments.len() {
        let Ok(strip) = String::from_utf8([b"/".as_slice(), &segments[..count].join(&b'/')].concat()) else { return };
        let change = PathChange { strip: Some(strip), ..PathChange::default() };
        if endpoint != b"/" && change.apply(target, &mut out).is_ok() {
            let rest = [b"/".as_slice(), &segments[count..].join(&b'/')].concat();
            assert_eq!(shown(&endpoint_of(&out)), shown(&rest), "{} as {}", shown(target), shown(&out));
        }
    }
}

/// What holds of every endpoint, and more of one whose target a request may have.
fn in_shape(target: &[u8], endpoint: &[u8]) {
    let segments: Vec<&[u8]> = endpoint.split(|&b| b == b'/').collect();
    assert!(segments[0].is_empty() && segments.len() > 1, "{}", shown(endpoint));
    let is_root = endpoint == b"/";
    let odd = |segment: &&[u8]| segment.is_empty() || *segment == b"." || *segment == b"..";
    assert!(is_root || !segments[1..].iter().any(odd), "{}", shown(endpoint));
    assert!(!endpoint.contains(&b'?'), "{}", shown(endpoint));
    let head = [b"GET ", target, b" HTTP/1.1\r\nHost: h\r\n\r\n"].concat();
    if let Ok(Some(head)) = parse_request(&head, &BOUNDS)
        && head.target.end() == 4 + target.len()
    {
        changed(target, endpoint);
        let fits = |b: &u8| (b'!'..=b'~').contains(b) && *b != b'#';
        assert!(endpoint.iter().all(fits), "{} from {}", shown(endpoint), shown(target));
        // An absolute target is no path as a whole.
        for number in (0..16).filter(|_| target.starts_with(b"/")) {
            let other = backend_reading(target, number);
            let is_same = endpoint_of(&other) == endpoint;
            assert!(is_same, "{} can be read as {} ({number})", shown(target), shown(&other));
        }
    }
}

/// The path that a backend of one of sixteen kinds makes of a target that this gateway lets pass.
fn backend_reading(target: &[u8], number: u8) -> Vec<u8> {
    let [decodes_slash, decodes_backslash, drops_parameters, merges] = [1, 2, 4, 8].map(|bit| number & bit > 0);
    let mut path = atoms(&target[..target.iter().position(|&b| b == b'?').unwrap_or(target.len())]);
    if drops_parameters {
        let mut is_parameter = false;
        path.retain(|atom| {
            is_parameter = *atom == Atom::Plain(b';') || is_parameter && *atom != Atom::Plain(b'/');
            !is_parameter
        });
    }
    for atom in &mut path {
        let is_slash = decodes_slash && *atom == Atom::Encoded(b'/');
        if is_slash || decodes_backslash && *atom == Atom::Encoded(b'\\') {
            *atom = Atom::Plain(b'/');
        }
    }
    let mut read = Path::new();
    for segment in path.split(|atom| *atom == Atom::Plain(b'/')).skip(1) {
        match segment {
            [] if merges => {}
            [Atom::Plain(b'.')] => {}
            [Atom::Plain(b'.'), Atom::Plain(b'.')] => drop(read.pop()),
            _ => read.push(segment.to_vec()),
        }
    }
    render(&read)
}

/// RFC 3986 sections 2.3, 5.2.4 and 6.2.2, with empty segments left out. House rule: an encoded slash, and a backslash
/// in any form, is a slash; path parameters do not count.
fn read(target: &[u8]) -> Path {
    let end = target.iter().position(|&b| b == b'?').unwrap_or(target.len());
    let mut path = Path::new();
    for segment in atoms(&target[..end]).split(|atom| is_separator(*atom)) {
        let end = segment.iter().position(|atom| *atom == Atom::Plain(b';')).unwrap_or(segment.len());
        match &segment[..end] {
            [] | [Atom::Plain(b'.')] => {}
            [Atom::Plain(b'.'), Atom::Plain(b'.')] => drop(path.pop()),
            named => path.push(named.to_vec()),
        }
    }
    path
}

fn is_separator(atom: Atom) -> bool {
    let (Atom::Plain(byte) | Atom::Encoded(byte)) = atom;
    byte == b'/' || byte == b'\\'
}

fn atoms(segment: &[u8]) -> Vec<Atom> {
    let mut atoms = Vec::new();
    let mut at = 0;
    while at < segment.len() {
        let digits = segment.get(at + 1..at + 3).filter(|two| two.iter().all(u8::is_ascii_hexdigit));
        let number = digits.and_then(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok());
        atoms.push(match (segment[at], number) {
            (b'%', Some(byte)) if is_visible(byte) => Atom::Plain(byte),
            (b'%', Some(byte)) => Atom::Encoded(byte),
            // House rule: a sign that begins no escape is the sign itself.
            (b'%', None) => Atom::Encoded(b'%'),
            (byte, _) => Atom::Plain(byte),
        });
        at += if segment[at] == b'%' && number.is_some() { 3 } else { 1 };
    }
    atoms
}

/// House rule: encoded or not, a visible character is the same, but for those that divide a path or end it.
fn is_visible(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b"/\\%?#;".contains(&byte)
}

fn render(path: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    for segment in path {
        out.push(b'/');
        for atom in segment {
            match atom {
                Atom::Plain(byte) => out.push(*byte),
                Atom::Encoded(byte) => out.extend(format!("%{byte:02X}").bytes()),
            }
        }
    }
    if out.is_empty() {
        out.push(b'/');
    }
    out
}

/// Any other way to write the same path.
fn spell(path: &Path, dice: &mut fastrand::Rng) -> Vec<u8> {
    let mut out = Vec::new();
    detour(&mut out, dice);
    for segment in path {
        const SLASHES: [&[u8]; 8] = [b"/", b"/", b"/", b"/", b"\\", b"%2f", b"%2F", b"%5c"];
        out.extend_from_slice(SLASHES[dice.usize(..SLASHES.len())]);
        for atom in segment {
            let (byte, is_encoded) = match *atom {
                Atom::Plain(byte) => (byte, is_visible(byte) && dice.u8(..3) == 0),
                Atom::Encoded(byte) => (byte, true),
            };
            match (is_encoded, dice.bool()) {
                (true, true) => out.extend(format!("%{byte:02X}").bytes()),
                (true, false) => out.extend(format!("%{byte:02x}").bytes()),
                (false, _) => out.push(byte),
            }
        }
        if dice.u8(..4) == 0 {
            out.extend_from_slice(b";v=%61.;");
        }
        detour(&mut out, dice);
    }
    const ENDS: [&[u8]; 8] = [b"", b"/", b"/.", b"/x/..//.", b"?", b"?a=/../b%2f", b"/?", b"%2f"];
    out.extend_from_slice(ENDS[dice.usize(..ENDS.len())]);
    out
}

/// Goes nowhere.
fn detour(out: &mut Vec<u8>, dice: &mut fastrand::Rng) {
    const WAYS: [&[u8]; 11] =
        [b"", b"", b"", b"/", b"/.", b"/%2e", b"/a/..", b"/%41%2f/%2E.", b"/b//.%2e", b"%5C;x", b"/a%2F..;x"];
    for _ in 0..dice.usize(..3) {
        out.extend_from_slice(WAYS[dice.usize(..WAYS.len())]);
    }
}

/// A target that differs from this one at one place.
fn change(target: &[u8], dice: &mut fastrand::Rng) -> Vec<u8> {
    const OTHERS: [&[u8]; 14] =
        [b"", b"/", b"%2F", b"%2f", b"%", b"%25", b"%5c", b"\\", b"A", b"a", b".", b"..", b";", b"%3B"];
    let end = target.iter().position(|&b| b == b'?').unwrap_or(target.len());
    let at = dice.usize(..=end);
    let taken = dice.usize(..2).min(end - at);
    let put = OTHERS[dice.usize(..OTHERS.len())];
    let changed = [&target[..at], put, &target[at + taken..]].concat();
    // `*` alone is no path.
    if changed.starts_with(b"*") { [b"/", changed.as_slice()].concat() } else { changed }
}
