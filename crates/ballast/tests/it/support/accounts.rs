//! Accounts as tests need them, and the way on which people get one.

use sqlx::PgPool;
use uuid::Uuid;

pub(crate) const PASSWORD: &str = "correct horse battery staple";

/// [`PASSWORD`], hashed with today's parameters: to make an account costs no hashing, to log in costs what it costs everybody.
const PASSWORD_HASH: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$c2FsdCBvZiB0aGUgdGVzdA$xwoZbetu+Ugrhwfbl0OCX9spNCB0SpJOhCBwBDMM4hU";

/// Makes an account in the database that logs in with [`PASSWORD`], its address confirmed as after a registration.
pub(crate) async fn insert_user(pool: &PgPool, email: &str, role: &str) -> Uuid {
    let id = insert_unconfirmed_user(pool, email, role).await;
    db::users::confirm_email(&mut pool.acquire().await.unwrap(), id, email).await.unwrap();
    id
}

/// The same as `ballast user create` makes it: nobody has confirmed the address.
pub(crate) async fn insert_unconfirmed_user(pool: &PgPool, email: &str, role: &str) -> Uuid {
    let id = Uuid::now_v7();
    let mut c = pool.acquire().await.unwrap();
    db::users::insert(&mut c, id, email, PASSWORD_HASH, role).await.unwrap();
    id
}

/// The text of the newest mail to this address: in development the job that would have sent it keeps it.
pub(crate) async fn mail_to(pool: &PgPool, address: &str) -> Option<String> {
    sqlx::query_scalar(
        "select result->'mail'->>'text' from job_done where result->'mail'->>'to' = $1 order by id desc limit 1",
    )
    .bind(address)
    .fetch_optional(pool)
    .await
    .unwrap()
}

/// The one-time token in a mail.
pub(crate) fn token_in(mail: &str) -> String {
    mail[mail.find("ot_").unwrap_or_else(|| panic!("no token: {mail}"))..].chars().take(46).collect()
}
