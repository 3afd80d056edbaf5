drop index session_last_used_at, audit_log_event;
drop table credential;
