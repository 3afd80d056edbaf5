//! Connections are files, and a process may open only so many. When they are used up it is not only `accept` that fails: no
//! connection to the database, to Redis or to the engine can be opened either. So connections of clients get a share.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// How many connections may be open: what is wished for, but at most three quarters of the files that the process may open. The
/// soft limit, 1,024 on many systems for the sake of programs that use `select`, is raised to the hard one first.
pub(crate) fn most_connections(wished: usize) -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return wished };
    let files = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    };
    let share = usize::try_from(files - files / 4).unwrap_or(usize::MAX);
    if share < wished {
        tracing::warn!(
            wished,
            most = share,
            open_files = files,
            "HTTP_MAX_CONNECTIONS is more than the limit on open files allows (ulimit -n)"
        );
    }
    wished.min(share)
}
