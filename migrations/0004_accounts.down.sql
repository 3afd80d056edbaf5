alter table one_time_token drop column invitation_id, drop column job_id, drop column revoked_at;
drop index one_time_token_user_id;
drop table invitation;
