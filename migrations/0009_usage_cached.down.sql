drop index usage_hour_hour;
alter table usage_event drop column cached;
alter table usage_hour drop column cached;
