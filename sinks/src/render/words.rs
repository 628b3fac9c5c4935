//! Names and numbers as a language says them: "John, Sarah, and 3 others".
//!
//! Lists, plural categories and digits come from CLDR; the phrase for "others" is the table below.
//! The plural operand is the number of *others*, never the total. A name is foreign text: it loses
//! control and direction characters, is cut to [`NAME_GRAPHEMES_MAX`], and stands between bidi isolates
//! where its direction is not the sentence's. Escaping comes last, over the finished phrase, because the
//! list rules look at the names themselves (es: "Juan e Isabel").

use icu_decimal::input::Decimal;
use icu_decimal::{DecimalFormatter, options::DecimalFormatterOptions};
use icu_list::{ListFormatter, options::ListFormatterOptions};
use icu_locale_core::LanguageIdentifier;
use icu_plurals::{PluralCategory, PluralRules, PluralRulesOptions};
use minijinja::value::{Kwargs, Value};
use minijinja::{AutoEscape, Error, ErrorKind, State};

use super::content::ellipsize_graphemes;

/// Longest name in a text, in graphemes: longer ones are no names, and a lock screen shows about this many.
/// Beyond it the name ends in an ellipsis.
pub const NAME_GRAPHEMES_MAX: usize = 40;
/// How many names "N others" shows where the template doesn't say.
const NAMES_SHOWN: usize = 2;

/// Context keys that the filters read and no variable can shadow.
pub(super) const LOCALE_KEY: &str = "$locale";
pub(super) const ACTORS_COUNT_KEY: &str = "$actors_count";

/// How one language speaks of people who are counted but not named.
struct Others {
    language: &'static str,
    /// Said where nobody's name is known.
    someone: &'static str,
    /// Stands after the last name.
    after_names: &'static str,
    /// `#` is the number.
    forms: &'static [(PluralCategory, &'static str)],
}

use PluralCategory::{Few, Many, One, Other, Two, Zero};

/// Languages with a phrase of their own. In any other the whole phrase is English, unless the template gives the
/// forms: `who(2, one="# jiný", few="# jiní", other="# jiných")`.
const OTHERS: &[Others] = &[
    Others { language: "en", someone: "Someone", after_names: "", forms: &[(One, "# other"), (Other, "# others")] },
    Others {
        language: "de",
        someone: "Jemand",
        after_names: "",
        forms: &[(One, "# weitere Person"), (Other, "# weitere Personen")],
    },
    Others {
        language: "fr",
        someone: "Quelqu’un",
        after_names: "",
        forms: &[(One, "# autre personne"), (Many, "# d’autres personnes"), (Other, "# autres personnes")],
    },
    Others {
        language: "es",
        someone: "Alguien",
        after_names: "",
        forms: &[(One, "# persona más"), (Many, "# de personas más"), (Other, "# personas más")],
    },
    Others {
        language: "pt",
        someone: "Alguém",
        after_names: "",
        forms: &[(One, "mais # pessoa"), (Many, "mais # de pessoas"), (Other, "mais # pessoas")],
    },
    Others {
        language: "pl",
        someone: "Ktoś",
        after_names: "",
        forms: &[(One, "# inna osoba"), (Few, "# inne osoby"), (Many, "# innych osób"), (Other, "# innej osoby")],
    },
    Others {
        language: "ar",
        someone: "شخص ما",
        after_names: "",
        forms: &[
            (Zero, "# شخص آخر"),
            (One, "شخصًا آخر"),
            (Two, "شخصين آخرين"),
            (Few, "# أشخاص آخرين"),
            (Many, "# شخصًا آخر"),
            (Other, "# شخص آخر"),
        ],
    },
    Others { language: "ja", someone: "誰か", after_names: "さん", forms: &[(Other, "他#人")] },
];

/// Reads `pt_BR`, `pt-BR` or `zh_Hant_TW`; nothing where it is no locale.
pub(super) fn parse_locale(text: &str) -> Option<LanguageIdentifier> {
    LanguageIdentifier::try_from_str(&text.replace('_', "-")).ok().filter(|id| !id.language.is_unknown())
}

/// A locale and what stands in for it, narrowest first: `zh-Hant-TW`, `zh-Hant`, `zh`.
pub(super) fn chain(mut locale: LanguageIdentifier) -> Vec<LanguageIdentifier> {
    locale.variants = icu_locale_core::subtags::Variants::new();
    let mut chain = vec![locale.clone()];
    if locale.region.take().is_some() {
        chain.push(locale.clone());
    }
    if locale.script.take().is_some() {
        chain.push(locale);
    }
    chain
}

