//! From nodes to Rust types, through serde, with every fault at its own bytes.
//!
//! Serde's own deserializers stop at the first fault and know no spans inside tagged enums. This
//! one reads a [`Document`] that is already parsed: unknown keys are found before the type is asked
//! (serde tells the names of a struct's fields), a fault is reported at the innermost node it
//! passes, and [`Lenient`] lets the rest of the document go on without what failed.

use std::cell::RefCell;
use std::fmt::{self, Display};
use std::marker::PhantomData;

use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

use super::diagnostic::{Code, Span, TopologyError, one_of};
use super::tree::{Content, Document, Node, NodeId};

/// A place to put findings that many borrowers share.
pub(super) type Findings = RefCell<Vec<TopologyError>>;

/// Reads `node` as a `T`; faults go to `findings`.
pub(super) fn decode<'de, T: Deserialize<'de>>(document: &Document, node: NodeId, findings: &Findings) -> Option<T> {
    decode_apart(document, node, findings, &[])
}

/// Like [`decode`], but as if the keys in `apart` were not there: somebody else reads them.
pub(super) fn decode_apart<'de, T: Deserialize<'de>>(
    document: &Document,
    node: NodeId,
    findings: &Findings,
    apart: &[&'static str],
) -> Option<T> {
    T::deserialize(Decoder { document, node, findings, apart }).ok()
}

/// A fault on its way up. Once reported it is only a mark.
#[derive(Debug)]
pub(super) enum Fault {
    Reported,
    Found(Box<Unplaced>),
}

#[derive(Debug)]
pub(super) struct Unplaced {
    code: Code,
    found: Option<String>,
    expected: String,
    wrong: Option<String>,
    names: &'static [&'static str],
}

impl Unplaced {
    fn fault(code: Code, found: Option<String>, expected: String) -> Fault {
        Fault::Found(Box::new(Self { code, found, expected, wrong: None, names: &[] }))
    }
}

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reported => f.write_str("already reported"),
            Self::Found(fault) => write!(f, "expected {}", fault.expected),
        }
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: Display>(message: T) -> Self {
        let message = message.to_string();
        // Types say `expected …, found …`; anything else is the finding itself.
        match message.strip_prefix("expected ").and_then(|rest| rest.rsplit_once(", found ")) {
            Some((expected, _)) => Unplaced::fault(Code::InvalidValue, None, expected.to_owned()),
            None => match message.split_once(", expected ") {
                Some((found, expected)) => {
                    Unplaced::fault(Code::InvalidValue, Some(found.to_owned()), expected.to_owned())
                }
                None => Unplaced::fault(Code::InvalidValue, Some(message), "another value".to_owned()),
            },
        }
    }

    fn invalid_type(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let expected = expected.to_string();
        // A type that says nothing itself is named after its Rust struct.
        let expected = if expected.starts_with("struct ") { "a mapping".to_owned() } else { expected };
        Unplaced::fault(Code::WrongType, None, expected)
    }

    fn invalid_value(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Unplaced::fault(Code::InvalidValue, None, expected.to_string())
    }

    fn invalid_length(length: usize, expected: &dyn de::Expected) -> Self {
        Unplaced::fault(Code::InvalidValue, Some(format!("{length} items")), expected.to_string())
    }

    fn unknown_variant(variant: &str, names: &'static [&'static str]) -> Self {
        Self::Found(Box::new(Unplaced {
            code: Code::UnknownWord,
            found: Some(format!("unknown word `{variant}`")),
            expected: one_of(names.iter().copied()),
            wrong: Some(variant.to_owned()),
            names,
        }))
    }

    fn unknown_field(field: &str, names: &'static [&'static str]) -> Self {
        Self::Found(Box::new(Unplaced {
            code: Code::UnknownKey,
            found: Some(format!("unknown key `{field}`")),
            expected: one_of(names.iter().copied()),
            wrong: Some(field.to_owned()),
            names,
        }))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::Found(Box::new(Unplaced {
            code: Code::MissingKey,
            found: Some(format!("the key `{field}` is missing")),
            expected: format!("`{field}` here"),
            wrong: Some(field.to_owned()),
            names: &[],
        }))
    }

    fn duplicate_field(field: &'static str) -> Self {
        Unplaced::fault(Code::DuplicateKey, Some(format!("the key `{field}` stands twice")), "each key once".to_owned())
    }
}

#[derive(Clone, Copy)]
struct Decoder<'a> {
    document: &'a Document,
    node: NodeId,
    findings: &'a Findings,
    apart: &'a [&'static str],
}

