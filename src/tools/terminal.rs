//! The terminal that the tools print to: colour or not, how wide, and how a peer's words are made safe to print. Shell.
#![allow(clippy::disallowed_methods, reason = "shell: asks the terminal and NO_COLOR")]

use std::io::{self, IsTerminal as _};

/// Columns where standard output is not a terminal.
const WIDTH_DEFAULT: usize = 80;
/// Narrower terminals are drawn as this wide: the lines wrap.
const WIDTH_MIN: usize = 40;
/// Wider terminals are drawn as this wide: longer bars are no easier to compare.
const WIDTH_MAX: usize = 160;

/// A colour of the basic eight, which every terminal maps to something readable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// Faults of the peer or of the way there.
    Yellow,
    /// What went through.
    Green,
    /// What was denied.
    Red,
}

/// Whether and how text is coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    /// Escape sequences are written.
    Colour,
    /// Text stays as it is.
    Plain,
}

impl Paint {
    /// Colour only where standard output is a terminal and `NO_COLOR` is unset or empty (no-color.org).
    pub fn for_stdout() -> Paint {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if is_terminal() && !refused { Paint::Colour } else { Paint::Plain }
    }

    /// `text` in `colour`, or as it is.
    pub fn paint(self, colour: Colour, text: &str) -> String {
        let code = match colour {
            Colour::Red => 31,
            Colour::Green => 32,
            Colour::Yellow => 33,
        };
        match self {
            Paint::Colour => format!("\x1b[{code}m{text}\x1b[0m"),
            Paint::Plain => text.to_owned(),
        }
    }
}

/// Whether standard output is a terminal, so that progress may overwrite itself.
pub fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Columns to draw in: the terminal's width between 40 and 160; 80 where there is no terminal.
pub fn width() -> usize {
    let columns = match rustix::termios::tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 0 => usize::from(size.ws_col),
        _ => WIDTH_DEFAULT,
    };
    columns.clamp(WIDTH_MIN, WIDTH_MAX)
}

/// `text` from a peer, fit for a terminal: at most `chars_max` characters, controls and escapes as `?`.
pub fn clean(text: &str, chars_max: usize) -> String {
    let safe = |c: char| if c.is_control() { '?' } else { c };
    let mut clean: String = text.chars().take(chars_max).map(safe).collect();
    if text.chars().nth(chars_max).is_some() {
        clean.pop();
        clean.push('…');
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_cannot_steer_the_terminal() {
        assert_eq!(clean("a\x1b[2Jb\r\nc\u{9b}d", 40), "a?[2Jb??c?d");
    }

    #[test]
    fn long_words_are_cut_at_a_character() {
        assert_eq!(clean("äöü", 3), "äöü");
        assert_eq!(clean("äöüß", 3), "äö…");
        assert_eq!(clean("", 0), "");
    }

    #[test]
    fn plain_paint_adds_nothing() {
        assert_eq!(Paint::Plain.paint(Colour::Red, "x"), "x");
        assert_eq!(Paint::Colour.paint(Colour::Red, "x"), "\x1b[31mx\x1b[0m");
    }
}
