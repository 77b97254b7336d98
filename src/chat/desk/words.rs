//! Everything that the desk says to people: what came of it, and what to do next.

use onlooker_protocol::{
    code::Refusal,
    view::{Choice, ClaimView, GuardrailView},
};

use super::card;
use crate::links::Link;

pub(super) const FORGED: &str = "That button is not one of ours. Use the buttons of the newest message.";
pub(super) const NOT_LINKED: &str = "You are not linked to anything here, so nothing was done. Ask whoever runs \
                                     Onlooker for a code, and send it to me.";
pub(super) const NOT_LINKED_HERE: &str = "You are not linked to what this message is about, so nothing was done. Ask \
                                          whoever runs Onlooker for a code, and send it to me.";
pub(super) const GONE: &str = "Nothing waits for an answer there any more.";
pub(super) const WRONG_MESSAGE: &str = "That button belongs to another message, so nothing was done. Use the message \
                                        itself.";
pub(super) const RESULT: &str = "That message tells a result: nothing waits for an answer there.";
pub(super) const ASKED_AGAIN: &str = "It was asked again, so nothing was done here. Answer the newer message.";
pub(super) const MORE_THAN_YES: &str = "This question needs more than a yes. Use its other buttons, or reply to it.";
pub(super) const NO_SUCH_CHOICE: &str = "That choice is not offered. Use the buttons of the message.";
pub(super) const NO_WORDS: &str = "There are no words in that. Reply to the question with your answer.";
pub(super) const TOO_LONG: &str = "That is too long, so it was not used. Reply with a shorter answer.";
pub(super) const NOT_NOW: &str = "This takes longer than it should, and may or may not have worked. Look at the message: \
                                  it says so once it is answered. If it does not, try again in a minute.";

pub(super) const APPROVED: &str = "Approved. The session goes on.";
pub(super) const REJECTED: &str = "Rejected. The session is told.";
pub(super) const SENT: &str = "Sent. The session has your answer.";

pub(super) const OPEN_FORM: &str = "Open the form";
pub(super) const FORM: &str = "Here is a fresh link. It opens for 15 minutes.";
pub(super) const NO_FORM: &str = "There is no form, because this gateway has no public address. Answer in the console.";
pub(super) const ONLY_BY_FORM: &str = "Passwords and codes must not be typed into a chat, so that was not used. Delete it \
                                       if it is still there, and use the form.";
pub(super) const ONLY_BY_CONSOLE: &str = "Passwords and codes must not be typed into a chat, so that was not used. Delete \
                                          it if it is still there, and answer in the console.";

pub(super) const HELP: &str = "I tell you when a session needs a person. To link this chat, send me the code that you were \
                               given.";
pub(super) const HELP_LINKED: &str = "I tell you here when a session needs a person. To answer, tap a button of the \
                                      question or reply to it. “links” shows what you are linked to, “unlink” ends it.";
pub(super) const WRONG_CODE: &str = "That code is not good: it was mistyped, used already, or is older than 10 minutes. \
                                     Check it, or ask for a new one.";
pub(super) const TOO_MANY_CODES: &str = "Too many codes were wrong. Wait 10 minutes, then ask for a new code.";
pub(super) const FULL: &str = "This project has as many linked chats as it may have. Ask whoever runs Onlooker to remove \
                               one, then send the code again.";
pub(super) const NOT_CHANGED: &str = "That did not work just now, and nothing may have changed. Try again in a minute.";
pub(super) const UNLINKED: &str =
    "You are unlinked. Nothing more is sent here because of you, and you can no longer answer.";
pub(super) const WAS_NOT_LINKED: &str = "You are not linked to anything.";

/// It is closed: how, by whom, and when.
pub(super) fn late(view: &GuardrailView) -> String {
    let Some(resolution) = &view.resolution else { return GONE.to_owned() };
    let how = card::ending(Some(resolution.outcome), resolution.by.as_deref(), Some(&resolution.via));
    format!("Too late, nothing was done. {how}{}.", at(&resolution.at))
}

pub(super) fn chosen(choice: &Choice) -> String {
    format!("“{}” it is. The session has your answer.", card::cut(choice.label.as_deref().unwrap_or(&choice.id), 40).0)
}

pub(super) fn claimed(claim: &ClaimView) -> String {
    format!("It is yours{}: nobody else is asked meanwhile. Tap again to keep it longer.", until(&claim.until))
}

pub(super) fn claimed_by_another(refusal: &Refusal) -> String {
    let detail = |name: &str| refusal.details.get(name).and_then(|detail| detail.as_str());
    let by = detail("by").unwrap_or("Somebody else");
    let until = detail("until").map(until).unwrap_or_default();
    format!("{} has it{until}. You can still answer.", card::cut(by, 64).0)
}

pub(super) fn linked(link: &Link, again: bool) -> String {
    let already = if again { "already " } else { "" };
    format!(
        "This chat is {already}linked to {}. It is told when a session there needs a person, and you can answer here. \
         Send “unlink” to end it.",
        scope(link)
    )
}

/// What somebody is linked to.
pub(super) fn list(links: &[Link], here: &str) -> String {
    let line = |link: &Link| {
        let place = if link.target() == here { "in this chat" } else { "in another chat" };
        format!("• {}, {place}", scope(link))
    };
    let lines: Vec<String> = links.iter().map(line).collect();
    format!("You are linked to:\n{}\nSend “unlink” to end it.", lines.join("\n"))
}

fn scope(link: &Link) -> String {
    match &link.environment {
        Some(environment) => format!("environment “{environment}” of project “{}”", link.project),
        None => format!("project “{}”, as its default", link.project),
    }
}

fn at(text: &str) -> String {
    minute(text).map(|minute| format!(" at {minute} UTC")).unwrap_or_default()
}

fn until(text: &str) -> String {
    minute(text).map(|minute| format!(" until {minute} UTC")).unwrap_or_default()
}

/// The minute of an RFC 3339 time.
fn minute(text: &str) -> Option<&str> {
    text.get(11..16)
}
