//! One template file, read and compiled.
//!
//! A file holds what is said in one locale, on one channel (`channel: push`) or on several (`channels: { push: …,
//! email: … }`, which inherit the texts above them). Everything that can be known without an event is checked here:
//! keys, channels, required texts, the variables' schema, the texts' syntax, and by a trial run the names of filters
//! and functions. What is wrong is said with path, line and column.
//!
//! Texts see their variables, `user`, `type`, `channel`, `locale`, `actors`, `actors_count`, `activities`, `object.id`,
//! `object.kind`, `data` and, once they are known, `action_url` and `image_url`. A declared variable hides all of these.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use minijinja::value::{Serde, Value, ValueKind};
use minijinja::{AutoEscape, Environment, ErrorKind, Output, State, UndefinedBehavior};
use serde::Deserialize;
use serde_saphyr::{Location, Spanned};
use tidings_schemas::channel::Channel;

use super::words;

/// Largest template file: an e-mail beyond 1 MiB is clipped by mailbox providers anyway. Beyond it the file is refused.
pub const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Longest text that a template may produce. Beyond it rendering fails: no channel carries more.
pub const TEXT_BYTES_MAX: usize = 512 * 1024;
/// Steps that one text may take, about a step an instruction; a digest of a hundred items takes some thousands.
/// Beyond it rendering fails, so that no template runs for ever. Macros, includes and `namespace` are not part of the
/// language here for the same reason. What a text joins up by hand before it prints it is bounded by its steps only.
pub const FUEL_MAX: u64 = 100_000;
/// Longest time that a push waits for a device: what FCM allows, four weeks.
const TTL_S_MAX: u32 = 2_419_200;
/// Variables that every text sees, apart from its own.
const BUILT_IN: [&str; 11] = [
    "user",
    "type",
    "channel",
    "locale",
    "actors",
    "actors_count",
    "activities",
    "object",
    "data",
    "action_url",
    "image_url",
];

/// Why a template file is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateError {
    /// The file.
    pub path: PathBuf,
    /// Line, from 1; 0 where the file as a whole is meant.
    pub line: u64,
    /// Column in characters, from 1; 0 where the file as a whole is meant.
    pub column: u64,
    /// What is wrong, what was expected, and the remedy.
    pub problem: String,
}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, line, column, problem } = self;
        match line {
            0 => write!(f, "{}: {problem}", path.display()),
            _ => write!(f, "{}:{line}:{column}: {problem}", path.display()),
        }
    }
}

impl std::error::Error for TemplateError {}

impl TemplateError {
    pub(super) fn of_file(path: &Path, problem: impl fmt::Display) -> Self {
        Self { path: path.to_owned(), line: 0, column: 0, problem: problem.to_string() }
    }

    fn at(path: &Path, location: Location, problem: impl fmt::Display) -> Self {
        Self { line: location.line(), column: location.column(), ..Self::of_file(path, problem) }
    }
}

/// What a variable must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum VariableType {
    /// A text; numbers and booleans become one.
    String,
    /// A number; a text that is one will do.
    Number,
    /// true or false.
    Boolean,
    /// Several values, of any kind.
    List,
}

impl VariableType {
    const fn as_str(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Number => "number",
            Self::Boolean => "boolean",
            Self::List => "list",
        }
    }

    /// What stands in for an optional variable without a default.
    fn absent(self) -> Value {
        match self {
            Self::String | Self::Number => Value::from(""),
            Self::Boolean => Value::from(false),
            Self::List => Value::from(Vec::<Value>::new()),
        }
    }

    /// A made-up value.
    fn sample(self) -> Value {
        match self {
            Self::String => Value::from("x"),
            Self::Number => Value::from(1),
            Self::Boolean => Value::from(true),
            Self::List => Value::from(vec![Value::from("x")]),
        }
    }

    /// The value as this type, or what was expected.
    pub(super) fn coerce(self, value: &serde_json::Value) -> Result<Value, String> {
        use serde_json::Value as Json;
        let coerced = match (self, value) {
            (Self::String, Json::String(_)) | (Self::Number, Json::Number(_)) => Some(Value::from(Serde(value))),
            (Self::Boolean, Json::Bool(_)) | (Self::List, Json::Array(_)) => Some(Value::from(Serde(value))),
            (Self::String, Json::Number(_) | Json::Bool(_)) => Some(Value::from(value.to_string())),
            (Self::Number, Json::String(text)) => match serde_json::from_str(text.trim()) {
                Ok(number @ Json::Number(_)) => Some(Value::from(Serde(number))),
                _ => None,
            },
            (Self::Boolean, Json::String(text)) => text.trim().parse().ok().map(|flag: bool| Value::from(flag)),
            _ => None,
        };
        coerced.ok_or_else(|| {
            let (kind, shown) = match value {
                Json::Null => ("null", String::new()),
                Json::Bool(_) => ("boolean", format!(" `{value}`")),
                Json::Number(_) => ("number", format!(" `{value}`")),
                Json::String(text) => ("string", format!(" `{text}`")),
                Json::Array(_) => ("list", String::new()),
                Json::Object(_) => ("object", String::new()),
            };
            format!("must be a {}, found the {kind}{shown}", self.as_str())
        })
    }
}

