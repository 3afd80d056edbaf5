-- Resumable runs: chat completions that a worker makes. Their events are in Redis; what became of them is here.

create table run (
    id uuid primary key,
    user_id uuid not null references users (id) on delete cascade,
    api_key_id uuid,
    -- Of the request that started it.
    request_id text not null,
    job_id bigint not null,
    model text not null,
    -- The body as it goes to the engine. Deleted when the run has ended: nobody needs it any more.
    request bytea,
    -- What it holds of its user's limits, for whoever ends it.
    held jsonb not null,
    prompt_estimate bigint not null,
    state text not null default 'queued'
        constraint run_state_check check (state in ('queued', 'running', 'completed', 'failed', 'stopped')),
    -- How often it was begun: more than once when a worker died, or was stopped by a deploy.
    attempts integer not null default 0,
    error_code text,
    error_message text,
    prompt_tokens bigint,
    completion_tokens bigint,
    -- True when the counts are ours and not the engine's.
    estimated boolean,
    created_at timestamptz not null default now(),
    started_at timestamptz,
    ended_at timestamptz,
    constraint run_end_check check ((ended_at is null) = (state in ('queued', 'running')))
);
create index run_open on run (user_id) where ended_at is null;
create index run_ended_at on run (ended_at);
create index run_user_id on run (user_id);
