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

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;
    use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
    use serde_json::json;

    use super::*;

    /// Apple's `.p8` names the curve twice: once more inside the private key.
    fn as_apple_writes_it(pem: &str) -> String {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).unwrap();
        let der = der.secret_pkcs8_der();
        assert_eq!((der.len(), der[2], der[28], der[30]), (138, 0x87, 0x6d, 0x6b), "the layout that is extended here");
        let curve = [0xa0, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
        let mut long = [&der[..68], &curve, &der[68..]].concat();
        for length in [2, 28, 30] {
            long[length] += 12;
        }
        let text = STANDARD.encode(long);
        assert!(text.starts_with("MIGTAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBHkwdwIBAQQg"), "as Apple's files start");
        format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n")
    }

    #[test]
    fn keys_are_read_in_both_forms_and_sign_raw_unpadded_tokens() {
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = key.serialize_pem();
        for pem in [as_apple_writes_it(&pem), pem] {
            let token = Signer::es256(pem.as_bytes()).unwrap().sign(&json!({ "alg": "ES256" }), &json!({})).unwrap();
            let (message, signature) = token.rsplit_once('.').unwrap();
            assert_eq!(message, "eyJhbGciOiJFUzI1NiJ9.e30");
            let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
            assert_eq!(signature.len(), 64);
            let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.public_key_raw());
            public.verify(message.as_bytes(), &signature).unwrap();
        }
    }

    #[test]
    fn a_file_that_is_no_such_key_is_named() {
        let error = |signer: Result<Signer, String>| signer.err().unwrap();
        let ec = rcgen::KeyPair::generate().unwrap().serialize_pem();
        assert!(error(Signer::es256(b"hello")).ends_with("; expected a PKCS#8 PEM"));
        assert!(error(Signer::rs256(ec.as_bytes())).ends_with("; expected an RSA private key of 2048 bits or more"));
    }
}
