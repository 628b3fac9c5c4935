//! The template folder, read again where it changed.
//!
//! *Rule*: what is said is always a whole set of good files. A file that can't be read or compiled, or that
//! contradicts another, is a problem with path, line and column; its last good text stays in use until it is mended
//! or deleted. A file is read again when its time of change or its length differs.
//!
//! Nothing here runs by itself: the caller decides when [`TemplateStore::refresh`] is called, `tidings run` every
//! two seconds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::SystemTime;

use minijinja::Environment;
use minijinja::value::Value;

use super::template::{FILE_BYTES_MAX, TemplateError, TemplateFile, environment};
use super::{LAYOUT, Templates};

/// Most files in a template folder; far beyond types × locales of any known app. Beyond it the folder is refused, so
/// that a wrong path (`/`) is noticed instead of read.
pub const FILES_MAX: usize = 10_000;

/// A file that was understood.
#[derive(Clone, Debug)]
enum Good {
    Templates(Arc<TemplateFile>),
    Layout(Arc<Environment<'static>>),
}

impl Good {
    fn parse(path: &Path, source: &str) -> Result<Self, Vec<TemplateError>> {
        if path.file_name().is_none_or(|name| name != LAYOUT) {
            return TemplateFile::parse(path, source).map(|file| Self::Templates(Arc::new(file)));
        }
        let mut environment = environment();
        let added = environment.add_template_owned(LAYOUT, source.to_owned());
        let context =
            BTreeMap::from(["lang", "dir", "subject", "action_url", "action_label"].map(|key| (key, Value::from("x"))));
        let tried = added.and_then(|()| {
            let mut context = context;
            context.insert("paragraphs", Value::from(vec![Value::from("x")]));
            environment.get_template(LAYOUT)?.render(Value::from_pairs(context))
        });
        match tried {
            Ok(_) => Ok(Self::Layout(Arc::new(environment))),
            Err(error) => {
                let line = error.line().unwrap_or(0);
                let before = source.split('\n').take(line.saturating_sub(1)).map(|line| line.len() + 1).sum();
                let at = error.range().map_or(0, |range| range.start);
                let column = source.get(before..at).map_or(0, |text| text.chars().count()) as u64 + 1;
                let problem = super::template::describe(&error);
                Err(vec![TemplateError { path: path.to_owned(), line: line as u64, column, problem }])
            }
        }
    }
}

/// What tells one state of a file from another.
type Stamp = (Option<SystemTime>, u64);

/// The files of a folder that could be templates, in order.
fn list(folder: &Path) -> Result<BTreeMap<PathBuf, Stamp>, TemplateError> {
    let refuse = |error: std::io::Error| {
        TemplateError::of_file(folder, format!("can't be read: {error}; expected a folder of template files"))
    };
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(refuse)? {
        let path = entry.map_err(refuse)?.path();
        let is_layout = path.file_name().is_some_and(|name| name == LAYOUT);
        let extension = path.extension().and_then(|extension| extension.to_str());
        if !is_layout && !matches!(extension, Some("yaml" | "yml" | "json")) {
            continue;
        }
        // A file deleted since the listing is one that isn't there.
        let Ok(metadata) = std::fs::metadata(&path) else { continue };
        if metadata.is_file() {
            files.insert(path, (metadata.modified().ok(), metadata.len()));
        }
        if files.len() > FILES_MAX {
            let problem = format!("holds more than {FILES_MAX} template files: name a folder of templates alone");
            return Err(TemplateError::of_file(folder, problem));
        }
    }
    Ok(files)
}

fn read(path: &Path, stamp: Stamp) -> Result<Good, Vec<TemplateError>> {
    if stamp.1 > FILE_BYTES_MAX {
        let problem = format!("is {} bytes long, the most is {FILE_BYTES_MAX}: link to pictures instead", stamp.1);
        return Err(vec![TemplateError::of_file(path, problem)]);
    }
    let source = std::fs::read_to_string(path)
        .map_err(|error| vec![TemplateError::of_file(path, format!("can't be read: {error}; expected UTF-8 text"))])?;
    Good::parse(path, &source)
}

fn assemble<'a>(files: impl Iterator<Item = &'a Good>, default_locale: &str) -> Result<Templates, Vec<TemplateError>> {
    let mut templates = Vec::new();
    let mut layout = None;
    for file in files {
        match file {
            Good::Templates(file) => templates.push(Arc::clone(file)),
            Good::Layout(environment) => layout = Some(Arc::clone(environment)),
        }
    }
    Templates::assemble(templates, layout, default_locale)
}

pub(super) fn from_sources<'a>(
    sources: impl Iterator<Item = (&'a Path, &'a str)>,
    default_locale: &str,
) -> Result<Templates, Vec<TemplateError>> {
    whole(sources.map(|(path, source)| Good::parse(path, source)).collect(), default_locale)
}

pub(super) fn load(folder: &Path, default_locale: &str) -> Result<Templates, Vec<TemplateError>> {
    let files = list(folder).map_err(|error| vec![error])?;
    whole(files.iter().map(|(path, stamp)| read(path, *stamp)).collect(), default_locale)
}

fn whole(files: Vec<Result<Good, Vec<TemplateError>>>, default_locale: &str) -> Result<Templates, Vec<TemplateError>> {
    let mut errors = Vec::new();
    let mut good = Vec::new();
    for file in files {
        match file {
            Ok(file) => good.push(file),
            Err(found) => errors.extend(found),
        }
    }
    if errors.is_empty() { assemble(good.iter(), default_locale) } else { Err(errors) }
}

