//! The walk over a rule that checks it and gives each value of an event that it mentions a name.

use cel::common::ast::{CallExpr, ComprehensionExpr, Expr, IdedExpr, LiteralValue, operators};
use http::HeaderName;

use super::facts::{Field, JsonPaths};
use crate::{config::unknown, json::Pointer, route::Names};

/// What a rule can begin with.
const VARIABLES: &[&str] =
    &["source", "type", "attr", "headers", "method", "path", "content_type", "body_size", "json"];

/// The functions that there are beside operators and macros.
const FUNCTIONS: &[&str] = &["size", "startsWith", "endsWith", "contains", "int", "double", "string"];

/// Headers that no rule looks at: `hookgate explain` shows what rules look at.
const CREDENTIALS: [&str; 3] = ["authorization", "proxy-authorization", "cookie"];

/// What is known about the type of an expression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Bool,
    Int,
    UInt,
    Double,
    Text,
    List,
    Null,
    /// Anything: it comes from a body.
    Any,
}

impl Type {
    fn name(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::Int => "int",
            Self::UInt => "uint",
            Self::Double => "double",
            Self::Text => "string",
            Self::List => "list",
            Self::Null => "null",
            Self::Any => "value",
        }
    }

    fn is_number(self) -> bool {
        matches!(self, Self::Int | Self::UInt | Self::Double | Self::Any)
    }

    /// Whether values of the two can be equal, or one be less than the other.
    fn is_comparable_with(self, other: Self) -> bool {
        self == other || self == Self::Any || other == Self::Any || (self.is_number() && other.is_number())
    }
}

/// What is wrong, and with which part of the rule.
pub(super) struct Wrong {
    pub(super) at: u64,
    pub(super) message: String,
}

type Checked = Result<Type, Wrong>;

fn wrong<T>(at: u64, message: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { at, message: message.into() })
}

/// The name that stands for the `place`th value. No rule can say it.
fn value_name(place: usize) -> String {
    place.to_string()
}

/// The name that stands for whether it is there.
fn presence_name(place: usize) -> String {
    format!("?{place}")
}

/// The place of the value that `name` stands for.
pub(super) fn value_named(name: &str) -> Option<usize> {
    name.parse().ok()
}

/// The place of the value that `name` asks for.
pub(super) fn presence_named(name: &str) -> Option<usize> {
    name.strip_prefix('?')?.parse().ok()
}

pub(super) struct Checker<'a> {
    names: &'a Names<'a>,
    json: &'a mut JsonPaths,
    /// Every value that is mentioned, each once.
    pub(super) fields: Vec<Field>,
    pub(super) reads_json: bool,
    /// The variables of the macro that the walk is in.
    local: Vec<(String, Type)>,
}

impl<'a> Checker<'a> {
    pub(super) fn new(names: &'a Names<'a>, json: &'a mut JsonPaths) -> Self {
        Self { names, json, fields: Vec::new(), reads_json: false, local: Vec::new() }
    }

    /// Checks the whole of a rule, which has to be true or false.
    pub(super) fn check_rule(&mut self, rule: &mut IdedExpr) -> Result<(), Wrong> {
        let at = rule.id;
        match self.check(rule)? {
            Type::Bool | Type::Any => Ok(()),
            other => wrong(at, format!("a rule is true or false, and this is a {}", other.name())),
        }
    }

    fn check(&mut self, expression: &mut IdedExpr) -> Checked {
        let at = expression.id;
        if let Some((begin, root, path)) = path_of(expression)
            && !self.local.iter().any(|(name, _)| name == root)
        {
            let is_presence = matches!(&expression.expr, Expr::Select(select) if select.test);
            let field = self.field(begin, root, &path)?;
            let of = if field.is_text() {
                Type::Text
            } else if field == Field::BodySize {
                Type::Int
            } else {
                Type::Any
            };
            let place = self.place(field);
            expression.expr = Expr::Ident(if is_presence { presence_name(place) } else { value_name(place) });
            return Ok(if is_presence { Type::Bool } else { of });
        }
        if let Some((root, name)) = asked_for(expression) {
            let field = self.field(at, root, &[name])?;
            expression.expr = Expr::Ident(presence_name(self.place(field)));
            return Ok(Type::Bool);
        }
        match &mut expression.expr {
            Expr::Ident(name) => {
                let local = self.local.iter().rev().find(|(local, _)| local == name);
                Ok(local.expect("every other name is a path").1)
            }
            Expr::Literal(literal) => Ok(type_of(literal)),
            Expr::List(list) => {
                list.elements.iter_mut().try_for_each(|element| self.check(element).map(drop))?;
                Ok(Type::List)
            }
            Expr::Select(select) => {
                let of = self.check(&mut select.operand)?;
                let is_presence = select.test;
                match of {
                    Type::Any if is_presence => Ok(Type::Bool),
                    Type::Any => Ok(Type::Any),
                    other => wrong(at, format!("a {} has no fields", other.name())),
                }
            }
            Expr::Call(call) => self.call(at, call),
            Expr::Comprehension(comprehension) => self.comprehension(at, comprehension),
            Expr::Map(_) | Expr::Struct(_) => wrong(at, "maps and messages cannot be written in a rule"),
            Expr::Unspecified => wrong(at, "something is missing"),
        }
    }

