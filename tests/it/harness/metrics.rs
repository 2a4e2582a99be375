//! A client of the listener for metrics and probes.

use std::{collections::BTreeMap, net::SocketAddr};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{Process, with_timeout};

/// An answer over HTTP.
#[derive(Debug)]
pub struct HttpAnswer {
    pub status: u16,
    /// Header fields, with names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

/// One scrape.
#[derive(Debug)]
pub struct Scrape {
    pub text: String,
    series: BTreeMap<String, f64>,
}

impl Scrape {
    /// Value of a series, such as `name{label="value"}`.
    pub fn value(&self, series: &str) -> f64 {
        let value = self.series.get(series);
        *value.unwrap_or_else(|| panic!("there is no {series} in\n{}", self.text))
    }

    /// Series whose text begins with this one, with their values.
    pub fn starting(&self, start: &str) -> Vec<(&str, f64)> {
        let all = self.series.iter();
        all.filter(|(series, _)| series.starts_with(start))
            .map(|(series, value)| (series.as_str(), *value))
            .collect()
    }
}

/// The listener of one process.
#[derive(Clone, Copy, Debug)]
pub struct Metrics {
    pub address: SocketAddr,
}

impl Metrics {
    /// The listener of a process that was started with `--metrics-listen`.
    pub fn of(process: &Process) -> Self {
        let log = process.log();
        let mut lines = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let line = lines.find(|line| line["message"] == "serving metrics and probes");
        let address = line.expect("it serves metrics")["address"].clone();
        Self {
            address: address.as_str().unwrap().parse().unwrap(),
        }
    }

    pub async fn get(&self, path: &str) -> HttpAnswer {
        self.request(&format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"))
            .await
            .unwrap_or_else(|| panic!("no answer to {path}"))
    }

    /// Sends a text, and returns the answer; None if the connection was closed without one.
    pub async fn request(&self, text: &str) -> Option<HttpAnswer> {
        let answer = async {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(text.as_bytes()).await.ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.ok()?;
            Some(answer)
        };
        let answer = with_timeout("an answer over HTTP", answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let (first, fields) = head.split_once("\r\n")?;
        let fields = fields.split("\r\n").map(|line| {
            let (name, value) = line.split_once(": ").unwrap();
            (name.to_lowercase(), value.to_owned())
        });
        Some(HttpAnswer {
            status: first.split(' ').nth(1)?.parse().ok()?,
            headers: fields.collect(),
            body: body.to_owned(),
        })
    }

    pub async fn scrape(&self) -> Scrape {
        let answer = self.get("/metrics").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let lines = answer.body.lines().filter(|line| !line.starts_with('#'));
        let series = lines.map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        });
        let series = series.collect();
        Scrape {
            series,
            text: answer.body,
        }
    }

    /// Scrapes until the page satisfies `good`.
    pub async fn until(&self, what: &str, good: impl Fn(&Scrape) -> bool) -> Scrape {
        with_timeout(what, async {
            loop {
                let scrape = self.scrape().await;
                if good(&scrape) {
                    return scrape;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
    }
}
