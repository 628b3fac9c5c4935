//! The content of a delivery, made at the last moment: what is said, in which language, on which channel.
//!
//! A template is found by (id or type) × channel × locale chain (`pt_BR → pt → default`) × highest active version.
//! Its variables are checked against its schema, its texts rendered strictly (what is undefined is an error, never an
//! empty place), escaped for their channel, with a bound on steps and output. Templates are files; [`TemplateStore`]
//! reads changed ones again and keeps the last good text of a broken one.
//!
//! The pure part is [`Templates::render`]: no clock, no I/O, the same bytes for the same subject and templates.

mod content;
mod embedded;
mod store;
mod template;
mod words;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use minijinja::value::{Serde, Value};
use minijinja::{Environment, ErrorKind};
use tidings_schemas::channel::Channel;
use tidings_schemas::reason::Reason;

pub use content::{Content, Email, InApp, PUSH_BODY_BYTES_MAX, PUSH_TITLE_BYTES_MAX, Push, Sms, ellipsize};
pub use embedded::EMBEDDED;
pub use store::{FILES_MAX, TemplateStore};
pub use template::{FILE_BYTES_MAX, FUEL_MAX, TEXT_BYTES_MAX, TemplateError};
pub use words::NAME_GRAPHEMES_MAX;

use template::{Field, Template, TemplateFile, Text};

/// The template that serves types which have none on a channel.
const GENERIC: &str = "default";
/// The file that sets an e-mail's text in HTML where its template has no `html_body`.
const LAYOUT: &str = "layout.html";

/// What is to be said, as the lane record knows it.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The template that the event names; the type's where absent.
    pub template_id: Option<&'a str>,
    /// The event's type, lower snake case.
    pub event_type: &'a str,
    /// Where it is said.
    pub channel: Channel,
    /// The user's locale, `pt_BR` or `pt-BR`.
    pub locale: Option<&'a str>,
    /// The user's id.
    pub user: &'a str,
    /// The event's variables.
    pub data: &'a BTreeMap<String, serde_json::Value>,
    /// Names of the first actors, in order.
    pub actors: &'a [&'a str],
    /// How many different people did it.
    pub actors_count: u64,
    /// How many events were merged.
    pub activities: u64,
    /// Id and kind of what it was done to.
    pub object: Option<(&'a str, Option<&'a str>)>,
}

/// Why there is nothing to say. All of these are final: only another template or other data would help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// No file answers to the event's `template_id`.
    #[error("no template is named `{id}`: add a file with this `template_id`, or correct the event's")]
    UnknownTemplate {
        /// What the event asked for.
        id: String,
    },
    /// The template or type has no text for the channel, and there is no generic one.
    #[error("`{name}` has no template for {channel}: add one, or a `default` template for {channel}")]
    NoTemplate {
        /// The template or type.
        name: String,
        /// The channel.
        channel: Channel,
    },
    /// No text in the user's language, and the default locale's may not stand in.
    #[error(
        "template `{template}` has no text for locale `{locale}` on {channel}: add one, or allow its default text with `locale_fallback: true`"
    )]
    NoLocale {
        /// The template or type.
        template: String,
        /// The channel.
        channel: Channel,
        /// What the user reads.
        locale: String,
    },
    /// The event lacks what the template needs.
    #[error(
        "template `{template}` ({file}) needs {}, missing from the event's `data`: send it, or declare it optional or with a default in the template",
        quoted(variables)
    )]
    MissingVariables {
        /// The template.
        template: String,
        /// Its file.
        file: String,
        /// All that is missing.
        variables: Vec<String>,
    },
    /// A variable is of another type than the template declares.
    #[error(
        "template `{template}` ({file}): variable `{variable}` {problem}; correct the event's `data` or the declared type"
    )]
    WrongType {
        /// The template.
        template: String,
        /// Its file.
        file: String,
        /// The variable.
        variable: String,
        /// What was expected and found.
        problem: String,
    },
    /// A text could not be rendered.
    #[error("template `{template}` ({file}): `{text}`, line {line}: {problem}")]
    Failed {
        /// The template.
        template: String,
        /// Its file.
        file: String,
        /// Which of its texts.
        text: String,
        /// Line within the text.
        line: usize,
        /// What went wrong, and the remedy.
        problem: String,
    },
}

