//! The rules of routes: CEL over what is known of an event.
//!
//! The `cel` crate parses and evaluates. Before that, every mention of an event's value (`attr.status`, `headers["x"]`,
//! `json.job.id`) is replaced by a name of its own, which a resolver looks up: no map of attributes or headers is built for an
//! event, and of the body only the paths that some rule mentions are read. The same walk checks types and names, so that what can
//! still go wrong with an event is that a value is not there. Then the rule does not hold.
//!
//! Source: the Common Expression Language specification, language definition; `cel` 0.15 for what of it there is.

mod check;
mod facts;

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::LazyLock,
    thread,
};

use cel::{
    Context, Env, Value,
    common::ast::{Expr, IdedExpr, LiteralValue, operators},
};

pub(super) use self::facts::{Facts, JsonPaths};
use self::{check::Checker, facts::Field};
use super::Names;

/// Longest rule, in bytes. Its parser takes time and memory that grow with the text.
const TEXT_BYTES_MAX: usize = 4096;

/// For the thread that parses: the parser and the check call themselves for each level of nesting.
const STACK_BYTES: usize = 16 * 1024 * 1024;

/// A rule over an event.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    test: Test,
    /// The one source whose events it can hold for, if it says so.
    source: Option<String>,
    /// Whether it reads the body.
    reads_json: bool,
}

#[derive(Debug, Clone)]
enum Test {
    /// All of these hold; none means always. Most rules are of this kind, and need no interpreter.
    Equalities(Vec<(Field, String)>),
    /// With the names that [`Checker`] gave to `fields`.
    Expression { expression: Box<IdedExpr>, fields: Vec<Field> },
}

/// What became of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    Yes,
    No,
    /// It looked at something that the event does not have. It does not hold, then.
    Incomplete,
}

/// Without macros beyond the standard ones, and without regular expressions, whose cost senders would decide.
static CONTEXT: LazyLock<Context<'static, 'static>> = LazyLock::new(Context::default);

impl Rule {
    /// The rule that every event fits.
    pub(super) fn always() -> Self {
        Self { test: Test::Equalities(Vec::new()), source: None, reads_json: false }
    }

    /// Parses and checks a rule. What it reads of bodies is added to `json`.
    ///
    /// # Errors
    /// A sentence for the operator that points into the rule.
    pub(super) fn compile(text: &str, names: &Names<'_>, json: &mut JsonPaths) -> Result<Self, String> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(format!("is {} bytes long; a rule has at most {TEXT_BYTES_MAX}", text.len()));
        }
        let work = || catch_unwind(AssertUnwindSafe(|| Self::compile_here(text, names, json)));
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("rule".to_owned()).stack_size(STACK_BYTES);
            let thread = thread.spawn_scoped(scope, work).map_err(|error| format!("cannot be parsed now: {error}"))?;
            thread
                .join()
                .and_then(|parsed| parsed)
                .unwrap_or_else(|_| Err("cannot be parsed; write it more simply".to_owned()))
        })
    }

    fn compile_here(text: &str, names: &Names<'_>, json: &mut JsonPaths) -> Result<Self, String> {
        let program = Env::stdlib().compile(text).map_err(|errors| {
            let first = errors.errors.first();
            let message = first.map_or("is not CEL", |error| error.msg.trim());
            let (line, column) = first.map_or((1, 1), |error| error.pos);
            let advice = if message.contains("error at: '=") { "; CEL compares by \"==\"" } else { "" };
            format!("{message}{advice}, at line {line}, column {column} of {text:?}")
        })?;
        let mut expression = program.expression().clone();
        let mut checker = Checker::new(names, json);
        checker.check_rule(&mut expression).map_err(|wrong| {
            let offset = program.source_info().offset_for(wrong.at).map_or(0, |(start, _)| start as usize);
            format!("{}, {}", wrong.message, place(text, offset))
        })?;
        let (fields, reads_json) = (checker.fields, checker.reads_json);
        let source = only_source(&expression, &fields);
        let test = match equalities(&expression, &fields) {
            Some(equalities) => Test::Equalities(equalities),
            None => Test::Expression { expression: Box::new(expression), fields },
        };
        Ok(Self { test, source, reads_json })
    }

    /// The one source whose events it can hold for, if it says so.
    pub(super) fn source(&self) -> Option<&str> {
        self.source.as_deref()
    }

    /// Whether it needs the body to be read.
    pub(super) fn reads_json(&self) -> bool {
        self.reads_json
    }

    /// Whether it holds for an event.
    pub(super) fn holds(&self, facts: &Facts<'_>) -> Held {
        match &self.test {
            Test::Equalities(equalities) => {
                let mut held = Held::Yes;
                for (field, value) in equalities {
                    match facts.text(field) {
                        Some(actual) if actual == value => {}
                        Some(_) => return Held::No,
                        // As in CEL: what is missing does not matter where something else is wrong anyway.
                        None => held = Held::Incomplete,
                    }
                }
                held
            }
            Test::Expression { expression, fields } => {
                let resolver = facts.resolver(fields);
                let mut context = CONTEXT.new_inner_scope();
                context.set_variable_resolver(&resolver);
                match Value::resolve(expression, &context) {
                    Ok(Value::Bool(true)) => Held::Yes,
                    Ok(Value::Bool(false)) => Held::No,
                    _ => Held::Incomplete,
                }
            }
        }
    }

    /// The values that it looks at, by their names in CEL.
    pub(super) fn looks_at(&self, facts: &Facts<'_>) -> BTreeMap<String, Option<String>> {
        let fields: Vec<&Field> = match &self.test {
            Test::Equalities(equalities) => equalities.iter().map(|(field, _)| field).collect(),
            Test::Expression { fields, .. } => fields.iter().collect(),
        };
        fields.into_iter().map(|field| (field.to_string(), facts.shown(field))).collect()
    }
}

