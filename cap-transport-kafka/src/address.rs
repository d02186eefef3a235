//! Where brokers are: `host:port`. What else people write there is refused by name, since librdkafka would pass over it, or
//! over the whole address, in silence.

/// The protocols that an address may begin with.
const PROTOCOLS: [&str; 4] = ["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"];

/// What is wrong with the address of a broker, to which clients speak this protocol. Secrets in it are not told.
pub(crate) fn check(broker: &str, protocol: &str) -> Result<(), String> {
    let (scheme, address) = match broker.split_once("://") {
        Some((scheme, address)) => (Some(scheme.to_ascii_lowercase()), address),
        None => (None, broker),
    };
    let (place, parameters) = address.split_once('?').unwrap_or((address, ""));
    let name = |parameter: &str| parameter.split('=').next().unwrap_or_default().to_owned();
    let names: Vec<String> = parameters.split('&').map(name).filter(|name| !name.is_empty()).collect();
    if place.contains('@') {
        return Err(
            "a user and a password are settings (`sasl.username`, `sasl.password`), and not part of an address".into(),
        );
    }
    if let Some(scheme) = scheme.filter(|scheme| scheme != protocol) {
        return Err(match PROTOCOLS.contains(&scheme.as_str()) {
            true => {
                format!("{broker:.60?} begins with `{scheme}`, and the setting `security.protocol` is `{protocol}`")
            }
            false => format!("{broker:.60?} begins with `{scheme:.20}`, which is none of {}", PROTOCOLS.join(", ")),
        });
    }
    if !names.is_empty() {
        let names = names.join("`, `");
        return Err(format!(
            "an address has no parameters, and this one has `{names:.80}` (options and settings stand for them)"
        ));
    }
    let is_address = |(host, port): (&str, &str)| !host.is_empty() && port.parse::<u16>().is_ok();
    match place.rsplit_once(':').is_some_and(is_address) && place == address && !place.contains('/') {
        true => Ok(()),
        false => Err(format!("{broker:.60?} is not written as host:port")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_hosts_with_ports() {
        for good in ["broker-1:9092", "[::1]:9092", "10.0.0.1:1", "ssl://broker:9092", "SSL://broker:9092"] {
            assert_eq!(check(good, "ssl"), Ok(()), "{good}");
        }
        for bad in ["broker", ":9092", "broker:", "broker:70000", "broker:9092/", "broker:9092/orders", "broker:9092?"]
        {
            assert!(check(bad, "ssl").unwrap_err().contains("host:port"), "{bad}");
        }
    }

    #[test]
    fn what_does_not_belong_into_an_address_is_refused_by_name() {
        for (bad, word) in [
            ("broker:9092?ssl=true&Client_ID=x", "`ssl`, `Client_ID`"),
            ("kafka://broker:9092", "`kafka`"),
            ("sasl_ssl://broker:9092", "`sasl_ssl`"),
            ("orders:s3cret@broker:9092", "sasl.password"),
            ("kafka://orders:s3cret@broker:9092?ssl=true", "sasl.password"),
        ] {
            let told = check(bad, "plaintext").unwrap_err();
            assert!(told.contains(word) && !told.contains("s3cret"), "{told}");
        }
        assert!(!check("broker:9092?password=s3cret", "plaintext").unwrap_err().contains("s3cret"));
    }
}
