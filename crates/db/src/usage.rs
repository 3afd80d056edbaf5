//! What AI requests cost: events, and their sums by hour.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::Result;

/// One AI request, when it is over.
#[derive(Debug, Clone)]
pub struct UsageEvent {
    /// Its name. A writer that got no answer writes it again under the same one, and it is there once.
    pub id: Uuid,
    /// When it ended.
    pub occurred_at: DateTime<Utc>,
    /// Who asked.
    pub user_id: Uuid,
    /// With which key, if with one.
    pub api_key_id: Option<Uuid>,
    /// The request's id.
    pub request_id: String,
    /// The route's template.
    pub route: String,
    /// The model that answered, or that was asked for.
    pub model: String,
    /// The engine's name.
    pub engine: String,
    /// Tokens read.
    pub prompt_tokens: i64,
    /// Tokens written.
    pub completion_tokens: i64,
    /// True when the counts are ours and not the engine's.
    pub estimated: bool,
    /// True when the cache answered: it cost nothing.
    pub cached: bool,
    /// `ok`, `client_abort`, `engine_error`, `timeout` or `drained`.
    pub outcome: &'static str,
    /// Until the first event.
    pub first_token_ms: Option<i32>,
    /// The whole request.
    pub duration_ms: i32,
}

/// Appends events, all in one statement. Those that are there already are passed over.
pub async fn insert(c: &mut PgConnection, events: &[UsageEvent]) -> Result<()> {
    fn column<T>(events: &[UsageEvent], f: impl Fn(&UsageEvent) -> T) -> Vec<T> {
        events.iter().map(f).collect()
    }
    sqlx::query!(
        "insert into usage_event (event_id, occurred_at, user_id, api_key_id, request_id, route, model, engine, prompt_tokens,
                                  completion_tokens, estimated, cached, outcome, first_token_ms, duration_ms)
         select * from unnest($1::uuid[], $2::timestamptz[], $3::uuid[], $4::uuid[], $5::text[], $6::text[], $7::text[],
                              $8::text[], $9::bigint[], $10::bigint[], $11::boolean[], $12::boolean[], $13::text[], $14::int[],
                              $15::int[])
         on conflict (event_id) do nothing",
        &column(events, |e| e.id),
        &column(events, |e| e.occurred_at),
        &column(events, |e| e.user_id),
        &column(events, |e| e.api_key_id) as &[Option<Uuid>],
        &column(events, |e| e.request_id.clone()),
        &column(events, |e| e.route.clone()),
        &column(events, |e| e.model.clone()),
        &column(events, |e| e.engine.clone()),
        &column(events, |e| e.prompt_tokens),
        &column(events, |e| e.completion_tokens),
        &column(events, |e| e.estimated),
        &column(events, |e| e.cached),
        &column(events, |e| e.outcome.to_owned()),
        &column(events, |e| e.first_token_ms) as &[Option<i32>],
        &column(events, |e| e.duration_ms),
    )
    .execute(c)
    .await?;
    Ok(())
}

/// Adds up to `limit` events that are not yet counted to the sums by hour, and returns how many. Events keep a flag and not
/// a watermark: ids become visible out of order, and a flag survives a restore into another cluster.
pub async fn roll_up(c: &mut PgConnection, limit: i64) -> Result<i64> {
    let count = sqlx::query_scalar!(
        r#"with fresh as (
               update usage_event set rolled_up = true
               where id = any (array(
                   select id from usage_event where not rolled_up limit $1 for update skip locked))
               returning *
           ), sums as (
               insert into usage_hour as h (hour, user_id, model, requests, errors, cached, prompt_tokens, completion_tokens)
               select date_trunc('hour', occurred_at, 'UTC'), user_id, model, count(*),
                      count(*) filter (where outcome <> 'ok'), count(*) filter (where cached), sum(prompt_tokens), sum(completion_tokens)
               from fresh group by 1, 2, 3 order by 2, 1, 3
               on conflict (user_id, hour, model) do update set
                   requests = h.requests + excluded.requests,
                   errors = h.errors + excluded.errors,
                   cached = h.cached + excluded.cached,
                   prompt_tokens = h.prompt_tokens + excluded.prompt_tokens,
                   completion_tokens = h.completion_tokens + excluded.completion_tokens
           )
           select count(*) as "count!" from fresh"#,
        limit
    )
    .fetch_one(c)
    .await?;
    Ok(count)
}

/// Deletes up to `limit` events that happened before `before` and are counted in the sums, which stay. Returns how many.
pub async fn delete_counted(c: &mut PgConnection, before: DateTime<Utc>, limit: i64) -> Result<u64> {
    let done = sqlx::query!(
        "delete from usage_event
         where id = any (array(
             select id from usage_event where occurred_at < $1 and rolled_up order by occurred_at limit $2))",
        before,
        limit
    )
    .execute(c)
    .await?;
    Ok(done.rows_affected())
}