impl RenderError {
    /// The reason for the record.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::UnknownTemplate { .. } | Self::NoTemplate { .. } => Reason::NoTemplate,
            Self::NoLocale { .. } => Reason::NoLocale,
            Self::MissingVariables { .. } | Self::WrongType { .. } | Self::Failed { .. } => Reason::RenderFailed,
        }
    }
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Where a template stands: file and place in it.
type Place = (usize, usize);

/// A set of templates that belong together; never changes once made.
#[derive(Debug)]
pub struct Templates {
    files: Vec<Arc<TemplateFile>>,
    layout: Option<Arc<Environment<'static>>>,
    default_locale: String,
    /// (name, channel) → locale (empty: of no language) → the highest active version.
    index: BTreeMap<(String, Channel), BTreeMap<String, Place>>,
}

impl Templates {
    /// The default locale where none is set.
    pub const DEFAULT_LOCALE: &'static str = "en";

    /// Reads all template files (`*.yaml`, `*.yml`, `*.json`, and `layout.html`) of a folder, not of folders within.
    ///
    /// # Errors
    /// Everything that is wrong with the folder and its files.
    pub fn load(folder: &Path) -> Result<Self, Vec<TemplateError>> {
        store::load(folder, Self::DEFAULT_LOCALE)
    }

    /// The templates that are part of the program: what `examples/templates` holds.
    ///
    /// # Errors
    /// None in a program whose tests passed.
    pub fn embedded() -> Result<Self, Vec<TemplateError>> {
        store::from_sources(EMBEDDED.iter().map(|(name, source)| (Path::new(name), *source)), Self::DEFAULT_LOCALE)
    }

