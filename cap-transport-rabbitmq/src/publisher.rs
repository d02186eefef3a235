//! Sending: one connection, several lanes, and a window over all of them.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use cap_core::transport::Outgoing;
use cap_core::{Result, Topic};
use lapin::options::ConfirmSelectOptions;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::bindings::Bindings;
use crate::connection::Link;
use crate::driver::Alive;
use crate::error::{call, in_setup, unavailable};
use crate::lane::{Lane, Road};
use crate::parcel::Parcel;
use crate::quarantine::Quarantine;
use crate::refusals::Screened;
use crate::settings::Settings;
use crate::{topology, wire};

/// A connection for sending. When it is dropped, its lanes finish what is on its way; then it is closed.
pub(crate) struct Publisher {
    road: Road,
    lanes: Vec<UnboundedSender<Parcel>>,
    window: Arc<Semaphore>,
}

impl Publisher {
    /// Connects, declares the exchange and starts the lanes.
    pub(crate) async fn open(
        settings: &Arc<Settings>,
        closed: watch::Receiver<bool>,
        quarantine: Arc<Quarantine>,
        bindings: Arc<Bindings>,
        alive: Alive,
    ) -> Result<Self> {
        let link = Arc::new(Link::open(settings, "publisher", alive).await?);
        let (settings, retired) = (Arc::clone(settings), Arc::new(AtomicBool::new(false)));
        let (place, limit) = (settings.place.clone(), settings.connect_timeout());
        let road = Road { settings, link, closed, retired, quarantine, bindings };
        let opened = tokio::time::timeout(limit, Self::open_lanes(road)).await;
        opened.unwrap_or_else(|_| {
            let reason = format!("it did not open channels or declare the exchange within {limit:?}");
            Err(unavailable("connect to", place, reason))
        })
    }

    async fn open_lanes(road: Road) -> Result<Self> {
        let settings = &road.settings;
        let failed = |cause| call("open a channel on", settings.place.clone(), cause, "");
        let mut lanes = Vec::with_capacity(settings.publish_channels());
        for place in 0..settings.publish_channels() {
            let channel = road.link.channel().await.map_err(failed)?;
            if place == 0 {
                topology::declare_exchange(&channel, settings).await.map_err(in_setup)?;
            }
            channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(failed)?;
            let (sender, inbox) = mpsc::unbounded_channel();
            tokio::spawn(Lane::new(road.clone(), channel, inbox).run());
            lanes.push(sender);
        }
        let window = Arc::new(Semaphore::new(settings.window()));
        Ok(Self { road, lanes, window })
    }

    /// Whether more may be sent on it.
    pub(crate) fn is_usable(&self) -> bool {
        self.road.link.is_open() && !self.road.retired.load(Ordering::Relaxed)
    }

    /// The connection that messages are sent on.
    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.road.link
    }

    /// Hands messages to their lanes, waiting for room in the window until the deadline.
    pub(crate) async fn send(&self, messages: Vec<Outgoing>, deadline: Instant) {
        for Outgoing { message, confirm } in messages {
            self.send_one(Parcel::new(message, confirm, deadline)).await;
        }
    }

    async fn send_one(&self, mut parcel: Parcel) {
        let settings = &self.road.settings;
        if let Err(error) = wire::check(&parcel.message, settings.max_body(), self.road.link.frame_max()) {
            return parcel.report(Err(error));
        }
        match self.road.quarantine.refusals().screen(&parcel.message, Instant::now()) {
            Screened::Free => {}
            Screened::Refused(error) => return parcel.report(Err(error)),
            Screened::Alone => {
                parcel.is_probe = true;
                return self.road.quarantine.admit(&self.road, vec![parcel]);
            }
        }
        // What is sent now would only wait, and say in the end that nobody confirmed it.
        if let Some(alarm) = self.road.link.alarm() {
            return parcel.refuse(&alarm);
        }
        let room = tokio::time::timeout_at(parcel.deadline.into(), Arc::clone(&self.window).acquire_owned());
        let Ok(Ok(room)) = room.await else {
            let count = settings.window();
            let reason = match self.road.link.alarm() {
                Some(alarm) => format!("{count} messages before it are unconfirmed, because {alarm}"),
                None => format!("{count} messages before it are unconfirmed"),
            };
            return parcel.refuse(&reason);
        };
        parcel.room = Some(room);
        let lane = &self.lanes[lane_of(&parcel.message.topic, self.lanes.len())];
        if let Err(refused) = lane.send(parcel) {
            refused.0.refuse("the connection was lost");
        }
    }

    pub(crate) async fn end(&self) {
        self.road.link.end().await;
    }
}

/// The lane of a topic: always the same, so that a topic's messages keep their order.
fn lane_of(topic: &Topic, lanes: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    topic.as_str().hash(&mut hasher);
    usize::try_from(hasher.finish() % lanes as u64).unwrap_or(0)
}
