//! `when`: the small typed language of conditions in the topology.
//!
//! ```text
//! category == "social" and priority in ["medium", "low"]
//! time >= "2026-12-01T00:00:00Z" and not (data.order.total < 19.99)
//! ```
//!
//! Names are `user_id type category tenant` (texts), `priority`, `channel`, `actors` and `activities`
//! (how many), `time`, and `data.x.y`. Operators are `== != < <= > >= in`, `not in`, `and or not ( )`
//! and `has(data.x)`. A condition is compiled once, against these names and types, so that a wrong
//! one is an error of the configuration and never of an event; evaluation allocates nothing.
//!
//! What it means where one could doubt:
//! - `priority >= "high"` is `high` and `critical`: urgency grows from low to critical.
//! - Texts compare by bytes, numbers exactly (no floats), times as instants.
//! - A `data` path that is missing is null. Null compares false with everything, `!=` and `not in`
//!   included; ask `data.x == null` or `has(data.x)`. So does `channel` before one is chosen.
//! - `data` of another type than it is compared with is not equal, and neither less nor greater.
//! - `data.x` alone, as a condition, holds if it is `true`.

mod number;
mod parse;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Range;

use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::time::Instant;

pub use number::Decimal;
pub use parse::{compile, compile_value};

/// What an expression can ask of an item.
pub trait Facts {
    /// The value of a text.
    fn text(&self, name: Text) -> &str;
    /// How many.
    fn count(&self, name: Count) -> u64;
    /// The priority.
    fn priority(&self) -> Priority;
    /// The channel; none before `route` has chosen.
    fn channel(&self) -> Option<Channel>;
    /// When it happened.
    fn time(&self) -> Instant;
    /// The value below `data` at `path`; null where there is none. See [`Value::at`].
    fn data(&self, path: &[String]) -> Value<'_>;
}

/// The names that stand for a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text {
    /// `user_id`
    UserId,
    /// `type`
    Type,
    /// `category`
    Category,
    /// `tenant`
    Tenant,
}

/// The names that stand for a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// `actors`: distinct people.
    Actors,
    /// `activities`: events.
    Activities,
}

/// A value while it is compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Missing, or null.
    Null,
    /// A truth value.
    Bool(bool),
    /// A number.
    Number(Decimal),
    /// A text.
    Text(&'a str),
    /// A priority.
    Priority(Priority),
    /// A channel.
    Channel(Channel),
    /// An instant.
    Time(Instant),
    /// An object, an array, or a number beyond [`Decimal`]: equal to nothing, and without a text.
    Other,
}

impl<'a> Value<'a> {
    /// The value at `path` in an event's `data`.
    #[must_use]
    pub fn at(data: &'a BTreeMap<String, serde_json::Value>, path: &[String]) -> Self {
        let Some((first, rest)) = path.split_first() else { return Self::Other };
        let value =
            data.get(first).and_then(|value| rest.iter().try_fold(value, |value, key| value.as_object()?.get(key)));
        value.map_or(Self::Null, Self::from)
    }

    /// Less, equal or greater; none if the two are of different kinds.
    fn order(self, other: Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => Some(a.cmp(&b)),
            (Self::Number(a), Self::Number(b)) => Some(a.cmp(&b)),
            (Self::Text(a), Self::Text(b)) => Some(a.cmp(b)),
            // The most urgent is the first of the vocabulary, and the greatest here.
            (Self::Priority(a), Self::Priority(b)) => Some(b.cmp(&a)),
            (Self::Channel(a), Self::Channel(b)) => Some(a.cmp(&b)),
            (Self::Time(a), Self::Time(b)) => Some(a.cmp(&b)),
            _ => None,
        }
    }

    fn canonical(self) -> Option<String> {
        match self {
            Self::Null | Self::Other => None,
            Self::Bool(value) => Some(value.to_string()),
            Self::Number(value) => Some(value.to_string()),
            Self::Text(value) => Some(value.to_owned()),
            Self::Priority(value) => Some(value.to_string()),
            Self::Channel(value) => Some(value.to_string()),
            Self::Time(value) => Some(value.to_string()),
        }
    }
}

