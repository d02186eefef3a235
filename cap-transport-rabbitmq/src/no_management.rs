//! Stands for the management API in builds without the feature `management`.

use cap_core::Result;
use lapin::uri::AMQPUri;

use crate::config::RabbitMqOptions;
use crate::routes::Binding;

/// There is none.
pub(crate) enum Management {}

impl Management {
    pub(crate) fn check(_: &str, _: &RabbitMqOptions, _: &AMQPUri, _: &str) -> Result<Self, String> {
        let feature = "`management` of cap-transport-rabbitmq, or `rabbitmq-management` of cap";
        Err(format!("this build cannot ask the management API: it needs the feature {feature}"))
    }

    pub(crate) fn bindings(&self) -> Result<Vec<Binding>> {
        match *self {}
    }
}

#[cfg(test)]
mod tests {
    use crate::config::RabbitMqOptions;

    #[test]
    fn an_address_that_this_build_cannot_use_is_refused_and_the_feature_named() {
        let options = RabbitMqOptions::default().management_url("http://u:s3cret@b:15672");
        let error = options.check().err().expect("a refusal").to_string();
        assert!(error.contains("management_url") && error.contains("`rabbitmq-management` of cap"), "{error}");
        assert!(!error.contains("s3cret"), "{error}");
    }
}
