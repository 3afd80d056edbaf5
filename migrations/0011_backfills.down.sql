alter table webhook_event drop column event_type;
drop table backfill;
