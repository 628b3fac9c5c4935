//! `tidings providers`: simulated APNs, FCM, SES, Telnyx and Twilio over the real wire, with an inbox.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tidings_pipeline::runtime::clock::{Clock as _, SystemClock};
use tidings_sinks::simulated::{Config, Ports, Simulated};

use super::run::{runtime, stop_signal};
use super::{Exit, Shell};

/// Simulated providers: real HTTP/2 with TLS, real answers, an inbox to look at.
#[derive(clap::Args)]
pub(crate) struct Providers {
    /// The address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port of APNs; 0 takes a free one.
    #[arg(long, default_value_t = 2197)]
    apns: u16,
    /// Port of APNs' development side.
    #[arg(long, default_value_t = 2198)]
    apns_sandbox: u16,
    /// Port of FCM and its token endpoint.
    #[arg(long, default_value_t = 2443)]
    fcm: u16,
    /// Port of SES.
    #[arg(long, default_value_t = 2444)]
    ses: u16,
    /// Port of Telnyx.
    #[arg(long, default_value_t = 2446)]
    telnyx: u16,
    /// Port of Twilio.
    #[arg(long, default_value_t = 2445)]
    twilio: u16,
    /// Port of the inbox.
    #[arg(long, default_value_t = 2080)]
    inbox: u16,
    /// Where keys and the certificate are kept: made where they are missing.
    #[arg(long, value_name = "FOLDER", default_value = "./keys")]
    keys: PathBuf,
}

impl Providers {
    pub(crate) fn run(self, shell: &Shell) -> anyhow::Result<Exit> {
        let clock = SystemClock::default();
        let ports = Ports {
            apns: self.apns,
            apns_sandbox: self.apns_sandbox,
            fcm: self.fcm,
            ses: self.ses,
            telnyx: self.telnyx,
            twilio: self.twilio,
            inbox: self.inbox,
        };
        let config = Config {
            host: self.host,
            ports,
            keys: Some(self.keys.clone()),
            ..Config::new(Arc::new(move || clock.wall()))
        };
        runtime()?.block_on(async {
            let simulated = Simulated::start(config).await?;
            let endpoints = simulated.endpoints();
            if shell.json {
                shell.json(endpoints)?;
            } else {
                let keys = self.keys.display();
                shell.data(format_args!(
                    "apns   {}\nfcm    {}\nses    {}\ntelnyx {}\ntwilio {}\nkeys and certificate in {keys}; the inbox is at {}\n",
                    endpoints.apns, endpoints.fcm, endpoints.ses, endpoints.telnyx, endpoints.twilio, endpoints.inbox
                ))?;
            }
            stop_signal().await?;
            simulated.shutdown().await;
            Ok(Exit::Ok)
        })
    }
}