impl<'a> From<&'a serde_json::Value> for Value<'a> {
    fn from(value: &'a serde_json::Value) -> Self {
        match value {
            serde_json::Value::Null => Self::Null,
            serde_json::Value::Bool(value) => Self::Bool(*value),
            serde_json::Value::String(value) => Self::Text(value),
            serde_json::Value::Number(number) => {
                let integer = number.as_i64().map(Decimal::from).or_else(|| number.as_u64().map(Decimal::from));
                let number = integer.or_else(|| number.as_f64().and_then(Decimal::from_f64));
                number.map_or(Self::Other, Self::Number)
            }
            serde_json::Value::Array(_) | serde_json::Value::Object(_) => Self::Other,
        }
    }
}

/// Why a text is not an expression. The span is in bytes of the expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, found {found}{}", hint(.nearest.as_deref()))]
pub struct WhenError {
    /// What is wrong.
    pub span: Range<usize>,
    /// What would be right there.
    pub expected: String,
    /// What stands there.
    pub found: String,
    /// The valid word that was perhaps meant.
    pub nearest: Option<String>,
}

fn hint(nearest: Option<&str>) -> String {
    nearest.map(|nearest| format!("; did you mean `{nearest}`?")).unwrap_or_default()
}

/// A compiled condition.
#[derive(Clone, Debug, PartialEq)]
pub struct When(Test);

impl When {
    /// Whether it holds for these facts.
    #[must_use]
    pub fn holds(&self, facts: &impl Facts) -> bool {
        self.0.holds(facts)
    }
}

/// A compiled expression for a value, like a type's `dedup_key: "data.order_id"`.
#[derive(Clone, Debug, PartialEq)]
pub struct ValueExpr(Operand);

