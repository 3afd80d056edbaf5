-- Webhooks that come in, and those that go out.

-- What came in, each event once, by its sender's id. The body is kept as it was signed.
create table webhook_event (
    -- Who sent it: `stripe`, or a name from WEBHOOK_SECRETS.
    source text not null constraint webhook_event_source_check check (length(source) between 1 and 32),
    event_id text not null constraint webhook_event_event_id_check check (length(event_id) between 1 and 255),
    body bytea not null,
    received_at timestamptz not null default now(),
    processed_at timestamptz,
    primary key (source, event_id)
);
create index webhook_event_received_at on webhook_event (received_at);

-- Where users want to be told.
create table webhook_endpoint (
    id uuid primary key,
    user_id uuid not null references users (id) on delete cascade,
    url text not null constraint webhook_endpoint_url_check check (length(url) between 1 and 2000),
    -- Types of events; empty means all.
    event_types text[] not null default '{}',
    -- The secret that deliveries are signed with, encrypted as `credential.sealed` is.
    key_id text not null,
    sealed bytea not null constraint webhook_endpoint_sealed_check check (length(sealed) > 28),
    created_at timestamptz not null default now(),
    -- The other side said that it is gone.
    disabled_at timestamptz
);
create index webhook_endpoint_user_id on webhook_endpoint (user_id, id);
create index webhook_endpoint_key_id on webhook_endpoint (key_id, id);

-- What was sent where, and what came of it.
create table webhook_delivery (
    id uuid primary key,
    endpoint_id uuid not null references webhook_endpoint (id) on delete cascade,
    event_type text not null,
    -- JSON as it is signed and sent.
    body text not null,
    created_at timestamptz not null default now(),
    attempts integer not null default 0,
    -- Of the last attempt: the answer's status, or why there was none.
    last_attempt_at timestamptz,
    last_status integer,
    last_error text,
    delivered_at timestamptz,
    failed_at timestamptz,
    constraint webhook_delivery_end_check check (delivered_at is null or failed_at is null)
);
create index webhook_delivery_endpoint_id on webhook_delivery (endpoint_id, created_at desc, id);
create index webhook_delivery_created_at on webhook_delivery (created_at);