/// A variable of the schema, as written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawVariable {
    #[serde(rename = "type")]
    of: VariableType,
    #[serde(default)]
    required: bool,
    #[serde(default)]
    default: Option<serde_json::Value>,
}

/// A variable of the schema.
#[derive(Clone, Debug)]
pub(super) struct Variable {
    pub(super) of: VariableType,
    /// What an absent one becomes; nothing where it is required.
    pub(super) otherwise: Option<Value>,
}

type Source = Option<Spanned<String>>;

/// How a push is presented; every text of it may be a template.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawPresentation {
    subtitle: Source,
    badge: Option<u32>,
    sound: Source,
    category: Source,
    thread_id: Source,
    interruption_level: Source,
    mutable_content: bool,
    collapse_key: Source,
    ttl: Source,
    channel_id: Source,
    color: Source,
    icon: Source,
    click_action: Source,
    custom: BTreeMap<String, Spanned<String>>,
}

/// The texts of one channel, as written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawTexts {
    subject: Source,
    title: Source,
    body: Source,
    html_body: Source,
    image_url: Source,
    action_url: Source,
    action_label: Source,
    presentation: Option<RawPresentation>,
}

/// A template file, as written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    template_id: Option<String>,
    #[serde(default)]
    notification_type: Option<String>,
    #[serde(default)]
    channel: Option<Spanned<Channel>>,
    #[serde(default)]
    channels: Option<BTreeMap<Channel, Spanned<RawTexts>>>,
    #[serde(default, alias = "language")]
    locale: Option<Spanned<String>>,
    #[serde(default)]
    version: Option<u32>,
    #[serde(default = "yes")]
    is_active: bool,
    /// Whether people of other languages may be told with this text where it is the default locale's.
    #[serde(default = "yes")]
    locale_fallback: bool,
    #[serde(default)]
    variables: BTreeMap<String, Spanned<RawVariable>>,
    #[serde(default)]
    subject: Source,
    #[serde(default)]
    title: Source,
    #[serde(default)]
    body: Source,
    #[serde(default)]
    html_body: Source,
    #[serde(default)]
    image_url: Source,
    #[serde(default)]
    action_url: Source,
    #[serde(default)]
    action_label: Source,
    #[serde(default)]
    presentation: Option<RawPresentation>,
}

const fn yes() -> bool {
    true
}

/// The named texts of a template. The order is that of rendering: links first, because the others may quote them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Field {
    ActionUrl,
    ImageUrl,
    ActionLabel,
    Subject,
    Title,
    Body,
    HtmlBody,
    Subtitle,
    Sound,
    Category,
    ThreadId,
    InterruptionLevel,
    CollapseKey,
    ChannelId,
    Color,
    Icon,
    ClickAction,
}