impl ValueExpr {
    /// The value as canonical text: texts as they are, numbers in decimal without trailing zeros,
    /// `true`, `false`, instants as RFC 3339. None for null, objects and arrays.
    #[must_use]
    pub fn evaluate(&self, facts: &impl Facts) -> Option<String> {
        self.0.value(facts).canonical()
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Test {
    Constant(bool),
    IsTrue(Operand),
    Has(Operand),
    Not(Box<Test>),
    All(Box<[Test]>),
    Any(Box<[Test]>),
    Compare(Operand, Comparison, Operand),
    In(Operand, Box<[Literal]>),
    NotIn(Operand, Box<[Literal]>),
}

#[derive(Clone, Debug, PartialEq)]
enum Operand {
    Text(Text),
    Count(Count),
    Priority,
    Channel,
    Time,
    Data(Box<[String]>),
    Literal(Literal),
}

#[derive(Clone, Debug, PartialEq)]
enum Literal {
    Null,
    Bool(bool),
    Number(Decimal),
    Text(Box<str>),
    Priority(Priority),
    Channel(Channel),
    Time(Instant),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Test {
    fn holds(&self, facts: &impl Facts) -> bool {
        match self {
            Self::Constant(constant) => *constant,
            Self::IsTrue(operand) => operand.value(facts) == Value::Bool(true),
            Self::Has(operand) => operand.value(facts) != Value::Null,
            Self::Not(test) => !test.holds(facts),
            Self::All(tests) => tests.iter().all(|test| test.holds(facts)),
            Self::Any(tests) => tests.iter().any(|test| test.holds(facts)),
            Self::Compare(left, comparison, right) => comparison.holds(left.value(facts), right.value(facts)),
            Self::In(operand, literals) => among(operand.value(facts), literals),
            Self::NotIn(operand, literals) => {
                let value = operand.value(facts);
                value != Value::Null && !among(value, literals)
            }
        }
    }
}

fn among(value: Value<'_>, literals: &[Literal]) -> bool {
    literals.iter().any(|literal| Comparison::Equal.holds(value, literal.value()))
}

impl Operand {
    fn value<'a>(&'a self, facts: &'a impl Facts) -> Value<'a> {
        match self {
            Self::Text(name) => Value::Text(facts.text(*name)),
            Self::Count(name) => Value::Number(Decimal::from(facts.count(*name))),
            Self::Priority => Value::Priority(facts.priority()),
            Self::Channel => facts.channel().map_or(Value::Null, Value::Channel),
            Self::Time => Value::Time(facts.time()),
            Self::Data(path) => facts.data(path),
            Self::Literal(literal) => literal.value(),
        }
    }
}

impl Literal {
    fn value(&self) -> Value<'_> {
        match self {
            Self::Null => Value::Null,
            Self::Bool(value) => Value::Bool(*value),
            Self::Number(value) => Value::Number(*value),
            Self::Text(value) => Value::Text(value),
            Self::Priority(value) => Value::Priority(*value),
            Self::Channel(value) => Value::Channel(*value),
            Self::Time(value) => Value::Time(*value),
        }
    }
}

impl Comparison {
    fn holds(self, left: Value<'_>, right: Value<'_>) -> bool {
        let order = left.order(right);
        match self {
            Self::Equal => order == Some(Ordering::Equal),
            Self::NotEqual => left != Value::Null && right != Value::Null && order != Some(Ordering::Equal),
            Self::Less => order == Some(Ordering::Less),
            Self::LessOrEqual => matches!(order, Some(Ordering::Less | Ordering::Equal)),
            Self::Greater => order == Some(Ordering::Greater),
            Self::GreaterOrEqual => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Like {
        channel: Option<Channel>,
        data: BTreeMap<String, serde_json::Value>,
    }

    impl Facts for Like {
        fn text(&self, name: Text) -> &str {
            match name {
                Text::UserId => "u1",
                Text::Type => "like",
                Text::Category => "social",
                Text::Tenant => "",
            }
        }
        fn count(&self, name: Count) -> u64 {
            match name {
                Count::Actors => 3,
                Count::Activities => 5,
            }
        }
        fn priority(&self) -> Priority {
            Priority::High
        }
        fn channel(&self) -> Option<Channel> {
            self.channel
        }
        fn time(&self) -> Instant {
            Instant(1_774_735_800_000)
        }
        fn data(&self, path: &[String]) -> Value<'_> {
            Value::at(&self.data, path)
        }
    }

    fn like() -> Like {
        let data = r#"{"album":"x","order":{"id":"A-7","total":19.99,"items":[1],"first-buy":true},"n":7,"big":18446744073709551615,
            "huge":1e300,"one":1.0,"yes":true,"no":false,"nil":null,"empty":"","text_n":"7"}"#;
        Like { channel: Some(Channel::Push), data: serde_json::from_str(data).unwrap() }
    }

    #[test]
    fn conditions_hold_or_not() {
        for (text, expected) in [
            (r#"category == "social" and priority in ["medium", "low"]"#, false),
            (r#"category == "social" and priority in ["medium", "high"]"#, true),
            // Texts, by bytes.
            (r#"user_id == 'u1' and type != "LIKE" and tenant == """#, true),
            (r#"type >= "like" and type < "liked" and not type > "like""#, true),
            (r#"type in ["follow", "like"]"#, true),
            (r#"type not in ["follow", "like"]"#, false),
            (r#""social" == category"#, true),
            (r#"category == "so\"cial""#, false),
            (r#"category == type"#, false),
            // Urgency: low < medium < high < critical.
            (r#"priority == "high""#, true),
            (r#"priority >= "high""#, true),
            (r#"priority > "medium""#, true),
            (r#"priority < "critical""#, true),
            (r#"priority <= "low""#, false),
            (r#""critical" > priority"#, true),
            // Channels.
            (r#"channel == "push" and channel != "sms" and channel in ["push"]"#, true),
            (r#"has(channel) and channel != null"#, true),
            // Numbers, exactly.
            (r#"actors >= 3 and activities > actors"#, true),
            (r#"actors > 2.999999999999999999"#, true),
            (r#"actors in [1, 3.0]"#, true),
            (r#"data.order.total == 19.99 and data.order.total < 19.990000000000000001"#, true),
            (r#"data.one == 1 and data.n > -1 and data.n <= actors"#, false),
            (r#"data.big == 18446744073709551615 and data.big > 18446744073709551614"#, true),
            // Times.
            (r#"time == "2026-03-28T22:10:00Z""#, true),
            (r#"time < "2026-03-28T23:10:00.001+01:00""#, true),
            (r#""2026-03-29T00:00:00Z" <= time"#, false),
            (r#"time in ["2026-03-28T23:10:00+01:00"]"#, true),
            // Data of every type.
            (r#"data.album == "x" and data.album != data.order.id"#, true),
            (r#"data.order.id in ["A-7"] and data.order.first-buy"#, true),
            (r#"data.yes and not data.no"#, true),
            (r#"data.yes == true and data.no == false and true and not false"#, true),
            (r#"data.text_n == 7"#, false),
            (r#"data.text_n != 7"#, true),
            (r#"data.text_n < 8 or data.text_n > 6"#, false),
            (r#"data.album"#, false),
            // A missing path is null and compares false.
            (r#"data.none == "x""#, false),
            (r#"data.none != "x""#, false),
            (r#"data.none in ["x"]"#, false),
            (r#"data.none not in ["x"]"#, false),
            (r#"not data.none == "x""#, true),
            (r#"data.none == data.none"#, false),
            (r#"data.none"#, false),
            (r#"data.none == null and data.nil == null and data.album.deeper == null"#, true),
            (r#"data.none != null or has(data.nil) or has(data.album.deeper)"#, false),
            (r#"has(data.empty) and has(data.no) and has(data.order)"#, true),
            (r#"null == data.none"#, true),
            // Objects, arrays and numbers beyond are equal to nothing.
            (r#"data.order == "A-7" or data.huge > 1 or data.order.items in [1]"#, false),
            (r#"data.order != "A-7" and data.huge != 1"#, true),
            // `and` before `or`, `not` before both.
            (r#"actors == 9 and actors == 9 or actors == 3"#, true),
            (r#"actors == 9 and (actors == 9 or actors == 3)"#, false),
            (r#"not actors == 9 and actors == 3"#, true),
            (r#"not (actors == 3 or actors == 9)"#, false),
            (r#"not not (actors == 3)"#, true),
        ] {
            let condition = compile(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(condition.holds(&like()), expected, "{text}");
        }
    }

    #[test]
    fn before_route_there_is_no_channel() {
        let item = Like { channel: None, ..like() };
        for (text, expected) in [
            (r#"channel == "push""#, false),
            (r#"channel != "push""#, false),
            (r#"channel not in ["push"]"#, false),
            ("channel == null", true),
            ("has(channel)", false),
        ] {
            assert_eq!(compile(text).unwrap().holds(&item), expected, "{text}");
        }
    }

    #[test]
    fn values_become_canonical_texts() {
        for (text, expected) in [
            ("data.order.id", Some("A-7")),
            ("data.n", Some("7")),
            ("data.text_n", Some("7")),
            ("data.one", Some("1")),
            ("data.order.total", Some("19.99")),
            ("data.big", Some("18446744073709551615")),
            ("data.yes", Some("true")),
            ("data.empty", Some("")),
            ("data.nil", None),
            ("data.none.deeper", None),
            ("data.order", None),
            ("data.order.items", None),
            ("data.huge", None),
            ("user_id", Some("u1")),
            ("type", Some("like")),
            ("category", Some("social")),
            ("tenant", Some("")),
            ("priority", Some("high")),
            ("channel", Some("push")),
            ("actors", Some("3")),
            ("activities", Some("5")),
            ("time", Some("2026-03-28T22:10:00Z")),
        ] {
            assert_eq!(compile_value(text).unwrap().evaluate(&like()).as_deref(), expected, "{text}");
        }
    }
}
