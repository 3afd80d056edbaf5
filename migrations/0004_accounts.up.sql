-- Invitations, and what one-time tokens need to be mailed by a job that may be tried again.

create table invitation (
    id uuid primary key,
    email text not null constraint invitation_email_check check (email = lower(email) and length(email) between 3 and 254),
    role text not null constraint invitation_role_check check (role in ('user', 'admin')),
    invited_by uuid references users (id) on delete set null,
    created_at timestamptz not null default now(),
    expires_at timestamptz not null,
    accepted_at timestamptz,
    revoked_at timestamptz
);
-- One for each address: a new one revokes the one before it.
create unique index invitation_open on invitation (email) where accepted_at is null and revoked_at is null;

alter table one_time_token
    -- What an `invite` token opens. The invitation is accepted once, however many tokens were mailed for it.
    add column invitation_id uuid references invitation (id) on delete cascade,
    -- The job that mailed the token: its attempts leave each other's tokens alone, the next job voids them.
    add column job_id bigint,
    add column revoked_at timestamptz;
create index one_time_token_user_id on one_time_token (user_id, purpose);
create index one_time_token_invitation_id on one_time_token (invitation_id);