impl Field {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::ActionUrl => "action_url",
            Self::ImageUrl => "image_url",
            Self::ActionLabel => "action_label",
            Self::Subject => "subject",
            Self::Title => "title",
            Self::Body => "body",
            Self::HtmlBody => "html_body",
            Self::Subtitle => "subtitle",
            Self::Sound => "sound",
            Self::Category => "category",
            Self::ThreadId => "thread_id",
            Self::InterruptionLevel => "interruption_level",
            Self::CollapseKey => "collapse_key",
            Self::ChannelId => "channel_id",
            Self::Color => "color",
            Self::Icon => "icon",
            Self::ClickAction => "click_action",
        }
    }

    /// Whether the text is one line: line breaks would forge headers or be lost on a lock screen.
    pub(super) const fn is_one_line(self) -> bool {
        !matches!(self, Self::Body | Self::HtmlBody)
    }

    const fn has_place_on(self, channel: Channel) -> bool {
        match self {
            Self::Body => true,
            Self::Title => matches!(channel, Channel::Push | Channel::InApp),
            Self::ActionUrl => !matches!(channel, Channel::Sms),
            Self::Subject | Self::HtmlBody | Self::ActionLabel => matches!(channel, Channel::Email),
            _ => matches!(channel, Channel::Push),
        }
    }

    const fn is_required_on(self, channel: Channel) -> bool {
        match self {
            Self::Body => true,
            Self::Title => matches!(channel, Channel::Push | Channel::InApp),
            Self::Subject => matches!(channel, Channel::Email),
            _ => false,
        }
    }
}

/// A text: as it is, or compiled under a name of the file's environment.
#[derive(Clone, Debug)]
pub(super) enum Text {
    Literal(String),
    Compiled(String),
}

/// One template: one channel of one file.
#[derive(Clone, Debug)]
pub(super) struct Template {
    /// `template_id`, or the type where there is none: what errors call it.
    pub(super) id: String,
    /// The id, and the id without version, locale and channel.
    pub(super) ids: BTreeSet<String>,
    pub(super) event_type: String,
    pub(super) channel: Channel,
    /// Canonical (`pt-BR`); nothing where it is of no language.
    pub(super) locale: Option<String>,
    pub(super) version: u32,
    pub(super) is_active: bool,
    pub(super) locale_fallback: bool,
    pub(super) texts: BTreeMap<Field, Text>,
    pub(super) custom: BTreeMap<String, Text>,
    pub(super) badge: Option<u32>,
    pub(super) mutable_content: bool,
    pub(super) ttl_s: Option<u32>,
    /// Names that its texts use and the schema doesn't declare, built-in ones included.
    pub(super) undeclared: BTreeSet<String>,
}

/// A compiled template file.
#[derive(Debug)]
pub(super) struct TemplateFile {
    pub(super) path: PathBuf,
    pub(super) environment: Environment<'static>,
    pub(super) variables: BTreeMap<String, Variable>,
    pub(super) templates: Vec<Template>,
}

impl TemplateFile {
    /// Reads and compiles a file's content.
    pub(super) fn parse(path: &Path, source: &str) -> Result<Self, Vec<TemplateError>> {
        let raw: RawFile = serde_saphyr::from_str(source).map_err(|error| vec![syntax_error(path, &error)])?;
        let mut reader = Reader { path, source, errors: Vec::new(), environment: environment() };
        let file = reader.read(raw);
        match file {
            Some((variables, templates)) if reader.errors.is_empty() => {
                Ok(Self { path: path.to_owned(), environment: reader.environment, variables, templates })
            }
            _ => Err(reader.errors),
        }
    }
}

fn syntax_error(path: &Path, error: &serde_saphyr::Error) -> TemplateError {
    let plain = error.without_snippet();
    let message = plain.to_string();
    // The library repeats the position in its message.
    let message = message.split(" at line ").next().unwrap_or(&message).to_owned();
    match error.location() {
        Some(location) => TemplateError::at(path, location, message),
        None => TemplateError::of_file(path, message),
    }
}

/// An environment that knows our words, is strict, and runs out of fuel.
pub(super) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL_MAX));
    // Positions in errors; costs nothing while none occur.
    environment.set_debug(true);
    environment.set_auto_escape_callback(|name| match name.rsplit('.').next() {
        Some("html") => AutoEscape::Html,
        Some("url_part") => AutoEscape::Custom("url_part".into()),
        _ => AutoEscape::None,
    });
    environment.set_formatter(print);
    // What could build a value of any size within a few steps: text that grows over a loop, or is padded to a width.
    environment.remove_global("namespace");
    for filter in ["format", "indent"] {
        environment.remove_filter(filter);
    }
    environment.add_filter("who", words::who);
    environment.add_filter("number", words::number);
    environment.add_function("plural", words::plural);
    environment
}