impl<'a> Decoder<'a> {
    fn here(&self) -> &'a Node {
        self.document.node(self.node)
    }

    fn at(&self, node: NodeId) -> Self {
        Self { node, apart: &[], ..*self }
    }

    /// Reports a fault at this node, unless a node below did.
    fn place<T>(&self, result: Result<T, Fault>) -> Result<T, Fault> {
        result.map_err(|fault| {
            match fault {
                Fault::Found(fault) if !self.is_misspelt(&fault) => {
                    let finding = self.finding(*fault);
                    self.findings.borrow_mut().push(finding);
                }
                _ => {}
            }
            Fault::Reported
        })
    }

    /// Whether a key is missing here only because it is misspelt, which is reported already.
    fn is_misspelt(&self, fault: &Unplaced) -> bool {
        fault.code == Code::MissingKey
            && fault.wrong.as_deref().is_some_and(|key| is_misspelt(self.document, self.node, key, self.findings))
    }

    fn finding(&self, fault: Unplaced) -> TopologyError {
        let node = self.here();
        // What a node holds may be a secret: what is written is not.
        let found = match (&node.written, fault.found) {
            (None, Some(found)) => found,
            _ => format!("found {}", describe(node)),
        };
        let mut finding = TopologyError::new(fault.code, node.span, found, fault.expected);
        if let (Some(wrong), None) = (&fault.wrong, &node.written) {
            finding = finding.nearest(wrong, fault.names.iter().copied());
        }
        let is_number = matches!(node.content, Content::Signed(_) | Content::Unsigned(_) | Content::Float(_));
        if fault.code == Code::WrongType && is_number && finding.expected.contains("string") {
            finding = finding.hint("put it in quotes");
        }
        finding
    }

    /// The entries that this type is to see; unknown ones are reported and left out.
    fn known(&self, entries: &'a [(NodeId, NodeId)], fields: Option<&'static [&'static str]>) -> Vec<(NodeId, NodeId)> {
        let mut known = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            let name = self.document.text(*key).unwrap_or_default();
            if self.apart.contains(&name) {
                continue;
            }
            match fields {
                Some(fields) if !fields.contains(&name) => {
                    let names = self.apart.iter().chain(fields).copied();
                    let finding = TopologyError::new(
                        Code::UnknownKey,
                        self.document.node(*key).span,
                        format!("unknown key `{name}`"),
                        one_of(names.clone()),
                    );
                    self.findings.borrow_mut().push(finding.nearest(name, names));
                }
                _ => known.push((*key, *value)),
            }
        }
        known
    }

    fn visit<'de, V: Visitor<'de>>(
        &self,
        visitor: V,
        fields: Option<&'static [&'static str]>,
    ) -> Result<V::Value, Fault> {
        match &self.here().content {
            Content::Null => visitor.visit_unit(),
            Content::Bool(value) => visitor.visit_bool(*value),
            Content::Signed(value) => visitor.visit_i64(*value),
            Content::Unsigned(value) => visitor.visit_u64(*value),
            Content::Float(value) => visitor.visit_f64(*value),
            Content::Text(text) => visitor.visit_str(text),
            Content::Sequence(items) => visitor.visit_seq(Items { decoder: *self, items: items.clone().into_iter() }),
            Content::Mapping(entries) => {
                let entries = self.known(entries, fields);
                visitor.visit_map(Entries { decoder: *self, entries: entries.into_iter(), value: None })
            }
        }
    }
}

/// Whether a key of `mapping` was reported as unknown and looks like `key`.
pub(super) fn is_misspelt(document: &Document, mapping: NodeId, key: &str, findings: &Findings) -> bool {
    let spans: Vec<Span> = document.entries(mapping).iter().map(|(name, _)| document.node(*name).span).collect();
    findings.borrow().iter().any(|finding| {
        finding.code == Code::UnknownKey && finding.nearest.as_deref() == Some(key) && spans.contains(&finding.span)
    })
}

/// What stands at a node, without what came from outside.
pub(super) fn describe(node: &Node) -> String {
    if let Some(written) = &node.written {
        return format!("the value of `{written}`");
    }
    match &node.content {
        Content::Null => "nothing".to_owned(),
        Content::Bool(value) => format!("`{value}`"),
        Content::Signed(value) => format!("the number `{value}`"),
        Content::Unsigned(value) => format!("the number `{value}`"),
        Content::Float(value) => format!("the number `{value}`"),
        Content::Text(text) if text.chars().count() > 60 => {
            format!("`{}…`", text.chars().take(60).collect::<String>())
        }
        Content::Text(text) => format!("`{text}`"),
        Content::Sequence(_) => "a list".to_owned(),
        Content::Mapping(_) => "a mapping".to_owned(),
    }
}

