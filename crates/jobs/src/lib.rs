#![doc = include_str!("../README.md")]

mod ack;
mod admin;
mod buffer;
mod claim;
mod context;
mod cron;
mod db;
mod enqueue;
mod error;
mod execute;
mod floor;
mod handler;
mod held;
mod housekeeping;
mod json;
mod lease;
mod queue;
mod settings;
mod slots;
mod spec;
pub mod testing;
mod view;
mod wake;
mod worker;

pub use admin::{
    Cancelled, CronView, QueueView, WorkerView, cancel, cron_lines, pause_queue, queues, resume_queue, retry,
    workers,
};
pub use context::JobContext;
pub use cron::{CatchUp, CronLine};
pub use enqueue::{
    EnqueueOptions, Enqueued, MAX_PAYLOAD_BYTES, NewJob, Unique, enqueue, enqueue_many, enqueue_raw,
};
pub use error::{Error, JobId};
pub use handler::JobError;
pub use housekeeping::{Kept, keep_partitions, prune};
pub use settings::Settings;
pub use spec::{JobSpec, Priority};
pub use view::{Failure, JobState, JobView, ListFilter, Progress, find, list};
pub use worker::{Worker, WorkerHandle};
