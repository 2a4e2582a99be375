//! `siem-relay verify`: proves from the records of a stream that no event is missing.

use std::{
    fs::File,
    io::{self, Read, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{ArgGroup, Args, ValueEnum};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::report_error;
use crate::{
    domain::arn::StreamArn,
    sink::{ReadError, StreamReader},
    verify::{Audit, Expectation, Intake, Report, Start, Verdict},
};

/// Events are missing, or records contradict each other.
const EXIT_INCOMPLETE: u8 = 1;
/// Nothing is proven: the input cannot be read, or contains no event of siem-relay.
const EXIT_UNREAD: u8 = 2;
const CHUNK_BYTES: usize = 1 << 20;
/// First bytes of a gzip file (RFC 1952).
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
/// Default numbers of problems that are listed one by one.
const LISTED_TEXT: usize = 20;
const LISTED_JSON: usize = 10_000;
/// Interval between reads of a stream with holes.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Proves from the records of a stream that no event is missing.
///
/// Reads captured records, or a stream through GetRecords with the credentials and
/// endpoints that the AWS SDK finds. For each integration it reports the first and last
/// sequence, duplicates, holes, gap events and events out of order. Captured records are
/// CloudEvents, one per line or concatenated, the output of `aws kinesis get-records`, or
/// the input of a Lambda function.
///
/// Exit codes: 0 if every sequence is present or announced by a gap event; 1 if events are
/// missing or records contradict each other; 2 if nothing could be read; 64 if the options
/// are wrong.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("input").required(true).multiple(true).args(["files", "streams"])))]
pub struct VerifyArgs {
    /// Files of captured records, or - for standard input. All files are checked together.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Read this stream, every shard from its oldest record up to now. Repeat it for an
    /// integration that had several streams.
    #[arg(long = "stream", value_name = "ARN", value_parser = stream_arn)]
    streams: Vec<StreamArn>,
    /// Check only this integration; may be repeated. An integration without any record is
    /// incomplete.
    #[arg(long = "integration", value_name = "UUID")]
    integrations: Vec<Uuid>,
    /// The first expected sequence. [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "from_first_read")]
    first_sequence: Option<u64>,
    /// Start with the first sequence that is read. Use it if earlier records were not captured,
    /// or the stream no longer has them.
    #[arg(long)]
    from_first_read: bool,
    /// The last expected sequence, such as `accepted` in the answer of Get. Later sequences are
    /// not checked. [default: the last one that is read]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    last_sequence: Option<u64>,
    /// Also fail if events of one device are out of order. Kinesis allows this within one
    /// request.
    #[arg(long)]
    strict_order: bool,
    /// Keep reading a stream with holes for this many seconds, since the missing events may
    /// arrive late.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, requires = "streams", value_parser = clap::value_parser!(u32).range(..=86_400))]
    wait: u32,
    /// Format of the report.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Maximum number of holes, gaps and other findings that are listed; all are counted.
    /// [default: 20, with --output json 10000]
    #[arg(long, value_name = "N")]
    list: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Text for human readers.
    Text,
    /// One JSON object on one line.
    Json,
}

/// Reason that nothing is proven.
#[derive(Debug, thiserror::Error)]
enum VerifyError {
    #[error("{name}: {source}")]
    Input { name: String, source: io::Error },
    #[error("{name} is compressed; run `gunzip -c {name} | siem-relay verify -`")]
    Compressed { name: String },
    #[error(transparent)]
    Stream(#[from] ReadError),
}

fn stream_arn(text: &str) -> Result<StreamArn, String> {
    StreamArn::parse(text).map_err(|error| error.to_string())
}

impl VerifyArgs {
    fn expectation(&self) -> Expectation {
        Expectation {
            integrations: self.integrations.clone(),
            first: match self.from_first_read {
                true => Start::LowestRead,
                false => Start::At(self.first_sequence.unwrap_or(1)),
            },
            last: self.last_sequence,
            strict_order: self.strict_order,
            listed: self.list.unwrap_or(match self.output {
                Output::Text => LISTED_TEXT,
                Output::Json => LISTED_JSON,
            }),
        }
    }
}

/// Reads all inputs and prints the report.
pub(super) async fn run(args: VerifyArgs) -> ExitCode {
    let mut audit = Audit::new(args.expectation());
    if let Err(error) = read(&args, &mut audit).await {
        report_error("cannot verify", &error);
        return EXIT_UNREAD.into();
    }
    let report = audit.report();
    if let Err(error) = print(&report, args.output) {
        report_error("cannot print the report", &error);
    }
    match report.verdict {
        Verdict::Complete => ExitCode::SUCCESS,
        Verdict::Incomplete => EXIT_INCOMPLETE.into(),
        Verdict::NothingRead => EXIT_UNREAD.into(),
    }
}

fn print(report: &Report, output: Output) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match output {
        Output::Text => write!(stdout, "{report}")?,
        Output::Json => {
            serde_json::to_writer(&mut stdout, report)?;
            writeln!(stdout)?;
        }
    }
    stdout.flush()
}

async fn read(args: &VerifyArgs, audit: &mut Audit) -> Result<(), VerifyError> {
    for path in &args.files {
        read_file(path, audit)?;
    }
    if args.streams.is_empty() {
        return Ok(());
    }
    let mut readers = Vec::new();
    for stream in &args.streams {
        readers.push(StreamReader::new(stream.clone()).await);
    }
    catch_up(&mut readers, audit).await?;
    // Records written during the first pass may have been read from some shards and not from
    // others.
    audit.set_horizon();
    let deadline = Instant::now() + Duration::from_secs(args.wait.into());
    while !audit.is_whole() && Instant::now() < deadline {
        sleep(POLL_INTERVAL).await;
        catch_up(&mut readers, audit).await?;
    }
    Ok(())
}

async fn catch_up(readers: &mut [StreamReader], audit: &mut Audit) -> Result<(), ReadError> {
    for reader in readers {
        reader
            .catch_up(&mut |record| {
                let place = || format!("{} {}", record.shard_id, record.sequence_number);
                audit.take(&record.data, Some(&record.partition_key), &place);
            })
            .await?;
    }
    Ok(())
}

fn read_file(path: &Path, audit: &mut Audit) -> Result<(), VerifyError> {
    let is_stdin = path.as_os_str() == "-";
    let name = match is_stdin {
        true => "standard input".to_owned(),
        false => path.display().to_string(),
    };
    let read = match is_stdin {
        true => read_all(io::stdin().lock(), &name, audit),
        false => File::open(path).and_then(|file| read_all(file, &name, audit)),
    };
    match read {
        Ok(true) => Ok(()),
        Ok(false) => Err(VerifyError::Compressed { name }),
        Err(source) => Err(VerifyError::Input { name, source }),
    }
}

/// Reads the whole input. Returns false if it is compressed.
fn read_all(mut input: impl Read, name: &str, audit: &mut Audit) -> io::Result<bool> {
    let mut intake = Intake::new(audit, name);
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut at_start = true;
    loop {
        let length = match input.read(&mut chunk) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if at_start && chunk[..length].starts_with(&GZIP_MAGIC) {
            return Ok(false);
        }
        at_start = false;
        intake.feed(&chunk[..length]);
    }
    intake.end();
    Ok(true)
}
