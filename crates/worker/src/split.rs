//! Splitting a text into pieces that belong together.

/// Splits a text into pieces of at most `most` bytes (4 at least): where a paragraph ends, or else a line, a sentence, a word;
/// and between two characters if there is nothing else. Blanks at the ends of pieces are left out, and so are blank pieces.
pub(crate) fn split(text: &str, most: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text.trim();
    while rest.len() > most {
        let (piece, behind) = rest.split_at(cut(rest, most));
        pieces.push(piece.trim_end());
        rest = behind.trim_start();
    }
    if !rest.is_empty() {
        pieces.push(rest);
    }
    pieces
}

/// Where the first piece ends.
fn cut(text: &str, most: usize) -> usize {
    let window = &text[..text.floor_char_boundary(most)];
    // A break near the beginning would make a piece that says little.
    let behind = |separator: &&str| {
        window.rfind(separator).map(|at| at + separator.len()).filter(|end| *end > most / 3)
    };
    ["\n\n", "\n", ". ", " "].iter().find_map(behind).unwrap_or(window.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_text_is_split_where_something_ends() {
        let text = "First paragraph.\n\nSecond one. It is longer.\nA line.";
        assert_eq!(split(text, 100), [text]);
        assert_eq!(split(text, 30), ["First paragraph.", "Second one. It is longer.", "A line."]);
        assert_eq!(split(text, 20), ["First paragraph.", "Second one.", "It is longer.", "A line."]);
        assert_eq!(split("wordswithoutanyblank", 8), ["wordswit", "houtanyb", "lank"]);
        assert_eq!(split("äöüäöü", 5), ["äö", "üä", "öü"]);
        assert_eq!(split(" \n\t ", 8), [""; 0]);
    }

    proptest! {
        #[test]
        fn nothing_but_blanks_is_lost_and_no_piece_is_too_long_or_blank(text in "([a-zäß漢🚂.]|\\. |\n| ){0,400}", most in 4..60_usize) {
            let pieces = split(&text, most);
            let letters = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
            prop_assert_eq!(letters(&pieces.concat()), letters(&text));
            for piece in pieces {
                prop_assert!(!piece.trim().is_empty() && piece.len() <= most, "{:?}", piece);
            }
        }
    }
}