    fn assemble(
        files: Vec<Arc<TemplateFile>>,
        layout: Option<Arc<Environment<'static>>>,
        default_locale: &str,
    ) -> Result<Self, Vec<TemplateError>> {
        if words::parse_locale(default_locale).is_none() {
            let problem = format!("`{default_locale}` is no locale; write it like `en` or `pt_BR`");
            return Err(vec![TemplateError::of_file(Path::new("default locale"), problem)]);
        }
        // Highest versions first, so that whoever comes first stays and only a tie at the top is at odds.
        let mut active: Vec<(Place, &TemplateFile, &Template)> = Vec::new();
        for (file_at, file) in files.iter().enumerate() {
            let templates = file.templates.iter().enumerate().filter(|(_, template)| template.is_active);
            active.extend(templates.map(|(at, template)| ((file_at, at), file.as_ref(), template)));
        }
        active.sort_by_key(|(_, _, template)| std::cmp::Reverse(template.version));
        let ids = active.iter().flat_map(|entry| entry.2.ids.iter().map(move |id| (id, entry)));
        let types = active.iter().filter(|entry| !entry.2.ids.contains(&entry.2.event_type));
        let types = types.map(|entry| (&entry.2.event_type, entry));

        // Ids before types: where several templates serve a type, the one that bears its name speaks for it.
        let mut index: BTreeMap<(String, Channel), BTreeMap<String, Place>> = BTreeMap::new();
        let mut errors = Vec::new();
        for (name, (place, file, template)) in ids.chain(types) {
            let locale = template.locale.clone().unwrap_or_default();
            let locales = index.entry((name.clone(), template.channel)).or_default();
            let Some((known_file, known)) = locales.get(&locale).copied() else {
                locales.insert(locale, *place);
                continue;
            };
            let (known_file, known) = (&files[known_file], &files[known_file].templates[known]);
            let is_tie = known.version == template.version && known.ids.contains(name) == template.ids.contains(name);
            if is_tie {
                let Template { channel, version, .. } = template;
                let locale = if locale.is_empty() { "default" } else { &locale };
                let problem = format!(
                    "`{name}` has version {version} for {channel} in `{locale}` in {} too: raise one's `version`, set \
                     `is_active: false`, or leave out the `notification_type` of one that is found by its id alone",
                    known_file.path.display()
                );
                errors.push(TemplateError::of_file(&file.path, problem));
            }
        }
        errors.dedup_by(|a, b| a.path == b.path);
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Self { files, layout, default_locale: default_locale.to_owned(), index })
    }

    /// The same templates with another default locale.
    ///
    /// # Errors
    /// When it is no locale.
    pub fn with_default_locale(self, default_locale: &str) -> Result<Self, Vec<TemplateError>> {
        Self::assemble(self.files, self.layout, default_locale)
    }

    fn template(&self, (file, template): Place) -> (&TemplateFile, &Template) {
        (&self.files[file], &self.files[file].templates[template])
    }

    fn find(&self, subject: &Subject<'_>) -> Result<(&TemplateFile, &Template), RenderError> {
        let channel = subject.channel;
        let name = subject.template_id.unwrap_or(subject.event_type);
        let locales = match (self.index.get(&(name.to_owned(), channel)), subject.template_id) {
            (Some(locales), _) => Some(locales),
            (None, Some(id))
                if !Channel::ALL.iter().any(|channel| self.index.contains_key(&(id.to_owned(), *channel))) =>
            {
                return Err(RenderError::UnknownTemplate { id: id.to_owned() });
            }
            (None, Some(_)) => None,
            (None, None) => self.index.get(&(GENERIC.to_owned(), channel)),
        };
        let locales = locales.ok_or_else(|| RenderError::NoTemplate { name: name.to_owned(), channel })?;

        let wanted = subject.locale.and_then(words::parse_locale).map(words::chain).unwrap_or_default();
        if let Some(place) = wanted.iter().find_map(|locale| locales.get(&locale.to_string())) {
            return Ok(self.template(*place));
        }
        let default = words::parse_locale(&self.default_locale).map(words::chain).unwrap_or_default();
        let default = std::iter::once(String::new()).chain(default.iter().map(ToString::to_string));
        let place = default.filter_map(|locale| locales.get(&locale)).next();
        match (place.map(|place| self.template(*place)), subject.locale) {
            (Some((file, template)), locale) if locale.is_none() || template.locale_fallback => Ok((file, template)),
            (_, locale) => Err(RenderError::NoLocale {
                template: name.to_owned(),
                channel,
                locale: locale.unwrap_or(&self.default_locale).to_owned(),
            }),
        }
    }

    /// Renders what is to be said.
    ///
    /// # Errors
    /// When there is no template, the data doesn't fit its schema, or a text can't be rendered.
    pub fn render(&self, subject: &Subject<'_>) -> Result<Content, RenderError> {
        let (file, template) = self.find(subject)?;
        let locale = self.spoken(subject, template);
        let mut rendering = Rendering { file, template, context: BTreeMap::new() };
        rendering.fill_context(subject, &locale)?;
        let mut texts = BTreeMap::new();
        for (field, text) in &template.texts {
            let text = rendering.text(*field, text)?;
            if matches!(field, Field::ActionUrl | Field::ImageUrl) && !file.variables.contains_key(field.as_str()) {
                rendering.context.insert(field.as_str().to_owned(), Value::from(text.clone()));
            }
            texts.insert(*field, text);
        }
        let mut take = |field: Field| texts.remove(&field).filter(|text| !text.is_empty());
        let require = |field: Field, text: Option<String>| {
            text.ok_or_else(|| {
                rendering.failed(field.as_str(), 1, "came out empty; give it words that need no variable")
            })
        };
        Ok(match subject.channel {
            Channel::Push => Content::Push(Box::new(Push {
                title: ellipsize(&require(Field::Title, take(Field::Title))?, PUSH_TITLE_BYTES_MAX).into_owned(),
                subtitle: take(Field::Subtitle),
                body: ellipsize(&require(Field::Body, take(Field::Body))?, PUSH_BODY_BYTES_MAX).into_owned(),
                image_url: take(Field::ImageUrl),
                action_url: take(Field::ActionUrl),
                badge: template.badge,
                sound: take(Field::Sound),
                category: take(Field::Category),
                thread_id: take(Field::ThreadId),
                interruption_level: take(Field::InterruptionLevel),
                mutable_content: template.mutable_content,
                collapse_key: take(Field::CollapseKey),
                ttl_s: template.ttl_s,
                channel_id: take(Field::ChannelId),
                color: take(Field::Color),
                icon: take(Field::Icon),
                click_action: take(Field::ClickAction),
                custom: rendering.custom()?,
            })),
            Channel::Email => {
                let subject_line = require(Field::Subject, take(Field::Subject))?;
                let (text, html) = (require(Field::Body, take(Field::Body))?, take(Field::HtmlBody));
                let (url, label) = (take(Field::ActionUrl), take(Field::ActionLabel));
                let html = match (html, &self.layout) {
                    (None, Some(layout)) => Some(rendering.laid_out(
                        layout,
                        &locale,
                        &subject_line,
                        &text,
                        url.as_deref(),
                        label.as_deref(),
                    )?),
                    (html, _) => html,
                };
                // In the text part the link stands below, unless the template placed it itself.
                let text = match (url, label) {
                    (Some(url), Some(label)) if !text.contains(&url) => format!("{text}\n\n{label}: {url}"),
                    (Some(url), None) if !text.contains(&url) => format!("{text}\n\n{url}"),
                    _ => text,
                };
                Content::Email(Email { subject: subject_line, html, text })
            }
            Channel::Sms => Content::Sms(Sms { text: require(Field::Body, take(Field::Body))? }),
            Channel::InApp => Content::InApp(InApp {
                title: require(Field::Title, take(Field::Title))?,
                body: require(Field::Body, take(Field::Body))?,
                action_url: take(Field::ActionUrl),
            }),
            Channel::Webhook => {
                return Err(RenderError::NoTemplate { name: template.id.clone(), channel: Channel::Webhook });
            }
        })
    }

    /// The locale of numbers, lists and plurals: the user's where the text is in their language, else the text's.
    fn spoken(&self, subject: &Subject<'_>, template: &Template) -> String {
        let of_text = template.locale.as_deref().unwrap_or(&self.default_locale);
        let user = subject.locale.and_then(words::parse_locale);
        match (user, words::parse_locale(of_text)) {
            (Some(user), Some(text)) if user.language == text.language => user.to_string(),
            (_, Some(text)) => text.to_string(),
            (_, None) => Self::DEFAULT_LOCALE.to_owned(),
        }
    }
}

