//! What breaks.

use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;

use super::stand::Stand;

/// See [`Fault::happen`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Kill(Victim),
    Terminate(Victim),
    Pause(Victim),
    KillPostgres,
    PausePostgres,
    KillRedis,
    PauseRedis,
}

/// The second of each pair, and the engine, which has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Victim {
    Api,
    Worker,
    Engine,
}

/// All of them are equally likely.
const FAULTS: [Fault; 12] = [
    Fault::Kill(Victim::Api),
    Fault::Terminate(Victim::Api),
    Fault::Pause(Victim::Api),
    Fault::Kill(Victim::Worker),
    Fault::Terminate(Victim::Worker),
    Fault::Pause(Victim::Worker),
    Fault::Kill(Victim::Engine),
    Fault::Pause(Victim::Engine),
    Fault::KillPostgres,
    Fault::PausePostgres,
    Fault::KillRedis,
    Fault::PauseRedis,
];

impl Fault {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kill(Victim::Api) => "api killed",
            Self::Terminate(Victim::Api) => "api ended",
            Self::Pause(Victim::Api) => "api paused",
            Self::Kill(Victim::Worker) => "worker killed",
            Self::Terminate(Victim::Worker) => "worker ended",
            Self::Pause(Victim::Worker) => "worker paused",
            Self::Kill(Victim::Engine) => "engine killed",
            Self::Terminate(Victim::Engine) => "engine ended",
            Self::Pause(Victim::Engine) => "engine paused",
            Self::KillPostgres => "postgres killed",
            Self::PausePostgres => "postgres paused",
            Self::KillRedis => "redis killed",
            Self::PauseRedis => "redis paused",
        }
    }

    /// Breaks something for so long and mends it.
    pub(super) fn happen(self, stand: &mut Stand, time: Duration) -> Result<()> {
        match self {
            Self::Kill(victim) => stand.kill(victim, time),
            Self::Terminate(victim) => stand.terminate(victim, time),
            Self::Pause(victim) => {
                // A worker sleeps past its lease: its jobs run elsewhere, and it has to notice when it wakes up.
                let time = if victim == Victim::Worker { time + Duration::from_secs(2) } else { time };
                let id = stand.process(victim);
                id.signal(Signal::SIGSTOP);
                std::thread::sleep(time);
                id.signal(Signal::SIGCONT);
                Ok(())
            }
            Self::KillPostgres => stand.throwaway.kill_postgres(time.min(Duration::from_secs(3))),
            Self::KillRedis => stand.throwaway.kill_redis(time),
            Self::PausePostgres | Self::PauseRedis => {
                let services = &stand.throwaway.services;
                let service = if self == Self::PausePostgres { &services.postgres } else { &services.redis };
                if let Some(record) = service.record() {
                    record.id.signal_group(Signal::SIGSTOP);
                    std::thread::sleep(time);
                    record.id.signal_group(Signal::SIGCONT);
                }
                Ok(())
            }
        }
    }
}

/// Numbers that look like chance and follow from a seed (SplitMix64; Steele, Lea, Flood 2014).
#[derive(Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Both ends included.
    pub(super) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    pub(super) fn fault(&mut self) -> Fault {
        let index = self.between(0, FAULTS.len() as u64 - 1);
        FAULTS[usize::try_from(index).unwrap_or_default()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_faults_again_and_another_one_others() {
        let faults = |seed| {
            let mut dice = Dice::new(seed);
            (0..50).map(|_| dice.fault()).collect::<Vec<_>>()
        };
        assert_eq!(faults(7), faults(7));
        assert_ne!(faults(7), faults(8));
    }

    #[test]
    fn every_fault_comes_in_a_long_night() {
        let mut dice = Dice::new(1);
        let seen: Vec<Fault> = (0..360).map(|_| dice.fault()).collect();
        for fault in FAULTS {
            assert!(seen.contains(&fault), "{}", fault.name());
        }
        assert!((0..1000).all(|_| (1..=6).contains(&dice.between(1, 6))));
    }
}
