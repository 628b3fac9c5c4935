//! How commands speak to a running process: HTTP on its admin address. An embedded store has one
//! owner, so that asking is the only way.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, bail};

/// How long an answer may take, unless the command asked to wait longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A process that runs.
pub(crate) struct Client {
    pub(crate) admin: SocketAddr,
}

/// An answer's status and body.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Box<dyn BufRead>,
}

impl Client {
    fn ask(
        &self,
        method: &str,
        path: &str,
        body: Option<&[u8]>,
        accept: &str,
        patience: Option<Duration>,
    ) -> anyhow::Result<Answer> {
        let admin = self.admin;
        let unreachable =
            || format!("nothing answers at {admin}; start `tidings run` or `tidings demo`, or name it with --admin");
        let mut stream = TcpStream::connect(admin).with_context(unreachable)?;
        stream.set_read_timeout(patience)?;
        // HTTP/1.0: the answer ends where the connection does, and needs no decoding.
        let mut head = format!("{method} {path} HTTP/1.0\r\nHost: {admin}\r\nAccept: {accept}\r\n");
        if let Some(body) = body {
            head += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        }
        stream.write_all((head + "\r\n").as_bytes())?;
        stream.write_all(body.unwrap_or_default())?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let status = line.split_whitespace().nth(1).and_then(|status| status.parse().ok());
        let Some(status) = status else { bail!("{admin} does not speak HTTP: `{}`", line.trim_end()) };
        line.clear();
        while reader.read_line(&mut line)? > 2 {
            line.clear();
        }
        Ok(Answer { status, body: Box::new(reader) })
    }

    /// What stands at `path`, as `accept` (a media type).
    pub(crate) fn get(&self, path: &str, accept: &str) -> anyhow::Result<(u16, String)> {
        self.whole(self.ask("GET", path, None, accept, Some(PATIENCE))?)
    }

    /// Sends `body` to `path`.
    pub(crate) fn post(&self, path: &str, body: &[u8]) -> anyhow::Result<(u16, String)> {
        self.whole(self.ask("POST", path, Some(body), "application/json", Some(PATIENCE * 3))?)
    }

    /// Follows `path` for as long as it goes on.
    pub(crate) fn follow(&self, path: &str) -> anyhow::Result<Answer> {
        self.ask("GET", path, None, "text/event-stream", None)
    }

    fn whole(&self, mut answer: Answer) -> anyhow::Result<(u16, String)> {
        let mut body = String::new();
        answer.body.read_to_string(&mut body)?;
        Ok((answer.status, body))
    }
}

/// `text` as part of a path or query.
pub(crate) fn escaped(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~');
    text.bytes().map(|byte| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}
