drop function job_add_error(jsonb, integer, text);
drop table cron_tick;
drop table cron_line;
drop table job_unique;
drop table queue;
drop table worker;
drop table job_done;
drop table job;
