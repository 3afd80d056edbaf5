-- Who may use the API: users, their sessions and tokens, machine keys, and what happened.

create table users (
    id uuid primary key,
    -- Trimmed, NFC, lower case: the application normalises, the constraint remembers.
    email text not null constraint users_email_key unique
        constraint users_email_check check (email = lower(email) and length(email) between 3 and 254),
    password_hash text not null,
    role text not null default 'user' constraint users_role_check check (role in ('user', 'admin')),
    email_verified_at timestamptz,
    disabled_at timestamptz,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

-- One row per login. Its refresh tokens form a family that is revoked as a whole.
create table session (
    id uuid primary key,
    user_id uuid not null references users (id) on delete cascade,
    created_at timestamptz not null default now(),
    last_used_at timestamptz not null default now(),
    -- Used or not, the session ends here.
    expires_at timestamptz not null,
    revoked_at timestamptz,
    revoked_reason text,
    user_agent text,
    ip inet
);
create index session_user_id on session (user_id) where revoked_at is null;
create index session_expires_at on session (expires_at);

-- SHA-256 of opaque tokens. The child of a token is derived from it, so a lost answer can be given again.
create table refresh_token (
    hash bytea primary key constraint refresh_token_hash_check check (length(hash) = 32),
    session_id uuid not null references session (id) on delete cascade,
    parent_hash bytea,
    created_at timestamptz not null default now(),
    expires_at timestamptz not null,
    used_at timestamptz
);
create index refresh_token_session_id on refresh_token (session_id);

-- One-time tokens of e-mail verification, password reset and invitations.
create table one_time_token (
    hash bytea primary key constraint one_time_token_hash_check check (length(hash) = 32),
    purpose text not null
        constraint one_time_token_purpose_check check (purpose in ('verify_email', 'reset_password', 'invite')),
    user_id uuid references users (id) on delete cascade,
    email text,
    created_at timestamptz not null default now(),
    expires_at timestamptz not null,
    used_at timestamptz
);
create index one_time_token_expires_at on one_time_token (expires_at);

create table api_key (
    id uuid primary key,
    user_id uuid not null references users (id) on delete cascade,
    name text not null constraint api_key_name_check check (length(name) between 1 and 100),
    -- The part of the key that may be shown and by which it is found.
    public_id text not null constraint api_key_public_id_key unique,
    secret_hash bytea not null constraint api_key_secret_hash_check check (length(secret_hash) = 32),
    scopes text[] not null default '{}',
    -- Overrides of the rate-limit policies for this key: {"ai-requests": "600/1m"}.
    policy jsonb not null default '{}',
    created_at timestamptz not null default now(),
    expires_at timestamptz,
    last_used_at timestamptz,
    revoked_at timestamptz
);
create index api_key_user_id on api_key (user_id);

-- Security events. Append-only; kept by the retention job.
create table audit_log (
    id bigint generated always as identity primary key,
    occurred_at timestamptz not null default now(),
    event text not null,
    user_id uuid,
    actor_id uuid,
    session_id uuid,
    ip inet,
    request_id text,
    detail jsonb not null default '{}'
);
create index audit_log_occurred_at on audit_log (occurred_at);
create index audit_log_user_id on audit_log (user_id, id);
