//! The events of runs, as Redis Streams.

use std::{collections::HashMap, fmt, str::FromStr, time::Duration};

use config::RunsConfig;
use db::{
    Redis, RedisError,
    redis_client::{cmd, pipe},
};
use uuid::Uuid;

/// An entry as Redis answers it: its id and its fields.
type Raw = (String, HashMap<String, String>);

/// Entries that one read takes of a stream.
const PAGE: usize = 200;

/// An entry's id, as Redis gives it: milliseconds and a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct EventId(u64, u64);

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0, self.1)
    }
}

impl FromStr for EventId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let number = |part: &str| {
            let fine = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            if fine { part.parse().map_err(drop) } else { Err(()) }
        };
        let (milliseconds, n) = text.split_once('-').ok_or(())?;
        Ok(Self(number(milliseconds)?, number(n)?))
    }
}

/// What an entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The run waits for a worker.
    Queued,
    /// A worker has begun.
    Started,
    /// A worker has begun once more: what came before is void.
    Restarted,
    /// A piece of the answer, as the engine sent it.
    Chunk,
    /// The run has ended.
    End,
}

impl Kind {
    /// Its name, in Redis and for clients.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Started => "started",
            Self::Restarted => "restarted",
            Self::Chunk => "chunk",
            Self::End => "end",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let all = [Self::Queued, Self::Started, Self::Restarted, Self::Chunk, Self::End];
        all.into_iter().find(|kind| kind.as_str() == text)
    }
}

/// Where an entry stands among those of its run: which attempt, and which entry of it. Before the first attempt is attempt 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Place {
    /// Which attempt.
    pub attempt: i32,
    /// Which entry of it, from 0.
    pub number: u64,
}

impl Place {
    /// True when nothing can be missing between the two.
    pub fn is_followed_by(self, next: Self) -> bool {
        if next.attempt == self.attempt { next.number == self.number + 1 } else { next.number == 0 }
    }
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its id in the stream.
    pub id: EventId,
    /// Where it stands.
    pub place: Place,
    /// What it says.
    pub kind: Kind,
    /// JSON.
    pub data: String,
}

impl Entry {
    /// `None` for what is not ours.
    fn read((id, mut fields): Raw) -> Option<Self> {
        let place = Place { attempt: fields.get("a")?.parse().ok()?, number: fields.get("n")?.parse().ok()? };
        let kind = Kind::parse(fields.get("k")?)?;
        Some(Self { id: id.parse().ok()?, place, kind, data: fields.remove("d")? })
    }
}

/// The streams of all runs.
#[derive(Debug, Clone)]
pub struct Events {
    pub(crate) redis: Redis,
    limit: u64,
    pub(crate) ttl: Duration,
}

impl Events {
    /// On this Redis.
    pub fn new(redis: Redis, config: &RunsConfig) -> Self {
        Self { redis, limit: config.stream_events, ttl: config.stream_ttl }
    }

    fn key(&self, run: Uuid) -> String {
        self.redis.key(format_args!("v1:run:{run}:events"))
    }

    pub(crate) fn tickets_key(&self, run: Uuid) -> String {
        self.redis.key(format_args!("v1:run:{run}:tickets"))
    }

    /// Adds entries, the first of them at `place`, in one round trip. The oldest ones give way; stream and tickets live on for
    /// their time.
    ///
    /// When Redis does not answer, the entries may be there all the same: add them again at the same place, and readers will
    /// pass over what they know.
    pub async fn append(
        &self,
        run: Uuid,
        place: Place,
        entries: &[(Kind, String)],
    ) -> Result<(), RedisError> {
        let key = self.key(run);
        let mut pipe = pipe();
        for ((kind, data), number) in entries.iter().zip(place.number..) {
            pipe.cmd("XADD").arg(&key).arg("MAXLEN").arg(self.limit).arg("*");
            pipe.arg("a").arg(place.attempt).arg("n").arg(number).arg("k").arg(kind.as_str());
            pipe.arg("d").arg(data).ignore();
        }
        for key in [&key, &self.tickets_key(run)] {
            pipe.cmd("PEXPIRE").arg(key).arg(self.ttl.as_millis() as u64).ignore();
        }
        self.redis.call_hot(async |c| pipe.query_async::<()>(c).await).await
    }

