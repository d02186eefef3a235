//! Where connections come from.
//!
//! The driver's pool goes on opening a connection for as long as it may take, although others come back meanwhile, and in the
//! end says only that it took too long. So what takes long is looked into (`Room`). Where the server gives no more, nobody
//! opens one for a while: whoever needs one waits for one that comes back, and all share those of the pool for work.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::Pool;
use sqlx::pool::{PoolConnection, PoolOptions};
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::fault::{Fallible, Fault};
use crate::losses::Losses;
use crate::pools::{Limits, Via};
use crate::pulse::Pulse;
use crate::room::Room;
use crate::server::{Options, Server};
use crate::way::Way;

/// Connections that only leases use, however busy the pool is.
const KEEPERS: u32 = 2;

/// With so few connections for work, leases have none of their own but for the heartbeats.
const SCARCE: u32 = 1;

/// How often somebody who waits for a connection looks whether one has come back: the pool tells nobody.
const LOOK: Duration = Duration::from_millis(5);

/// How long one that has come back, or that has to be opened since there is none, may take to be had.
const BRIEFLY: Duration = Duration::from_secs(1);

/// How long a pool without any connection waits before it asks for one again.
const PAUSE: Duration = Duration::from_millis(250);

/// The pools.
pub(crate) struct Supply<S: Server> {
    pub(crate) work: Pool<S::Db>,
    /// Whether that is the storage's own.
    pub(crate) is_own: bool,
    keepers: Pool<S::Db>,
    pulse: Pulse<S::Db>,
    pub(crate) losses: Losses,
    pub(crate) room: Room,
    /// Where sessions are lent none is limited, as it would be so for others.
    pub(crate) way: Way,
    /// What its own pools connect with, as it was given.
    connect: Options<S>,
    limits: Limits,
    /// Where connections are opened and go back to their pool, wherever they are used: one works only while the runtime that
    /// made it runs, and is had again only when the one that it goes back from has run.
    pub(crate) home: Option<Handle>,
}

/// The runtime that this is called in, if its threads run whatever is waited for in them.
fn home() -> Option<Handle> {
    Handle::try_current().ok().filter(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread)
}

impl<S: Server> Supply<S> {
    /// Over a pool of the user's.
    pub(crate) fn over(work: Pool<S::Db>, limits: Limits) -> Self {
        let connect = Options::<S>::clone(&work.connect_options());
        Self::new(work, connect, false, limits, Losses::default(), Way::default())
    }

    /// Over a pool of its own.
    pub(crate) fn own(connect: Options<S>, limits: Limits) -> Self {
        let (losses, way) = (Losses::default(), Way::default());
        let work = pool::<S>(connect.clone(), limits.pool_size, limits, true, &losses, &way);
        Self::new(work, connect, true, limits, losses, way)
    }

    fn new(work: Pool<S::Db>, connect: Options<S>, is_own: bool, limits: Limits, losses: Losses, way: Way) -> Self {
        let is_limited = is_own || S::LIMITS_BESIDE_POOL;
        let keepers = pool::<S>(connect.clone(), KEEPERS, limits, is_limited, &losses, &way);
        let (pulse, room, home) = (Pulse::default(), Room::default(), home());
        Self { work, is_own, keepers, pulse, losses, room, way, connect, limits, home }
    }

    /// The server itself answers: each new connection of the storage's own is looked at from now on, whether it still does.
    pub(crate) fn mark(&self) {
        if !self.way.is_marked() {
            self.connect_with(&S::mark(self.connect_options()));
            self.way.mark(true);
        }
    }

    /// A pooler lends sessions. It may refuse what it does not know.
    pub(crate) fn lend(&self) {
        self.way.mark(false);
        let options = self.connect_options();
        self.connect_with(&options);
        self.way.lend::<S>(&S::place(&options));
    }

    /// What connections are made with, as it was given: in a pool of the user's that may have changed.
    pub(crate) fn connect_options(&self) -> Options<S> {
        if self.is_own { self.connect.clone() } else { Options::<S>::clone(&self.work.connect_options()) }
    }

    /// For all pools but that of the user's.
    fn connect_with(&self, options: &Options<S>) {
        if self.is_own {
            self.work.set_connect_options(options.clone());
        }
        for pool in std::iter::once(self.keepers.clone()).chain(self.pulse.all()) {
            pool.set_connect_options(options.clone());
        }
    }

    /// A connection, at the latest when the time limit of its pool is over.
    pub(crate) async fn acquire(&self, via: Via) -> Fallible<PoolConnection<S::Db>> {
        let limit = match via {
            Via::Work => self.work.options().get_acquire_timeout(),
            Via::Keepers | Via::Pulse => self.limits.connect_timeout,
        };
        let acquiring = async {
            match via {
                Via::Work => self.for_work().await,
                Via::Keepers => self.beside(&self.keepers, true).await,
                Via::Pulse => self.beside(&self.pulse(), false).await,
            }
        };
        match tokio::time::timeout(limit, acquiring).await {
            Ok(Err(Fault::Sqlx(sqlx::Error::PoolTimedOut))) | Err(_) => Err(self.room.no_connection(limit)),
            Ok(acquired) => acquired,
        }
    }

