//! What a client calls its file, made harmless: a name without a path, shown to people and to file systems.

/// What most file systems take.
const LONGEST: usize = 255;
/// Endings up to this length survive when a name is cut.
const LONGEST_ENDING: usize = 16;
/// For names of which nothing is left.
const NAMELESS: &str = "file";

/// The last part of a path, without control characters and without characters that turn the order of what follows.
pub(super) fn cleaned(name: &str) -> String {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let harmless: String = last.chars().filter(|c| !c.is_control() && !is_invisible(*c)).collect();
    let name = harmless.trim();
    // `.` and `..` are directories; a dot at the end is lost on some systems, and with it which ending a name has.
    let name = name.trim_end_matches(['.', ' ']);
    if name.is_empty() { NAMELESS.to_owned() } else { cut(name) }
}

/// Bidirectional controls (UAX #9), zero-width characters, line and paragraph separators, the byte order mark.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

fn cut(name: &str) -> String {
    if name.len() <= LONGEST {
        return name.to_owned();
    }
    let ending = name.rfind('.').map(|dot| &name[dot..]).filter(|ending| ending.len() <= LONGEST_ENDING);
    let ending = ending.unwrap_or_default();
    let stem = &name[..name.floor_char_boundary(LONGEST - ending.len())];
    format!("{stem}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_what_could_do_harm() {
        let table = [
            ("report.pdf", "report.pdf"),
            ("Überblick 2024 (1).csv", "Überblick 2024 (1).csv"),
            ("../../etc/passwd", "passwd"),
            ("C:\\Users\\me\\cv.docx", "cv.docx"),
            ("/", "file"),
            ("..", "file"),
            (".", "file"),
            ("", "file"),
            ("a/..", "file"),
            ("\u{0}\u{7}\r\n", "file"),
            ("a\r\nSet-Cookie: x=1.txt", "aSet-Cookie: x=1.txt"),
            ("invoice\u{202e}fdp.exe", "invoicefdp.exe"),
            ("\u{feff} spaced .txt ", "spaced .txt"),
            ("name.exe. . .", "name.exe"),
            (".bashrc", ".bashrc"),
        ];
        for (given, wanted) in table {
            assert_eq!(cleaned(given), wanted, "{given:?}");
        }
    }

    #[test]
    fn long_names_are_cut_between_characters_and_keep_their_ending() {
        let long = cleaned(&format!("{}.pdf", "ü".repeat(500)));
        assert!(long.len() <= LONGEST && long.len() > LONGEST - 4 && long.ends_with("ü.pdf"), "{}", long.len());
        let endless = cleaned(&format!("a.{}", "b".repeat(500)));
        assert_eq!(endless.len(), LONGEST);
    }
}