/// Numbers and switches may come from the environment, which knows texts only.
macro_rules! parsed {
    ($($method:ident, $visit:ident, $type:ty;)*) => { $(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            let node = self.here();
            match (&node.content, &node.written) {
                (Content::Text(text), Some(_)) => match text.parse::<$type>() {
                    Ok(value) => self.place(visitor.$visit(value)),
                    Err(_) => self.place(self.visit(visitor, None)),
                },
                _ => self.place(self.visit(visitor, None)),
            }
        }
    )* };
}

impl<'de> Deserializer<'de> for Decoder<'_> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.place(self.visit(visitor, None))
    }

    parsed! {
        deserialize_bool, visit_bool, bool;
        deserialize_i8, visit_i64, i64;
        deserialize_i16, visit_i64, i64;
        deserialize_i32, visit_i64, i64;
        deserialize_i64, visit_i64, i64;
        deserialize_u8, visit_u64, u64;
        deserialize_u16, visit_u64, u64;
        deserialize_u32, visit_u64, u64;
        deserialize_u64, visit_u64, u64;
        deserialize_f32, visit_f64, f64;
        deserialize_f64, visit_f64, f64;
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.here().content {
            Content::Null => self.place(visitor.visit_none()),
            _ => self.place(visitor.visit_some(self)),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.place(match self.here().content {
            Content::Sequence(_) => Err(de::Error::invalid_type(de::Unexpected::Seq, &visitor)),
            _ => self.visit(visitor, Some(fields)),
        })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let result = match &self.here().content {
            Content::Text(_) => visitor.visit_enum(Variant { decoder: self, name: self.node, value: None }),
            Content::Mapping(entries) => match entries.as_slice() {
                [(name, value)] => visitor.visit_enum(Variant { decoder: self, name: *name, value: Some(*value) }),
                _ => Err(Unplaced::fault(
                    Code::InvalidValue,
                    Some(format!("{} keys where one chooses", entries.len())),
                    format!("one of {}", one_of(names.iter().copied())),
                )),
            },
            _ => Err(Unplaced::fault(Code::WrongType, None, one_of(names.iter().copied()))),
        };
        self.place(result)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Fault> {
        match name {
            AT => visitor.visit_seq(Placed { decoder: self, step: 0 }),
            CAPTURED => visitor.visit_u64(u64::from(self.node.0)),
            MANY => match &self.here().content {
                Content::Sequence(_) => self.place(self.visit(visitor, None)),
                _ => visitor.visit_seq(Items { decoder: self, items: vec![self.node].into_iter() }),
            },
            _ => self.place(visitor.visit_newtype_struct(self)),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        i128 u128 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map identifier
    }
}

struct Items<'a> {
    decoder: Decoder<'a>,
    items: std::vec::IntoIter<NodeId>,
}

impl<'de> de::SeqAccess<'de> for Items<'_> {
    type Error = Fault;
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        self.items.next().map(|item| seed.deserialize(self.decoder.at(item))).transpose()
    }
}

struct Entries<'a> {
    decoder: Decoder<'a>,
    entries: std::vec::IntoIter<(NodeId, NodeId)>,
    value: Option<NodeId>,
}

impl<'de> de::MapAccess<'de> for Entries<'_> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        let Some((key, value)) = self.entries.next() else { return Ok(None) };
        self.value = Some(value);
        seed.deserialize(self.decoder.at(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        match self.value.take() {
            Some(value) => seed.deserialize(self.decoder.at(value)),
            None => Err(de::Error::custom("a value without a key")),
        }
    }
}

struct Variant<'a> {
    decoder: Decoder<'a>,
    name: NodeId,
    value: Option<NodeId>,
}

impl<'de> de::EnumAccess<'de> for Variant<'_> {
    type Error = Fault;
    type Variant = Self;
    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Fault> {
        // As a plain value: asking for an enum again would lead back here.
        let name = seed.deserialize(self.decoder.at(self.name))?;
        Ok((name, self))
    }
}