/// Prints a value as its place demands. Only scalars are printed: a list or object in a text is a mistake.
fn print(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), minijinja::Error> {
    match value.kind() {
        ValueKind::String | ValueKind::Number | ValueKind::Bool => {}
        kind => {
            let problem = format!("only strings, numbers and booleans can be printed, found {kind}");
            return Err(minijinja::Error::new(ErrorKind::InvalidOperation, problem));
        }
    }
    let written = match state.auto_escape() {
        // As JSON has it, and as a string variable has it; the engine would write `True`.
        _ if value.kind() == ValueKind::Bool => write!(out, "{}", value.is_true()),
        AutoEscape::Html if !value.is_safe() => out.write_str(&words::escape_html(&value.to_string())),
        AutoEscape::Custom(_) => value.to_string().bytes().try_for_each(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => write!(out, "{}", byte as char),
            _ => write!(out, "%{byte:02X}"),
        }),
        _ => write!(out, "{value}"),
    };
    written.map_err(minijinja::Error::from)
}

/// `ORDER_SHIPPED` and `order.shipped` become `order_shipped`.
fn normal_type(text: &str) -> String {
    text.to_lowercase().replace(['.', '-'], "_")
}

/// Reads one file; collects what is wrong with it.
struct Reader<'a> {
    path: &'a Path,
    source: &'a str,
    errors: Vec<TemplateError>,
    environment: Environment<'static>,
}

