//! From a conversation to the tokens that the model was trained to answer.
//!
//! A model's template is a program in Jinja that comes with the weights: it is given only the conversation, a limited
//! number
//! of steps and a limited length of output. What users wrote cannot become a special token: behind every character
//! with which
//! one could begin, user text carries a *mark*, a character that occurs nowhere else. The template's own text has
//! none; the
//! tokenizer looks for special tokens with the marks in place and then takes them out.

use std::io;
use std::io::Write;

use minijinja::Environment;
use minijinja::ErrorKind;
use minijinja::context;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::value::Value;
use minijinja_contrib::pycompat::unknown_method_callback;
use thiserror::Error;

use crate::ids::Token;
use crate::weights::strftime;
use crate::weights::tojson;
use crate::weights::tokenizer::Tokenizer;
use crate::wire::vocabulary::TokenType;
use crate::wire::vocabulary::Vocabulary;

/// For models that have no template but ChatML's tokens.
const CHATML: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n\
    {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// For models that have neither. Nothing ends a turn but a stop string such as `"\nUser:"`.
const PLAIN: &str = "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content }}\n{% endfor %}\
    {% if add_generation_prompt %}Assistant:{% endif %}";

/// Bytes of a template; real ones stay below 100 KiB. Arbitrary.
const MAX_TEMPLATE: usize = 1 << 20;

/// Instructions that rendering may take, and those added for each message; real templates take some hundred per
/// message. Arbitrary.
const FUEL: u64 = 100_000;
const FUEL_PER_MESSAGE: u64 = 5_000;

/// Bytes that rendering may write, besides four times the conversation's. Arbitrary.
const MAX_OUTPUT: usize = 1 << 20;

/// How deep blocks, macros and calls may lie in each other. Arbitrary, well below what the stack bears.
const MAX_DEPTH: usize = 200;

/// The texts of ends of a sequence that templates mean by `eos_token`, the most specific first. A vocabulary names
/// only the
/// set of tokens that end a generation.
const EOS_TEXTS: [&str; 6] =
    ["</s>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "<eos>", "<|endoftext|>", "<|im_end|>"];

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who speaks, such as `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// Whether the rendered conversation ends where the model's answer begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddGenerationPrompt {
    /// The model is to answer.
    Yes,
    /// The conversation ends with its last message.
    No,
}

/// Where a template came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TemplateOrigin {
    /// The model's own.
    Model,
    /// ChatML, because the vocabulary has its tokens and no template.
    ChatMl,
    /// `User: …` and `Assistant: …` as plain text, because the vocabulary has neither.
    Plain,
}

/// Why a conversation could not be rendered.
#[derive(Debug, Error)]
pub enum ChatError {
    /// A template that is too long.
    #[error("the chat template has {got} bytes; at most {limit} are accepted")]
    TooLong {
        /// The most that is accepted.
        limit: usize,
        /// Its bytes.
        got: usize,
    },
    /// A template that is no Jinja.
    #[error("the model's chat template cannot be read")]
    Syntax(#[source] minijinja::Error),
    /// The template refused the conversation, in its own words.
    #[error("the model's chat template refuses this conversation: {reason}")]
    Refused {
        /// What the template says, cut to 200 characters.
        reason: String,
    },
    /// The template took too many steps.
    #[error("the model's chat template takes more than {limit} steps")]
    Endless {
        /// The most that are allowed.
        limit: u64,
    },
    /// The template wrote too much.
    #[error("the model's chat template writes more than {limit} bytes")]
    TooMuch {
        /// The most that are allowed.
        limit: usize,
    },
    /// The template failed.
    #[error("the model's chat template fails on this conversation")]
    Failed(#[source] minijinja::Error),
    /// Every character that could serve as mark occurs in the conversation.
    #[error("the conversation contains every private-use character of plane 15")]
    NoMark,
}

/// A model's chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    origin: TemplateOrigin,
}

/// A rendered conversation, in which user text is still told from the template's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    marked: String,
    mark: char,
}

impl Rendered {
    /// The text, for people.
    pub fn text(&self) -> String {
        self.marked.replace(self.mark, "")
    }

    /// The tokens. Special ones come from the template only.
    pub fn tokens(&self, tokenizer: &Tokenizer) -> Vec<Token> {
        tokenizer.encode_marked(&self.marked, self.mark)
    }
}

impl ChatTemplate {
    /// Reads a template.
    ///
    /// # Errors
    /// `TooLong`, or `Syntax` if it is no Jinja.
    pub fn new(source: &str) -> Result<Self, ChatError> {
        Self::with_origin(source, TemplateOrigin::Model)
    }

    /// The model's template, or the one that fits its vocabulary best.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`].
    pub fn of(vocabulary: &Vocabulary) -> Result<Self, ChatError> {
        let has = |text: &str| {
            let marks = |kind: &TokenType| matches!(kind, TokenType::Control | TokenType::UserDefined);
            vocabulary.tokens.iter().zip(&vocabulary.types).any(|(token, kind)| token == text && marks(kind))
        };
        match &vocabulary.chat_template {
            Some(source) => Self::new(source),
            None if has("<|im_start|>") && has("<|im_end|>") => Self::with_origin(CHATML, TemplateOrigin::ChatMl),
            None => Self::with_origin(PLAIN, TemplateOrigin::Plain),
        }
    }

    /// Where the template came from.
    pub fn origin(&self) -> TemplateOrigin {
        self.origin
    }

    /// Renders a conversation.
    ///
    /// `now` is the time in seconds since 1970 (UTC) for templates that write the date; without it they write their
    /// own default.
    ///
    /// # Errors
    /// What the template says, or why it was stopped.
    pub fn render(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        generation: AddGenerationPrompt,
        now: Option<u64>,
    ) -> Result<Rendered, ChatError> {
        let mark = mark(messages)?;
        let starts = tokenizer.special_starts();
        let shield = |text: &str| Value::from(tokenizer.shield(text, &starts, mark));
        let shielded: Vec<Value> = messages
            .iter()
            .map(|message| context! { role => shield(&message.role), content => shield(&message.content) })
            .collect();
        let context = context! {
            messages => shielded,
            add_generation_prompt => generation == AddGenerationPrompt::Yes,
            bos_token => bos_text(tokenizer.vocabulary()),
            eos_token => eos_text(tokenizer.vocabulary()),
            tools => Value::from(()),
            documents => Value::from(()),
        };
        let spoken: usize = messages.iter().map(|message| message.content.len()).sum();
        let marked = self.run(context, messages.len() as u64, spoken, now)?;
        Ok(Rendered { marked, mark })
    }

    fn with_origin(source: &str, origin: TemplateOrigin) -> Result<Self, ChatError> {
        if source.len() > MAX_TEMPLATE {
            return Err(ChatError::TooLong { limit: MAX_TEMPLATE, got: source.len() });
        }
        let mut environment = Environment::new();
        let syntax =
            SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(ChatError::Syntax)?;
        environment.set_syntax(syntax);
        environment.set_recursion_limit(MAX_DEPTH);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", tojson::filter);
        environment.add_template_owned(NAME, source.to_owned()).map_err(ChatError::Syntax)?;
        Ok(Self { environment, origin })
    }

    fn run(&self, context: Value, messages: u64, spoken: usize, now: Option<u64>) -> Result<String, ChatError> {
        let mut environment = self.environment.clone();
        let fuel = FUEL.saturating_add(messages.saturating_mul(FUEL_PER_MESSAGE));
        environment.set_fuel(Some(fuel));
        if let Some(now) = now {
            environment.add_function("strftime_now", move |format: &str| strftime::format(now, format));
        }
        let limit = MAX_OUTPUT.saturating_add(spoken.saturating_mul(4));
        let mut output = Bounded { bytes: Vec::new(), limit, is_full: false };
        let template = environment.get_template(NAME).map_err(ChatError::Failed)?;
        let result = template.render_captured_to(context, &mut output).map(|_| ());
        if output.is_full {
            return Err(ChatError::TooMuch { limit });
        }
        result.map_err(|error| failure(error, fuel))?;
        Ok(String::from_utf8_lossy(&output.bytes).into_owned())
    }
}

