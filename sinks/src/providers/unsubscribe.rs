//! One-click unsubscription by mail (RFC 8058): the headers, and the token that names recipient and
//! list and that nobody can forge.
//!
//! The token is `base64url(user NUL category) . base64url(HMAC-SHA-256)`. Whoever
//! serves the URL asks [`UnsubscribeSecret::read`] and must act on POST alone: scanners fetch links.

use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BuildError, Call, Context};

/// Least length of a secret.
const SECRET_BYTES_MIN: usize = 16;
/// The longest header value that SES takes, the shortest such limit of the mail providers.
const HEADER_CHARS_MAX: usize = 995;
/// The longest token: user and category of 128 bytes each, and a tag of 32, in base64.
const TOKEN_CHARS_MAX: usize = 343 + 1 + 43;
/// Longest `url` and `mailto` together, so that every header fits; longer ones are refused.
const LINKS_CHARS_MAX: usize = HEADER_CHARS_MAX - 2 * TOKEN_CHARS_MAX - "<>, <mailto:?subject=>".len();

/// The `unsubscribe` parameter of mail providers.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UnsubscribeParams {
    /// Where the receiver's mail program POSTs to; the token is appended. Must be https.
    pub url: String,
    /// An address that takes unsubscriptions by mail; the token is the subject.
    #[serde(default)]
    pub mailto: Option<String>,
    /// A file whose bytes sign the tokens, at least 16.
    pub secret_file: PathBuf,
    /// Categories whose mails carry the headers: what people may not want.
    #[serde(default = "categories")]
    pub categories: Vec<String>,
}

fn categories() -> Vec<String> {
    vec!["marketing".to_owned()]
}

/// Signs and reads tokens.
pub struct UnsubscribeSecret(hmac::Key);

impl UnsubscribeSecret {
    /// The secret made of `bytes`.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    /// The token of `user` on the list `category`.
    #[must_use]
    pub fn token(&self, user: &str, category: &str) -> String {
        let named = format!("{user}\0{category}");
        let tag = hmac::sign(&self.0, named.as_bytes());
        format!("{}.{}", URL_SAFE_NO_PAD.encode(&named), URL_SAFE_NO_PAD.encode(tag))
    }

    /// The user and category of `token`; `None` where it is not one of ours.
    #[must_use]
    pub fn read(&self, token: &str) -> Option<(String, String)> {
        let (named, tag) = token.split_once('.')?;
        let named = String::from_utf8(URL_SAFE_NO_PAD.decode(named).ok()?).ok()?;
        let tag = URL_SAFE_NO_PAD.decode(tag).ok()?;
        hmac::verify(&self.0, named.as_bytes(), &tag).ok()?;
        let (user, category) = named.split_once('\0')?;
        Some((user.to_owned(), category.to_owned()))
    }
}

/// What adds the headers.
pub(super) struct Unsubscribe {
    url: String,
    mailto: Option<String>,
    secret: UnsubscribeSecret,
    categories: Vec<String>,
}

impl Unsubscribe {
    pub(super) fn new(
        provider: &'static str,
        params: UnsubscribeParams,
        context: &Context,
    ) -> Result<Self, BuildError> {
        let error = |problem: String| BuildError { provider, problem };
        let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'<' && byte != b'>');
        if !params.url.starts_with("https://") || !plain(&params.url) {
            return Err(error(format!("`unsubscribe.url`: expected an https address, found `{}`", params.url)));
        }
        if params.mailto.as_deref().is_some_and(|mailto| !plain(mailto) || !mailto.contains('@')) {
            return Err(error("`unsubscribe.mailto`: expected a mail address".to_owned()));
        }
        let chars = params.url.len() + params.mailto.as_ref().map_or(0, String::len);
        if chars > LINKS_CHARS_MAX {
            return Err(error(format!(
                "`unsubscribe`: expected `url` and `mailto` of at most {LINKS_CHARS_MAX} characters together, found {chars}"
            )));
        }
        let secret = context.read(provider, "unsubscribe.secret_file", &params.secret_file)?;
        if secret.len() < SECRET_BYTES_MIN {
            let found = secret.len();
            return Err(error(format!(
                "`unsubscribe.secret_file`: expected at least {SECRET_BYTES_MIN} bytes, found {found}"
            )));
        }
        let secret = UnsubscribeSecret::new(&secret);
        Ok(Self { url: params.url, mailto: params.mailto, secret, categories: params.categories })
    }

    /// The headers of a mail that carries `call`; none where its category is not one of these.
    pub(super) fn headers(&self, call: &Call) -> Vec<(&'static str, String)> {
        if !self.categories.contains(&call.category) {
            return Vec::new();
        }
        let token = self.secret.token(&call.user, &call.category);
        let mut list = format!("<{}{token}>", self.url);
        if let Some(mailto) = &self.mailto {
            list = format!("{list}, <mailto:{mailto}?subject={token}>");
        }
        vec![("List-Unsubscribe", list), ("List-Unsubscribe-Post", "List-Unsubscribe=One-Click".to_owned())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_user_and_list_and_cannot_be_forged() {
        let secret = UnsubscribeSecret::new(b"0123456789abcdef");
        let token = secret.token("u1", "marketing");
        // Golden: mails of any age carry it.
        assert_eq!(token, "dTEAbWFya2V0aW5n.6jgV3YbiP9o36xGdF2ZgHlscdjsJdHevB8cikSJx3xE");
        assert_eq!(secret.read(&token), Some(("u1".to_owned(), "marketing".to_owned())));
        let (named, tag) = token.split_once('.').unwrap();
        let other = URL_SAFE_NO_PAD.encode("u2\0marketing");
        for forged in
            [format!("{other}.{tag}"), format!("{named}."), named.to_owned(), format!("{named}.AAAA"), String::new()]
        {
            assert_eq!(secret.read(&forged), None, "{forged}");
        }
        assert_eq!(UnsubscribeSecret::new(b"another secret!!").read(&token), None);
    }
}
