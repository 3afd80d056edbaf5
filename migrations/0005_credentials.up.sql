-- Credentials of other systems that users store, encrypted; and what administrators ask about users.

create table credential (
    id uuid primary key,
    user_id uuid not null references users (id) on delete cascade,
    name text not null constraint credential_name_check check (length(name) between 1 and 100),
    -- A name from CREDENTIAL_PROVIDERS at the time.
    provider text not null constraint credential_provider_check check (length(provider) between 1 and 32),
    -- Which key encrypted it, and nonce (12 bytes), ciphertext, tag (16 bytes). Bound to id and user_id: a row's secret
    -- cannot be read under another row or for another user.
    key_id text not null,
    sealed bytea not null constraint credential_sealed_check check (length(sealed) > 28),
    -- The last characters of a long secret, to tell it from others.
    ends_with text,
    -- What came of trying it.
    status text not null default 'unchecked'
        constraint credential_status_check check (status in ('unchecked', 'ok', 'failed')),
    status_detail text,
    checked_at timestamptz,
    created_at timestamptz not null default now(),
    constraint credential_user_id_name_key unique (user_id, name)
);
-- For the rotation of keys.
create index credential_key_id on credential (key_id, id);

-- Security events of one kind; the newest first.
create index audit_log_event on audit_log (event, id);
-- How many sessions are in use, and by how many users.
create index session_last_used_at on session (last_used_at) include (user_id) where revoked_at is null;