/// Whether the locale is written from right to left.
pub(super) fn right_to_left(locale: &LanguageIdentifier) -> bool {
    match &locale.script {
        Some(script) => matches!(script.as_str(), "Arab" | "Hebr" | "Thaa" | "Syrc" | "Nkoo" | "Adlm"),
        None => {
            matches!(locale.language.as_str(), "ar" | "he" | "fa" | "ur" | "ps" | "sd" | "ug" | "yi" | "dv" | "ckb")
        }
    }
}

const fn is_right_to_left(char: char) -> bool {
    matches!(char as u32, 0x0590..=0x08FF | 0xFB1D..=0xFDFF | 0xFE70..=0xFEFF | 0x10800..=0x10FFF | 0x1E800..=0x1EFFF)
}

const fn is_direction_mark(char: char) -> bool {
    matches!(char, '\u{061C}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

/// A name fit to stand in a sentence; nothing where nothing is left of it.
fn clean_name(name: &str) -> Option<String> {
    let kept: String = name
        .chars()
        .filter(|char| !is_direction_mark(*char))
        .map(|char| if char.is_control() { ' ' } else { char })
        .collect();
    let words = kept.split_whitespace().collect::<Vec<_>>().join(" ");
    (!words.is_empty()).then(|| ellipsize_graphemes(&words, NAME_GRAPHEMES_MAX).into_owned())
}

fn isolated(name: String, right_to_left_text: bool) -> String {
    let foreign = name.chars().any(|char| char.is_alphabetic() && is_right_to_left(char) != right_to_left_text);
    if foreign { format!("\u{2068}{name}\u{2069}") } else { name }
}

/// The plural category of a number (`3`, `1.5`) in a language.
pub(super) fn category(locale: &LanguageIdentifier, number: &Decimal) -> Result<PluralCategory, Error> {
    let rules = PluralRules::try_new(locale.into(), PluralRulesOptions::default()).map_err(no_data)?;
    Ok(rules.category_for(number))
}

/// A number in the locale's digits and groups.
pub(super) fn digits(locale: &LanguageIdentifier, number: &Decimal) -> Result<String, Error> {
    let formatter = DecimalFormatter::try_new(locale.into(), DecimalFormatterOptions::default()).map_err(no_data)?;
    Ok(formatter.format(number).to_string())
}

/// A list as the language joins it: "Ana e Isabel".
pub(super) fn list(locale: &LanguageIdentifier, parts: &[String]) -> Result<String, Error> {
    let formatter = ListFormatter::try_new_and(locale.into(), ListFormatterOptions::default()).map_err(no_data)?;
    Ok(formatter.format(parts.iter()).to_string())
}

fn no_data(error: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("no language data: {error}"))
}

/// "John, Sarah, and 3 others": at most `shown` of `names`, and the rest of `count` people by number.
/// Where no name is known it says "Someone". With `forms` the template says the others in its own words.
fn people(
    locale: &LanguageIdentifier,
    names: &[String],
    count: u64,
    shown: usize,
    forms: &[(PluralCategory, String)],
) -> Result<String, Error> {
    // The list, the number and the phrase must be one language, so all three fall back together.
    let known = OTHERS.iter().find(|others| others.language == locale.language.as_str());
    let shown: Vec<&String> = names.iter().take(shown.max(1)).collect();
    let count = count.max(names.len() as u64).max(1);
    let others = count - shown.len().max(1) as u64;
    let fallback = icu_locale_core::langid!("en");
    let speak_fallback = known.is_none() && (shown.is_empty() || (others > 0 && forms.is_empty()));
    let locale = if speak_fallback { &fallback } else { locale };
    let known = known.unwrap_or(&OTHERS[0]);

    let right_to_left_text = right_to_left(locale);
    let mut parts: Vec<String> = shown.into_iter().map(|name| isolated(name.clone(), right_to_left_text)).collect();
    match parts.last_mut() {
        Some(last) => last.push_str(known.after_names),
        None => parts.push(known.someone.to_owned()),
    }
    if others > 0 {
        let number = Decimal::from(others);
        let category = category(locale, &number)?;
        let form = if forms.is_empty() {
            pick(known.forms.iter().map(|(category, form)| (*category, *form)), category)
        } else {
            pick(forms.iter().map(|(category, form)| (*category, form.as_str())), category)
        };
        let form = form.ok_or_else(|| missing_other("who"))?;
        parts.push(form.replace('#', &digits(locale, &number)?));
    }
    list(locale, &parts)
}

fn pick<'a>(
    forms: impl Iterator<Item = (PluralCategory, &'a str)> + Clone,
    category: PluralCategory,
) -> Option<&'a str> {
    let find = |wanted| forms.clone().find(|(category, _)| *category == wanted).map(|(_, form)| form);
    find(category).or_else(|| find(Other))
}