impl Reader<'_> {
    fn refuse(&mut self, location: Location, problem: impl fmt::Display) {
        self.errors.push(TemplateError::at(self.path, location, problem));
    }

    fn refuse_file(&mut self, problem: impl fmt::Display) {
        self.errors.push(TemplateError::of_file(self.path, problem));
    }

    fn read(&mut self, raw: RawFile) -> Option<(BTreeMap<String, Variable>, Vec<Template>)> {
        let event_type = raw.notification_type.as_deref().or(raw.template_id.as_deref()).map(normal_type);
        let Some(event_type) = event_type else {
            self.refuse_file("needs `template_id` or `notification_type`, which events find it by");
            return None;
        };
        let id = raw.template_id.clone().unwrap_or_else(|| event_type.clone());
        let locale = self.locale(raw.locale.as_ref());
        let variables = self.variables(&raw.variables);

        let shared = RawTexts {
            subject: raw.subject,
            title: raw.title,
            body: raw.body,
            html_body: raw.html_body,
            image_url: raw.image_url,
            action_url: raw.action_url,
            action_label: raw.action_label,
            presentation: raw.presentation,
        };
        let per_channel: Vec<(Channel, RawTexts)> = match (raw.channel, raw.channels) {
            (Some(channel), None) => vec![(channel.value, RawTexts::default())],
            (None, Some(channels)) if !channels.is_empty() => {
                channels.into_iter().map(|(channel, texts)| (channel, texts.value)).collect()
            }
            (Some(channel), Some(_)) => {
                self.refuse(channel.referenced, "`channel` and `channels` exclude each other: keep one");
                return None;
            }
            (None, _) => {
                self.refuse_file("needs `channel: push` (email, sms, in_app), or `channels` with the texts of each");
                return None;
            }
        };
        let channels: Vec<Channel> = per_channel.iter().map(|(channel, _)| *channel).collect();
        self.check_places(&shared, &channels);

        let mut templates = Vec::new();
        for (channel, own) in per_channel {
            if channel == Channel::Webhook {
                self.refuse_file("a webhook carries the event itself and has no template: remove the channel");
                continue;
            }
            self.check_places(&own, &[channel]);
            let (ids, suffix_version) = ids(&id, channel, locale.as_deref());
            let version = raw.version.or(suffix_version).unwrap_or(1);
            let mut template = Template {
                id: id.clone(),
                ids,
                event_type: event_type.clone(),
                channel,
                locale: locale.clone(),
                version,
                is_active: raw.is_active,
                locale_fallback: raw.locale_fallback,
                texts: BTreeMap::new(),
                custom: BTreeMap::new(),
                badge: None,
                mutable_content: false,
                ttl_s: None,
                undeclared: BTreeSet::new(),
            };
            self.texts(&mut template, &own, &shared, &variables);
            templates.push(template);
        }
        Some((variables, templates))
    }

    fn locale(&mut self, locale: Option<&Spanned<String>>) -> Option<String> {
        let locale = locale.filter(|locale| locale.value != "default")?;
        let parsed = words::parse_locale(&locale.value);
        if parsed.is_none() {
            let problem = format!("`{}` is no locale; write it like `en`, `pt_BR` or `default`", locale.value);
            self.refuse(locale.referenced, problem);
        }
        parsed.map(|locale| locale.to_string())
    }

    fn variables(&mut self, raw: &BTreeMap<String, Spanned<RawVariable>>) -> BTreeMap<String, Variable> {
        let mut variables = BTreeMap::new();
        for (name, Spanned { value: raw, referenced, .. }) in raw {
            let otherwise = match &raw.default {
                Some(_) if raw.required => {
                    self.refuse(
                        *referenced,
                        format!("variable `{name}` is required, so its default is never used: drop one"),
                    );
                    None
                }
                None if raw.required => None,
                None => Some(raw.of.absent()),
                Some(default) => match raw.of.coerce(default) {
                    Ok(value) => Some(value),
                    Err(problem) => {
                        self.refuse(*referenced, format!("the default of variable `{name}` {problem}"));
                        None
                    }
                },
            };
            variables.insert(name.clone(), Variable { of: raw.of, otherwise });
        }
        variables
    }

    /// Refuses texts that no channel of the file has a place for: they would never be seen.
    fn check_places(&mut self, texts: &RawTexts, channels: &[Channel]) {
        for (field, source) in sources(texts) {
            if let Some(source) = source
                && !channels.iter().any(|channel| field.has_place_on(*channel))
            {
                let channels = channels.iter().map(|channel| channel.as_str()).collect::<Vec<_>>().join(", ");
                self.refuse(source.referenced, format!("`{}` has no place on {channels}: remove it", field.as_str()));
            }
        }
        if texts.presentation.is_some() && !channels.contains(&Channel::Push) {
            self.refuse_file("`presentation` has a place on push only: remove it");
        }
    }

    fn texts(
        &mut self,
        template: &mut Template,
        own: &RawTexts,
        shared: &RawTexts,
        variables: &BTreeMap<String, Variable>,
    ) {
        let channel = template.channel;
        for ((field, own), (_, shared)) in sources(own).into_iter().zip(sources(shared)) {
            if !field.has_place_on(channel) {
                continue;
            }
            match own.or(shared) {
                Some(source) => {
                    let text = self.compile(template, field.as_str(), source, variables);
                    template.texts.insert(field, text);
                }
                None if field.is_required_on(channel) => {
                    self.refuse_file(format!("{channel} needs `{}`: add it", field.as_str()));
                }
                None => {}
            }
        }
        let presentation = own.presentation.as_ref().or(shared.presentation.as_ref());
        if let Some(presentation) = presentation.filter(|_| channel == Channel::Push) {
            self.presentation(template, presentation, variables);
        }
    }

    fn presentation(&mut self, template: &mut Template, raw: &RawPresentation, variables: &BTreeMap<String, Variable>) {
        template.badge = raw.badge;
        template.mutable_content = raw.mutable_content;
        for (field, source) in [
            (Field::Subtitle, &raw.subtitle),
            (Field::Sound, &raw.sound),
            (Field::Category, &raw.category),
            (Field::ThreadId, &raw.thread_id),
            (Field::InterruptionLevel, &raw.interruption_level),
            (Field::CollapseKey, &raw.collapse_key),
            (Field::ChannelId, &raw.channel_id),
            (Field::Color, &raw.color),
            (Field::Icon, &raw.icon),
            (Field::ClickAction, &raw.click_action),
        ] {
            if let Some(source) = source {
                let text = self.compile(template, field.as_str(), source, variables);
                template.texts.insert(field, text);
            }
        }
        if let Some(ttl) = &raw.ttl {
            template.ttl_s = seconds(&ttl.value);
            if template.ttl_s.is_none() {
                let problem =
                    format!("`ttl` is `{}`, expected a duration of at most 28d, like `86400s` or `24h`", ttl.value);
                self.refuse(ttl.referenced, problem);
            }
        }
        for (key, source) in &raw.custom {
            let is_reserved = ["aps", "from", "message_type"].contains(&key.as_str())
                || ["google.", "gcm."].iter().any(|prefix| key.starts_with(prefix));
            if is_reserved {
                self.refuse(source.referenced, format!("the custom key `{key}` is the provider's own: choose another"));
            }
            let text = self.compile(template, &format!("custom {key}"), source, variables);
            template.custom.insert(key.clone(), text);
        }
    }

    /// Compiles one text, unless it has nothing to compile.
    fn compile(
        &mut self,
        template: &mut Template,
        field: &str,
        source: &Spanned<String>,
        variables: &BTreeMap<String, Variable>,
    ) -> Text {
        if !["{{", "{%", "{#"].iter().any(|mark| source.value.contains(mark)) {
            return Text::Literal(source.value.clone());
        }
        // A value that begins a link is the link (`{{product_image_url}}`); within one it is a part and is encoded.
        let is_link_part = field.ends_with("_url") && !source.value.trim_start().starts_with("{{");
        let escape = match field {
            "html_body" => "html",
            _ if is_link_part => "url_part",
            _ => "text",
        };
        let name = format!("{}.{field}.{escape}", template.channel);
        match self.try_text(&name, &source.value, variables) {
            Ok(undeclared) => template.undeclared.extend(undeclared),
            Err(error) => self.refuse_text(source, &error),
        }
        Text::Compiled(name)
    }

    /// Adds a text to the environment, tries it with made-up values, and returns the names that it uses undeclared.
    fn try_text(
        &mut self,
        name: &str,
        source: &str,
        variables: &BTreeMap<String, Variable>,
    ) -> Result<BTreeSet<String>, minijinja::Error> {
        self.environment.add_template_owned(name.to_owned(), source.to_owned())?;
        let compiled = self.environment.get_template(name)?;
        let globals: BTreeSet<&str> = self.environment.globals().map(|(name, _)| name).collect();
        let mut undeclared: BTreeSet<String> = compiled.undeclared_variables(false).into_iter().collect();
        undeclared.retain(|name| !variables.contains_key(name) && !globals.contains(name.as_str()));

        let mut values: BTreeMap<String, Value> =
            undeclared.iter().map(|name| (name.clone(), Value::from("x"))).collect();
        values.extend(trial_values().map(|(name, value)| (name.to_owned(), value)));
        values.extend(variables.iter().map(|(name, variable)| (name.clone(), variable.of.sample())));
        match compiled.render(Value::from_pairs(values)) {
            Err(error) if is_certain(&error) => Err(error),
            _ => Ok(undeclared),
        }
    }

    fn refuse_text(&mut self, source: &Spanned<String>, error: &minijinja::Error) {
        let (line, column) = self.position(source, error);
        let problem = describe(error);
        self.errors.push(TemplateError { line, column, ..TemplateError::of_file(self.path, problem) });
    }

    /// Where in the file an error of a text lies: its line is looked for from the text's beginning on, since YAML
    /// may have indented it. Where the line isn't found as it is (folded, escaped) the text's beginning is named.
    fn position(&self, source: &Spanned<String>, error: &minijinja::Error) -> (u64, u64) {
        let start = (source.referenced.line(), source.referenced.column());
        let offset = error.range().map_or(0, |range| range.start);
        let line = error.line().unwrap_or(1);
        let Some(text) = source.value.split('\n').nth(line - 1) else { return start };
        let before: usize = source.value.split('\n').take(line - 1).map(|line| line.len() + 1).sum();
        let wanted = text.trim();
        let indent = text.len() - text.trim_start().len();
        let in_line = offset.saturating_sub(before).saturating_sub(indent);
        let found = self.source.lines().zip(1u64..).skip_while(|(_, number)| *number < start.0);
        let found = found
            .filter(|_| !wanted.is_empty())
            .find_map(|(line, number)| line.find(wanted).map(|at| (line, at, number)));
        match found {
            Some((line, at, number)) => {
                let until = line.get(..at + in_line).unwrap_or(&line[..at]);
                (number, until.chars().count() as u64 + 1)
            }
            None => start,
        }
    }
}

