//! Names that are checked once, when they are made: topics, groups and versions.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::shown::{Shown, shown};

/// The longest topic or effective group name, in bytes. CAP's columns hold 200 characters.
pub const MAX_NAME: usize = 200;

/// The longest version, in bytes (CAP's column).
pub const MAX_VERSION: usize = 20;

fn check(what: &str, name: &str, limit: usize) -> Result<()> {
    let refuse = |reason: String| Err(Error::invalid(format!("{what} {name:.60?}"), reason));
    if name.is_empty() {
        return refuse("it is empty".into());
    }
    if name.len() > limit {
        return refuse(format!("it has {} bytes, the limit is {limit}", name.len()));
    }
    if let Some(bad) = name.chars().find(|c| c.is_control()) {
        return refuse(format!("it holds the control character {bad:?}"));
    }
    if name.trim() != name {
        return refuse("it begins or ends with white space".into());
    }
    Ok(())
}

macro_rules! name_type {
    ($name:ident, $what:literal, $limit:expr) => {
        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The name for people to read, in logs: it may come from anywhere.
            pub fn shown(&self) -> Shown<'_> {
                shown(&self.0)
            }

            /// A name that the storage gives back: it was checked when it was written, or another system wrote it.
            pub fn from_stored(name: &str) -> Self {
                Self(name.into())
            }
        }

        impl std::str::FromStr for $name {
            type Err = Error;

            fn from_str(name: &str) -> Result<Self> {
                Self::try_from(name)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.shown())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::try_from(text.as_str()).map_err(serde::de::Error::custom)
            }
        }
    };
}

/// What a message is about: words separated by dots, such as `order.placed`. At most [`MAX_NAME`] bytes, no control
/// characters, none of the wildcards `*` and `#`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Topic(Arc<str>);

name_type!(Topic, "topic", MAX_NAME);

impl TryFrom<&str> for Topic {
    type Error = Error;

    /// # Errors
    /// `Invalid` when it is empty, too long, or holds control characters or wildcards.
    fn try_from(name: &str) -> Result<Self> {
        check("topic", name, MAX_NAME)?;
        if name.contains(['*', '#']) {
            return Err(Error::invalid(
                format!("topic {name:?}"),
                "wildcards (`*`, `#`) are for subscribing, a message is published to one exact topic",
            ));
        }
        Ok(Self(name.into()))
    }
}

/// Who wants a message: each group gets each message once, its members share the work.
///
/// Inside the engine and in the storage this is the *effective* name, `group.version` (CAP's convention, also the
/// broker's queue or consumer group): see [`Group::effective`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Group(Arc<str>);

name_type!(Group, "group", MAX_NAME);

impl TryFrom<&str> for Group {
    type Error = Error;

    /// # Errors
    /// `Invalid` when it is empty, too long or holds control characters.
    fn try_from(name: &str) -> Result<Self> {
        check("group", name, MAX_NAME)?;
        Ok(Self(name.into()))
    }
}

impl Group {
    /// The effective name of the group `name` for engines of `version`: `name.version`.
    ///
    /// # Errors
    /// `Invalid` when `name` is no group name, or the whole is longer than [`MAX_NAME`] bytes.
    pub fn effective(name: &str, version: &Version) -> Result<Self> {
        check("group", name, MAX_NAME)?;
        Self::try_from(format!("{name}.{version}").as_str())
    }
}

/// Separates engines that share a store: an engine works only on records of its own version. What it does not separate, see
/// `Options::version`. At most [`MAX_VERSION`] bytes; the default is `v1`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Version(Arc<str>);

name_type!(Version, "version", MAX_VERSION);

impl TryFrom<&str> for Version {
    type Error = Error;

    /// # Errors
    /// `Invalid` when it is empty, too long or holds control characters.
    fn try_from(name: &str) -> Result<Self> {
        check("version", name, MAX_VERSION)?;
        Ok(Self(name.into()))
    }
}

impl Default for Version {
    fn default() -> Self {
        Self("v1".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_names_are_refused_and_the_error_names_the_thing() {
        for bad in ["", "a\tb", " a", "a*", "order.#", &"x".repeat(201)] {
            let error = Topic::try_from(bad).unwrap_err().to_string();
            assert!(error.contains("topic"), "{error}");
        }
        assert!(Group::try_from("").unwrap_err().to_string().contains("group"));
        assert!(Version::try_from("a version that is too long").unwrap_err().to_string().contains("version"));
    }

    #[test]
    fn the_effective_group_ends_in_the_version_and_the_whole_is_limited() {
        let version = Version::default();
        assert_eq!(Group::effective("billing", &version).unwrap().as_str(), "billing.v1");
        assert!(Group::effective(&"g".repeat(198), &version).is_err());
    }
}
