//! Recipes in a document: steps that a person can follow, in words that a program understands.
//!
//! ```text
//! ## Name
//! - First: `Another part`, `Yet another`.
//! - Delete `a/file` and `a/folder`.
//! - In `a/file`, delete `a line, or a piece of one`, `another`.
//! - In `a/file`, delete from `a line` to `a later line`.
//! - In `a/file`, replace `this` with `that`.
//! - Create `a/file`:          (a block of code follows)
//! - In `a/file`, after `a line`, add:          (a block of code follows)
//! - Run `cargo test --package some`.           (when all that is built)
//! ```
//!
//! What is named must be there exactly once: a step that does not fit the tree any more is an error.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// A section of a document with steps.
#[derive(Debug)]
pub(crate) struct Recipe {
    pub(crate) name: String,
    /// What has to go before.
    pub(crate) first: Vec<String>,
    steps: Vec<Step>,
    /// What shows that it works.
    pub(crate) run: Vec<String>,
}

impl Recipe {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), first: Vec::new(), steps: Vec::new(), run: Vec::new() }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Delete(String),
    Cut { file: String, text: String },
    CutLines { file: String, from: String, to: String },
    Replace { file: String, old: String, new: String },
    Create { file: String, content: String },
    Add { file: String, after: String, content: String },
}

/// The recipes of a document, in order.
pub(crate) fn parse(document: &str) -> Result<Vec<Recipe>> {
    let mut recipes: Vec<Recipe> = Vec::new();
    let mut lines = document.lines().peekable();
    let mut name = document.lines().next().unwrap_or_default().trim_start_matches("# ").to_owned();
    while let Some(line) = lines.next() {
        if let Some(heading) = line.strip_prefix("## ") {
            heading.clone_into(&mut name);
        }
        if !["- First: `", "- Delete `", "- In `", "- Create `", "- Run `"]
            .iter()
            .any(|start| line.starts_with(start))
        {
            continue;
        }
        let mut item = line.to_owned();
        while let Some(more) = lines.next_if(|next| next.starts_with("  ") && !next.trim().starts_with("```"))
        {
            item = format!("{item} {}", more.trim());
        }
        let mut code = None;
        if item.ends_with(':') {
            while lines.next_if(|next| next.is_empty()).is_some() {}
            let fence = lines.next().filter(|next| next.trim().starts_with("```"));
            let fence = fence.with_context(|| format!("{name}: no code follows: {item}"))?;
            let indent = fence.len() - fence.trim_start().len();
            let mut content = String::new();
            for line in lines.by_ref().take_while(|line| line.trim() != "```") {
                content.push_str(line.get(indent..).unwrap_or_default());
                content.push('\n');
            }
            code = Some(content);
        }
        if item.starts_with("- First: ") {
            let first = parts(&item)?.into_iter().skip(1).step_by(2).map(str::to_owned).collect();
            recipes.push(Recipe { first, ..Recipe::new(&name) });
            continue;
        }
        if recipes.last().is_none_or(|recipe| recipe.name != name) {
            recipes.push(Recipe::new(&name));
        }
        let recipe = recipes.last_mut().expect("there is one now");
        if let ["- Run ", command, "."] = parts(&item)?[..] {
            recipe.run.push(command.to_owned());
            continue;
        }
        let steps = steps(&item, code).with_context(|| format!("{name}: cannot be understood: {item}"))?;
        recipe.steps.extend(steps);
    }
    Ok(recipes)
}

/// Words and pieces of code in turn. A piece stands between as many backticks on either side as it needs.
fn parts(item: &str) -> Result<Vec<&str>> {
    let (mut parts, mut rest) = (Vec::new(), item);
    while let Some(at) = rest.find('`') {
        let (words, code) = rest.split_at(at);
        let ticks = &code[..code.len() - code.trim_start_matches('`').len()];
        let (piece, behind) =
            code[ticks.len()..].split_once(ticks).context("a piece of code does not end")?;
        parts.extend([words, if ticks.len() > 1 { piece.trim() } else { piece }]);
        rest = behind;
    }
    parts.push(rest);
    Ok(parts)
}

