//! What senders were told, what the broker holds, and whether the two agree.

use std::{collections::BTreeMap, fmt};

/// What a sender was told about one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    Status {
        code: u16,
        retry_after: bool,
    },
    /// The connection was refused: nothing was sent.
    Refused,
    /// Reset or no answer: nobody knows.
    Nothing,
}

impl Told {
    pub(crate) fn is_success(self) -> bool {
        matches!(self, Self::Status { code: 200..=299, .. })
    }
}

/// Of each event, what was told about every attempt.
pub(crate) type History = BTreeMap<usize, Vec<Told>>;

/// What the broker holds: the numbers of the events, whether they are what was sent.
pub(crate) type Stored = Vec<(usize, bool)>;

/// What is wrong, as sets of events.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) acknowledged: usize,
    /// There, though no attempt was told to be good.
    pub(crate) recovered: usize,
    /// Acknowledged and not there.
    pub(crate) lost: Vec<usize>,
    /// There more often than once.
    pub(crate) duplicated: Vec<usize>,
    /// There and never sent, or not as it was sent.
    pub(crate) unexpected: Vec<usize>,
    /// Answers that no fault explains.
    pub(crate) wrong_answers: Vec<(usize, Told)>,
}

impl Verdict {
    pub(crate) fn of(history: &History, stored: &Stored) -> Self {
        let mut verdict = Self::default();
        let mut copies: BTreeMap<usize, usize> = BTreeMap::new();
        for (number, intact) in stored {
            *copies.entry(*number).or_default() += 1;
            if !intact || !history.contains_key(number) {
                verdict.unexpected.push(*number);
            }
        }
        for (number, attempts) in history {
            let copies = copies.get(number).copied().unwrap_or_default();
            let acknowledged = attempts.iter().any(|told| told.is_success());
            verdict.acknowledged += usize::from(acknowledged);
            verdict.recovered += usize::from(!acknowledged && copies > 0);
            if acknowledged && copies == 0 {
                verdict.lost.push(*number);
            }
            if copies > 1 {
                verdict.duplicated.push(*number);
            }
            for told in attempts {
                let expected = match told {
                    Told::Nothing | Told::Refused => true,
                    Told::Status { code: 200 | 202, .. } => true,
                    Told::Status { code: 503 | 504, retry_after } => *retry_after,
                    Told::Status { .. } => false,
                };
                if !expected {
                    verdict.wrong_answers.push((*number, *told));
                }
            }
        }
        verdict
    }

    /// Nothing is lost, foreign or wrongly answered; a copy too many is what a broker without deduplication may have.
    pub(crate) fn is_at_least_once(&self) -> bool {
        let Self { lost, unexpected, wrong_answers, .. } = self;
        lost.is_empty() && unexpected.is_empty() && wrong_answers.is_empty()
    }

    /// And each is there once.
    pub(crate) fn is_exactly_once(&self) -> bool {
        self.is_at_least_once() && self.duplicated.is_empty()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { acknowledged, recovered, lost, duplicated, unexpected, wrong_answers } = self;
        let (lost, duplicated) = (lost.len(), duplicated.len());
        let (unexpected, wrong) = (unexpected.len(), wrong_answers.len());
        write!(
            f,
            "{acknowledged} acknowledged, {recovered} recovered, {lost} lost, {duplicated} duplicated, {unexpected} unexpected, {wrong} wrong answers"
        )
    }
}

#[test]
fn the_judge_sees_each_kind_of_wrong() {
    let ok = Told::Status { code: 200, retry_after: false };
    let refused = Told::Status { code: 503, retry_after: true };
    let of = |attempts: &[Told], stored: &[(usize, bool)]| {
        Verdict::of(&History::from([(1, attempts.to_vec())]), &stored.to_vec())
    };
    assert!(of(&[refused, ok], &[(1, true)]).is_exactly_once());
    assert!(of(&[refused, Told::Nothing, Told::Refused], &[]).is_exactly_once());
    assert_eq!(of(&[Told::Nothing], &[(1, true)]).recovered, 1);
    let twice = of(&[ok], &[(1, true), (1, true)]);
    assert_eq!((twice.is_at_least_once(), twice.duplicated), (true, vec![1]));
    let (lost, changed) = (of(&[refused, ok], &[]), of(&[ok], &[(1, false)]));
    assert!(!lost.is_at_least_once() && !changed.is_at_least_once());
    assert_eq!((lost.lost, changed.unexpected), (vec![1], vec![1]));
    assert_eq!(of(&[ok], &[(1, true), (2, true)]).unexpected, [2]);
    for code in [301, 401, 500] {
        assert_eq!(of(&[Told::Status { code, retry_after: false }], &[]).wrong_answers.len(), 1, "{code}");
    }
    assert_eq!(of(&[Told::Status { code: 503, retry_after: false }], &[]).wrong_answers.len(), 1);
}