/// Where in `text` something is, and how it goes on there.
fn place(text: &str, offset: usize) -> String {
    // The parser counts characters.
    let before: String = text.chars().take(offset).collect();
    let rest: String = text.chars().skip(offset).take_while(|c| *c != '\n').take(40).collect();
    let (line, column) =
        (before.matches('\n').count() + 1, before.chars().rev().take_while(|c| *c != '\n').count() + 1);
    format!("at line {line}, column {column}: {rest:?}")
}

/// The operands of a chain of `&&`.
fn conjuncts<'a>(expression: &'a IdedExpr, found: &mut Vec<&'a IdedExpr>) {
    match &expression.expr {
        Expr::Call(call) if call.func_name == operators::LOGICAL_AND => {
            call.args.iter().for_each(|operand| conjuncts(operand, found));
        }
        _ => found.push(expression),
    }
}

/// `expression` as a field that is equal to a text, if it is that.
fn equality(expression: &IdedExpr, fields: &[Field]) -> Option<(Field, String)> {
    let Expr::Call(call) = &expression.expr else { return None };
    let [left, right] = call.args.as_slice() else { return None };
    if call.func_name != operators::EQUALS {
        return None;
    }
    let of = |field: &IdedExpr, text: &IdedExpr| match (&field.expr, &text.expr) {
        (Expr::Ident(name), Expr::Literal(LiteralValue::String(text))) => {
            let field = fields.get(check::value_named(name)?)?;
            field.is_text().then(|| (field.clone(), text.inner().to_owned()))
        }
        _ => None,
    };
    of(left, right).or_else(|| of(right, left))
}

fn equalities(expression: &IdedExpr, fields: &[Field]) -> Option<Vec<(Field, String)>> {
    let mut operands = Vec::new();
    conjuncts(expression, &mut operands);
    operands.into_iter().map(|operand| equality(operand, fields)).collect()
}

fn only_source(expression: &IdedExpr, fields: &[Field]) -> Option<String> {
    let mut operands = Vec::new();
    conjuncts(expression, &mut operands);
    let equal = operands.into_iter().filter_map(|operand| equality(operand, fields));
    equal.into_iter().find(|(field, _)| *field == Field::Source).map(|(_, source)| source)
}
