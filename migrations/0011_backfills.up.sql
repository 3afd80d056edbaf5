-- Where backfills are, and the column that the one that ships fills.

-- One row for each backfill, written in the transaction of each batch: after a crash it goes on behind the last batch.
create table backfill (
    name text primary key,
    -- The last row that was done; null at the beginning. Its form is the backfill's own.
    cursor jsonb,
    rows_done bigint not null default 0,
    -- The job that began this pass.
    started_by bigint not null,
    started_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    finished_at timestamptz
);

-- The event's type as its sender calls it, so that operators can ask for events of a type. Null: not known (yet). New rows get it
-- when they are processed, older ones by `ballast jobs enqueue backfill_event_types`.
alter table webhook_event
    add column event_type text constraint webhook_event_event_type_check check (length(event_type) between 1 and 255);
