drop table audit_log, api_key, one_time_token, refresh_token, session, users;
