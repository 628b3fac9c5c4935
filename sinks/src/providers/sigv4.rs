//! AWS Signature Version 4, as far as SES needs it: a POST without a query, to a path that needs no
//! escaping, with the headers `content-type;host;x-amz-date` and, for temporary credentials,
//! `x-amz-security-token`.

use std::fmt::Write;

use ring::{digest, hmac};
use tidings_schemas::time::Instant;

/// An access key.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) access_key_id: String,
    pub(crate) secret_access_key: String,
    /// With temporary credentials.
    pub(crate) session_token: Option<String>,
}

/// What is signed.
pub(crate) struct Post<'a> {
    pub(crate) region: &'a str,
    pub(crate) service: &'a str,
    pub(crate) host: &'a str,
    pub(crate) path: &'a str,
    pub(crate) content_type: &'a str,
    pub(crate) body: &'a [u8],
    pub(crate) at: Instant,
}

/// The headers that prove it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Signature {
    /// `x-amz-date`.
    pub(crate) date: String,
    /// `authorization`.
    pub(crate) authorization: String,
}

/// Signs `post`.
pub(crate) fn sign(credentials: &Credentials, post: &Post<'_>) -> Signature {
    let date = timestamp(post.at);
    let scope = format!("{}/{}/{}/aws4_request", &date[..8], post.region, post.service);
    let (request, signed_headers) = canonical_request(credentials, post, &date);
    let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", sha256(request.as_bytes()));
    let signature = hex(mac(&signing_key(credentials, post, &date[..8]), to_sign.as_bytes()).as_ref());
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={signed_headers}, Signature={signature}",
        credentials.access_key_id
    );
    Signature { date, authorization }
}

/// The request in canonical form, and the names of the headers in it.
fn canonical_request(credentials: &Credentials, post: &Post<'_>, date: &str) -> (String, String) {
    let mut headers = vec![("content-type", post.content_type), ("host", post.host), ("x-amz-date", date)];
    headers.extend(credentials.session_token.as_deref().map(|token| ("x-amz-security-token", token)));
    let names: Vec<_> = headers.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let lines: String = headers.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
    (format!("POST\n{}\n\n{lines}\n{names}\n{}", post.path, sha256(post.body)), names)
}

fn signing_key(credentials: &Credentials, post: &Post<'_>, day: &str) -> hmac::Tag {
    let secret = format!("AWS4{}", credentials.secret_access_key);
    let key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), day.as_bytes());
    [post.region, post.service, "aws4_request"].iter().fold(key, |key, part| mac(&key, part.as_bytes()))
}

/// `20260102T030405Z`.
fn timestamp(at: Instant) -> String {
    Instant(at.0.div_euclid(1000) * 1000).to_string().replace(['-', ':'], "")
}

fn mac(key: &hmac::Tag, message: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.as_ref()), message)
}

fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}"); // writing to a string does not fail
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = br#"{"FromEmailAddress":"a@example.com","Destination":{"ToAddresses":["b@example.com"]},"Content":{"Simple":{"Subject":{"Data":"hi"},"Body":{"Text":{"Data":"t"}}}}}"#;

    fn credentials(session_token: Option<&str>) -> Credentials {
        Credentials {
            access_key_id: "AKIDEXAMPLE".to_owned(),
            secret_access_key: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".to_owned(),
            session_token: session_token.map(str::to_owned),
        }
    }

    fn post() -> Post<'static> {
        Post {
            region: "us-east-1",
            service: "ses",
            host: "email.us-east-1.amazonaws.com",
            path: "/v2/email/outbound-emails",
            content_type: "application/json",
            body: BODY,
            at: "2026-01-02T03:04:05.678Z".parse().unwrap(),
        }
    }

    // Golden: computed with another implementation, see the fact sheet's worked vectors.
    #[test]
    fn every_step_is_the_worked_vectors() {
        let (credentials, post) = (credentials(None), post());
        assert_eq!(sha256(BODY), "e15529ffedf87a67ab7d0c8765f95a070d843bf64e828fbad123b83c3c04b008");
        let (request, _) = canonical_request(&credentials, &post, "20260102T030405Z");
        assert_eq!(sha256(request.as_bytes()), "7e6363fca220ef2e6786759fbd52911077ea0b27eaf7fff1a2a5530b639cae31");
        let key = signing_key(&credentials, &post, "20260102");
        assert_eq!(hex(key.as_ref()), "b8da7b268ae48b5a6be5a7ff09acd36d6a3ceed189df17e610601b188ad8f561");
        let authorization = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260102/us-east-1/ses/aws4_request, \
                             SignedHeaders=content-type;host;x-amz-date, \
                             Signature=aab91f079dbccc9c141fbec43d881cd07488cf657119b366f9c5cf911474f608";
        let expected = Signature { date: "20260102T030405Z".to_owned(), authorization: authorization.to_owned() };
        assert_eq!(sign(&credentials, &post), expected);
    }

    #[test]
    fn a_session_token_is_signed_too() {
        let (request, names) = canonical_request(&credentials(Some("t0ken")), &post(), "20260102T030405Z");
        assert_eq!(names, "content-type;host;x-amz-date;x-amz-security-token");
        assert!(request.contains("\nx-amz-security-token:t0ken\n"));
    }
}