/// The steps of one item: the words between its pieces of code say what to do with them.
fn steps(item: &str, code: Option<String>) -> Result<Vec<Step>> {
    let parts = parts(item)?;
    let words: Vec<&str> = parts.iter().step_by(2).map(|words| words.trim()).collect();
    let pieces: Vec<String> = parts.iter().skip(1).step_by(2).map(|&piece| piece.to_owned()).collect();
    let and = |words: &[&str]| words.iter().all(|words| matches!(*words, "," | "and" | ", and"));
    let (last, between) = words.split_last().map_or(("", &words[..0]), |(last, between)| (*last, between));
    Ok(match (between, &pieces[..], code) {
        (["- Delete", rest @ ..], paths, None) if and(rest) && last == "." => {
            paths.iter().map(|path| Step::Delete(path.trim_end_matches('/').to_owned())).collect()
        }
        (["- Create"], [file], Some(content)) => vec![Step::Create { file: file.clone(), content }],
        (["- In", ", after"], [file, after], Some(content)) if last == ", add:" => {
            vec![Step::Add { file: file.clone(), after: after.clone(), content }]
        }
        (["- In", ", delete from", "to"], [file, from, to], None) => {
            vec![Step::CutLines { file: file.clone(), from: from.clone(), to: to.clone() }]
        }
        (["- In", ", replace", "with"], [file, old, new], None) => {
            vec![Step::Replace { file: file.clone(), old: old.clone(), new: new.clone() }]
        }
        (["- In", ", delete", rest @ ..], [file, texts @ ..], None) if and(rest) => {
            texts.iter().map(|text| Step::Cut { file: file.clone(), text: text.clone() }).collect()
        }
        _ => bail!("the words are not those of a recipe"),
    })
}

/// What a recipe makes of a tree: file by file the new content, or `None` for what goes.
pub(crate) type Changes = BTreeMap<PathBuf, Option<String>>;

impl Recipe {
    /// Applies the steps, on top of `changes`.
    pub(crate) fn apply(&self, root: &Path, changes: &mut Changes) -> Result<()> {
        for step in &self.steps {
            step.apply(root, changes).with_context(|| format!("{}: {step:?}", self.name))?;
        }
        Ok(())
    }
}

impl Step {
    fn apply(&self, root: &Path, changes: &mut Changes) -> Result<()> {
        match self {
            Self::Delete(path) => {
                ensure!(root.join(path).exists(), "there is no such file");
                changes.insert(path.into(), None);
            }
            Self::Create { file, content } => {
                ensure!(!root.join(file).exists(), "there is such a file already");
                changes.insert(file.into(), Some(content.clone()));
            }
            Self::Cut { file, text } => edit(root, changes, file, |content| cut(content, text))?,
            Self::CutLines { file, from, to } => {
                edit(root, changes, file, |content| cut_lines(content, from, to))?;
            }
            Self::Replace { file, old, new } => edit(root, changes, file, |content| {
                once(content, old)?;
                Ok(content.replacen(old.as_str(), new, 1))
            })?,
            Self::Add { file, after, content: new } => edit(root, changes, file, |content| {
                let at = line(content, after, 0)?;
                let mut lines: Vec<&str> = content.lines().collect();
                lines.splice(at..=at, std::iter::once(lines[at]).chain(new.lines()));
                Ok(lines.join("\n") + "\n")
            })?,
        }
        Ok(())
    }
}

fn edit(
    root: &Path,
    changes: &mut Changes,
    file: &str,
    change: impl FnOnce(&str) -> Result<String>,
) -> Result<()> {
    let content = match changes.get(Path::new(file)) {
        Some(Some(content)) => content.clone(),
        Some(None) => bail!("{file} was deleted before"),
        None => std::fs::read_to_string(root.join(file)).with_context(|| format!("cannot read {file}"))?,
    };
    changes.insert(file.into(), Some(change(&content)?));
    Ok(())
}

/// Without the line that is this text; or else without the text.
fn cut(content: &str, text: &str) -> Result<String> {
    let whole = content.lines().filter(|line| line.trim() == text.trim()).count();
    if whole == 1 {
        let at = line(content, text, 0)?;
        let lines = content.lines().enumerate().filter(|(n, _)| *n != at).map(|(_, line)| line);
        return Ok(lines.collect::<Vec<_>>().join("\n") + "\n");
    }
    once(content, text)?;
    Ok(content.replacen(text, "", 1))
}

