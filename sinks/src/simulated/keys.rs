//! The keys of the simulated providers: a certificate authority, Apple's `.p8`, Google's service
//! account, an AWS access key, Telnyx's and Twilio's secrets. Made at the first start and kept in a folder where one is named, so
//! that a topology can name the files and a restart does not invalidate them.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;

use super::SimulatedError;

/// The service account's RSA key. Everyone has it: it proves nothing but that a client signs as
/// Google asks. (ring makes no RSA keys.)
const SERVICE_ACCOUNT_KEY: &str = include_str!("service_account_key.pem");

/// The keys, in the forms that clients take them in.
#[derive(Clone, Debug)]
pub struct Keys {
    /// The certificate to trust.
    pub ca_pem: String,
    ca_key_pem: String,
    /// Apple's private key, PKCS#8.
    pub apns_p8: String,
    /// The AWS access key's id.
    pub ses_access_key_id: String,
    /// The AWS secret key.
    pub ses_secret_access_key: String,
    /// Telnyx's API key.
    pub telnyx_key: String,
    /// Twilio's auth token.
    pub twilio_token: String,
}

/// Where [`super::Simulated::write_keys`] put the files.
#[derive(Clone, Debug)]
pub struct KeyFiles {
    /// The certificate authority, PEM: a topology's `ca_file`.
    pub ca: PathBuf,
    /// Apple's `.p8`: `apns.key_file`.
    pub apns: PathBuf,
    /// Google's service account, JSON: `fcm.credentials_file`.
    pub fcm: PathBuf,
    /// AWS credentials, INI: `ses.credentials_file`.
    pub ses: PathBuf,
    /// Telnyx's API key: `telnyx.key_file`.
    pub telnyx: PathBuf,
    /// Twilio's auth token: `twilio.secret_file`.
    pub twilio: PathBuf,
}

impl KeyFiles {
    /// The files' names in `folder`.
    #[must_use]
    pub fn of(folder: &Path) -> Self {
        Self {
            ca: folder.join("ca.pem"),
            apns: folder.join("apns.p8"),
            fcm: folder.join("fcm.json"),
            ses: folder.join("ses.ini"),
            telnyx: folder.join("telnyx.key"),
            twilio: folder.join("twilio.token"),
        }
    }
}

fn random_hex() -> Result<String, SimulatedError> {
    let mut random = [0; 24];
    SystemRandom::new().fill(&mut random).map_err(|_| SimulatedError::Randomness)?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

impl Keys {
    /// New keys.
    pub(super) fn make() -> Result<Self, SimulatedError> {
        let ca_key = KeyPair::generate()?;
        let ca_pem = ca_params().self_signed(&ca_key)?.pem();
        let hex = random_hex()?;
        Ok(Self {
            ca_pem,
            ca_key_pem: ca_key.serialize_pem(),
            apns_p8: KeyPair::generate()?.serialize_pem(),
            ses_access_key_id: format!("AKIASIM{}", hex[..13].to_ascii_uppercase()),
            ses_secret_access_key: hex,
            telnyx_key: random_hex()?,
            twilio_token: random_hex()?,
        })
    }

    /// The keys in `folder`, or new ones where it has none.
    pub(super) fn read_or_make(folder: &Path) -> Result<Self, SimulatedError> {
        let files = KeyFiles::of(folder);
        if !files.ca.exists() {
            return Self::make();
        }
        let read = |path: &Path| {
            std::fs::read_to_string(path).map_err(|error| SimulatedError::File(path.display().to_string(), error))
        };
        let ses = read(&files.ses)?;
        let value = |key: &str| {
            let value = ses.lines().find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix('='));
            value.map(|value| value.trim().to_owned()).ok_or_else(|| {
                let problem = io::Error::other(format!("expected a line `{key} = …`; remove the folder for new keys"));
                SimulatedError::File(files.ses.display().to_string(), problem)
            })
        };
        Ok(Self {
            ca_pem: read(&files.ca)?,
            ca_key_pem: read(&ca_key_file(folder))?,
            apns_p8: read(&files.apns)?,
            ses_access_key_id: value("aws_access_key_id")?,
            ses_secret_access_key: value("aws_secret_access_key")?,
            // A folder that was made before text messages were simulated has neither.
            telnyx_key: if files.telnyx.exists() { read(&files.telnyx)? } else { random_hex()? },
            twilio_token: if files.twilio.exists() { read(&files.twilio)? } else { random_hex()? },
        })
    }

    /// Writes the files into `folder`, readable by their owner alone.
    pub(super) fn write(&self, folder: &Path, fcm_json: &str) -> io::Result<KeyFiles> {
        std::fs::create_dir_all(folder)?;
        let files = KeyFiles::of(folder);
        let ses = format!(
            "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
            self.ses_access_key_id, self.ses_secret_access_key
        );
        // The certificate last: where it stands, the others do.
        for (path, text) in [
            (&ca_key_file(folder), self.ca_key_pem.as_str()),
            (&files.apns, &self.apns_p8),
            (&files.fcm, fcm_json),
            (&files.ses, &ses),
            (&files.telnyx, &self.telnyx_key),
            (&files.twilio, &self.twilio_token),
            (&files.ca, &self.ca_pem),
        ] {
            write_private(path, text)?;
        }
        Ok(files)
    }

    /// A server certificate for this machine's names and `host`, signed by the authority.
    pub(super) fn server_certificate(
        &self,
        host: IpAddr,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), SimulatedError> {
        // Rebuilt of the same name and key, the authority signs what the certificate on disk vouches for.
        let issuer = Issuer::new(ca_params(), KeyPair::from_pem(&self.ca_key_pem)?);
        let key = KeyPair::generate()?;
        let mut names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
        if !host.is_loopback() {
            names.push(host.to_string());
        }
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, "tidings simulated provider");
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok((vec![certificate.der().clone()], key))
    }

    /// Google's file for a service account of `project` whose tokens come from `token_uri`.
    pub(super) fn service_account(project: &str, token_uri: &str) -> String {
        let account = json!({
            "type": "service_account",
            "project_id": project,
            "private_key_id": "simulated",
            "private_key": SERVICE_ACCOUNT_KEY,
            "client_email": service_account_email(project),
            "token_uri": token_uri,
        });
        format!("{account:#}\n")
    }
}

/// The service account's key pair, to check signatures by.
pub(super) fn service_account_key() -> &'static str {
    SERVICE_ACCOUNT_KEY
}

/// Who signs assertions.
pub(super) fn service_account_email(project: &str) -> String {
    format!("tidings@{project}.iam.gserviceaccount.com")
}

fn ca_key_file(folder: &Path) -> PathBuf {
    folder.join("ca.key")
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "tidings simulated providers");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)?.write_all(text.as_bytes())
}