/// Usage of one model on one day.
#[derive(Debug, Clone)]
pub struct DayUsage {
    /// The day (UTC), as `2026-11-20`.
    pub day: String,
    /// The model.
    pub model: String,
    /// Requests.
    pub requests: i64,
    /// Requests that did not end well.
    pub errors: i64,
    /// Requests that the cache answered.
    pub cached: i64,
    /// Tokens read.
    pub prompt_tokens: i64,
    /// Tokens written.
    pub completion_tokens: i64,
}

/// A user's usage by day and model since `since`: the hours that are summed up plus the tail of events that are not, in one
/// snapshot, so that a request is counted exactly once at any moment.
pub async fn by_day(c: &mut PgConnection, user_id: Uuid, since: DateTime<Utc>) -> Result<Vec<DayUsage>> {
    let rows = sqlx::query_as!(
        DayUsage,
        r#"select to_char(hour at time zone 'UTC', 'YYYY-MM-DD') as "day!", model as "model!",
                  sum(requests)::bigint as "requests!", sum(errors)::bigint as "errors!",
                  sum(cached)::bigint as "cached!", sum(prompt_tokens)::bigint as "prompt_tokens!", sum(completion_tokens)::bigint as "completion_tokens!"
           from (
               select hour, model, requests, errors, cached, prompt_tokens, completion_tokens
               from usage_hour where user_id = $1 and hour >= date_trunc('hour', $2::timestamptz, 'UTC')
               union all
               select occurred_at, model, 1, (outcome <> 'ok')::int, cached::int, prompt_tokens, completion_tokens
               from usage_event where user_id = $1 and not rolled_up
                   and occurred_at >= date_trunc('hour', $2::timestamptz, 'UTC')
           ) as usage
           group by 1, 2 order by 1 desc, 2"#,
        user_id,
        since
    )
    .fetch_all(c)
    .await?;
    Ok(rows)
}

/// Usage of one model by one user on one day.
#[derive(Debug, Clone)]
pub struct UserUsage {
    /// Whose.
    pub user_id: Uuid,
    /// The rest.
    pub usage: DayUsage,
}

/// Which usage of all users.
#[derive(Debug, Clone, Default)]
pub struct Filter<'a> {
    /// Not before the hour of this time.
    pub since: DateTime<Utc>,
    /// Of this user.
    pub user_id: Option<Uuid>,
    /// Of this model.
    pub model: Option<&'a str>,
    /// After this day, user and model.
    pub after: Option<(&'a str, Uuid, &'a str)>,
    /// At most so many.
    pub limit: i64,
}

/// Everybody's usage by day, user and model, latest day first; as [`by_day`], each request exactly once.
pub async fn by_user(c: &mut PgConnection, filter: &Filter<'_>) -> Result<Vec<UserUsage>> {
    let (day, user, model) = filter.after.map_or((None, None, None), |(d, u, m)| (Some(d), Some(u), Some(m)));
    let rows = sqlx::query!(
        r#"with days as (
               select to_char(hour at time zone 'UTC', 'YYYY-MM-DD') as day, user_id, model,
                      sum(requests)::bigint as requests, sum(errors)::bigint as errors, sum(cached)::bigint as cached,
                      sum(prompt_tokens)::bigint as prompt_tokens, sum(completion_tokens)::bigint as completion_tokens
               from (
                   select hour, user_id, model, requests, errors, cached, prompt_tokens, completion_tokens
                   from usage_hour where hour >= date_trunc('hour', $1::timestamptz, 'UTC')
                   union all
                   select occurred_at, user_id, model, 1, (outcome <> 'ok')::int, cached::int, prompt_tokens,
                          completion_tokens
                   from usage_event
                   where not rolled_up and occurred_at >= date_trunc('hour', $1::timestamptz, 'UTC')
               ) as usage
               where ($2::uuid is null or user_id = $2) and ($3::text is null or model = $3)
               group by 1, 2, 3
           )
           select day as "day!", user_id as "user_id!", model as "model!", requests as "requests!", errors as "errors!",
                  cached as "cached!", prompt_tokens as "prompt_tokens!", completion_tokens as "completion_tokens!"
           from days
           where $4::text is null or day < $4 or (day = $4 and (user_id, model) > ($5::uuid, $6::text))
           order by day desc, user_id, model limit $7"#,
        filter.since,
        filter.user_id,
        filter.model,
        day,
        user,
        model,
        filter.limit,
    )
    .map(|row| UserUsage {
        user_id: row.user_id,
        usage: DayUsage {
            day: row.day,
            model: row.model,
            requests: row.requests,
            errors: row.errors,
            cached: row.cached,
            prompt_tokens: row.prompt_tokens,
            completion_tokens: row.completion_tokens,
        },
    })
    .fetch_all(c)
    .await?;
    Ok(rows)
}
