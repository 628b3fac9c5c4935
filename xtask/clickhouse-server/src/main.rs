//! Runs the ClickHouse server out of `libchdb.so`.
//!
//! The npm package `@chdb/lib-linux-x64-gnu` ships the whole server as one library. It exports the entry point of
//! `clickhouse-local`, which listens on HTTP when a query asks it to; `cargo xtask services` passes that query.
//! The first argument is the library, all others are `clickhouse-local`'s own. Exit codes: 0 ended by itself,
//! 1 the server reported an error, 64 usage, 69 the library does not load.

use std::ffi::{CStr, CString, OsString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY, Symbol};

/// `chdb_result* chdb_query_cmdline(int argc, char** argv)`
type QueryCmdline = unsafe extern "C" fn(c_int, *mut *mut c_char) -> *mut c_void;
/// `const char* chdb_result_error(chdb_result*)`
type ResultError = unsafe extern "C" fn(*mut c_void) -> *const c_char;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let Some(library) = arguments.next() else {
        eprintln!("usage: clickhouse-server /path/to/libchdb.so [clickhouse-local options]");
        return ExitCode::from(64);
    };
    match serve(&library, arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Load(error)) => {
            eprintln!("cannot use {}: {error}", library.display());
            ExitCode::from(69)
        }
        Err(Failure::Server(error)) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

enum Failure {
    Load(libloading::Error),
    Server(String),
}

/// Blocks until the server's query ends, which for the one that `xtask` passes means: until a signal.
fn serve(library: &OsString, arguments: impl Iterator<Item = OsString>) -> Result<(), Failure> {
    // The server looks at its own name to choose what to be.
    let arguments: Vec<CString> = std::iter::once(OsString::from("clickhouse-local"))
        .chain(arguments)
        .map(|argument| CString::new(argument.into_vec()).expect("an argument of a process holds no NUL"))
        .collect();
    // C's contract: argv[argc] is null.
    let mut argv: Vec<*mut c_char> = arguments.iter().map(|argument| argument.as_ptr().cast_mut()).collect();
    let argc = c_int::try_from(argv.len()).expect("the system bounds the number of arguments far below");
    argv.push(std::ptr::null_mut());

    // SAFETY: loading runs the library's initialisers; it is the pinned package's own file, and this process does
    // nothing else. RTLD_GLOBAL, because parts of the server look their symbols up by name.
    let library = unsafe { Library::open(Some(library), RTLD_LAZY | RTLD_GLOBAL) }.map_err(Failure::Load)?;
    // SAFETY: both signatures are those of the package's `chdb.h`, copied above.
    let (query, error): (Symbol<QueryCmdline>, Symbol<ResultError>) = unsafe {
        (
            library.get(b"chdb_query_cmdline\0").map_err(Failure::Load)?,
            library.get(b"chdb_result_error\0").map_err(Failure::Load)?,
        )
    };
    // SAFETY: `arguments` outlives the call, and `argv` is null-terminated and `argc` long.
    let result = unsafe { query(argc, argv.as_mut_ptr()) };
    if result.is_null() {
        return Err(Failure::Server("the server gave no result".to_owned()));
    }
    // SAFETY: `result` came from the call above and was not freed.
    let message = unsafe { error(result) };
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: the library promises a NUL-terminated string that lives as long as the result.
    Err(Failure::Server(unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned()))
}
