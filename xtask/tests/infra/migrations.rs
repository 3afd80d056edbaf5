//! migrations/: what a migration may do while the release before it runs, and that each has its way back.

use std::collections::BTreeMap;
use std::fs;

use crate::files::{path, text};

/// A way to hurt the release that runs, or those who wait for its locks.
type Rule = (&'static str, fn(&Statement<'_>) -> bool);

/// Up to this number they go out together, with the first release: their tables are empty, and nobody waits for a lock.
const FIRST_RELEASE: u32 = 20;
/// What matters to tables with rows alone.
const OF_ROWS: [&str; 2] = ["an index of a table that others write", "reads the whole table under a lock"];

/// One statement, in lower case with single spaces, and what its file says of itself.
struct Statement<'a> {
    text: &'a str,
    file: &'a str,
}

impl Statement<'_> {
    /// The word behind these: a table's name.
    fn after(&self, words: &str) -> Option<&str> {
        let rest = self.text.strip_prefix(words)?;
        rest.trim_start_matches("only ").split([' ', '(']).next()
    }

    /// A table that is made in the same file is nobody's yet.
    fn is_new(&self, table: &str) -> bool {
        self.file.contains(&format!("create table {table} ("))
            || self.file.contains(&format!("create table if not exists {table} ("))
    }

    /// On a table that others use.
    fn alters(&self, what: &str) -> bool {
        self.after("alter table ").is_some_and(|table| !self.is_new(table)) && self.text.contains(what)
    }
}

/// Expand first. What a later release takes away says `-- contract: ` and which release stopped using it.
const RULES: [Rule; 6] = [
    ("takes something away that the release before uses: expand, then contract", |s| {
        let takes = s.text.starts_with("drop ") || s.alters(" drop ") || s.alters(" rename ");
        takes && !s.file.contains("-- contract: ")
    }),
    ("rewrites a table under a lock: a new column, filled by a job", |s| {
        let turns = s.text.contains(" alter column ") && s.text.contains(" type ");
        turns && s.alters(" type ") && !s.file.contains("-- contract: ")
    }),
    ("the release before does not fill it: give it a default", |s| {
        s.alters(" add column ") && s.text.contains(" not null") && !s.text.contains(" default ")
    }),
    ("reads the whole table under a lock: `not valid` first, `validate` in a migration of its own", |s| {
        let checks = s.alters(" add constraint ") || s.alters(" add check ") || s.alters(" add foreign key ");
        checks && !s.text.contains(" not valid") && !s.text.contains(" using index ")
    }),
    (
        "an index of a table that others write: `concurrently`, in a file that begins with `-- no-transaction`",
        |s| {
            let index = s.text.starts_with("create index ") || s.text.starts_with("create unique index ");
            let table =
                s.text.split(" on ").nth(1).map(|rest| rest.split([' ', '(']).next().unwrap_or_default());
            let plain = !s.text.contains(" concurrently ") || !s.file.starts_with("-- no-transaction");
            index && plain && table.is_some_and(|table| !s.is_new(table))
        },
    ),
    ("rows are changed by jobs, in batches, and not while others wait", |s| {
        s.text.starts_with("update ") || s.text.starts_with("delete ") || s.text.starts_with("truncate ")
    }),
];

/// What is wrong with a migration.
fn problems(sql: &str) -> Vec<String> {
    let lines = sql.lines().map(|line| line.split_once(" --").map_or(line, |(code, _)| code));
    let code: Vec<_> = lines.filter(|line| !line.trim_start().starts_with("--")).collect();
    let code = code.join(" ").split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
    let comments: Vec<_> = sql.lines().filter(|line| line.starts_with("--")).collect();
    let file = format!("{}\n{code}", comments.join("\n"));
    let mut found = Vec::new();
    let count = code.split(';').filter(|statement| !statement.trim().is_empty()).count();
    if sql.starts_with("-- no-transaction") && count > 1 {
        found.push("without a transaction a file holds one statement: half of it may fail".to_owned());
    }
    // The body of a function is taken apart, too; its pieces are no rule's business.
    for statement in code.split(';').map(str::trim) {
        let statement = Statement { text: statement, file: &file };
        let broken = RULES.iter().filter(|(_, is_broken)| is_broken(&statement));
        found.extend(broken.map(|(why, _)| format!("{why}: {}", statement.text)));
    }
    found
}

fn migrations() -> BTreeMap<String, String> {
    let files = fs::read_dir(path("migrations")).unwrap().map(|entry| entry.unwrap().file_name());
    let names = files
        .map(|name| name.into_string().unwrap())
        .filter(|name| std::path::Path::new(name).extension().is_some_and(|extension| extension == "sql"));
    names.map(|name| (name.clone(), text(&format!("migrations/{name}")))).collect()
}

#[test]
fn every_migration_leaves_the_release_before_it_running() {
    let all = migrations();
    let ups: Vec<_> = all.iter().filter(|(name, _)| name.ends_with(".up.sql")).collect();
    assert!(ups.len() >= 5, "{ups:?}");
    for (name, sql) in ups {
        let mut problems = problems(sql);
        if name.split('_').next().unwrap().parse::<u32>().unwrap() <= FIRST_RELEASE {
            problems.retain(|problem| !OF_ROWS.iter().any(|rule| problem.starts_with(rule)));
        }
        assert_eq!(problems, Vec::<String>::new(), "{name}");
    }
}

#[test]
fn every_migration_has_its_way_back_and_a_number_of_its_own() {
    let all = migrations();
    let mut numbers = Vec::new();
    for name in all.keys().filter_map(|name| name.strip_suffix(".up.sql")) {
        let down = all.get(&format!("{name}.down.sql"));
        assert!(down.is_some_and(|sql| !sql.trim().is_empty()), "{name} has no way back");
        numbers.push(name.split('_').next().unwrap().parse::<u32>().unwrap());
    }
    assert_eq!(all.len(), 2 * numbers.len(), "a file is neither up nor down: {:?}", all.keys());
    assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "two of one number: {numbers:?}");
}

#[test]
fn what_would_hurt_the_release_before_is_found() {
    for bad in [
        "alter table users drop column name;",
        "drop table session;",
        "alter table users rename column name to title;",
        "ALTER TABLE users\n  ALTER COLUMN id TYPE text;",
        "alter table users add column score int not null;",
        "alter table users add constraint c check (score > 0);",
        "create index users_name on users (name);",
        "create index concurrently users_name on users (name);",
        "-- no-transaction\ncreate index concurrently a on users (name);\ncreate index concurrently b on users (id);",
        "update users set name = '';",
    ] {
        assert!(!problems(bad).is_empty(), "{bad}");
    }
    for good in [
        "create table thing (id int);\ncreate index thing_id on thing (id);\nalter table thing add check (id > 0);",
        "alter table users add column score int not null default 0, add column note text;",
        "alter table users add constraint c check (score > 0) not valid;",
        "-- no-transaction\ncreate index concurrently users_name on users (name);",
        "-- contract: nobody reads it since 1.4\nalter table users drop column name;",
    ] {
        assert_eq!(problems(good), Vec::<String>::new(), "{good}");
    }
}