/// The template's name inside its environment.
const NAME: &str = "chat";

/// Takes bytes up to a limit.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
    is_full: bool,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.limit - self.bytes.len() {
            self.is_full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a template said when it refused.
#[derive(Debug, Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(reason: &str, _: Kwargs) -> Result<Value, minijinja::Error> {
    let raised = Raised(reason.chars().take(200).collect());
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, "raised by the template").with_source(raised))
}

fn failure(error: minijinja::Error, fuel: u64) -> ChatError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(this) = cause {
        if let Some(Raised(reason)) = this.downcast_ref() {
            return ChatError::Refused { reason: reason.clone() };
        }
        let is_out = this.downcast_ref::<minijinja::Error>().is_some_and(|error| error.kind() == ErrorKind::OutOfFuel);
        if is_out {
            return ChatError::Endless { limit: fuel };
        }
        cause = this.source();
    }
    ChatError::Failed(error)
}

/// A private-use character that nobody wrote.
fn mark(messages: &[Message]) -> Result<char, ChatError> {
    let is_free =
        |mark: &char| messages.iter().all(|message| !message.content.contains(*mark) && !message.role.contains(*mark));
    ('\u{f0000}'..='\u{ffffd}').find(is_free).ok_or(ChatError::NoMark)
}

fn text_of(vocabulary: &Vocabulary, token: Token) -> &str {
    vocabulary.tokens.get(token.0 as usize).map_or("", String::as_str)
}

fn bos_text(vocabulary: &Vocabulary) -> &str {
    vocabulary.bos.map_or("", |bos| text_of(vocabulary, bos))
}

fn eos_text(vocabulary: &Vocabulary) -> &str {
    let ends = || vocabulary.end_of_generation.iter().map(|&end| text_of(vocabulary, end));
    let known = EOS_TEXTS.iter().find_map(|text| ends().find(|end| end == text));
    known.or_else(|| ends().next()).unwrap_or("")
}

#[cfg(test)]
#[path = "chat_tests.rs"]
mod tests;
