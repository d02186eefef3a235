//! The URLs of databases: what drivers pass over in silence is refused by name.

/// Refuses a URL with a parameter that the driver does not know, or with several hosts: it says why, and shows nothing of
/// the URL but the name of the parameter. `known` are the names that are known; one that ends in `[` begins a name that
/// ends in `]`.
///
/// # Errors
/// The reason, as a sentence without its beginning.
pub fn check_url(url: &str, known: &[&str]) -> Result<(), String> {
    let url = url.split('#').next().unwrap_or_default();
    let (place, query) = url.split_once('?').unwrap_or((url, ""));
    if query.contains('@') && !place.contains('@') {
        return Err("its password holds a `?`, which has to be written as `%3F`".into());
    }
    let host = place.split_once("://").map_or(place, |(_, place)| place);
    let host = host.split('/').next().unwrap_or_default();
    if host.rsplit('@').next().unwrap_or_default().contains(',') {
        return Err("it names several hosts: name one, such as that of a proxy which leads to the primary".into());
    }
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let name = decoded(name);
        if !is_known(&name, known) {
            return Err(unknown(&name, known));
        }
        if ["host", "hostaddr", "port"].contains(&&*name) && decoded(value).contains(',') {
            return Err(format!("its parameter `{name}` names several servers: name one"));
        }
    }
    Ok(())
}

/// Whether the URL has a parameter of one of these names.
pub fn has_parameter(url: &str, names: &[&str]) -> bool {
    let query = url.split('#').next().and_then(|url| url.split_once('?')).map_or("", |(_, query)| query);
    let mut given = query.split('&').map(|parameter| decoded(parameter.split('=').next().unwrap_or_default()));
    given.any(|name| names.contains(&&*name))
}

fn is_known(name: &str, known: &[&str]) -> bool {
    known.iter().any(|known| match known.strip_suffix('[') {
        Some(_) => name.starts_with(known) && name.ends_with(']'),
        None => name == *known,
    })
}

fn unknown(name: &str, known: &[&str]) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || "-_.[]".contains(c);
    let shown = if name.chars().all(is_word) { format!("`{name:.40}`") } else { "whose name is no word".to_owned() };
    format!("it has a parameter {shown}, which is not known here; these are: {}", known.join(", ").replace('[', "[…]"))
}

/// A host as the driver wants it: the brackets around an address of IPv6 belong to the URL.
pub fn without_brackets(host: &str) -> Option<&str> {
    host.strip_prefix('[')?.strip_suffix(']')
}

/// A host and a port, for people.
pub fn host_and_port(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Without its `%`-encoding.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = (*first == b'%').then(|| after.get(..2)).flatten();
        let byte = hex.and_then(|hex| std::str::from_utf8(hex).ok()).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[&str] = &["sslmode", "host", "options", "options["];

    #[test]
    fn what_is_known_passes_however_it_is_written() {
        for good in [
            "db://u:p@h/d",
            "db://u:p@h/d?",
            "db://u:p@h/d?sslmode=require&options[search_path]=x",
            "db://u:p@h/d?options%5Bsearch_path%5D=x&%73slmode=a%40b#fragment?x=1",
            "db://[::1]:5432/d?host=%2Frun",
            "db:///d?sslmode=a@b",
        ] {
            let checked = check_url(good, KNOWN);
            assert_eq!(checked.is_ok(), good != "db:///d?sslmode=a@b", "{good}: {checked:?}");
        }
    }

    #[test]
    fn what_is_unknown_is_refused_by_name_and_shows_no_secret() {
        for (bad, named) in [
            ("db://u:hunter2@h/d?target_session_attrs=read-write", "`target_session_attrs`"),
            ("db://u:hunter2@h/d?sslmod=require&sslmode=require", "`sslmod`"),
            ("db://u:hunter2@h/d?SSLMODE=require", "`SSLMODE`"),
            ("db://u:hunter2@h/d?options[x=1", "`options[x`"),
            ("db://u:hunt?hunter2=er@h/d", "%3F"),
            ("db://u:hunter2@h/d?a%20hunter2=1", "no word"),
            ("db://u:hunter2@a,b/d", "several hosts"),
            ("db://u:hunter2@a:1,b:2/d?sslmode=require", "several hosts"),
            ("db://u:hunter2@/d?host=a%2Cb", "several servers"),
        ] {
            let reason = check_url(bad, KNOWN).unwrap_err();
            assert!(reason.contains(named), "{bad}: {reason}");
            assert!(!reason.contains("hunter2"), "{reason}");
        }
    }

    #[test]
    fn brackets_belong_to_the_url() {
        assert_eq!(
            (without_brackets("[::1]"), without_brackets("::1"), without_brackets("h")),
            (Some("::1"), None, None)
        );
        assert_eq!((&*host_and_port("::1", 5), &*host_and_port("h", 5)), ("[::1]:5", "h:5"));
    }
}
