//! System packages: which are needed for what, whether they are there, and how to get them.
//!
//! A package counts as present when what we need it for works, not when dpkg knows it: a toolchain from elsewhere is
//! as good. What is missing is installed through apt-get where we are root on a Debian, and otherwise named in one
//! line that the person can run.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::Refusal;
use crate::workspace::run;

/// A Debian package, and what shows that it is there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Package {
    name: &'static str,
    probe: Probe,
}

#[derive(Clone, Copy, Debug)]
enum Probe {
    /// A program on the search path.
    Program(&'static str),
    /// A library that pkg-config finds.
    Library(&'static str),
}

const fn program(name: &'static str, program: &'static str) -> Package {
    Package { name, probe: Probe::Program(program) }
}

const fn library(name: &'static str, module: &'static str) -> Package {
    Package { name, probe: Probe::Library(module) }
}

/// What building needs: librdkafka is compiled from C and C++ by its own makefile, against these two libraries.
pub(crate) const BUILD: &[Package] = &[
    program("g++", "g++"),
    program("make", "make"),
    program("pkg-config", "pkg-config"),
    library("libssl-dev", "openssl"),
    library("libzstd-dev", "libzstd"),
];

/// What the real services of `cargo xtask services` need.
pub(crate) const SERVICES: &[Package] = &[
    program("default-jre-headless", "java"),
    program("maven", "mvn"),
    program("npm", "npm"),
    program("redis-server", "redis-server"),
];

/// What the peers of `cargo xtask bench peers` need.
pub(crate) const PEERS: &[Package] = &[program("default-jdk-headless", "javac"), program("maven", "mvn")];

/// Installs what is missing of `packages`, or refuses with the line to run.
pub(crate) fn ensure(packages: &[Package], purpose: &str) -> Result<()> {
    let missing: Vec<&str> =
        packages.iter().filter(|package| !package.is_present()).map(|package| package.name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !rustix::process::geteuid().is_root() || !on_path("apt-get") {
        return Err(Refusal::Unavailable(refusal(purpose, &names, on_path("apt-get"))).into());
    }
    eprintln!("installing {names}, which {purpose} needs");
    // A fresh machine has no package lists; refreshing them also avoids addresses that are gone.
    run(apt_get().arg("update")).context("cannot refresh the list of packages")?;
    run(apt_get().args(["install", "--yes", "--no-install-recommends"]).args(&missing))
        .with_context(|| format!("cannot install {names}, which {purpose} needs"))?;
    match packages.iter().find(|package| !package.is_present()) {
        None => Ok(()),
        Some(package) => {
            Err(Refusal::Unavailable(format!("{package:?} was installed, yet its probe finds nothing")).into())
        }
    }
}

fn refusal(purpose: &str, names: &str, has_apt: bool) -> String {
    if has_apt {
        format!("{purpose} needs packages that are missing here; run\n\n  sudo apt-get install --yes {names}\n")
    } else {
        format!("{purpose} needs what Debian calls {names}; install it with this system's own tool, then try again")
    }
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    // stdout is for data; nobody may be there to answer a question.
    command.arg("-qq").env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null());
    command
}

impl Package {
    fn is_present(&self) -> bool {
        match self.probe {
            Probe::Program(program) => on_path(program),
            Probe::Library(module) => Command::new("pkg-config")
                .args(["--exists", module])
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success()),
        }
    }
}

/// Whether a program can be found the way a shell would.
#[expect(clippy::disallowed_methods, reason = "the search path is the environment's")]
pub(crate) fn on_path(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| is_program(&folder.join(program))))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_counts_only_when_it_can_be_run() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("tool");
        assert!(!is_program(&file));
        std::fs::write(&file, "").expect("a file");
        assert!(!is_program(&file));
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).expect("its mode");
        assert!(is_program(&file));
        assert!(!is_program(folder.path()));
    }

    #[test]
    fn who_may_not_install_gets_one_line_to_run() {
        assert_eq!(
            refusal("building tidings", "g++ make", true),
            "building tidings needs packages that are missing here; run\n\n  sudo apt-get install --yes g++ make\n"
        );
        assert!(refusal("building tidings", "g++ make", false).contains("what Debian calls g++ make"));
    }

    #[test]
    fn a_library_that_pkg_config_does_not_know_is_missing() {
        assert!(!library("libnowhere-dev", "tidings-no-such-library").is_present());
    }
}