    /// The value that `root` with `path` behind it is.
    fn field(&mut self, at: u64, root: &str, path: &[String]) -> Result<Field, Wrong> {
        let whole = |field: Field| match path {
            [] => Ok(field),
            _ => wrong(at, format!("{root} has no fields")),
        };
        match root {
            "source" => whole(Field::Source),
            "type" => whole(Field::EventType),
            "method" => whole(Field::Method),
            "path" => whole(Field::Path),
            "content_type" => whole(Field::ContentType),
            "body_size" => whole(Field::BodySize),
            "attr" => match path {
                [name] if self.names.attributes.contains(name) => Ok(Field::Attribute(name.clone())),
                [name] => {
                    let known: Vec<&str> = self.names.attributes.iter().map(String::as_str).collect();
                    wrong(at, unknown("attribute", name, &known))
                }
                _ => wrong(at, "an attribute is written attr.NAME, or attr[\"NAME\"]"),
            },
            "headers" => match path {
                [name] => match name.to_ascii_lowercase().parse::<HeaderName>() {
                    Ok(header) if CREDENTIALS.contains(&header.as_str()) => {
                        wrong(at, format!("the header {header} holds credentials, which no rule looks at"))
                    }
                    Ok(header) => Ok(Field::Header(header)),
                    Err(_) => wrong(at, format!("{name:?} is not the name of a header")),
                },
                _ => wrong(at, "a header is written headers[\"NAME\"]"),
            },
            "json" if path.is_empty() => wrong(at, "a value of the body is written json.NAME.NAME"),
            "json" => {
                let escaped = path.iter().map(|key| key.replace('~', "~0").replace('/', "~1"));
                let text: String = escaped.map(|key| format!("/{key}")).collect();
                let pointer = Pointer::parse(&text).map_err(|message| Wrong { at, message })?;
                let slot = self.json.watch(&pointer).map_err(|message| Wrong { at, message })?;
                self.reads_json = true;
                Ok(Field::Json { pointer, slot })
            }
            _ => wrong(at, unknown("variable", root, VARIABLES)),
        }
    }

    fn place(&mut self, field: Field) -> usize {
        match self.fields.iter().position(|known| *known == field) {
            Some(place) => place,
            None => {
                self.fields.push(field);
                self.fields.len() - 1
            }
        }
    }

    fn call(&mut self, at: u64, call: &mut CallExpr) -> Checked {
        let target = call.target.as_mut().map(|target| self.check(target)).transpose()?;
        let arguments = call.args.iter_mut().map(|argument| self.check(argument)).collect::<Result<Vec<_>, _>>()?;
        let operands: Vec<Type> = target.into_iter().chain(arguments).collect();
        self.known_sources(at, call)?;
        let unfit = || {
            let names: Vec<&str> = operands.iter().map(|operand| operand.name()).collect();
            let what = call.func_name.trim_matches(['_', '@']);
            wrong(at, format!("{what:?} cannot be said of {}", names.join(" and ")))
        };
        let boolean = |operand: Type| matches!(operand, Type::Bool | Type::Any);
        let text = |operand: Type| matches!(operand, Type::Text | Type::Any);
        match (call.func_name.as_str(), operands.as_slice()) {
            (operators::EQUALS | operators::NOT_EQUALS, &[left, right]) => {
                match left.is_comparable_with(right) || left == Type::Null || right == Type::Null {
                    true => Ok(Type::Bool),
                    false => wrong(at, format!("a {} is never equal to a {}", left.name(), right.name())),
                }
            }
            (
                operators::LESS | operators::LESS_EQUALS | operators::GREATER | operators::GREATER_EQUALS,
                &[left, right],
            ) => match left.is_comparable_with(right) && ![left, right].contains(&Type::List) {
                true => Ok(Type::Bool),
                false => unfit(),
            },
            (operators::LOGICAL_AND | operators::LOGICAL_OR, &[left, right]) if boolean(left) && boolean(right) => {
                Ok(Type::Bool)
            }
            (operators::LOGICAL_NOT | operators::NOT_STRICTLY_FALSE, &[operand]) if boolean(operand) => Ok(Type::Bool),
            (operators::CONDITIONAL, &[condition, left, right]) if boolean(condition) => {
                Ok(if left == right { left } else { Type::Any })
            }
            (operators::IN, &[_, Type::List | Type::Any]) => Ok(Type::Bool),
            (operators::INDEX, &[Type::List | Type::Any, _]) => Ok(Type::Any),
            (operators::NEGATE, &[operand]) if operand.is_number() => Ok(operand),
            (operators::ADD, &[left, right]) if left == right => Ok(left),
            (operators::ADD, &[left, right]) if [left, right].contains(&Type::Any) => Ok(Type::Any),
            (
                operators::ADD | operators::SUBSTRACT | operators::MULTIPLY | operators::DIVIDE | operators::MODULO,
                &[left, right],
            ) if left.is_number() && left.is_comparable_with(right) => Ok(if left == Type::Any { right } else { left }),
            ("size", &[Type::Text | Type::List | Type::Any]) => Ok(Type::Int),
            ("startsWith" | "endsWith" | "contains", &[left, right]) if text(left) && text(right) => Ok(Type::Bool),
            ("int", &[operand]) if operand.is_number() || text(operand) => Ok(Type::Int),
            ("double", &[operand]) if operand.is_number() || text(operand) => Ok(Type::Double),
            ("string", &[_]) => Ok(Type::Text),
            (name, _) if name.starts_with(['_', '!', '-', '@']) || FUNCTIONS.contains(&name) => unfit(),
            (name, _) => wrong(at, unknown("function", name, FUNCTIONS)),
        }
    }

