drop table usage_hour, usage_event;
