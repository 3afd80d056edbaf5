alter table usage_event drop column event_id;
