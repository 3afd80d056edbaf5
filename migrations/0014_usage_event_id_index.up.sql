-- no-transaction
-- When it was interrupted: drop index usage_event_event_id, and again.
create unique index concurrently usage_event_event_id on usage_event (event_id);
