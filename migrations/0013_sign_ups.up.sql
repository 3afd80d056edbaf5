-- no-transaction
-- Sign-ups are counted by address: they belong to no user yet.
create index concurrently one_time_token_email on one_time_token (email, purpose) where user_id is null;
