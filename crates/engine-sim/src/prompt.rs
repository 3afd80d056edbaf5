//! Message contents as the OpenAI protocols allow them: a text, or a list of parts of which some are texts.

use serde::Deserialize;

/// The content of a message or of an input item. What is not text (images, tool calls) is ignored.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize)]
pub(crate) struct Part {
    text: Option<String>,
}

/// One message of a chat, or one item of a response's input.
#[derive(Debug, Deserialize)]
pub(crate) struct Message {
    content: Option<Content>,
}

/// All texts of a conversation, one per line.
pub(crate) fn join(messages: &[Message]) -> String {
    let mut prompt = String::new();
    for message in messages {
        match &message.content {
            Some(Content::Text(text)) => push_line(&mut prompt, text),
            Some(Content::Parts(parts)) => {
                parts
                    .iter()
                    .filter_map(|part| part.text.as_deref())
                    .for_each(|text| push_line(&mut prompt, text));
            }
            None => {}
        }
    }
    prompt
}

fn push_line(prompt: &mut String, text: &str) {
    if !prompt.is_empty() {
        prompt.push('\n');
    }
    prompt.push_str(text);
}
