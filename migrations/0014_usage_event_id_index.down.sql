-- no-transaction
drop index concurrently if exists usage_event_event_id;
