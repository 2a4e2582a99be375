//! The paths that a Rust source uses, as far as the borders need them: without types,
//! comments and texts.

use std::iter::Peekable;

/// Every path of a source with its `use` groups spelled out. `path` is the file's place
/// under `src`. A path into this crate starts with `crate`, wherever `super` came from.
pub(super) fn paths(path: &str, source: &str) -> Vec<Vec<String>> {
    let tokens = tokens(source);
    let depth = path.trim_end_matches(".rs").split('/').count();
    let mut scanner = Scanner {
        tokens: &tokens,
        at: 0,
        depth: match path {
            "lib.rs" | "main.rs" => 0,
            _ => depth,
        },
        braces: Vec::new(),
        found: Vec::new(),
    };
    scanner.scan();
    scanner.found
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    /// `::`
    Colons,
    Mark(char),
}

struct Scanner<'a> {
    tokens: &'a [Token],
    at: usize,
    /// How many modules the file's own module is below the crate.
    depth: usize,
    /// Of each open brace, whether it is a module's.
    braces: Vec<bool>,
    found: Vec<Vec<String>>,
}

impl Scanner<'_> {
    fn peek(&self, ahead: usize) -> Option<&Token> {
        self.tokens.get(self.at + ahead)
    }

    fn is_mark(&self, ahead: usize, mark: char) -> bool {
        self.peek(ahead) == Some(&Token::Mark(mark))
    }

    fn scan(&mut self) {
        while let Some(token) = self.peek(0) {
            match token {
                Token::Word(word) if word == "mod" && self.is_mark(2, '{') => {
                    self.braces.push(true);
                    self.at += 3;
                }
                Token::Word(word) if word == "use" => {
                    self.at += 1;
                    self.tree(&[]);
                }
                // A field or method is no path.
                Token::Mark('.') => self.at += 2,
                Token::Word(_) => self.expression(),
                Token::Mark('{') => {
                    self.braces.push(false);
                    self.at += 1;
                }
                Token::Mark('}') => {
                    self.braces.pop();
                    self.at += 1;
                }
                Token::Colons | Token::Mark(_) => self.at += 1,
            }
        }
    }

    /// A path outside of `use`; a lone word is none.
    fn expression(&mut self) {
        let mut path = Vec::new();
        while let Some(Token::Word(word)) = self.peek(0) {
            path.push(word.clone());
            self.at += 1;
            match (self.peek(0), self.peek(1)) {
                (Some(Token::Colons), Some(Token::Word(_))) => self.at += 1,
                _ => break,
            }
        }
        if path.len() > 1 {
            self.report(path);
        }
    }

    /// A tree of `use`: a path, a group, a glob.
    fn tree(&mut self, before: &[String]) {
        let mut path = before.to_vec();
        loop {
            match self.peek(0) {
                Some(Token::Word(word)) if word == "as" => self.at += 2,
                Some(Token::Word(word)) => {
                    path.push(word.clone());
                    self.at += 1;
                }
                Some(Token::Colons) => self.at += 1,
                Some(Token::Mark('*')) => {
                    path.push("*".to_owned());
                    self.at += 1;
                }
                Some(Token::Mark('{')) => {
                    self.at += 1;
                    self.group(&path);
                    return;
                }
                _ => break,
            }
        }
        if path.last().is_some_and(|last| last == "self") && path.len() > 1 {
            path.pop();
        }
        self.report(path);
    }

    fn group(&mut self, before: &[String]) {
        while let Some(token) = self.peek(0) {
            match token {
                Token::Mark('}') => {
                    self.at += 1;
                    return;
                }
                Token::Mark(',') => self.at += 1,
                _ => {
                    let start = self.at;
                    self.tree(before);
                    // What is not Rust must not hold us here.
                    self.at = self.at.max(start + 1);
                }
            }
        }
    }

    fn report(&mut self, path: Vec<String>) {
        let supers = path.iter().take_while(|part| *part == "super").count();
        let modules = self.braces.iter().filter(|module| **module).count();
        let starts_in_crate = match path.first().map(String::as_str) {
            Some("crate" | "siem_relay") => 1,
            Some("super") if supers == self.depth + modules => supers,
            Some("self" | "super") => return,
            _ => 0,
        };
        if starts_in_crate == 0 {
            self.found.push(path);
            return;
        }
        let mut whole = vec!["crate".to_owned()];
        whole.extend(path.into_iter().skip(starts_in_crate));
        self.found.push(whole);
    }
}

/// The words and marks of a source, without comments, texts, characters and lifetimes.
fn tokens(source: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = source.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '/' if rest.peek() == Some(&'/') => skip_line(&mut rest),
            '/' if rest.peek() == Some(&'*') => skip_comment(&mut rest),
            '"' => skip_text(&mut rest),
            '\'' => skip_quote(&mut rest),
            ':' if rest.peek() == Some(&':') => {
                rest.next();
                tokens.push(Token::Colons);
            }
            c if c.is_alphanumeric() || c == '_' => {
                let word = word(c, &mut rest);
                let is_raw = matches!(word.as_str(), "r" | "br" | "cr")
                    && matches!(rest.peek(), Some('"' | '#'));
                match is_raw {
                    true => skip_raw(&mut rest),
                    false => tokens.push(Token::Word(word)),
                }
            }
            c if c.is_whitespace() => {}
            c => tokens.push(Token::Mark(c)),
        }
    }
    tokens
}

fn word(first: char, rest: &mut Peekable<impl Iterator<Item = char>>) -> String {
    let mut word = String::from(first);
    while let Some(c) = rest.next_if(|c| c.is_alphanumeric() || *c == '_') {
        word.push(c);
    }
    word
}

fn skip_line(rest: &mut impl Iterator<Item = char>) {
    let _end = rest.find(|c| *c == '\n');
}

fn skip_comment(rest: &mut Peekable<impl Iterator<Item = char>>) {
    let mut open = 0;
    let mut before = '/';
    for c in rest.by_ref() {
        match (before, c) {
            ('/', '*') => open += 1,
            ('*', '/') => open -= 1,
            _ => {
                before = c;
                continue;
            }
        }
        if open == 0 {
            return;
        }
        before = ' ';
    }
}

fn skip_text(rest: &mut impl Iterator<Item = char>) {
    while let Some(c) = rest.next() {
        match c {
            '\\' => {
                rest.next();
            }
            '"' => return,
            _ => {}
        }
    }
}

/// A character, or a lifetime, which has no quote at its end.
fn skip_quote(rest: &mut Peekable<impl Iterator<Item = char>>) {
    match rest.next() {
        Some('\\') => {
            rest.next();
            let _end = rest.find(|c| *c == '\'');
        }
        Some(c) if c.is_alphanumeric() || c == '_' => {
            while rest.next_if(|c| c.is_alphanumeric() || *c == '_').is_some() {}
            rest.next_if_eq(&'\'');
        }
        _ => {
            rest.next_if_eq(&'\'');
        }
    }
}

fn skip_raw(rest: &mut Peekable<impl Iterator<Item = char>>) {
    let mut marks = 0;
    while rest.next_if_eq(&'#').is_some() {
        marks += 1;
    }
    // A raw identifier, not a text.
    if rest.next_if_eq(&'"').is_none() {
        return;
    }
    while rest.any(|c| c == '"') {
        let mut closing = 0;
        while closing < marks && rest.next_if_eq(&'#').is_some() {
            closing += 1;
        }
        if closing == marks {
            return;
        }
    }
}
