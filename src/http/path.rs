//! Paths that servers take for different places: a limit on one of these places would not hold for the other.
//!
//! Some decode `%2F` and `%5C` into separators, before or after they resolve dot segments; some drop path parameters
//! (`;` to the end of a segment); some merge empty segments; some take `\` for `/`. What comes to the same endpoint
//! in all these readings passes, all else is refused. Pure.

use super::Refusal;

const SEVERAL: Refusal = Refusal::Bad("servers read this path differently: resolve its dot segments before sending it");

/// What the bytes of a target have in them, told in one pass.
#[derive(Clone, Copy)]
pub(super) struct Signs(u8);

impl Signs {
    const FORBIDDEN: u8 = 1;
    const ESCAPE: u8 = 2;
    const SEVERAL: u8 = 4;
    const SLASH: u8 = 8;
    const SLASHES: u8 = 16;

    const OF: [u8; 256] = {
        let mut table = [Signs::FORBIDDEN; 256];
        let mut byte = 0u8;
        while byte < 128 {
            table[byte as usize] = match byte {
                b'%' => Signs::ESCAPE,
                b';' | b'\\' => Signs::SEVERAL,
                b'/' => Signs::SLASH,
                b'#' => Signs::FORBIDDEN,
                _ if byte.is_ascii_graphic() => 0,
                _ => Signs::FORBIDDEN,
            };
            byte += 1;
        }
        table
    };

    pub(super) fn of(target: &[u8]) -> Signs {
        let (mut all, mut last) = (0, 0);
        for &byte in target {
            let sign = Signs::OF[usize::from(byte)];
            // The bit beside that of a slash.
            all |= sign | (sign & last & Signs::SLASH) << 1;
            last = sign;
        }
        Signs(all)
    }

    /// Whether a byte must be percent-encoded in a target.
    pub(super) fn forbidden(self) -> bool {
        self.0 & Signs::FORBIDDEN != 0
    }

    pub(super) fn escape(self) -> bool {
        self.0 & Signs::ESCAPE != 0
    }

    /// Whether [`check`] has anything to look at.
    pub(super) fn several_readings(self) -> bool {
        self.0 & (Signs::ESCAPE | Signs::SEVERAL | Signs::SLASHES) != 0
    }
}

/// Refuses a path, without its query, that has several meanings.
pub(crate) fn check(path: &[u8]) -> Result<(), Refusal> {
    if !Signs::of(path).several_readings() {
        return Ok(());
    }
    if memchr::memchr(b'\\', path).is_some() {
        return Err(Refusal::Bad("the path has a backslash"));
    }
    if path.windows(3).any(is_encoded_control) {
        return Err(Refusal::Bad("the path has an encoded control character"));
    }
    // Some resolve dot segments before they decode them, so that they see only those of the one kind.
    let segments = || path.split(|&b| b == b'/');
    if segments().any(|name| name == b"..") && segments().any(|name| name != b".." && dots(name) == 2) {
        return Err(SEVERAL);
    }
    // From the right, so that it is known of each segment whether a `..` behind it takes it away.
    let mut taken_away = 0usize;
    for segment in path.strip_prefix(b"/").unwrap_or_default().rsplit(|&b| b == b'/') {
        let (name, parameters) = segment.split_at(memchr::memchr(b';', segment).unwrap_or(segment.len()));
        let is_divided = encoded_separator(name).is_some();
        if encoded_separator(parameters).is_some() {
            return Err(Refusal::Bad("the path has an encoded separator in its parameters"));
        }
        if (is_divided || !parameters.is_empty()) && has_dot_segment(name) {
            return Err(SEVERAL);
        }
        match dots(name) {
            1 => {}
            2 => taken_away += 1,
            _ if taken_away == 0 => {}
            _ if is_divided || name.is_empty() => return Err(SEVERAL),
            _ => taken_away -= 1,
        }
    }
    Ok(())
}

/// Patterns in many frameworks end before a final newline, so that `/login%0a` is `/login`.
fn is_encoded_control(three: &[u8]) -> bool {
    match three {
        [b'%', b'0' | b'1', low] => low.is_ascii_hexdigit(),
        _ => three.eq_ignore_ascii_case(b"%7f"),
    }
}

/// Where the first `%2F` or `%5C` begins.
pub(crate) fn encoded_separator(text: &[u8]) -> Option<usize> {
    text.windows(3).position(|three| matches!(three, [b'%', b'2', b'f' | b'F'] | [b'%', b'5', b'c' | b'C']))
}

/// Whether a piece between encoded separators is a dot segment.
fn has_dot_segment(mut name: &[u8]) -> bool {
    while let Some(at) = encoded_separator(name) {
        if dots(&name[..at]) > 0 {
            return true;
        }
        name = &name[at + 3..];
    }
    dots(name) > 0
}

/// 1 for `.`, 2 for `..`, encoded or not; 0 for any other segment.
pub(crate) fn dots(mut name: &[u8]) -> usize {
    let mut count = 0;
    while let [b'.', rest @ ..] | [b'%', b'2', b'e' | b'E', rest @ ..] = name {
        name = rest;
        count += 1;
    }
    if name.is_empty() && count <= 2 { count } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_the_same_to_all_servers_passes() {
        for path in [
            "",
            "/",
            "//",
            "/a/b",
            "/a%2fb",
            "/a%5Cb/",
            "/a;x/b;y=1",
            "/;x",
            "/a%2fb;x",
            "/../a",
            "/a/../b",
            "/a/%2e%2E/b",
            "/a;x/../b",
            "/a//b/../c",
            "/a%2fb/c/../d",
            "/a/..//b",
            "/a/./b%2f",
            "/...%2f.a;.",
            "/a;..",
            "/%252f../%",
            "/%2%2f%",
        ] {
            assert_eq!(check(path.as_bytes()), Ok(()), "{path}");
        }
    }

    #[test]
    fn what_means_several_places_is_refused() {
        for path in [
            "/a\\b",
            "/a%2f../b",
            "/a/..%2Fb",
            "/a%5c..%5cb",
            "/a/%2e%2e%2fb",
            "/a%2f.",
            "/.%5ca",
            "/a/..;/b",
            "/a/.;x",
            "/a/%2e.;x/b",
            "/a%2f..%2fb;x",
            "/a%2fb/../c",
            "/a%2fb/c/../../d",
            "/a//../b",
            "/a/b/../%2e%2E",
            "/a/b/.%2e/../c",
            "/a/;x/../b",
            "/a;x%2fb",
            "/a;x%5C..",
        ] {
            assert!(check(path.as_bytes()).is_err(), "{path}");
        }
    }
}
