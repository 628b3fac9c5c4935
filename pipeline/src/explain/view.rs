//! A story as text for a terminal.

use std::fmt;

use super::{Story, Tone, words};

/// Whether a text is coloured: the caller knows its terminal and `NO_COLOR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// ANSI colours.
    On,
    /// None.
    Off,
}

impl Colour {
    /// `text` in the colour of `tone`.
    #[must_use]
    pub fn paint(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Good => "32",
            Tone::Open => "36",
            Tone::Waiting => "33",
            Tone::Quiet => "90",
            Tone::Bad => "31",
        };
        self.code(code, text)
    }

    /// `text` in bold.
    #[must_use]
    pub fn bold(self, text: &str) -> String {
        self.code("1", text)
    }

    fn code(self, code: &str, text: &str) -> String {
        match self {
            Self::On => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            Self::Off => text.to_owned(),
        }
    }
}

impl Story {
    /// The story as lines.
    #[must_use]
    pub fn text(&self, colour: Colour) -> String {
        let mut lines = vec![colour.bold(&self.headline), String::new()];
        let width = self.steps.iter().map(|step| step.local.chars().count()).max().unwrap_or(0);
        for step in &self.steps {
            let pad = " ".repeat(width - step.local.chars().count());
            lines.push(format!("  {pad}{}  {}", colour.paint(step.tone, &step.local), step.text));
        }
        let mut section = |title: &str, items: Vec<String>| {
            if !items.is_empty() {
                lines.push(String::new());
                lines.push(format!("  {}", colour.bold(title)));
                lines.extend(items.into_iter().map(|item| format!("    {item}")));
            }
        };
        section("Where it stands", self.channels.iter().map(|channel| channel.line(colour)).collect());
        section("What was not done", self.not_done.clone());
        section("What would have made a difference", self.hints.clone());
        let mut ids = vec![self.ids.event.clone()];
        ids.extend(self.ids.intent.clone());
        ids.extend(self.ids.notifications.clone());
        section("Ids", ids);
        lines.join("\n")
    }
}

impl super::ChannelEnd {
    fn line(&self, colour: Colour) -> String {
        let name = if self.silent { "inbox (silent copy)".to_owned() } else { words::channel(self.channel).to_owned() };
        format!("{name}: {}", colour.paint(self.end.tone, &self.end.text))
    }
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text(Colour::Off))
    }
}