    /// Lets stream and tickets live on, for a run that says nothing for long.
    pub async fn keep(&self, run: Uuid) -> Result<(), RedisError> {
        self.append(run, Place::default(), &[]).await
    }

    /// A page of entries from this id on, its own included, and whether there may be more.
    pub async fn read(&self, run: Uuid, from: EventId) -> Result<(Vec<Entry>, bool), RedisError> {
        let mut range = cmd("XRANGE");
        range.arg(self.key(run)).arg(from.to_string()).arg("+").arg("COUNT").arg(PAGE);
        let page: Vec<Raw> = self.redis.call_hot(async |c| range.query_async(c).await).await?;
        let more = page.len() == PAGE;
        Ok((page.into_iter().filter_map(Entry::read).collect(), more))
    }

    /// The id of the last entry; the lowest one when there is none.
    pub async fn last_id(&self, run: Uuid) -> Result<EventId, RedisError> {
        let mut range = cmd("XREVRANGE");
        range.arg(self.key(run)).arg("+").arg("-").arg("COUNT").arg(1);
        let last: Vec<Raw> = self.redis.call_hot(async |c| range.query_async(c).await).await?;
        Ok(last.first().and_then(|(id, _)| id.parse().ok()).unwrap_or_default())
    }

    /// What was added to any of these streams after the ids, waiting for it a moment if there is nothing. It occupies a
    /// connection meanwhile: have one such reader in a process, for all its streams.
    pub async fn wait(
        &self,
        after: &HashMap<Uuid, EventId>,
        patience: Duration,
    ) -> Result<Vec<(Uuid, Vec<Entry>)>, RedisError> {
        let mut read = cmd("XREAD");
        read.arg("COUNT").arg(PAGE / 2).arg("BLOCK").arg(patience.as_millis() as u64).arg("STREAMS");
        let runs: HashMap<String, Uuid> = after.keys().map(|run| (self.key(*run), *run)).collect();
        for key in runs.keys() {
            read.arg(key);
        }
        for run in runs.values() {
            read.arg(after[run].to_string());
        }
        let streams: Option<Vec<(String, Vec<Raw>)>> =
            self.redis.call(async |c| read.query_async(c).await).await?;
        let entries = streams.unwrap_or_default().into_iter().filter_map(|(key, raw)| {
            Some((*runs.get(&key)?, raw.into_iter().filter_map(Entry::read).collect()))
        });
        Ok(entries.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_two_numbers_and_nothing_else() {
        let id: EventId = "1700000000000-7".parse().unwrap();
        assert_eq!((id, id.to_string().as_str()), (EventId(1_700_000_000_000, 7), "1700000000000-7"));
        for text in ["", "-", "1", "1-", "-1", "1-2-3", "+1-2", "a-1", "1 -2", "99999999999999999999-0"] {
            assert!(text.parse::<EventId>().is_err(), "{text}");
        }
        assert!(EventId(2, 0) > EventId(1, 9) && EventId(1, 2) > EventId(1, 1));
    }

    #[test]
    fn a_place_is_followed_by_the_next_number_or_by_the_begin_of_a_later_attempt() {
        let place = |attempt, number| Place { attempt, number };
        assert!(place(1, 3).is_followed_by(place(1, 4)) && place(1, 3).is_followed_by(place(3, 0)));
        assert!(!place(1, 3).is_followed_by(place(1, 5)) && !place(1, 3).is_followed_by(place(2, 1)));
        assert!(place(2, 0) > place(1, 9), "what an older attempt adds late comes before");
    }
}