    async fn for_work(&self) -> Fallible<PoolConnection<S::Db>> {
        loop {
            let acquired = if self.room.is_full() { self.shared().await } else { self.opened(&self.work, true).await };
            if let Some(connection) = acquired? {
                return Ok(connection);
            }
        }
    }

    /// From a pool beside that for work, or from that one if the server gives no more.
    async fn beside(&self, pool: &Pool<S::Db>, at_home: bool) -> Fallible<PoolConnection<S::Db>> {
        loop {
            let may_open = !self.room.is_full() || self.work.size() == 0;
            let acquired =
                if may_open || pool.num_idle() > 0 { self.opened(pool, at_home).await } else { self.shared().await };
            if let Some(connection) = acquired? {
                return Ok(connection);
            }
        }
    }

    /// An idle one, or a new one; nothing if the server gives no more.
    async fn opened(&self, pool: &Pool<S::Db>, at_home: bool) -> Fallible<Option<PoolConnection<S::Db>>> {
        let mut acquiring = pin!(self.acquiring(pool, at_home));
        loop {
            tokio::select! {
                biased;
                acquired = &mut acquiring => return self.unless_full(pool, acquired),
                is_full = self.room.look_later::<S>(pool) => if is_full { return Ok(None) },
            }
        }
    }

    /// Asks a pool for a connection.
    async fn acquiring(&self, pool: &Pool<S::Db>, at_home: bool) -> sqlx::Result<PoolConnection<S::Db>> {
        let is_away = |home: &&Handle| at_home && Handle::try_current().is_ok_and(|here| here.id() != home.id());
        let Some(home) = self.home.as_ref().filter(is_away) else { return pool.acquire().await };
        let pool = pool.clone();
        // One that nobody waits for any more goes back into the pool.
        match home.spawn(async move { pool.acquire().await }).await {
            Ok(acquired) => acquired,
            Err(_) => Err(sqlx::Error::WorkerCrashed),
        }
    }

    /// One of those for work that has come back; nothing if there was none, and it is to be tried again.
    async fn shared(&self) -> Fallible<Option<PoolConnection<S::Db>>> {
        let _turn = self.room.turn.lock().await;
        self.make_room().await;
        let begun = Instant::now();
        while self.work.num_idle() == 0 && self.room.is_full() {
            if self.work.size() == 0 && begun.elapsed() > PAUSE {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        match tokio::time::timeout(BRIEFLY, self.acquiring(&self.work, true)).await {
            Ok(acquired) => self.unless_full(&self.work, acquired),
            Err(_) => Ok(None),
        }
    }

    fn unless_full(
        &self,
        pool: &Pool<S::Db>,
        acquired: sqlx::Result<PoolConnection<S::Db>>,
    ) -> Fallible<Option<PoolConnection<S::Db>>> {
        match acquired {
            Err(error) if self.way.is_marked() && S::refuses_mark(&error) => {
                self.lend();
                Ok(None)
            }
            Err(error) if S::is_full(&error) => {
                self.room.fill::<S>(&error, pool);
                Ok(None)
            }
            acquired => Ok(Some(acquired?)),
        }
    }

    /// What leases have for themselves is given up where the server gives hardly any: that of the heartbeats only if there is
    /// no other.
    async fn make_room(&self) {
        let mut spared = Vec::new();
        if self.work.size() <= SCARCE {
            spared.push(self.keepers.clone());
        }
        if self.work.size() == 0 {
            spared.extend(self.pulse.all());
        }
        for pool in spared {
            while let Some(connection) = pool.try_acquire() {
                // The server notices in any case.
                drop(connection.close().await);
            }
        }
    }

    fn pulse(&self) -> Pool<S::Db> {
        self.pulse.here(|| {
            let connect = self.connect_options();
            let connect = if self.way.is_marked() { S::mark(connect) } else { connect };
            let is_limited = self.is_own || S::LIMITS_BESIDE_POOL;
            pool::<S>(connect, 1, self.limits, is_limited, &self.losses, &self.way)
        })
    }
}

/// A pool of the storage's own. It connects when it is first used. Its sessions may have the statement timeout as their own
/// limit.
fn pool<S: Server>(
    connect: Options<S>,
    size: u32,
    limits: Limits,
    is_limited: bool,
    losses: &Losses,
    way: &Way,
) -> Pool<S::Db> {
    let (losses, way) = (losses.clone(), way.clone());
    let place: Arc<str> = S::place(&connect).into();
    PoolOptions::<S::Db>::new()
        .max_connections(size)
        .acquire_timeout(limits.connect_timeout)
        // A round trip for each statement would be too much: what was used a moment ago still lives, mostly.
        .test_before_acquire(false)
        .before_acquire(move |connection, found| {
            let losses = losses.clone();
            Box::pin(async move { losses.allow(connection, found).await })
        })
        .after_connect(move |connection, _| {
            let (way, place) = (way.clone(), Arc::clone(&place));
            Box::pin(async move {
                way.look::<S>(connection, &place).await?;
                if is_limited && !way.is_lent() {
                    S::limit(connection, limits.statement_timeout).await?;
                }
                Ok(())
            })
        })
        .connect_lazy_with(connect)
}
