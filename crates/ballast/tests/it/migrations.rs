//! Migrations that meet trouble (case D4); those that meet each other are in `cli`.

use std::time::Duration;

use sqlx::AssertSqlSafe;
use test_support::TestDatabase;

use crate::{cli::run, support::Process};

/// The migrators' own.
const LOCK: i64 = 0x6261_6c6c_6173_7401;

/// Everything that a migration could have left.
async fn objects(database: &TestDatabase) -> Vec<String> {
    let query = "select c.relkind::text || ' ' || c.relname from pg_class c where relnamespace = 'public'::regnamespace order by 1";
    sqlx::query_scalar(query).fetch_all(database.pool()).await.unwrap()
}

/// Those without a transaction have one statement, which was carried out or not.
fn is_in_transaction(version: &str) -> bool {
    let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../../migrations")).unwrap();
    let mut files = files.map(|file| file.unwrap().path());
    let begin = format!("{version:0>4}_");
    let is_it = |name: &str| name.starts_with(&begin) && name.ends_with(".up.sql");
    let file = files.find(|file| is_it(file.file_name().unwrap().to_str().unwrap())).expect(version);
    !std::fs::read_to_string(file).unwrap().starts_with("-- no-transaction")
}

/// The last statement of the newest migration that has a transaction, its record, is refused: everything before it has happened by then.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_migration_changes_nothing_and_is_applied_once_it_is_mended() {
    let database = TestDatabase::empty().await;
    let vars = [("DATABASE_URL", database.url())];
    let migrate = |arguments: &[&str]| tokio::task::block_in_place(|| run(arguments, &vars));
    assert_eq!(migrate(&["migrate", "up"]).0, 0);
    let mut pending = 0;
    let newest = loop {
        let (_, said, _) = migrate(&["migrate", "revert"]);
        let newest = said.trim().rsplit(' ').next().unwrap().to_owned();
        pending += 1;
        if is_in_transaction(&newest) {
            break newest;
        }
    };
    let before = objects(&database).await;
    let sql = async |statement: String| {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(database.pool()).await.unwrap()
    };
    sql(format!("alter table _sqlx_migrations add constraint broken check (version < {newest})")).await;
    let (code, _, stderr) = migrate(&["migrate", "up"]);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("broken"), "it does not say what is wrong: {stderr}");
    assert_eq!(objects(&database).await, before, "a half of it is there");
    assert!(migrate(&["migrate", "status"]).1.contains(&format!("{pending} pending")));
    sql("alter table _sqlx_migrations drop constraint broken".to_owned()).await;
    let (code, stdout, stderr) = migrate(&["migrate", "up"]);
    assert!(code == 0 && stdout.contains(&format!("applied {pending} migration")), "{stdout}{stderr}");
}

/// `create index concurrently` waits for every session that holds a snapshot. A migrator that waits for the lock inside a
/// statement would hold one, and both would wait for ever.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_made_concurrently_while_two_migrators_wait() {
    let database = TestDatabase::create().await;
    let vars = [("DATABASE_URL", database.url())];
    let mut migrating = database.pool().acquire().await.unwrap();
    sqlx::query("select pg_advisory_lock($1)").bind(LOCK).execute(&mut *migrating).await.unwrap();
    let mut waiting: Vec<Process> = (0..2).map(|_| Process::start(&["migrate", "up"], &vars)).collect();
    let sessions = "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'ballast-migrate'";
    crate::support::eventually("both wait", Duration::from_secs(20), async || {
        sqlx::query_scalar::<_, i64>(sessions).fetch_one(database.pool()).await.unwrap() == 2
    })
    .await;
    let index = "create index concurrently while_others_wait on users (created_at)";
    let made =
        tokio::time::timeout(Duration::from_secs(20), sqlx::query(index).execute(&mut *migrating)).await;
    made.expect("they wait for each other").unwrap();
    assert!(waiting.iter_mut().all(Process::is_running), "somebody did not wait");
    drop(migrating.detach());
    for process in &mut waiting {
        let (status, _) = process.wait(Duration::from_secs(30)).await;
        assert!(status.success() && process.output().contains("nothing to do"), "{}", process.output());
    }
}