/// One template about to speak.
struct Rendering<'a> {
    file: &'a TemplateFile,
    template: &'a Template,
    context: BTreeMap<String, Value>,
}

impl Rendering<'_> {
    fn failed(&self, text: &str, line: usize, problem: impl Into<String>) -> RenderError {
        RenderError::Failed {
            template: self.template.id.clone(),
            file: self.file.path.display().to_string(),
            text: text.to_owned(),
            line,
            problem: problem.into(),
        }
    }

    fn missing(&self, variables: Vec<String>) -> RenderError {
        let file = self.file.path.display().to_string();
        RenderError::MissingVariables { template: self.template.id.clone(), file, variables }
    }

    /// What the texts see: the schema's variables first, then ours, then whatever of the data they use.
    fn fill_context(&mut self, subject: &Subject<'_>, locale: &str) -> Result<(), RenderError> {
        // Verb and phrase must agree, so both see a count that has at least the people named.
        let actors_count = subject.actors_count.max(subject.actors.len() as u64);
        let data = |name: &str| subject.data.get(name).filter(|value| !value.is_null());
        let mut missing = Vec::new();
        for (name, variable) in &self.file.variables {
            let value = match (data(name), &variable.otherwise) {
                (Some(value), _) => variable.of.coerce(value).map_err(|problem| RenderError::WrongType {
                    template: self.template.id.clone(),
                    file: self.file.path.display().to_string(),
                    variable: name.clone(),
                    problem,
                })?,
                (None, Some(otherwise)) => otherwise.clone(),
                (None, None) => {
                    missing.push(name.clone());
                    continue;
                }
            };
            self.context.insert(name.clone(), value);
        }
        if !missing.is_empty() {
            return Err(self.missing(missing));
        }
        for name in &self.template.undeclared {
            let value = match name.as_str() {
                "user" => Value::from(subject.user),
                "type" => Value::from(subject.event_type),
                "channel" => Value::from(subject.channel.as_str()),
                "locale" => Value::from(locale),
                "actors" => Value::from(Serde(subject.actors)),
                "actors_count" => Value::from(actors_count),
                "activities" => Value::from(subject.activities),
                "data" => Value::from(Serde(subject.data)),
                "object" => {
                    // Absent parts are empty, so that `{{ object.kind or "post" }}` needs no guard.
                    let (id, kind) = subject.object.unwrap_or_default();
                    Value::from_pairs(BTreeMap::from([("id", id), ("kind", kind.unwrap_or_default())]))
                }
                name => match data(name) {
                    Some(value) => Value::from(Serde(value)),
                    None => continue,
                },
            };
            self.context.insert(name.clone(), value);
        }
        self.context.insert(words::LOCALE_KEY.to_owned(), Value::from(locale));
        self.context.insert(words::ACTORS_COUNT_KEY.to_owned(), Value::from(actors_count));
        Ok(())
    }

    fn text(&self, field: Field, text: &Text) -> Result<String, RenderError> {
        let name = field.as_str();
        let text = self.rendered(name, text)?;
        let text = if field.is_one_line() {
            text.split(|char: char| char.is_control() || char.is_whitespace())
                .filter(|word| !word.is_empty())
                .collect::<Vec<_>>()
                .join(" ")
        } else {
            let printable = |char: &char| !char.is_control() || matches!(char, '\n' | '\t');
            text.trim().chars().filter(printable).collect()
        };
        if matches!(field, Field::ActionUrl | Field::ImageUrl) && !text.is_empty() && !is_link(&text) {
            return Err(self.failed(
                name,
                1,
                format!("`{text}` is no link; expected a scheme, like `https://…` or `myapp://…`"),
            ));
        }
        Ok(text)
    }

    fn custom(&self) -> Result<BTreeMap<String, String>, RenderError> {
        let rendered = self
            .template
            .custom
            .iter()
            .map(|(key, text)| Ok((key.clone(), self.rendered(&format!("custom {key}"), text)?)));
        rendered.collect()
    }

    fn rendered(&self, field: &str, text: &Text) -> Result<String, RenderError> {
        match text {
            Text::Literal(text) => Ok(text.clone()),
            Text::Compiled(name) => {
                self.run(&self.file.environment, field, name, Value::from_pairs(self.context.clone()))
            }
        }
    }

    fn laid_out(
        &self,
        layout: &Environment<'static>,
        locale: &str,
        subject: &str,
        text: &str,
        url: Option<&str>,
        label: Option<&str>,
    ) -> Result<String, RenderError> {
        let right_to_left = words::parse_locale(locale).is_some_and(|locale| words::right_to_left(&locale));
        let paragraphs: Vec<&str> = text.split("\n\n").map(str::trim).filter(|part| !part.is_empty()).collect();
        let context = BTreeMap::from([
            ("lang", Value::from(locale)),
            ("dir", Value::from(if right_to_left { "rtl" } else { "ltr" })),
            ("subject", Value::from(subject)),
            ("paragraphs", Value::from(Serde(paragraphs))),
            ("action_url", Value::from(url.unwrap_or_default())),
            ("action_label", Value::from(label.or(url).unwrap_or_default())),
        ]);
        self.run(layout, LAYOUT, LAYOUT, Value::from_pairs(context)).map(|html| html.trim().to_owned())
    }

    fn run(
        &self,
        environment: &Environment<'_>,
        field: &str,
        name: &str,
        context: Value,
    ) -> Result<String, RenderError> {
        let mut output = Bounded(Vec::new());
        let result =
            environment.get_template(name).and_then(|text| text.render_captured_to(context, &mut output).map(drop));
        match result {
            Ok(()) => String::from_utf8(output.0).map_err(|error| self.failed(field, 1, error.to_string())),
            Err(error) if error.kind() == ErrorKind::UndefinedError => {
                // Name what the event lacks; where nothing is missing, an attribute of something is.
                let absent = self.template.undeclared.iter().filter(|name| !self.context.contains_key(*name));
                let absent: Vec<String> = absent.cloned().collect();
                if absent.is_empty() {
                    let problem = "uses something undefined: send it in `data`, or guard it with `is defined`";
                    return Err(self.failed(field, error.line().unwrap_or(1), problem));
                }
                Err(self.missing(absent))
            }
            Err(error) => Err(self.failed(field, error.line().unwrap_or(1), template::describe(&error))),
        }
    }
}

/// Output up to [`TEXT_BYTES_MAX`].
struct Bounded(Vec<u8>);

impl std::io::Write for &mut Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > TEXT_BYTES_MAX {
            return Err(std::io::Error::other("full"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Whether a text is an absolute link that runs nothing.
fn is_link(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once(':') else { return false };
    let begins = scheme.starts_with(|char: char| char.is_ascii_alphabetic());
    let fits = scheme.chars().all(|char| char.is_ascii_alphanumeric() || matches!(char, '+' | '-' | '.'));
    let runs = ["javascript", "data", "vbscript"].iter().any(|word| scheme.eq_ignore_ascii_case(word));
    begins && fits && !runs && !rest.is_empty() && !text.contains(' ')
}

/// Renderers share one store between tasks and threads.
const _: () = {
    const fn is_shared<T: Send + Sync + 'static>() {}
    is_shared::<TemplateStore>();
};

#[cfg(test)]
mod tests;
