//! Redis, from the system's package. It persists nothing: what tests want to see after a crash is that all keys are
//! gone.

use std::process::Command;

use anyhow::{Result, bail};

use super::{Home, Service, Tools, exchange};

pub(super) struct Redis;

impl Service for Redis {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn key(&self) -> &'static str {
        "REDIS"
    }

    fn endpoint(&self, port: u16) -> String {
        format!("redis://127.0.0.1:{port}")
    }

    fn ports(&self) -> usize {
        1
    }

    fn install(&self, _tools: &Tools) -> Result<()> {
        Ok(()) // a system package
    }

    fn prepare(&self, _tools: &Tools, home: &Home) -> Result<Command> {
        let mut command = Command::new("redis-server");
        command.args(["--port", &home.ports[0].to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.arg("--dir").arg(home.data());
        Ok(command)
    }

    fn ask(&self, port: u16) -> Result<()> {
        let answer = exchange(port, "PING\r\n", "\r\n")?;
        if answer != "+PONG\r\n" {
            bail!("PING was answered with {answer:?}");
        }
        Ok(())
    }
}
