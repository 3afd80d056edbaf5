-- no-transaction
create unique index concurrently usage_event_event_id on usage_event (event_id);
