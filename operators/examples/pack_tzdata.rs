//! Packs one release of the tz database into the single file that the calendar reads:
//! `cargo run -p tidings-operators --example pack_tzdata -- ZONEINFO_DIRECTORY OUTPUT`.
//!
//! Version and names come from the directory's own `tzdata.zi`, so the result depends on nothing
//! but the release and its TZif files. The layout is described in `calendar/mod.rs`.

use std::collections::BTreeMap;
use std::path::Path;
use std::{env, fs};

use anyhow::{Context, bail, ensure};
use tidings_operators::calendar::Calendar;

const HEADER_BYTES: usize = 24;
const NAME_BYTES: usize = 40;
const ENTRY_BYTES: usize = NAME_BYTES + 12;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [zoneinfo, output] = arguments.as_slice() else { bail!("usage: pack_tzdata ZONEINFO_DIRECTORY OUTPUT") };
    let packed = pack(Path::new(zoneinfo))?;
    Calendar::from_bytes(packed.clone().into()).context("the packed file does not read back")?;
    fs::write(output, packed).with_context(|| format!("write {output}"))
}

fn pack(zoneinfo: &Path) -> anyhow::Result<Vec<u8>> {
    let source = zoneinfo.join("tzdata.zi");
    let source = fs::read_to_string(&source).with_context(|| format!("read {}", source.display()))?;
    let version = source.lines().next().and_then(|line| line.strip_prefix("# version "));
    let version = version.context("tzdata.zi: expected `# version 2026f` in the first line")?;
    ensure!(version.len() == 5, "tzdata.zi: expected a version like `2026f`, found `{version}`");

    let mut files = BTreeMap::new();
    for line in source.lines() {
        let name = match line.split(' ').collect::<Vec<_>>().as_slice() {
            ["Z", name, ..] | ["L", _, name] => *name,
            _ => continue,
        };
        ensure!(name.len() < NAME_BYTES, "{name}: expected a name shorter than {NAME_BYTES} bytes");
        files.insert(name, fs::read(zoneinfo.join(name)).with_context(|| format!("read {name}"))?);
    }

    // A link shares the bytes of its zone.
    let mut data = Vec::new();
    let mut places: BTreeMap<&[u8], usize> = BTreeMap::new();
    let mut index = Vec::new();
    for (name, file) in &files {
        let place = *places.entry(file).or_insert_with(|| {
            data.extend_from_slice(file);
            data.len() - file.len()
        });
        let mut padded = [0; NAME_BYTES];
        padded[..name.len()].copy_from_slice(name.as_bytes());
        index.extend_from_slice(&padded);
        for number in [place, file.len(), 0] {
            index.extend_from_slice(&u32::try_from(number)?.to_be_bytes());
        }
    }

    let data_at = HEADER_BYTES + files.len() * ENTRY_BYTES;
    let mut packed = format!("tzdata{version}\0").into_bytes();
    for offset in [HEADER_BYTES, data_at, data_at + data.len()] {
        packed.extend_from_slice(&u32::try_from(offset)?.to_be_bytes());
    }
    packed.extend(index);
    packed.extend(data);
    Ok(packed)
}
