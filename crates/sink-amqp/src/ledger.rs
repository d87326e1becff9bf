//! Which message a broker's answer is about: what is in flight on one channel, and what has become of it.
//!
//! RabbitMQ acknowledges a message that no queue takes, too; before that it *returns* it. A receipt may be given only for
//! an acknowledgement without a return. The library hands out returns in the order in which they came, but each to
//! whichever acknowledgement it works off next. So an acknowledgement by itself says nothing: a message may show none
//! although it was returned, and show one that is another's. That one's `message_id` says whose it is, and three facts say
//! when there is no return left that could be ours:
//!
//! - RabbitMQ returns messages in the order of publishing, and each before it acknowledges it.
//! - Whoever was acknowledged later and shows no return saw that none was left over, ours included.
//! - There are never more returns left over than there are returned messages without their acknowledgement; so none is
//!   when nothing waits for one.
//!
//! For all three, what the library has already handed out must have been entered here: enter everything that is there,
//! then [settle](Ledger::settle).
//!
//! Source: lapin 4.12.3, `acknowledgement.rs`, `complete_pending`, and `returned_messages.rs`; RabbitMQ `rabbit_channel.erl`,
//! `process_routing_mandatory` and `send_confirms_and_nacks`.

use std::{collections::BTreeMap, sync::Arc};

/// What the broker has said about a message, all that it will say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Every queue that it was routed to has stored it.
    Stored,
    /// A queue refuses it (nack).
    Refused,
    /// No queue was there for it; in the broker's words.
    Returned(Arc<str>),
}

/// What one acknowledgement says by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Confirmed {
    Ack,
    Nack,
}

/// A returned message, whose acknowledgement may be another's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Returned {
    pub(crate) message_id: String,
    pub(crate) words: Arc<str>,
}

/// The messages of one channel that the broker has not told us all about. `T` is whoever waits for the answer.
pub(crate) struct Ledger<T> {
    /// By number, that is, in the order of publishing.
    entries: BTreeMap<u64, Entry<T>>,
    next_number: u64,
    /// Numbers of the entries that have their acknowledgement.
    confirmed: Vec<u64>,
    /// Entries without their acknowledgement.
    unconfirmed: usize,
    /// Counts calls of [`Self::settle`].
    round: u64,
    /// Highest number of a message that was returned.
    returned_max: Option<u64>,
    /// The latest round in which an acknowledgement showed no return.
    round_without_return: Option<u64>,
}

struct Entry<T> {
    message_id: String,
    waiting: T,
    returned: Option<Arc<str>>,
    confirmed: Option<Confirmation>,
}

#[derive(Clone, Copy)]
struct Confirmation {
    confirmed: Confirmed,
    round: u64,
    shown: Shown,
}

/// The return that came with an acknowledgement.
#[derive(Clone, Copy)]
enum Shown {
    None,
    /// Of the message with this number; of one that is not known, if there is none.
    Of(Option<u64>),
}

/// An entry that is taken out without an answer.
pub(crate) struct Unanswered<T> {
    pub(crate) waiting: T,
    /// Whether the broker has said nothing at all about it.
    pub(crate) is_untouched: bool,
}

impl<T> Ledger<T> {
    pub(crate) fn new() -> Self {
        Self {
            entries: BTreeMap::new(),
            next_number: 1,
            confirmed: Vec::new(),
            unconfirmed: 0,
            round: 0,
            returned_max: None,
            round_without_return: None,
        }
    }

    /// Enters a message that is being published, after all that were entered before.
    pub(crate) fn publish(&mut self, message_id: String, waiting: T) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        self.unconfirmed += 1;
        self.entries.insert(number, Entry { message_id, waiting, returned: None, confirmed: None });
        number
    }

    /// Enters the acknowledgement of a message, with whatever return the library has given to it.
    pub(crate) fn confirm(&mut self, number: u64, confirmed: Confirmed, returned: Option<Returned>) {
        let shown = match returned {
            None => {
                self.round_without_return = Some(self.round);
                Shown::None
            }
            Some(returned) => Shown::Of(self.mark_returned(returned)),
        };
        if let Some(entry) = self.entries.get_mut(&number) {
            entry.confirmed = Some(Confirmation { confirmed, round: self.round, shown });
            self.confirmed.push(number);
            self.unconfirmed -= 1;
        }
    }

    /// The number of the message that was returned. One id can be in flight twice; then it is the earlier one's.
    fn mark_returned(&mut self, returned: Returned) -> Option<u64> {
        let is_it = |entry: &Entry<T>| entry.returned.is_none() && entry.message_id == returned.message_id;
        let (number, entry) = self.entries.iter_mut().find(|(_, entry)| is_it(entry))?;
        entry.returned = Some(returned.words);
        self.returned_max = self.returned_max.max(Some(*number));
        Some(*number)
    }

    /// Takes out all whose answer is certain, given that every acknowledgement that is there has been entered.
    pub(crate) fn settle(&mut self) -> Vec<(T, Answer)> {
        let mut settled = Vec::new();
        for number in std::mem::take(&mut self.confirmed) {
            match self.answer(number) {
                None => self.confirmed.push(number),
                Some(answer) => settled.extend(self.entries.remove(&number).map(|entry| (entry.waiting, answer))),
            }
        }
        self.round += 1;
        settled
    }

    fn answer(&self, number: u64) -> Option<Answer> {
        let entry = self.entries.get(&number)?;
        let Confirmation { confirmed, round, shown } = entry.confirmed?;
        if let Some(words) = &entry.returned {
            return Some(Answer::Returned(Arc::clone(words)));
        }
        if confirmed == Confirmed::Nack {
            return Some(Answer::Refused);
        }
        let own_return_would_be_known = match shown {
            Shown::None => true,
            // Returns come in the order of publishing: ours was handed out before one of a later message.
            Shown::Of(Some(of)) if of > number => true,
            Shown::Of(_) => {
                self.returned_max > Some(number)
                    || self.unconfirmed == 0
                    // Of this round would not do: it may have been before ours.
                    || self.round_without_return > Some(round)
            }
        };
        own_return_would_be_known.then_some(Answer::Stored)
    }

    /// Takes out all that are left, when nothing more will come.
    pub(crate) fn abandon(&mut self) -> Vec<Unanswered<T>> {
        self.unconfirmed = 0;
        self.confirmed.clear();
        let unanswered = |entry: Entry<T>| Unanswered {
            is_untouched: entry.confirmed.is_none() && entry.returned.is_none(),
            waiting: entry.waiting,
        };
        std::mem::take(&mut self.entries).into_values().map(unanswered).collect()
    }
}

#[cfg(test)]
mod tests;
