//! From text to a compiled expression: words, then grammar and types in one pass.
//!
//! ```text
//! any        = all { "or" all }
//! all        = no { "and" no }
//! no         = "not" no | comparison
//! comparison = term [ ("==" | "!=" | "<" | "<=" | ">" | ">=") term | ["not"] "in" list ]
//! term       = "(" any ")" | "has" "(" name ")" | name | literal
//! list       = "[" literal { "," literal } "]"
//! ```

use std::ops::Range;
use std::str::FromStr;

use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::time::Instant;

use super::{Comparison, Count, Decimal, Literal, Operand, Test, Text, ValueExpr, When, WhenError};

/// Deepest nesting of parentheses and `not`. No one writes more by hand; beyond it is an error
/// instead of an exhausted stack.
const DEPTH_MAX: usize = 64;

const NAMES: [&str; 10] =
    ["user_id", "type", "category", "priority", "channel", "tenant", "actors", "activities", "time", "data"];
const NAMES_EXPECTED: &str = "one of user_id, type, category, priority, channel, tenant, actors, activities, time or a path below data like `data.order.id`";

/// Compiles a condition.
///
/// # Errors
/// When a word, a name or a type is wrong: the first such place, with what would be right.
pub fn compile(text: &str) -> Result<When, WhenError> {
    let mut parser = Parser::new(text)?;
    let term = parser.any()?;
    let test = parser.condition(term)?;
    parser.end("`and`, `or` or the end")?;
    Ok(When(test))
}

