//! Passwords that are guessed first: the common ones, and those made of the service's name or the person's own address
//! (OWASP ASVS 5.0, 6.2.4 and 6.2.11). `common_passwords.LICENSE` says where the list comes from.

use std::sync::LazyLock;

/// One per line, lower case, sorted by bytes.
static COMMON: LazyLock<Vec<&str>> = LazyLock::new(|| include_str!("common_passwords.txt").lines().collect());

/// What people here think of first. Put the name of your service here.
const SERVICE: &str = "ballast";

/// Is this password, composed (NFC) already, one of the first guesses for the account with this address?
pub(super) fn is_guessable(password: &str, email: &str) -> bool {
    let password = password.to_lowercase();
    let local_part = email.split('@').next().unwrap_or_default();
    // `acme-backend` is also written in two words, and in one.
    let (apart, together) = (SERVICE.replace('-', " "), SERVICE.replace('-', ""));
    COMMON.binary_search(&password.as_str()).is_ok()
        || [SERVICE, &apart, &together, email, local_part].iter().any(|word| is_made_of(&password, word))
}

/// The word, once or repeated, with nothing beside it but a few digits and signs: `Ballast2026!`.
fn is_made_of(password: &str, word: &str) -> bool {
    if !word.contains(char::is_alphabetic) {
        return password == word;
    }
    let rest = password.replace(word, "");
    rest.len() < password.len()
        && rest.len() < 8
        && rest.chars().all(|c| c.is_ascii() && !c.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_common_passwords_is_sorted_and_long_and_holds_only_what_could_be_chosen() {
        assert!(COMMON.len() >= 3_000, "{}", COMMON.len());
        assert!(COMMON.is_sorted_by(|a, b| a < b), "sorted by bytes, each once");
        for password in COMMON.iter() {
            assert!(
                (8..=128).contains(&password.chars().count()),
                "{password}: refused for its length anyway"
            );
            assert_eq!(*password, password.to_lowercase());
            assert!(is_guessable(password, "ann@example.com"), "{password}");
            assert!(is_guessable(&password.to_uppercase(), "ann@example.com"), "{password}");
        }
    }

    #[test]
    fn the_names_of_service_and_person_are_guessed_and_sentences_with_them_are_not() {
        let email = "ann.smith@example.com";
        let apart = SERVICE.replace('-', " ");
        for guessed in [
            &format!("{SERVICE}1"),
            &format!("{SERVICE}{SERVICE}"),
            &format!("{}-2026!", SERVICE.to_uppercase()),
            &format!("{apart}-2026!"),
            "ann.smith",
            "Ann.Smith99",
            "1ann.smith!",
            "ann.smith@example.com",
            "ANN.SMITH@example.com1",
        ] {
            assert!(is_guessable(guessed, email), "{guessed}");
        }
        for not in [
            &format!("{SERVICE} for a ship"),
            "ann.smith likes tea",
            &format!("{SERVICE}-93847561"),
            &format!("{SERVICE}\u{1f511}"),
            "",
        ] {
            assert!(!is_guessable(not, email), "{not}");
        }
        // Odd addresses forbid no more than themselves.
        assert!(is_guessable("20461357", "20461357@example.com"));
        assert!(!is_guessable("20461357", "2@example.com"));
        assert!(!is_guessable("        ", ""));
    }
}
