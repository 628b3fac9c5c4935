//! `tidings`: the command line. Each command is one file in `commands/` and one arm of its enum.

mod commands;

fn main() -> std::process::ExitCode {
    commands::main()
}