/// Compiles an expression for a value: a name, or a path below `data`.
///
/// # Errors
/// When it is anything else.
pub fn compile_value(text: &str) -> Result<ValueExpr, WhenError> {
    let mut parser = Parser::new(text)?;
    let span = parser.peek().1.clone();
    let Token::Name(name) = parser.peek().0 else { return Err(parser.unexpected(NAMES_EXPECTED)) };
    parser.at += 1;
    let operand = operand(name, &span)?;
    parser.end("the end, for a value is one name")?;
    Ok(ValueExpr(operand))
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Token<'a> {
    Name(&'a str),
    /// With its quotes.
    Text(&'a str),
    Number(Decimal),
    Comparison(Comparison),
    Open,
    Close,
    OpenList,
    CloseList,
    Comma,
    End,
}

/// The words that are no names.
const KEYWORDS: [&str; 8] = ["and", "or", "not", "in", "has", "true", "false", "null"];

fn error(span: Range<usize>, expected: impl Into<String>, found: impl Into<String>) -> WhenError {
    WhenError { span, expected: expected.into(), found: found.into(), nearest: None }
}

/// The word that differs from `found` in at most a third of its letters, or of which `found` is the beginning.
fn nearest<'a>(found: &str, words: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let found = found.to_ascii_lowercase();
    let far = (found.len() / 3).max(1);
    let distance =
        |word: &str| if found.len() > 2 && word.starts_with(&found) { 1 } else { strsim::osa_distance(&found, word) };
    let distances = words.into_iter().map(|word| (distance(word), word));
    distances.filter(|(distance, _)| *distance <= far).min().map(|(_, word)| word.to_owned())
}

fn words(text: &str) -> Result<Vec<(Token<'_>, Range<usize>)>, WhenError> {
    let mut words = Vec::new();
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        let while_in = |allowed: fn(char) -> bool| rest.find(|c| !allowed(c)).unwrap_or(rest.len());
        let two = rest.get(..2).unwrap_or_default();
        let (token, length) = match first {
            ' ' | '\t' | '\r' | '\n' => {
                at += 1;
                continue;
            }
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            '[' => (Token::OpenList, 1),
            ']' => (Token::CloseList, 1),
            ',' => (Token::Comma, 1),
            _ if two == "==" => (Token::Comparison(Comparison::Equal), 2),
            _ if two == "!=" => (Token::Comparison(Comparison::NotEqual), 2),
            _ if two == "<=" => (Token::Comparison(Comparison::LessOrEqual), 2),
            _ if two == ">=" => (Token::Comparison(Comparison::GreaterOrEqual), 2),
            '<' => (Token::Comparison(Comparison::Less), 1),
            '>' => (Token::Comparison(Comparison::Greater), 1),
            'a'..='z' | 'A'..='Z' | '_' => {
                let length = while_in(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
                (Token::Name(&rest[..length]), length)
            }
            '0'..='9' | '-' => {
                let length = while_in(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-'));
                let number = Decimal::parse(&rest[..length]).ok_or_else(|| {
                    let expected = "a number like `3` or `19.99`, of at most 18 decimals and 20 digits before them";
                    error(at..at + length, expected, format!("`{}`", &rest[..length]))
                })?;
                (Token::Number(number), length)
            }
            '"' | '\'' => {
                let length = quoted(rest, first).ok_or_else(|| {
                    error(at..text.len(), format!("a closing `{first}`"), "the end of the expression")
                })?;
                (Token::Text(&rest[..length]), length)
            }
            _ => {
                let (nearest, length) = match (first, two) {
                    (_, "&&") => (Some("and"), 2),
                    (_, "||") => (Some("or"), 2),
                    ('=', _) => (Some("=="), 1),
                    ('!', _) => (Some("not"), 1),
                    ('“' | '”' | '„', _) => (Some("\""), first.len_utf8()),
                    _ => (None, first.len_utf8()),
                };
                return Err(WhenError {
                    nearest: nearest.map(str::to_owned),
                    ..error(at..at + length, "a name, a literal or an operator", format!("`{}`", &rest[..length]))
                });
            }
        };
        words.push((token, at..at + length));
        at += length;
    }
    words.push((Token::End, at..at));
    Ok(words)
}

/// The length of a quoted text with its quotes; a backslash takes the next character with it.
fn quoted(rest: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    rest.char_indices().skip(1).find_map(|(at, c)| {
        let closes = c == quote && !escaped;
        escaped = c == '\\' && !escaped;
        closes.then_some(at + 1)
    })
}

fn unquoted(quoted: &str, span: &Range<usize>) -> Result<Box<str>, WhenError> {
    let inner = &quoted[1..quoted.len() - 1];
    let mut text = String::with_capacity(inner.len());
    let mut chars = inner.char_indices();
    while let Some((at, c)) = chars.next() {
        if c != '\\' {
            text.push(c);
            continue;
        }
        match chars.next() {
            Some((_, c @ ('\\' | '"' | '\''))) => text.push(c),
            Some((_, 'n')) => text.push('\n'),
            Some((_, 't')) => text.push('\t'),
            other => {
                let c = other.map(|(_, c)| c).unwrap_or_default();
                let start = span.start + 1 + at;
                let expected = r#"one of `\\`, `\"`, `\'`, `\n`, `\t`"#;
                return Err(error(start..start + 1 + c.len_utf8(), expected, format!("`\\{c}`")));
            }
        }
    }
    Ok(text.into_boxed_str())
}

/// The operand that a name stands for.
fn operand(name: &str, span: &Range<usize>) -> Result<Operand, WhenError> {
    let mut path = name.split('.');
    let head = path.next().unwrap_or_default();
    let path: Vec<String> = path.map(str::to_owned).collect();
    let found =
        |expected: &str, nearest| Err(WhenError { nearest, ..error(span.clone(), expected, format!("`{name}`")) });
    let operand = match head {
        "data" if path.is_empty() || path.iter().any(String::is_empty) => {
            return found("a path below data like `data.order.id`", None);
        }
        "data" => return Ok(Operand::Data(path.into())),
        "user_id" => Operand::Text(Text::UserId),
        "type" => Operand::Text(Text::Type),
        "category" => Operand::Text(Text::Category),
        "tenant" => Operand::Text(Text::Tenant),
        "priority" => Operand::Priority,
        "channel" => Operand::Channel,
        "actors" => Operand::Count(Count::Actors),
        "activities" => Operand::Count(Count::Activities),
        "time" => Operand::Time,
        _ => {
            let rest = &name[head.len()..];
            let names = NAMES.iter().copied().filter(|name| (*name == "data") != rest.is_empty());
            return found(NAMES_EXPECTED, nearest(head, names).map(|nearest| nearest + rest));
        }
    };
    if path.is_empty() { Ok(operand) } else { found(&format!("`{head}`, which has no fields"), Some(head.to_owned())) }
}

/// What an operand is, as far as that is known before there are facts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Number,
    Priority,
    Channel,
    Time,
    Bool,
    Null,
    /// Known at evaluation only.
    Data,
}

impl Kind {
    fn of(operand: &Operand) -> Self {
        match operand {
            Operand::Text(_) | Operand::Literal(Literal::Text(_)) => Self::Text,
            Operand::Count(_) | Operand::Literal(Literal::Number(_)) => Self::Number,
            Operand::Priority | Operand::Literal(Literal::Priority(_)) => Self::Priority,
            Operand::Channel | Operand::Literal(Literal::Channel(_)) => Self::Channel,
            Operand::Time | Operand::Literal(Literal::Time(_)) => Self::Time,
            Operand::Literal(Literal::Bool(_)) => Self::Bool,
            Operand::Literal(Literal::Null) => Self::Null,
            Operand::Data(_) => Self::Data,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Text => "a text",
            Self::Number => "a number",
            Self::Priority => "a priority",
            Self::Channel => "a channel",
            Self::Time => "a time",
            Self::Bool => "true or false",
            Self::Null => "null",
            Self::Data => "a value of `data`",
        }
    }

    fn compares_with(self, other: Self) -> bool {
        let dynamic = |kind| matches!(kind, Self::Data | Self::Text | Self::Number | Self::Bool);
        self == other || (self == Self::Data && dynamic(other)) || (other == Self::Data && dynamic(self))
    }
}

/// A parsed part with its place.
struct Term {
    what: What,
    span: Range<usize>,
}

enum What {
    Test(Test),
    Operand(Operand),
}

struct Parser<'a> {
    text: &'a str,
    words: Vec<(Token<'a>, Range<usize>)>,
    at: usize,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Result<Self, WhenError> {
        Ok(Self { text, words: words(text)?, at: 0, depth: 0 })
    }

    /// The next word; the last one is the end, and is never passed.
    fn peek(&self) -> &(Token<'a>, Range<usize>) {
        &self.words[self.at]
    }

    fn take(&mut self, token: Token<'_>) -> bool {
        let found = self.peek().0 == token;
        self.at += usize::from(found && token != Token::End);
        found
    }

    fn end(&self, expected: &str) -> Result<(), WhenError> {
        if self.peek().0 == Token::End { Ok(()) } else { Err(self.unexpected(expected)) }
    }

    fn unexpected(&self, expected: &str) -> WhenError {
        let (token, span) = self.peek().clone();
        let nearest = match token {
            Token::Name(name) if expected.contains("`and`") => nearest(name, ["and", "or", "in", "not"]),
            _ => None,
        };
        WhenError { nearest, ..error(span.clone(), expected, self.quote(&span)) }
    }

    fn quote(&self, span: &Range<usize>) -> String {
        if span.is_empty() { "the end of the expression".to_owned() } else { format!("`{}`", &self.text[span.clone()]) }
    }

    /// A value's place and kind, for what it is mistaken for.
    fn describe(&self, term: &Term) -> String {
        match &term.what {
            What::Test(_) => format!("{}, a condition", self.quote(&term.span)),
            What::Operand(Operand::Literal(Literal::Null | Literal::Bool(_))) => self.quote(&term.span),
            What::Operand(operand) => format!("{}, {}", self.quote(&term.span), Kind::of(operand).words()),
        }
    }

    fn any(&mut self) -> Result<Term, WhenError> {
        self.depth += 1;
        let term = self.joined("or", Self::all, Test::Any);
        self.depth -= 1;
        term
    }

    fn all(&mut self) -> Result<Term, WhenError> {
        self.joined("and", Self::no, Test::All)
    }

    fn joined(
        &mut self,
        word: &str,
        part: fn(&mut Self) -> Result<Term, WhenError>,
        join: fn(Box<[Test]>) -> Test,
    ) -> Result<Term, WhenError> {
        let first = part(self)?;
        if self.peek().0 != Token::Name(word) {
            return Ok(first);
        }
        let start = first.span.start;
        let mut tests = vec![self.condition(first)?];
        while self.take(Token::Name(word)) {
            let next = part(self)?;
            tests.push(self.condition(next)?);
        }
        Ok(self.test(join(tests.into()), start))
    }

    fn no(&mut self) -> Result<Term, WhenError> {
        let start = self.peek().1.start;
        if self.depth > DEPTH_MAX {
            return Err(error(
                self.peek().1.clone(),
                format!("at most {DEPTH_MAX} levels of `(` and `not`"),
                "one more",
            ));
        }
        if !self.take(Token::Name("not")) {
            return self.comparison();
        }
        self.depth += 1;
        let term = self.no()?;
        self.depth -= 1;
        let test = Test::Not(Box::new(self.condition(term)?));
        Ok(self.test(test, start))
    }

    fn comparison(&mut self) -> Result<Term, WhenError> {
        let left = self.term()?;
        let start = left.span.start;
        let negated = self.peek().0 == Token::Name("not") && self.words[self.at + 1].0 == Token::Name("in");
        self.at += usize::from(negated);
        let test = match self.peek().clone() {
            (Token::Comparison(comparison), span) => {
                self.at += 1;
                let right = self.term()?;
                self.compare(left, comparison, span, right)?
            }
            (Token::Name("in"), _) => {
                self.at += 1;
                let (operand, literals) = self.list(left)?;
                if negated { Test::NotIn(operand, literals) } else { Test::In(operand, literals) }
            }
            (Token::Name("not"), _) => {
                self.at += 1;
                return Err(self.unexpected("`in` behind `not`"));
            }
            _ => return Ok(left),
        };
        if let (Token::Comparison(_) | Token::Name("in"), _) = self.peek() {
            return Err(self.unexpected("`and`, `or` or the end: comparisons are not chained"));
        }
        Ok(self.test(test, start))
    }

    fn term(&mut self) -> Result<Term, WhenError> {
        let (token, span) = self.peek().clone();
        let literal = match token {
            Token::Open => {
                self.at += 1;
                let inner = self.any()?;
                if !self.take(Token::Close) {
                    return Err(self.unexpected("`)`, `and` or `or`"));
                }
                return Ok(Term { span: span.start..self.words[self.at - 1].1.end, ..inner });
            }
            Token::Name("has") => return self.has(),
            Token::Name(name) if !KEYWORDS.contains(&name) => {
                let operand = operand(name, &span)?;
                self.at += 1;
                return Ok(Term { what: What::Operand(operand), span });
            }
            _ => self.literal()?.ok_or_else(|| self.unexpected("a name, a literal or `(`"))?,
        };
        Ok(Term { what: What::Operand(Operand::Literal(literal)), span })
    }

    fn literal(&mut self) -> Result<Option<Literal>, WhenError> {
        let (token, span) = self.peek();
        let literal = match token {
            Token::Text(quoted) => Literal::Text(unquoted(quoted, span)?),
            Token::Number(number) => Literal::Number(*number),
            Token::Name("true") => Literal::Bool(true),
            Token::Name("false") => Literal::Bool(false),
            Token::Name("null") => Literal::Null,
            _ => return Ok(None),
        };
        self.at += 1;
        Ok(Some(literal))
    }

    fn has(&mut self) -> Result<Term, WhenError> {
        let start = self.peek().1.start;
        self.at += 1;
        if !self.take(Token::Open) {
            return Err(self.unexpected("`(` behind `has`"));
        }
        let asked = self.term()?;
        let What::Operand(operand @ (Operand::Data(_) | Operand::Channel)) = asked.what else {
            let expected = "a path below data, or `channel`: everything else is always there";
            return Err(error(asked.span.clone(), expected, self.quote(&asked.span)));
        };
        if !self.take(Token::Close) {
            return Err(self.unexpected("`)`"));
        }
        Ok(self.test(Test::Has(operand), start))
    }

    fn list(&mut self, left: Term) -> Result<(Operand, Box<[Literal]>), WhenError> {
        let (name, found, span) = (self.text[left.span.clone()].to_owned(), self.describe(&left), left.span.clone());
        let operand = self.value(left)?;
        if matches!(operand, Operand::Literal(_)) {
            return Err(error(span, "a name before `in`", found));
        }
        if !self.take(Token::OpenList) {
            return Err(self.unexpected(r#"a list like `["a", "b"]`"#));
        }
        let mut literals = Vec::new();
        loop {
            let span = self.peek().1.clone();
            let literal = self.literal()?.ok_or_else(|| self.unexpected("a literal"))?;
            let term = Term { what: What::Operand(Operand::Literal(literal)), span };
            let literal = self.fitted(&operand, &name, term)?;
            match literal {
                Operand::Literal(literal) => literals.push(literal),
                _ => return Err(self.unexpected("a literal")),
            }
            if self.take(Token::CloseList) {
                return Ok((operand, literals.into()));
            }
            if !self.take(Token::Comma) {
                return Err(self.unexpected("`,` or `]`"));
            }
        }
    }

    fn compare(&self, left: Term, comparison: Comparison, at: Range<usize>, right: Term) -> Result<Test, WhenError> {
        let equality = matches!(comparison, Comparison::Equal | Comparison::NotEqual);
        // The side that is not a literal says what the other has to be.
        let flipped = matches!(left.what, What::Operand(Operand::Literal(_)));
        let (known, other) = if flipped { (right, left) } else { (left, right) };
        let (name, found, span) = (self.text[known.span.clone()].to_owned(), self.describe(&known), known.span.clone());
        let known = self.value(known)?;
        if matches!(known, Operand::Literal(_)) {
            return Err(error(span, "a name on one side of the comparison", found));
        }
        if matches!(other.what, What::Operand(Operand::Literal(Literal::Null))) && equality {
            if !matches!(known, Operand::Data(_) | Operand::Channel) {
                return Err(error(other.span, format!("something else: `{name}` is never null"), "`null`"));
            }
            let has = Test::Has(known);
            return Ok(if comparison == Comparison::Equal { Test::Not(Box::new(has)) } else { has });
        }
        let other = self.fitted(&known, &name, other)?;
        let unordered =
            [&known, &other].into_iter().map(Kind::of).find(|kind| matches!(kind, Kind::Channel | Kind::Bool));
        match unordered {
            Some(kind) if !equality => {
                let expected = format!("`==` or `!=`: {} has no order", kind.words());
                Err(error(at.clone(), expected, self.quote(&at)))
            }
            _ if flipped => Ok(Test::Compare(other, comparison, known)),
            _ => Ok(Test::Compare(known, comparison, other)),
        }
    }

    /// `term` as something that can be compared with `known`, which is written `name`.
    fn fitted(&self, known: &Operand, name: &str, term: Term) -> Result<Operand, WhenError> {
        let found = self.describe(&term);
        let Term { what, span } = term;
        let What::Operand(operand) = what else { return Err(error(span, "a value", found)) };
        match (Kind::of(known), operand) {
            (Kind::Priority, Operand::Literal(Literal::Text(word))) => {
                let all = Priority::ALL.iter().map(|word| word.as_str());
                word_of::<Priority>(&word, span, all).map(|word| Operand::Literal(Literal::Priority(word)))
            }
            (Kind::Channel, Operand::Literal(Literal::Text(word))) => {
                let all = Channel::ALL.iter().map(|word| word.as_str());
                word_of::<Channel>(&word, span, all).map(|word| Operand::Literal(Literal::Channel(word)))
            }
            (Kind::Time, Operand::Literal(Literal::Text(text))) => match text.parse::<Instant>() {
                Ok(instant) => Ok(Operand::Literal(Literal::Time(instant))),
                Err(_) => Err(error(span, r#"a time like "2026-03-28T22:10:00Z""#, format!("`{text}`"))),
            },
            (kind, operand) if kind.compares_with(Kind::of(&operand)) => Ok(operand),
            (kind, _) => {
                let kind = match kind {
                    Kind::Data => "a text, a number, true or false".to_owned(),
                    kind => kind.words().to_owned(),
                };
                Err(error(span, format!("{kind} to compare with `{name}`"), found))
            }
        }
    }

    fn value(&self, term: Term) -> Result<Operand, WhenError> {
        let found = self.describe(&term);
        match term.what {
            What::Operand(operand) => Ok(operand),
            What::Test(_) => Err(error(term.span, "a value", found)),
        }
    }

    fn condition(&self, term: Term) -> Result<Test, WhenError> {
        let found = self.describe(&term);
        match term.what {
            What::Test(test) => Ok(test),
            What::Operand(Operand::Literal(Literal::Bool(constant))) => Ok(Test::Constant(constant)),
            What::Operand(operand @ Operand::Data(_)) => Ok(Test::IsTrue(operand)),
            What::Operand(_) => Err(error(term.span, r#"a condition like `category == "social"`"#, found)),
        }
    }

    fn test(&self, test: Test, start: usize) -> Term {
        // At least one word was taken.
        Term { what: What::Test(test), span: start..self.words[self.at - 1].1.end }
    }
}

fn word_of<T: FromStr>(
    word: &str,
    span: Range<usize>,
    all: impl Iterator<Item = &'static str> + Clone,
) -> Result<T, WhenError> {
    word.parse().map_err(|_| {
        let expected = format!("one of {}", all.clone().collect::<Vec<_>>().join(", "));
        WhenError { nearest: nearest(word, all), ..error(span, expected, format!("`{word}`")) }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn no_text_panics(
            words in prop::collection::vec(
                prop_oneof![
                    4 => prop::sample::select(vec![
                        "category", "priority", "data.x", "time", "actors", "and", "or", "not", "in", "has", "null", "true", "(", ")",
                        "[", "]", ",", "==", "!=", "<", ">=", "1", "-2.5", "\"low\"", "'push'", "\"2026-03-28T22:10:00Z\"",
                    ]).prop_map(str::to_owned),
                    1 => any::<String>(),
                ],
                0..12,
            ),
            gap in prop::sample::select(vec!["", " "]),
        ) {
            let text = words.join(gap);
            for error in [compile(&text).err(), compile_value(&text).err()].into_iter().flatten() {
                prop_assert!(text.get(error.span.clone()).is_some(), "{:?} of {:?}", error.span, text);
            }
        }
    }

    /// The message, under the expression with its span marked.
    fn shown(text: &str, error: &WhenError) -> String {
        let marks = "^".repeat(text[error.span.clone()].chars().count().max(1));
        format!("{text}\n{}{marks} {error}", " ".repeat(text[..error.span.start].chars().count()))
    }

    #[test]
    fn a_wrong_condition_says_where_what_and_what_was_meant() {
        let expressions = [
            // Words.
            r#"category = "social""#,
            r#"category == "a" && priority == "low""#,
            r#"!has(data.x)"#,
            r#"category == "social"#,
            r#"category == "a\qb""#,
            r#"actors > 1e3"#,
            r#"actors > 1.0000000000000000001"#,
            r#"category == “social”"#,
            // Names.
            r#"categry == "social""#,
            r#"dta.order.id == 7"#,
            r#"object.id == "photo7""#,
            r#"category.name == "social""#,
            r#"data == 1"#,
            r#"data.x..y == 1"#,
            // Types.
            r#"priority == "hgih""#,
            r#"priority in ["medium", "lowest"]"#,
            r#"channel == "sma""#,
            r#"channel < "sms""#,
            r#"category == 5"#,
            r#"category == null"#,
            r#"actors > "3""#,
            r#"3 < category"#,
            r#"time > "yesterday""#,
            r#"time > 5"#,
            r#"priority == data.urgency"#,
            r#"data.flag < true"#,
            r#"data.x > null"#,
            r#"data.x in ["a", null]"#,
            r#"1 == 1"#,
            r#""a" in ["a"]"#,
            r#"category"#,
            r#"category == "a" and "b""#,
            r#"not actors"#,
            r#"(actors > 1) == true"#,
            r#"has(category)"#,
            r#"has data.x"#,
            // Grammar.
            r#""#,
            r#"category =="#,
            r#"actors > 1 adn actors < 3"#,
            r#"1 < actors < 3"#,
            r#"category in "social""#,
            r#"category in []"#,
            r#"category in ["a" "b"]"#,
            r#"category in [type]"#,
            r#"category not "a""#,
            r#"(category == "a""#,
            r#"category == "a")"#,
            r#"and"#,
        ];
        let shown: Vec<_> = expressions.iter().map(|text| shown(text, &compile(text).unwrap_err())).collect();
        insta::assert_snapshot!(shown.join("\n\n"));
    }

    #[test]
    fn a_wrong_value_says_where_what_and_what_was_meant() {
        let expressions = ["", "order_id", "data", "data.order_id == 1", "\"x\"", "user", "has(data.x)", "type.x"];
        let shown: Vec<_> = expressions.iter().map(|text| shown(text, &compile_value(text).unwrap_err())).collect();
        insta::assert_snapshot!(shown.join("\n\n"));
    }

    #[test]
    fn nesting_has_a_bound() {
        for (open, close) in [("(", ")"), ("not ", "")] {
            let nested = |depth| format!("{}data.x{}", open.repeat(depth), close.repeat(depth));
            assert!(compile(&nested(DEPTH_MAX - 1)).is_ok());
            let error = compile(&nested(100_000)).unwrap_err();
            assert_eq!(error.to_string(), "expected at most 64 levels of `(` and `not`, found one more");
        }
    }

    #[test]
    fn every_listed_name_is_a_name() {
        for name in NAMES {
            let name = if name == "data" { "data.x" } else { name };
            assert!(compile_value(name).is_ok(), "{name}");
        }
    }
}