impl<'de> de::VariantAccess<'de> for Variant<'_> {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        match self.value {
            None => Ok(()),
            Some(value) if self.decoder.document.node(value).content == Content::Null => Ok(()),
            Some(value) => {
                let name = self.decoder.document.text(self.name).unwrap_or_default();
                let fault = Unplaced::fault(Code::WrongType, None, format!("`{name}` alone, without a value"));
                self.decoder.at(value).place(Err(fault))
            }
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Fault> {
        match self.value {
            Some(value) => seed.deserialize(self.decoder.at(value)),
            None => {
                let name = self.decoder.document.text(self.name).unwrap_or_default();
                let expected = format!("`{{ {name}: … }}`, with a value");
                self.decoder.place(Err(Unplaced::fault(Code::WrongType, None, expected)))
            }
        }
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Fault> {
        self.newtype_variant_seed(AsSeq(visitor))
    }

    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Fault> {
        self.newtype_variant_seed(AsStruct(fields, visitor))
    }
}

struct AsSeq<V>(V);

impl<'de, V: Visitor<'de>> DeserializeSeed<'de> for AsSeq<V> {
    type Value = V::Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        deserializer.deserialize_seq(self.0)
    }
}

struct AsStruct<V>(&'static [&'static str], V);

impl<'de, V: Visitor<'de>> DeserializeSeed<'de> for AsStruct<V> {
    type Value = V::Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        deserializer.deserialize_struct("", self.0, self.1)
    }
}

// ── wrappers that only this deserializer knows ──────────────────────────────────────────────────

const AT: &str = "\0at";
const CAPTURED: &str = "\0captured";
const LENIENT: &str = "\0lenient";

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub(super) span: Span,
    pub(super) value: T,
}

struct Placed<'a> {
    decoder: Decoder<'a>,
    step: u8,
}

impl<'de> de::SeqAccess<'de> for Placed<'_> {
    type Error = Fault;
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        self.step += 1;
        let span = self.decoder.here().span;
        match self.step {
            1 => seed.deserialize((span.start as u64).into_deserializer()).map(Some),
            2 => seed.deserialize((span.end as u64).into_deserializer()).map(Some),
            3 => seed.deserialize(self.decoder).map(Some),
            _ => Ok(None),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for At<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Parts<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Parts<T> {
            type Value = At<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut parts: A) -> Result<At<T>, A::Error> {
                let missing = || de::Error::invalid_length(0, &"a start, an end and a value");
                let start: usize = parts.next_element()?.ok_or_else(missing)?;
                let end: usize = parts.next_element()?.ok_or_else(missing)?;
                let value = parts.next_element()?.ok_or_else(missing)?;
                Ok(At { span: Span { start, end }, value })
            }
        }
        deserializer.deserialize_newtype_struct(AT, Parts(PhantomData))
    }
}

/// The node itself, to be read later with a type that is not known yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Captured(pub(super) NodeId);

impl<'de> Deserialize<'de> for Captured {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Id;
        impl Visitor<'_> for Id {
            type Value = Captured;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a node")
            }
            fn visit_u64<E: de::Error>(self, id: u64) -> Result<Captured, E> {
                u32::try_from(id).map(|id| Captured(NodeId(id))).map_err(E::custom)
            }
        }
        deserializer.deserialize_newtype_struct(CAPTURED, Id)
    }
}

/// A value, or nothing if it could not be read: the fault is reported and its surroundings go on.
#[derive(Clone, Debug)]
pub(super) struct Lenient<T>(pub(super) Option<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Lenient<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Inner<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Inner<T> {
            type Value = Lenient<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Lenient<T>, D::Error> {
                Ok(Lenient(T::deserialize(deserializer).ok()))
            }
        }
        deserializer.deserialize_newtype_struct(LENIENT, Inner(PhantomData))
    }
}

/// A mapping in the order written.
#[derive(Clone, Debug)]
pub(super) struct Pairs<K, T>(pub(super) Vec<(At<K>, T)>);

/// A mapping with free keys, in the order written.
pub(super) type Named<T> = Pairs<String, T>;

impl<'de, K: Deserialize<'de>, T: Deserialize<'de>> Deserialize<'de> for Pairs<K, T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All<K, T>(PhantomData<(K, T)>);
        impl<'de, K: Deserialize<'de>, T: Deserialize<'de>> Visitor<'de> for All<K, T> {
            type Value = Pairs<K, T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Pairs<K, T>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(All(PhantomData))
    }
}

/// One value or a list of them.
#[derive(Clone, Debug)]
pub(super) struct OneOrMany<T>(pub(super) Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = OneOrMany<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one value or a list of them")
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<OneOrMany<T>, A::Error> {
                let mut all = Vec::new();
                while let Some(item) = items.next_element()? {
                    all.push(item);
                }
                Ok(OneOrMany(all))
            }
        }
        deserializer.deserialize_newtype_struct(MANY, Either(PhantomData))
    }
}

const MANY: &str = "\0many";
