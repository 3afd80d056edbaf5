-- Documents that users hand in, and their pieces with embeddings.

create table document (
    id uuid primary key,
    user_id uuid not null references users (id) on delete cascade,
    title text not null constraint document_title_check check (length(title) between 1 and 200),
    content text not null constraint document_content_check check (octet_length(content) between 1 and 200000),
    state text not null default 'pending'
        constraint document_state_check check (state in ('pending', 'ready', 'failed')),
    -- Why it failed, for its owner.
    error text,
    -- How many pieces there will be; null before the first attempt.
    chunk_count integer,
    -- The job that ingests it.
    job_id bigint,
    created_at timestamptz not null default now(),
    ingested_at timestamptz
);
create index document_user_id on document (user_id, id);

create table document_chunk (
    document_id uuid not null references document (id) on delete cascade,
    position integer not null,
    content text not null,
    -- Which model the numbers are from: those of two models cannot be compared.
    model text not null,
    embedding real[] not null constraint document_chunk_embedding_check check (array_length(embedding, 1) > 0),
    primary key (document_id, position)
);
