-- Subscriptions as the payment provider's events tell of them. The provider has the truth; this is what we heard.

create table subscription (
    -- The provider's id (`sub_...`).
    id text primary key constraint subscription_id_check check (length(id) between 1 and 255),
    customer_id text not null constraint subscription_customer_id_check check (length(customer_id) between 1 and 255),
    -- Who has it: `metadata.user_id`, which our own checkout sets. Null when the provider named nobody that we know.
    user_id uuid references users (id) on delete set null,
    -- The provider's word: trialing, active, past_due, canceled ... Null while only an invoice was heard of.
    status text constraint subscription_status_check check (length(status) between 1 and 64),
    price_id text constraint subscription_price_id_check check (length(price_id) <= 255),
    current_period_end timestamptz,
    cancel_at_period_end boolean not null default false,
    -- Which event the columns above are from: its time in whole seconds, and what goes last among those of one second.
    event_at timestamptz,
    event_rank smallint not null default 0,
    -- The last invoice, with a time of its own: invoices and subscriptions come in any order.
    invoice_status text constraint subscription_invoice_status_check check (length(invoice_status) between 1 and 64),
    invoice_event_at timestamptz,
    invoice_event_rank smallint not null default 0,
    -- The periods whose end was announced by mail, and whose end passed without a word from the provider.
    reminded_period_end timestamptz,
    lapsed_period_end timestamptz,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);
create index subscription_user_id on subscription (user_id);
create index subscription_current_period_end on subscription (current_period_end)
    where status in ('active', 'trialing');
