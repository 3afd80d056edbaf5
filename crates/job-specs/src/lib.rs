//! job-specs
