//! JSON Web Tokens, signed with ring: ES256 for APNs, RS256 for Google.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;

/// A private key that signs tokens.
pub(crate) enum Signer {
    /// P-256; the signature is raw r‖s.
    Es256(EcdsaKeyPair),
    /// RSA of 2048 bits and more.
    Rs256(RsaKeyPair),
}

impl Signer {
    /// The P-256 key of a PKCS#8 PEM.
    pub(crate) fn es256(pem: &[u8]) -> Result<Self, String> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|error| format!("{error}; expected a PKCS#8 PEM"))?;
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der(), &SystemRandom::new())
            .map(Self::Es256)
            .map_err(|error| format!("{error}; expected a P-256 private key"))
    }

    /// The RSA key of a PKCS#8 PEM.
    pub(crate) fn rs256(pem: &[u8]) -> Result<Self, String> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|error| format!("{error}; expected a PKCS#8 PEM"))?;
        RsaKeyPair::from_pkcs8(der.secret_pkcs8_der())
            .map(Self::Rs256)
            .map_err(|error| format!("{error}; expected an RSA private key of 2048 bits or more"))
    }

    /// `header.claims.signature`. `None` where the system has no randomness to give.
    pub(crate) fn sign(&self, header: &serde_json::Value, claims: &serde_json::Value) -> Option<String> {
        let text = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", text(header), text(claims));
        let random = SystemRandom::new();
        let signature = match self {
            Self::Es256(key) => key.sign(&random, message.as_bytes()).ok()?.as_ref().to_vec(),
            Self::Rs256(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, message.as_bytes(), &mut signature).ok()?;
                signature
            }
        };
        Some(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}
