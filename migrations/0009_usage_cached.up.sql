-- Requests that the cache answered: they cost no tokens, and are counted apart. Both columns have a constant default, so nothing is
-- rewritten; the release before writes neither.

alter table usage_event add column cached boolean not null default false;
alter table usage_hour add column cached bigint not null default 0;

-- For everybody's usage of a period. Only the roll-up writes here, and a job may wait.
create index usage_hour_hour on usage_hour (hour);
