//! All sockets of the tracker, bound before anything else is done, so that a port in use
//! is found before a file has been written, and none is lost to somebody else later.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use anyhow::Context as _;
use torrust_tracker::bootstrap::jobs::make_rust_tls;
use torrust_tracker_configuration::{Configuration, TslConfig};

use crate::web::Endpoint;

/// What the tracker listens on, in the order of its configuration.
#[derive(Debug)]
pub struct Sockets {
    /// UDP trackers; none in private mode.
    pub udp: Vec<UdpSocket>,
    /// HTTP trackers.
    pub http: Vec<Endpoint>,
    /// The REST API.
    pub api: Option<Endpoint>,
}

impl Sockets {
    /// Binds everything. The health check API binds its own socket later; its address is
    /// tried here, so that it fails now or, barring a race, not at all.
    ///
    /// # Errors
    ///
    /// Names the first key whose address cannot be bound or whose certificate cannot be read.
    pub async fn bind(configuration: &Configuration) -> anyhow::Result<Self> {
        let mut udp = Vec::new();
        // UDP has no way to authenticate a client, so upstream does not serve it then.
        if !configuration.core.private {
            let trackers = configuration.udp_trackers.iter().flatten();
            for (index, tracker) in trackers.enumerate() {
                let key = format!("udp_trackers[{index}]");
                udp.push(bind(&key, tracker.bind_address, UdpSocket::bind)?);
            }
        }
        let mut http = Vec::new();
        let trackers = configuration.http_trackers.iter().flatten();
        for (index, tracker) in trackers.enumerate() {
            let key = format!("http_trackers[{index}]");
            http.push(endpoint(&key, tracker.bind_address, tracker.tsl_config.clone()).await?);
        }
        let api = match &configuration.http_api {
            Some(api) => {
                Some(endpoint("http_api", api.bind_address, api.tsl_config.clone()).await?)
            }
            None => None,
        };
        let health_check = configuration.health_check_api.bind_address;
        drop(bind("health_check_api", health_check, TcpListener::bind)?);
        Ok(Self { udp, http, api })
    }
}

async fn endpoint(
    key: &str,
    address: SocketAddr,
    certificate: Option<TslConfig>,
) -> anyhow::Result<Endpoint> {
    let listener = bind(key, address, TcpListener::bind)?;
    let tls = make_rust_tls(&certificate)
        .await
        .transpose()
        .with_context(|| format!("{key}.tsl_config: could not read the certificate and its key"))?;
    Ok(Endpoint { listener, tls })
}

fn bind<S>(
    key: &str,
    address: SocketAddr,
    bind: fn(SocketAddr) -> io::Result<S>,
) -> anyhow::Result<S> {
    bind(address).with_context(|| {
        format!("{key}.bind_address: could not listen on {address}; free it or configure another")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loopback(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    /// Each service in turn is told to use an address that is taken.
    #[tokio::test]
    async fn an_address_in_use_is_named_with_its_key() {
        let udp = UdpSocket::bind(loopback(0)).expect("a free UDP port");
        let taken = TcpListener::bind(loopback(0)).expect("a free TCP port");
        let taken_address = taken.local_addr().expect("an address");
        let udp_address = udp.local_addr().expect("an address");
        let toml = |udp: SocketAddr, http: SocketAddr, api: SocketAddr, health: SocketAddr| {
            format!(
                "[metadata]\nschema_version = \"2.0.0\"\n\
                 [[udp_trackers]]\nbind_address = \"{udp}\"\n\
                 [[http_trackers]]\nbind_address = \"{http}\"\n\
                 [http_api]\nbind_address = \"{api}\"\n\
                 [health_check_api]\nbind_address = \"{health}\"\n"
            )
        };
        let free = loopback(0);
        let cases = [
            (
                "udp_trackers[0]",
                udp_address,
                toml(udp_address, free, free, free),
            ),
            (
                "http_trackers[0]",
                taken_address,
                toml(free, taken_address, free, free),
            ),
            (
                "http_api",
                taken_address,
                toml(free, free, taken_address, free),
            ),
            (
                "health_check_api",
                taken_address,
                toml(free, free, free, taken_address),
            ),
        ];
        for (key, address, toml) in cases {
            let error = Sockets::bind(&parse(&toml))
                .await
                .expect_err(key)
                .to_string();
            assert!(error.contains(&format!("{key}.bind_address")), "{error}");
            assert!(error.contains(&address.to_string()), "{error}");
        }
        let sockets = Sockets::bind(&parse(&toml(free, free, free, free))).await;
        let sockets = sockets.expect("all addresses are free");
        assert_eq!((sockets.udp.len(), sockets.http.len()), (1, 1));
        assert!(sockets.api.is_some());
    }

    #[tokio::test]
    async fn a_private_tracker_has_no_udp_socket() {
        let mut configuration = parse(
            "[metadata]\nschema_version = \"2.0.0\"\n[[udp_trackers]]\nbind_address = \"127.0.0.1:0\"\n",
        );
        configuration.health_check_api.bind_address = loopback(0);
        configuration.core.private = true;
        let sockets = Sockets::bind(&configuration)
            .await
            .expect("nothing to bind");
        assert!(sockets.udp.is_empty());
    }

    #[tokio::test]
    async fn a_missing_certificate_is_named_with_its_key() {
        let configuration = parse(
            "[metadata]\nschema_version = \"2.0.0\"\n[[http_trackers]]\nbind_address = \"127.0.0.1:0\"\n\
             [http_trackers.tsl_config]\nssl_cert_path = \"/nowhere/a\"\nssl_key_path = \"/nowhere/b\"\n",
        );
        let error = Sockets::bind(&configuration)
            .await
            .expect_err("no certificate");
        assert!(
            format!("{error:#}").contains("http_trackers[0].tsl_config"),
            "{error:#}"
        );
    }

    fn parse(toml: &str) -> Configuration {
        use figment::providers::{Format, Serialized, Toml};
        figment::Figment::from(Toml::string(toml))
            .join(Serialized::defaults(Configuration::default()))
            .extract()
            .expect("a complete configuration")
    }
}