/// Whether a trial's error is the text's own: compiling looks up neither filters nor functions, and no variable can
/// ever be called. Any other may be the made-up values' fault.
fn is_certain(error: &minijinja::Error) -> bool {
    match error.kind() {
        ErrorKind::UnknownFilter | ErrorKind::UnknownFunction | ErrorKind::UnknownTest | ErrorKind::OutOfFuel => true,
        ErrorKind::InvalidOperation => error.detail().is_some_and(|detail| detail.contains("not callable")),
        _ => false,
    }
}

/// An engine error without its position.
pub(super) fn describe(error: &minijinja::Error) -> String {
    let detail = error.detail().unwrap_or_default();
    match error.kind() {
        ErrorKind::OutOfFuel => format!("takes more than {FUEL_MAX} steps: loop over less"),
        ErrorKind::WriteFailure => format!("writes more than {TEXT_BYTES_MAX} bytes: say less, or link to it"),
        ErrorKind::SyntaxError => format!("syntax error: {detail}"),
        ErrorKind::UnknownFilter | ErrorKind::UnknownFunction | ErrorKind::UnknownTest => detail.to_owned(),
        ErrorKind::InvalidOperation if detail.contains("not callable") => {
            "calls what is no function: texts know `plural`, `range` and `dict`".to_owned()
        }
        _ if detail.is_empty() => error.kind().to_string(),
        kind => format!("{kind}: {detail}"),
    }
}