/// Without the lines from one to another, and without an empty one behind them.
fn cut_lines(content: &str, from: &str, to: &str) -> Result<String> {
    let mut first = line(content, from, 0)?;
    let lines: Vec<&str> = content.lines().collect();
    // A closing brace ends what began with the same indentation.
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut behind = lines.iter().enumerate().skip(first);
    let closes = |line: &str| !to.starts_with('}') || indent(line) <= indent(lines[first]);
    let last = behind.find(|(_, line)| line.trim() == to.trim() && closes(line));
    let (mut last, _) = last.with_context(|| format!("no line `{to}` follows"))?;
    if lines.get(last + 1).is_some_and(|line| line.is_empty()) {
        last += 1;
    }
    // The attributes of what goes, such as `#[test]`.
    while first > 0 && lines[first - 1].trim_start().starts_with("#[") {
        first -= 1;
    }
    let kept = lines[..first].iter().chain(&lines[last + 1..]);
    Ok(kept.copied().collect::<Vec<_>>().join("\n") + "\n")
}

/// The number of the only line that is this text.
fn line(content: &str, text: &str, skip: usize) -> Result<usize> {
    let mut found = content.lines().enumerate().skip(skip).filter(|(_, line)| line.trim() == text.trim());
    let (at, _) = found.next().with_context(|| format!("there is no line `{text}`"))?;
    ensure!(found.next().is_none(), "there is more than one line `{text}`");
    Ok(at)
}

fn once(content: &str, text: &str) -> Result<()> {
    match content.matches(text).count() {
        1 => Ok(()),
        0 => bail!("there is no `{text}`"),
        n => bail!("there is `{text}` {n} times"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const DOCUMENT: &str = "# Title

- An ordinary `item`.

## Part
Words.

- Delete `gone` and `also/gone`.
- In `file`, delete `two`,
  ``f(x) `y` ``.
- In `file`, delete from `begin` to `}`.
- In `file`, replace `old` with `new`.
- Create `made`:
  ```rust
  fn made() {
      body();
  }
  ```
- In `file`, after `one`, add:
  ```text
  one and a half
  ```
- Run `cargo test --package part`.
";

    #[test]
    fn a_recipe_is_read_and_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("gone"), "").unwrap();
        fs::create_dir_all(dir.path().join("also/gone")).unwrap();
        fs::write(dir.path().join("file"), "one\n  two\nthree f(x) `y`\n#[test]\nbegin\n  }\n}\n\nold\n")
            .unwrap();
        let recipes = parse(DOCUMENT).unwrap();
        assert_eq!(recipes.len(), 1);
        assert_eq!(recipes[0].name, "Part");
        assert_eq!(recipes[0].run, ["cargo test --package part"]);
        let mut changes = Changes::new();
        recipes[0].apply(dir.path(), &mut changes).unwrap();
        let changed = |name: &str| changes[Path::new(name)].clone();
        assert_eq!((changed("gone"), changed("also/gone")), (None, None));
        assert_eq!(changed("file").unwrap(), "one\none and a half\nthree \nnew\n");
        assert_eq!(changed("made").unwrap(), "fn made() {\n    body();\n}\n");
    }

    #[test]
    fn a_step_that_does_not_fit_or_is_not_understood_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "twice\ntwice\n").unwrap();
        for step in [
            "- Delete `nothing`.",
            "- In `nothing`, delete `x`.",
            "- In `file`, delete `twice`.",
            "- In `file`, delete `never`.",
            "- In `file`, replace `never` with `x`.",
            "- In `file`, delete from `never` to `twice`.",
        ] {
            let recipes = parse(&format!("## Part\n{step}\n")).unwrap();
            assert!(recipes[0].apply(dir.path(), &mut Changes::new()).is_err(), "{step}");
        }
        for step in [
            "- Delete `a` perhaps.",
            "- In `a`, do something to `b`.",
            "- Create `a`:",
            "- Run `a` and `b`.",
            "- In `a, delete `b`.",
        ] {
            assert!(parse(&format!("## Part\n{step}\n")).is_err(), "{step}");
        }
    }
}
