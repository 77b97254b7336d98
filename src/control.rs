//! Control: one hand on the wheel of a session's browser.
//!
//! A lease renewed by its holder's inputs, with a fencing token: an input under an old token is refused, whoever
//! sends it. Time is an argument.

use std::time::Duration;

use tokio::time::Instant;

use crate::ids::ConnectionId;

/// Who can hold control or a claim: a connection ends, a credential does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Shown to people.
    pub who: String,
    pub by: HolderKey,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HolderKey {
    Connection(ConnectionId),
    /// A key, a token or a session capability, over REST.
    Credential(std::sync::Arc<str>),
}

#[derive(Clone, Debug)]
pub struct Lease {
    pub holder: Holder,
    pub token: u64,
    pub since: String,
    until: Instant,
}

#[derive(Clone, Copy, Debug)]
pub struct ControlTimes {
    pub lease: Duration,
    /// After the holder's connection was lost.
    pub grace: Duration,
}

/// Why an input or a release was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlRefused {
    HeldBy(String),
    OldToken,
    NotHeld,
}

#[derive(Debug, Default)]
pub struct Wheel {
    lease: Option<Lease>,
    last_token: u64,
}

impl Wheel {
    /// Tokens are above this number, which is above every one that another process gave.
    pub fn continue_behind(number: u64) -> Self {
        Self { lease: None, last_token: number }
    }

    /// Takes control, or renews it for its holder. The token is the lease's.
    pub fn take(
        &mut self,
        holder: &Holder,
        since: &str,
        now: Instant,
        times: ControlTimes,
    ) -> Result<Taken, ControlRefused> {
        match &mut self.lease {
            Some(lease) if lease.holder.by == holder.by => {
                lease.until = now + times.lease;
                Ok(Taken::Renewed(lease.token))
            }
            Some(lease) => Err(ControlRefused::HeldBy(lease.holder.who.clone())),
            None => {
                self.last_token += 1;
                let token = self.last_token;
                let until = now + times.lease;
                self.lease = Some(Lease { holder: holder.clone(), token, since: since.to_owned(), until });
                Ok(Taken::New(token))
            }
        }
    }

    /// Whether an input may pass. With nobody in control it may, and opens no lease.
    pub fn input(
        &mut self,
        holder: &Holder,
        token: Option<u64>,
        now: Instant,
        times: ControlTimes,
    ) -> Result<(), ControlRefused> {
        match &mut self.lease {
            None if token.is_some() => Err(ControlRefused::OldToken),
            None => Ok(()),
            Some(lease) if lease.holder.by != holder.by => Err(ControlRefused::HeldBy(lease.holder.who.clone())),
            Some(lease) if token.is_some_and(|token| token != lease.token) => Err(ControlRefused::OldToken),
            Some(lease) => {
                lease.until = now + times.lease;
                Ok(())
            }
        }
    }

    pub fn release(&mut self, holder: &Holder, token: Option<u64>) -> Result<Lease, ControlRefused> {
        match &self.lease {
            None => Err(ControlRefused::NotHeld),
            Some(lease) if lease.holder.by != holder.by => Err(ControlRefused::HeldBy(lease.holder.who.clone())),
            Some(lease) if token.is_some_and(|token| token != lease.token) => Err(ControlRefused::OldToken),
            Some(_) => Ok(self.lease.take().expect("just seen")),
        }
    }

    /// A connection was lost: what it held ends after the grace, unless its lease ends before.
    pub fn connection_lost(&mut self, connection: ConnectionId, now: Instant, times: ControlTimes) {
        if let Some(lease) = &mut self.lease
            && lease.holder.by == HolderKey::Connection(connection)
        {
            lease.until = lease.until.min(now + times.grace);
        }
    }

    /// The lease, if it has ended by now; it is gone then.
    pub fn expire(&mut self, now: Instant) -> Option<Lease> {
        self.lease.take_if(|lease| now >= lease.until)
    }

    /// Ends whatever lease there is.
    pub fn end(&mut self) -> Option<Lease> {
        self.lease.take()
    }

    pub fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref()
    }

    pub fn until(&self) -> Option<Instant> {
        self.lease.as_ref().map(|lease| lease.until)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    New(u64),
    Renewed(u64),
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: ControlTimes = ControlTimes { lease: Duration::from_secs(60), grace: Duration::from_secs(5) };

    fn person(who: &str, connection: u128) -> Holder {
        Holder { who: who.to_owned(), by: HolderKey::Connection(ConnectionId(connection)) }
    }

    #[test]
    fn an_old_token_is_refused_after_the_lease_passed_on() {
        let (now, mut wheel) = (Instant::now(), Wheel::default());
        let (ada, bob) = (person("ada", 1), person("bob", 2));
        assert_eq!(wheel.take(&ada, "", now, TIMES), Ok(Taken::New(1)));
        assert_eq!(wheel.input(&bob, None, now, TIMES), Err(ControlRefused::HeldBy("ada".to_owned())));
        assert!(wheel.expire(now + Duration::from_secs(60)).is_some());
        assert_eq!(wheel.take(&bob, "", now, TIMES), Ok(Taken::New(2)));
        wheel.end();
        assert_eq!(wheel.take(&ada, "", now, TIMES), Ok(Taken::New(3)));
        assert_eq!(wheel.input(&ada, Some(1), now, TIMES), Err(ControlRefused::OldToken));
    }

    #[test]
    fn inputs_renew_a_lease_and_a_lost_connection_shortens_it() {
        let (now, mut wheel) = (Instant::now(), Wheel::default());
        let ada = person("ada", 1);
        wheel.take(&ada, "", now, TIMES).unwrap();
        let later = now + Duration::from_secs(50);
        wheel.input(&ada, Some(1), later, TIMES).unwrap();
        assert!(wheel.expire(now + Duration::from_secs(100)).is_none());
        wheel.connection_lost(ConnectionId(1), later, TIMES);
        assert!(wheel.expire(later + Duration::from_secs(5)).is_some());
    }

    #[test]
    fn with_nobody_in_control_an_input_passes_and_opens_no_lease() {
        let (now, mut wheel) = (Instant::now(), Wheel::default());
        assert_eq!(wheel.input(&person("ada", 1), None, now, TIMES), Ok(()));
        assert!(wheel.lease().is_none());
    }
}
