//! The mistakes that an engine or a storage could make. The checker has to find each of them.

/// A mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A record is settled as sent before the broker has confirmed it.
    MarkBeforeConfirm,
    /// The broker confirms a message that reached only some of the groups.
    ConfirmWithoutRouting,
    /// A broker that is not durable confirms before every group has acknowledged.
    ConfirmBeforeAck,
    /// A send with an unknown outcome is forgotten instead of given back.
    GiveBackForgotten,
    /// A delivery is acknowledged before it is in the inbox.
    AckBeforeInsert,
    /// The inbox takes a message id twice.
    NoDedupe,
    /// A claim sees what is not committed.
    ClaimSeesUncommitted,
    /// A claim takes what another node holds.
    ClaimTakesHeld,
    /// A claim whose answer was lost is not released; or it is carried out after its release.
    LostClaimForgotten,
    /// A release gives back all that its node holds.
    ReleaseIgnoresToken,
    /// A settlement is written whoever holds the record.
    SettleIgnoresToken,
    /// A transactional handler commits whoever holds the record.
    TransactIgnoresToken,
    /// A transactional handler's effect is committed before its record's success.
    EffectApartFromSuccess,
    /// A takeover does not look at leases.
    TakeOverFromTheLiving,
    /// A takeover counts no crash.
    TakeOverForgetsCrash,
    /// Nobody takes over.
    NoTakeOver,
    /// A heartbeat revives a lease that had run out.
    HeartbeatRevives,
    /// A process that starts again has the id that it had before.
    RestartKeepsId,
    /// Only the first claim counts an attempt.
    OnlyFirstAttemptCounts,
    /// What is to be given up is tried all the same.
    ExhaustedTried,
    /// What is to be given up is given back instead of buried.
    ExhaustedGivenBack,
    /// After too many crashes a record is given up without being tried alone.
    NoTrial,
    /// A record is tried alone without its being written down.
    TrialNotWritten,
    /// Other suspects are worked on beside one that is tried alone.
    CompanyInTrial,
    /// A record is given up when its process died once while it was tried alone.
    OneTrialBuries,
    /// A record that was tried alone again is given up when it is claimed again, whether its process died or it was given
    /// back.
    MarkNotCompared,
    /// What a node that leaves was trying alone still says so when another claims it.
    LeaveKeepsMark,
    /// When it is not known whether it was written that a record is tried alone, other suspects go on at once.
    UnansweredMarkLetsGo,
    /// A settlement leaves the crashes as they were.
    SettleKeepsCrashes,
    /// A person can give a record in flight a new life.
    RequeueTakesHeld,
    /// The collector deletes records that wait.
    CollectsWaiting,
}
