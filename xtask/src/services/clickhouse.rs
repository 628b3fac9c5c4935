//! ClickHouse, from the npm package that ships the whole server as a library.
//!
//! Debian's own package is years too old. The library's entry point is `clickhouse-local`, which starts the HTTP and
//! the native listener when its query says so and then runs as long as that query: a sleep of ten days. Loading a
//! library is unsafe code and lives in the crate `clickhouse-server` beside this one.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Home, Service, Tools, download, exchange};
use crate::Refusal;
use crate::workspace::{cargo, run};

const PACKAGE: &str = "@chdb/lib-linux-x64-gnu";
/// Pinned: ClickHouse 26.7, which `docker-compose.yml` runs as well.
const VERSION: &str = "26.7.3-stable.1";
const LIBRARY: &str = "node_modules/@chdb/lib-linux-x64-gnu/libchdb.so";
/// A server runs until it is asked to end. `sleepEachRow` needs its bound raised to sleep that long.
const SERVE: &str = "SYSTEM START LISTEN HTTP; SYSTEM START LISTEN TCP; \
    SELECT sleepEachRow(1) FROM numbers(864000) \
    SETTINGS max_block_size = 1, function_sleep_max_microseconds_per_block = 1000000000000 FORMAT Null";

pub(super) struct ClickHouse;

impl Service for ClickHouse {
    fn name(&self) -> &'static str {
        "clickhouse"
    }

    fn key(&self) -> &'static str {
        "CLICKHOUSE"
    }

    fn endpoint(&self, port: u16) -> String {
        format!("http://127.0.0.1:{port}")
    }

    fn ports(&self) -> usize {
        2 // HTTP, native
    }

    fn install(&self, tools: &Tools) -> Result<()> {
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            let message =
                format!("{PACKAGE} is for Linux on x86-64; name a ClickHouse of your own in TIDINGS_TEST_CLICKHOUSE");
            return Err(Refusal::Unavailable(message).into());
        }
        download(&folder(tools), |partial| {
            run(Command::new("npm")
                .args(["install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"])
                .arg(partial)
                .arg(format!("{PACKAGE}@{VERSION}"))
                .stdout(std::io::stderr()))?;
            if !partial.join(LIBRARY).exists() {
                bail!("{PACKAGE} {VERSION} came without {LIBRARY}");
            }
            Ok(())
        })?;
        run(cargo().args(["build", "--quiet", "--package", "clickhouse-server"])).context("cannot build the launcher")
    }

    fn prepare(&self, tools: &Tools, home: &Home) -> Result<Command> {
        let mut command = Command::new(tools.target.join("debug/clickhouse-server"));
        command
            .arg(folder(tools).join(LIBRARY))
            .arg(format!("--path={}", home.data().display()))
            .arg(format!("--http_port={}", home.ports[0]))
            .arg(format!("--tcp_port={}", home.ports[1]))
            .arg("--listen_host=127.0.0.1")
            .arg(format!("--query={SERVE}"));
        Ok(command)
    }

    fn ask(&self, port: u16) -> Result<()> {
        let answer = exchange(port, "GET /ping HTTP/1.0\r\n\r\n", "Ok.")?;
        if !answer.contains("Ok.") {
            bail!("/ping was answered with {answer:?}");
        }
        Ok(())
    }
}

fn folder(tools: &Tools) -> PathBuf {
    tools.cache.join(format!("clickhouse-{VERSION}"))
}