fn trial_values() -> impl Iterator<Item = (&'static str, Value)> {
    let texts = BUILT_IN.into_iter().filter(|name| !matches!(*name, "data" | "object" | "actors"));
    let texts =
        texts.map(|name| (name, Value::from(if name.ends_with('s') || name.ends_with("count") { "2" } else { "x" })));
    texts.chain([
        ("actors", Value::from(Serde(["John", "Sarah"]))),
        ("object", Value::from_pairs(BTreeMap::from([("id", "x"), ("kind", "x")]))),
        ("data", Value::from_pairs(BTreeMap::<&str, Value>::new())),
        (words::LOCALE_KEY, Value::from("en")),
        (words::ACTORS_COUNT_KEY, Value::from(2)),
    ])
}

fn sources(texts: &RawTexts) -> [(Field, Option<&Spanned<String>>); 7] {
    [
        (Field::ActionUrl, texts.action_url.as_ref()),
        (Field::ImageUrl, texts.image_url.as_ref()),
        (Field::ActionLabel, texts.action_label.as_ref()),
        (Field::Subject, texts.subject.as_ref()),
        (Field::Title, texts.title.as_ref()),
        (Field::Body, texts.body.as_ref()),
        (Field::HtmlBody, texts.html_body.as_ref()),
    ]
}

/// What finds a template, and the version in its id: `tmpl_order_shipped_push_en_v3` is also
/// `tmpl_order_shipped_push_en`, `tmpl_order_shipped_push` and `tmpl_order_shipped`.
fn ids(id: &str, channel: Channel, locale: Option<&str>) -> (BTreeSet<String>, Option<u32>) {
    let mut ids = BTreeSet::from([id.to_owned()]);
    let mut rest = id;
    let mut version = None;
    if let Some((before, digits)) = rest.rsplit_once("_v")
        && let Ok(number) = digits.parse()
    {
        version = Some(number);
        rest = before;
        ids.insert(rest.to_owned());
    }
    let locale = locale.unwrap_or_default().replace('-', "_");
    for suffix in [locale.as_str(), channel.as_str()] {
        if let Some(before) = rest.strip_suffix(suffix).and_then(|rest| rest.strip_suffix('_')) {
            rest = before;
            ids.insert(rest.to_owned());
        }
    }
    (ids, version)
}

/// `86400s`, `90m`, `24h`, `28d` or plain seconds, at most [`TTL_S_MAX`].
fn seconds(text: &str) -> Option<u32> {
    let digits = text.trim_end_matches(|char: char| char.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    digits.trim().parse::<u32>().ok()?.checked_mul(unit).filter(|seconds| *seconds <= TTL_S_MAX)
}
