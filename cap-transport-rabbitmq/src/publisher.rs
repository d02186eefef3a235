//! Sending: one connection, several lanes, and a window over all of them.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use cap_core::transport::Outgoing;
use cap_core::{Result, Topic};
use lapin::Channel;
use lapin::options::ConfirmSelectOptions;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::connection::Link;
use crate::driver::Alive;
use crate::error::{call, unavailable};
use crate::lane::{Lane, Parcel, refuse};
use crate::settings::Settings;
use crate::{topology, wire};

/// A connection for sending. When it is dropped, its lanes finish what is on its way; then it is closed.
pub(crate) struct Publisher {
    link: Arc<Link>,
    lanes: Vec<(Arc<Channel>, UnboundedSender<Parcel>)>,
    window: Arc<Semaphore>,
    retired: Arc<AtomicBool>,
}

impl Publisher {
    /// Connects, declares the exchange and starts the lanes.
    pub(crate) async fn open(settings: &Arc<Settings>, closed: watch::Receiver<bool>, alive: Alive) -> Result<Self> {
        let link = Arc::new(Link::open(settings, "publisher", alive).await?);
        let opening = Self::open_lanes(settings, Arc::clone(&link), closed);
        let limit = settings.connect_timeout();
        let opened = tokio::time::timeout(limit, opening).await;
        opened.unwrap_or_else(|_| {
            let reason = format!("it did not open channels or declare the exchange within {limit:?}");
            Err(unavailable("connect to", &settings.place, reason))
        })
    }

    async fn open_lanes(settings: &Arc<Settings>, link: Arc<Link>, closed: watch::Receiver<bool>) -> Result<Self> {
        let failed = |cause| call("open a channel on", settings.place.clone(), cause, "");
        let retired = Arc::new(AtomicBool::new(false));
        let mut lanes = Vec::with_capacity(settings.publish_channels());
        for place in 0..settings.publish_channels() {
            let channel = Arc::new(link.channel().await.map_err(failed)?);
            if place == 0 {
                topology::declare_exchange(&channel, settings).await?;
            }
            channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(failed)?;
            let (sender, inbox) = mpsc::unbounded_channel();
            let (link, retired) = (Arc::clone(&link), Arc::clone(&retired));
            let lane = Lane::new(Arc::clone(settings), link, Arc::clone(&channel), inbox, closed.clone(), retired);
            tokio::spawn(lane.run());
            lanes.push((channel, sender));
        }
        Ok(Self { link, lanes, window: Arc::new(Semaphore::new(settings.window())), retired })
    }

    /// Whether more may be sent on it.
    pub(crate) fn is_usable(&self) -> bool {
        self.link.is_open()
            && !self.retired.load(Ordering::Relaxed)
            && self.lanes.iter().all(|(channel, _)| channel.status().connected())
    }

    /// Hands messages to their lanes, waiting for room in the window until the deadline.
    pub(crate) async fn send(&self, settings: &Settings, messages: Vec<Outgoing>, deadline: Instant) {
        for Outgoing { message, confirm } in messages {
            if let Err(error) = wire::check(&message, settings.max_body(), self.link.frame_max()) {
                confirm.report(Err(error));
                continue;
            }
            let room = tokio::time::timeout_at(deadline.into(), Arc::clone(&self.window).acquire_owned());
            let Ok(Ok(room)) = room.await else {
                let subject = format!("message {} to topic `{}`", message.id, message.topic);
                let reason = format!("{} messages before it are unconfirmed", settings.window());
                confirm.report(Err(unavailable("send", subject, reason)));
                continue;
            };
            let (_, lane) = &self.lanes[lane_of(&message.topic, self.lanes.len())];
            if let Err(refused) = lane.send(Parcel { message, confirm, deadline, room }) {
                refuse(refused.0, "the connection was lost");
            }
        }
    }

    pub(crate) async fn end(&self) {
        self.link.end().await;
    }
}

/// The lane of a topic: always the same, so that a topic's messages keep their order.
fn lane_of(topic: &Topic, lanes: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    topic.as_str().hash(&mut hasher);
    usize::try_from(hasher.finish() % lanes as u64).unwrap_or(0)
}
