-- What AI requests cost. Events are appended by the API's batching writer, rolled up to hours by a job.

create table usage_event (
    id bigint generated always as identity primary key,
    occurred_at timestamptz not null default now(),
    user_id uuid not null,
    api_key_id uuid,
    request_id text not null,
    route text not null,
    model text not null,
    engine text not null,
    prompt_tokens bigint not null constraint usage_event_prompt_tokens_check check (prompt_tokens >= 0),
    completion_tokens bigint not null constraint usage_event_completion_tokens_check check (completion_tokens >= 0),
    -- True when the engine gave no count (an aborted stream) and ours stands in.
    estimated boolean not null,
    outcome text not null,
    first_token_ms integer,
    duration_ms integer not null,
    -- Counted in usage_hour. A flag and not a watermark over ids: ids become visible out of order.
    rolled_up boolean not null default false
);
create index usage_event_tail on usage_event (user_id, occurred_at) where not rolled_up;
create index usage_event_occurred_at on usage_event (occurred_at);

create table usage_hour (
    hour timestamptz not null,
    user_id uuid not null,
    model text not null,
    requests bigint not null,
    errors bigint not null,
    prompt_tokens bigint not null,
    completion_tokens bigint not null,
    primary key (user_id, hour, model)
);