    /// A text that is compared with `source` has to be the name of one.
    fn known_sources(&self, at: u64, call: &CallExpr) -> Result<(), Wrong> {
        let compares = matches!(call.func_name.as_str(), operators::EQUALS | operators::NOT_EQUALS | operators::IN);
        let is_source = |operand: &IdedExpr| matches!(&operand.expr, Expr::Ident(name) if value_named(name).and_then(|place| self.fields.get(place)) == Some(&Field::Source));
        if !compares || !call.args.iter().any(is_source) {
            return Ok(());
        }
        let mut texts: Vec<&IdedExpr> = call.args.iter().collect();
        texts.extend(call.args.iter().flat_map(|operand| match &operand.expr {
            Expr::List(list) => list.elements.as_slice(),
            _ => &[],
        }));
        for text in texts {
            if let Expr::Literal(LiteralValue::String(name)) = &text.expr
                && !self.names.sources.iter().any(|known| known == name.inner())
            {
                let known: Vec<&str> = self.names.sources.iter().map(String::as_str).collect();
                return wrong(at, unknown("source", name.inner(), &known));
            }
        }
        Ok(())
    }

    /// `all`, `exists` and the other macros, after their expansion.
    fn comprehension(&mut self, at: u64, comprehension: &mut ComprehensionExpr) -> Checked {
        if !self.local.is_empty() {
            return wrong(at, "a macro inside another is not allowed: how long it takes would be the sender's choice");
        }
        let ComprehensionExpr { iter_range, iter_var, iter_var2, accu_var, accu_init, loop_cond, loop_step, result } =
            comprehension;
        match self.check(iter_range)? {
            Type::List | Type::Any => {}
            other => return wrong(at, format!("a {} is not a list", other.name())),
        }
        let accumulated = self.check(accu_init)?;
        for name in [Some(&*iter_var), iter_var2.as_ref()].into_iter().flatten() {
            if VARIABLES.contains(&name.as_str()) {
                return wrong(at, format!("{name} is the name of something else already"));
            }
            self.local.push((name.clone(), Type::Any));
        }
        self.local.push((accu_var.clone(), accumulated));
        let checked = self.check(loop_cond).and_then(|_| self.check(loop_step)).and_then(|_| self.check(result));
        self.local.clear();
        checked
    }
}

fn type_of(literal: &LiteralValue) -> Type {
    match literal {
        LiteralValue::Boolean(_) => Type::Bool,
        LiteralValue::Bytes(_) | LiteralValue::Null => Type::Null,
        LiteralValue::Double(_) => Type::Double,
        LiteralValue::Int(_) => Type::Int,
        LiteralValue::String(_) => Type::Text,
        LiteralValue::UInt(_) => Type::UInt,
    }
}

/// `"x" in attr` as the map and the name.
fn asked_for(expression: &IdedExpr) -> Option<(&str, String)> {
    let Expr::Call(call) = &expression.expr else { return None };
    let [name, map] = call.args.as_slice() else { return None };
    match (&name.expr, &map.expr) {
        (Expr::Literal(LiteralValue::String(name)), Expr::Ident(root))
            if call.func_name == operators::IN && matches!(root.as_str(), "attr" | "headers") =>
        {
            Some((root, name.inner().to_owned()))
        }
        _ => None,
    }
}

/// `a.b["c"][0]` as its root, with where that stands, and the keys behind it.
fn path_of(expression: &IdedExpr) -> Option<(u64, &str, Vec<String>)> {
    match &expression.expr {
        Expr::Ident(name) => Some((expression.id, name, Vec::new())),
        Expr::Select(select) => {
            let (begin, root, mut path) = path_of(&select.operand)?;
            path.push(select.field.clone());
            Some((begin, root, path))
        }
        Expr::Call(call) if call.func_name == operators::INDEX => {
            let [operand, key] = call.args.as_slice() else { return None };
            let key = match &key.expr {
                Expr::Literal(LiteralValue::String(text)) => text.inner().to_owned(),
                Expr::Literal(LiteralValue::Int(place)) => place.inner().to_string(),
                _ => return None,
            };
            let (begin, root, mut path) = path_of(operand)?;
            path.push(key);
            Some((begin, root, path))
        }
        _ => None,
    }
}
