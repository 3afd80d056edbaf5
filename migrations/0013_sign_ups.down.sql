-- no-transaction
drop index concurrently if exists one_time_token_email;
