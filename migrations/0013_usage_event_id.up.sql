-- Who writes an event names it, so that one whose commit was not answered can be written again. Rows of the release before have none.
alter table usage_event add column event_id uuid;