/// What is known of one file.
#[derive(Clone, Debug)]
struct Known {
    stamp: Stamp,
    /// In use.
    good: Option<Good>,
    /// Understood, but at odds with another file.
    waiting: Option<Good>,
    problems: Vec<TemplateError>,
}

/// The templates of a folder, as they are now. Shared by all who render.
#[derive(Debug)]
pub struct TemplateStore {
    folder: PathBuf,
    default_locale: String,
    current: RwLock<Arc<Templates>>,
    files: Mutex<Files>,
}

#[derive(Debug, Default)]
struct Files {
    known: BTreeMap<PathBuf, Known>,
    /// Why the folder itself could not be listed.
    folder_problem: Option<TemplateError>,
}

impl TemplateStore {
    /// Reads the folder. A broken file at the start is refused: there is no last good text yet.
    ///
    /// # Errors
    /// Everything that is wrong with the folder and its files.
    pub fn open(folder: &Path, default_locale: &str) -> Result<Self, Vec<TemplateError>> {
        let mut known = BTreeMap::new();
        let mut errors = Vec::new();
        for (path, stamp) in list(folder).map_err(|error| vec![error])? {
            match read(&path, stamp) {
                Ok(good) => {
                    known.insert(path, Known { stamp, good: Some(good), waiting: None, problems: Vec::new() });
                }
                Err(found) => errors.extend(found),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let templates = assemble(known.values().filter_map(|file| file.good.as_ref()), default_locale)?;
        Ok(Self {
            folder: folder.to_owned(),
            default_locale: default_locale.to_owned(),
            current: RwLock::new(Arc::new(templates)),
            files: Mutex::new(Files { known, folder_problem: None }),
        })
    }

    /// A store that never changes: the embedded templates, or a set made by hand.
    #[must_use]
    pub fn fixed(templates: Templates) -> Self {
        Self {
            folder: PathBuf::new(),
            default_locale: templates.default_locale.clone(),
            current: RwLock::new(Arc::new(templates)),
            files: Mutex::default(),
        }
    }

    /// The newest whole set of good templates.
    #[must_use]
    pub fn current(&self) -> Arc<Templates> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What keeps files from being used as they are on disk; empty when all is well.
    #[must_use]
    pub fn problems(&self) -> Vec<TemplateError> {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let of_files = files.known.values().flat_map(|file| file.problems.iter());
        files.folder_problem.iter().chain(of_files).cloned().collect()
    }

    /// Reads changed files again; says whether the templates in use changed. Blocks on the disk.
    pub fn refresh(&self) -> bool {
        if self.folder.as_os_str().is_empty() {
            return false;
        }
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let listed = match list(&self.folder) {
            Ok(listed) => listed,
            Err(problem) => {
                // An unmounted folder is not a wish to have no templates.
                files.folder_problem = Some(problem);
                return false;
            }
        };
        files.folder_problem = None;
        let known = &mut files.known;
        let removed = known.keys().any(|path| !listed.contains_key(path));
        let mut changed = removed;
        known.retain(|path, _| listed.contains_key(path));
        for (path, stamp) in listed {
            if known.get(&path).is_some_and(|file| file.stamp == stamp) {
                continue;
            }
            changed = true;
            let file =
                known.entry(path.clone()).or_insert(Known { stamp, good: None, waiting: None, problems: Vec::new() });
            file.stamp = stamp;
            (file.waiting, file.problems) = match read(&path, stamp) {
                Ok(good) => (Some(good), Vec::new()),
                Err(problems) => (None, problems),
            };
        }
        changed && self.use_what_fits(known, removed)
    }

    /// Puts waiting files in use: all at once where they agree, else one by one as long as one more fits. Says
    /// whether the set in use is another.
    fn use_what_fits(&self, known: &mut BTreeMap<PathBuf, Known>, removed: bool) -> bool {
        let mut waiting: Vec<PathBuf> =
            known.iter().filter(|(_, file)| file.waiting.is_some()).map(|(path, _)| path.clone()).collect();
        let everything = assemble(
            known.values().filter_map(|file| file.waiting.as_ref().or(file.good.as_ref())),
            &self.default_locale,
        );
        if let Ok(templates) = everything {
            for file in known.values_mut().filter(|file| file.waiting.is_some()) {
                file.good = file.waiting.take();
                file.problems.clear();
            }
            self.replace(templates);
            return removed || !waiting.is_empty();
        }
        let all = waiting.len();
        let mut newest = assemble(known.values().filter_map(|file| file.good.as_ref()), &self.default_locale).ok();
        loop {
            let before = waiting.len();
            waiting.retain(|path| {
                let chosen = known
                    .iter()
                    .filter_map(|(other, file)| if other == path { file.waiting.as_ref() } else { file.good.as_ref() });
                let tried = assemble(chosen, &self.default_locale);
                let Some(file) = known.get_mut(path) else { return false };
                match tried {
                    Ok(templates) => {
                        newest = Some(templates);
                        file.good = file.waiting.take();
                        file.problems.clear();
                        false
                    }
                    Err(problems) => {
                        file.problems = problems;
                        true
                    }
                }
            });
            if waiting.len() == before {
                break;
            }
        }
        if let Some(templates) = newest {
            self.replace(templates);
        }
        removed || waiting.len() < all
    }

    fn replace(&self, templates: Templates) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(templates);
    }
}

#[cfg(test)]
mod tests;