fn missing_other(function: &str) -> Error {
    Error::new(
        ErrorKind::MissingArgument,
        format!("`{function}` needs the form `other=\"…\"`, which every language has"),
    )
}

/// The forms among a call's named arguments: zero, one, two, few, many, other.
fn forms(function: &str, arguments: &Kwargs) -> Result<Vec<(PluralCategory, String)>, Error> {
    let mut forms = Vec::new();
    for (category, name) in [(Zero, "zero"), (One, "one"), (Two, "two"), (Few, "few"), (Many, "many"), (Other, "other")]
    {
        if let Some(form) = arguments.get::<Option<String>>(name)? {
            forms.push((category, form));
        }
    }
    arguments.assert_all_used().map_err(|_| {
        Error::new(
            ErrorKind::TooManyArguments,
            format!("`{function}` knows the forms zero, one, two, few, many and other"),
        )
    })?;
    Ok(forms)
}

fn locale_of(state: &State<'_, '_>) -> Result<LanguageIdentifier, Error> {
    let found = state.lookup(LOCALE_KEY);
    found
        .as_ref()
        .and_then(Value::as_str)
        .and_then(parse_locale)
        .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "the text has no locale to speak in"))
}

fn number_of(function: &str, value: &Value) -> Result<Decimal, Error> {
    value.to_string().parse().map_err(|_| {
        Error::new(
            ErrorKind::InvalidOperation,
            format!("`{function}` needs a number, found {} `{value}`", value.kind()),
        )
    })
}

/// Filter `{{ actors | who }}`, `{{ actors | who(1) }}`: the people of the notification.
pub(super) fn who(
    state: &State<'_, '_>,
    names: Vec<String>,
    shown: Option<usize>,
    arguments: Kwargs,
) -> Result<Value, Error> {
    let forms = forms("who", &arguments)?;
    let count = state.lookup(ACTORS_COUNT_KEY).and_then(|count| u64::try_from(count).ok()).unwrap_or(0);
    let names: Vec<String> = names.iter().filter_map(|name| clean_name(name)).collect();
    let text = people(&locale_of(state)?, &names, count, shown.unwrap_or(NAMES_SHOWN), &forms)?;
    if *state.auto_escape() != AutoEscape::Html {
        return Ok(Value::from(text));
    }
    // No name contains an isolate any more, so those in the text are ours.
    let html = escape_html(&text).replace('\u{2068}', "<bdi>").replace('\u{2069}', "</bdi>");
    Ok(Value::from_safe_string(html))
}

/// Function `plural(n, one="# photo", other="# photos")`: the form of the text's language; `#` is the number.
pub(super) fn plural(state: &State<'_, '_>, number: Value, arguments: Kwargs) -> Result<String, Error> {
    let forms = forms("plural", &arguments)?;
    let locale = locale_of(state)?;
    let number = number_of("plural", &number)?;
    if !forms.iter().any(|(category, _)| *category == Other) {
        return Err(missing_other("plural"));
    }
    let category = category(&locale, &number)?;
    let form = pick(forms.iter().map(|(category, form)| (*category, form.as_str())), category);
    Ok(form.ok_or_else(|| missing_other("plural"))?.replace('#', &digits(&locale, &number)?))
}

/// Filter `{{ activities | number }}`: digits and groups of the text's locale.
pub(super) fn number(state: &State<'_, '_>, number: Value) -> Result<String, Error> {
    digits(&locale_of(state)?, &number_of("number", &number)?)
}

/// Escapes the five characters that end an HTML text or attribute.
pub(super) fn escape_html(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + text.len() / 8);
    for char in text.chars() {
        match char {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#x27;"),
            char => escaped.push(char),
        }
    }
    escaped
}
