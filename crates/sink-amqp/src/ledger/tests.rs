//! The three facts one by one, and then a model of broker and library that has every freedom that they have.

use std::collections::{BTreeSet, VecDeque};

use fastrand::Rng;

use super::*;

fn returned(message_id: &str) -> Option<Returned> {
    Some(Returned { message_id: message_id.to_owned(), words: "NO_ROUTE".into() })
}

fn no_route() -> Answer {
    Answer::Returned("NO_ROUTE".into())
}

/// What is certain now, by name.
fn settled(ledger: &mut Ledger<&'static str>) -> Vec<(&'static str, Answer)> {
    let mut settled = ledger.settle();
    settled.sort_by_key(|(name, _)| *name);
    settled
}

/// A ledger in which these messages are in flight, numbered from 1, each waited for by its name.
fn in_flight<const N: usize>(names: [&'static str; N]) -> Ledger<&'static str> {
    let mut ledger = Ledger::new();
    for name in names {
        ledger.publish(name.to_owned(), name);
    }
    ledger
}

#[test]
fn an_acknowledgement_alone_is_a_receipt_and_a_nack_is_none() {
    let mut ledger = in_flight(["a", "b"]);
    assert_eq!(settled(&mut ledger), []);
    ledger.confirm(1, Confirmed::Ack, None);
    assert_eq!(settled(&mut ledger), [("a", Answer::Stored)]);
    ledger.confirm(2, Confirmed::Nack, None);
    assert_eq!(settled(&mut ledger), [("b", Answer::Refused)]);
    assert!(ledger.entries.is_empty());
}

#[test]
fn a_return_is_of_the_message_that_it_names_whoever_shows_it() {
    let mut ledger = in_flight(["stored", "lost", "later"]);
    ledger.confirm(1, Confirmed::Ack, returned("lost"));
    // The return is of a later message, so none is left that could be ours.
    assert_eq!(settled(&mut ledger), [("stored", Answer::Stored)]);
    ledger.confirm(2, Confirmed::Ack, None);
    assert_eq!(settled(&mut ledger), [("lost", no_route())]);
}

#[test]
fn who_shows_an_earlier_return_waits_until_its_own_would_have_come() {
    let begin = || {
        let mut ledger = in_flight(["1", "2", "3", "4"]);
        ledger.confirm(2, Confirmed::Ack, returned("1"));
        assert_eq!(settled(&mut ledger), [], "its own may be next");
        ledger
    };
    // Its own comes, with the acknowledgement of 1.
    let mut ledger = begin();
    ledger.confirm(1, Confirmed::Ack, returned("2"));
    assert_eq!(settled(&mut ledger), [("1", no_route()), ("2", no_route())]);
    // A later one comes.
    let mut ledger = begin();
    ledger.confirm(1, Confirmed::Ack, returned("3"));
    assert_eq!(settled(&mut ledger), [("1", no_route()), ("2", Answer::Stored)]);
    // None is left over.
    let mut ledger = begin();
    ledger.confirm(3, Confirmed::Ack, None);
    assert_eq!(settled(&mut ledger), [("2", Answer::Stored), ("3", Answer::Stored)]);
}

#[test]
fn nothing_is_left_over_once_nothing_waits() {
    let mut ledger = in_flight(["1", "2"]);
    ledger.confirm(2, Confirmed::Ack, returned("1"));
    ledger.confirm(1, Confirmed::Ack, None);
    assert_eq!(settled(&mut ledger), [("1", no_route()), ("2", Answer::Stored)]);
}

#[test]
fn no_return_shown_in_the_same_round_proves_nothing() {
    let mut ledger = in_flight(["1", "2", "3"]);
    // 3 may have been acknowledged first, and the return of 2 be still to come with 1.
    ledger.confirm(2, Confirmed::Ack, returned("1"));
    ledger.confirm(3, Confirmed::Ack, None);
    assert_eq!(settled(&mut ledger), [("3", Answer::Stored)]);
    ledger.confirm(1, Confirmed::Ack, returned("2"));
    assert_eq!(settled(&mut ledger), [("1", no_route()), ("2", no_route())]);
}

#[test]
fn one_id_in_flight_twice_is_returned_twice() {
    let mut ledger = in_flight(["same", "same"]);
    ledger.confirm(2, Confirmed::Ack, returned("same"));
    ledger.confirm(1, Confirmed::Ack, returned("same"));
    assert_eq!(settled(&mut ledger), [("same", no_route()), ("same", no_route())]);
}

#[test]
fn what_is_left_is_taken_out_without_an_answer() {
    let mut ledger = in_flight(["1", "2", "3"]);
    ledger.confirm(3, Confirmed::Ack, returned("1"));
    let left: Vec<_> = ledger.abandon().into_iter().map(|left| (left.waiting, left.is_untouched)).collect();
    assert_eq!(left, [("1", false), ("2", true), ("3", false)]);
    assert!(ledger.entries.is_empty());
}

/// Broker and library, as free as they are: acknowledgements in any order, each after the return of its message.
struct Model {
    random: Rng,
    /// By number from 1; whether no queue is there for it.
    published: Vec<bool>,
    /// Sent by the broker and not yet handed out by the library.
    left_over: VecDeque<u64>,
    /// Worked off by the broker, whose acknowledgement is not yet out.
    unconfirmed: Vec<u64>,
    /// Worked off by the library, but not yet by us, in its order.
    handed_out: Vec<(u64, Option<u64>)>,
}

impl Model {
    fn publish(&mut self) -> u64 {
        self.published.push(self.random.u8(..7) == 0);
        self.published.len() as u64
    }

    /// The broker works off a message, in the order of publishing.
    fn route(&mut self, number: u64) {
        if self.published[number as usize - 1] {
            self.left_over.push_back(number);
        }
        self.unconfirmed.push(number);
    }

    /// The broker acknowledges some message, and the library hands it out with whatever return is next.
    fn confirm(&mut self) {
        if !self.unconfirmed.is_empty() {
            let number = self.unconfirmed.swap_remove(self.random.usize(..self.unconfirmed.len()));
            self.handed_out.push((number, self.left_over.pop_front()));
        }
    }
}

#[test]
fn whatever_order_answers_come_in_each_message_gets_its_own() {
    const MESSAGES: u64 = 400;
    for seed in 0..300 {
        let mut model = Model {
            random: Rng::with_seed(seed),
            published: Vec::new(),
            left_over: VecDeque::new(),
            unconfirmed: Vec::new(),
            handed_out: Vec::new(),
        };
        let mut ledger = Ledger::new();
        let mut unrouted = VecDeque::new();
        let mut answered = BTreeSet::new();
        while answered.len() < MESSAGES as usize {
            match model.random.u8(..8) {
                0..3 if (model.published.len() as u64) < MESSAGES => {
                    let number = model.publish();
                    assert_eq!(ledger.publish(number.to_string(), number), number);
                    unrouted.push_back(number);
                }
                3..5 => {
                    if let Some(number) = unrouted.pop_front() {
                        model.route(number);
                    }
                }
                5..7 => model.confirm(),
                _ => {
                    // All that is handed out is entered, in an order of its own.
                    let mut there = std::mem::take(&mut model.handed_out);
                    model.random.shuffle(&mut there);
                    for (number, shown) in there {
                        let shown = shown.and_then(|number| returned(&number.to_string()));
                        ledger.confirm(number, Confirmed::Ack, shown);
                    }
                    for (number, answer) in ledger.settle() {
                        let expected = if model.published[number as usize - 1] { no_route() } else { Answer::Stored };
                        assert_eq!(answer, expected, "message {number} of seed {seed}");
                        assert!(answered.insert(number));
                    }
                }
            }
        }
        assert!(ledger.entries.is_empty(), "seed {seed}");
    }
}
