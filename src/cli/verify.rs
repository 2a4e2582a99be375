//! `siem-relay verify`: proves from what is in a stream that nothing is missing.

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

use super::complain;
use crate::{
    domain::arn::StreamArn,
    sink::{ReadError, StreamReader},
    verify::{Audit, Expectation, Intake, Report, Start, Verdict},
};

/// Something is missing, or contradicts what was promised.
const EXIT_INCOMPLETE: u8 = 1;
/// Nothing is proven: the input cannot be read, or has nothing of siem-relay's.
const EXIT_UNREAD: u8 = 2;
const CHUNK_BYTES: usize = 1 << 20;
/// What a gzip file starts with (RFC 1952).
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// Listed for a person, and for a program.
const LISTED_TEXT: usize = 20;
const LISTED_JSON: usize = 10_000;
/// Between looks for what fills a hole.
const LOOK: Duration = Duration::from_secs(1);

/// Proves from a stream's records that nothing is missing.
///
/// Reads captured records, or a stream through GetRecords with the credentials and
/// endpoints that the AWS SDK finds, and says for each integration: the first and last
/// sequence, duplicates, holes, gap events, events that arrived out of order. Captured
/// records are CloudEvents one a line or end to end, what `aws kinesis get-records`
/// answers, or what Lambda gets.
///
/// The exit code is 0 where every sequence is there, or a gap event stands for it; 1
/// where something is missing or contradicts; 2 where nothing could be read; 64 where
/// the options are wrong.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("input").required(true).multiple(true).args(["files", "streams"])))]
pub struct VerifyArgs {
    /// Files of captured records, or - for standard input. All are judged together.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Read this stream, every shard from its oldest record up to now. May be repeated,
    /// for an integration that had several.
    #[arg(long = "stream", value_name = "ARN", value_parser = stream_arn)]
    streams: Vec<StreamArn>,
    /// Judge only this integration; may be repeated. One that has no record is incomplete.
    #[arg(long = "integration", value_name = "UUID")]
    integrations: Vec<Uuid>,
    /// The sequence with which the records are to begin. [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "from_first_read")]
    first_sequence: Option<u64>,
    /// Begin with the first sequence that was read: what was before it was not captured,
    /// or the stream no longer keeps it.
    #[arg(long)]
    from_first_read: bool,
    /// The sequence that the records are to reach, such as the `accepted` of Get. What is
    /// beyond it is not judged. [default: the last that was read]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    last_sequence: Option<u64>,
    /// Fail also where an event arrived after a later one of its device, which Kinesis
    /// may do within one request.
    #[arg(long)]
    strict_order: bool,
    /// Where a stream has holes, read on for so many seconds: what fills them may be on
    /// its way.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, requires = "streams", value_parser = clap::value_parser!(u32).range(..=86_400))]
    wait: u32,
    /// How to tell what was found.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// How many holes, gaps and the like are listed one by one; all are counted.
    /// [default: 20, with JSON 10000]
    #[arg(long, value_name = "N")]
    list: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For a person.
    Text,
    /// One JSON object on one line.
    Json,
}

/// Why nothing is proven.
#[derive(Debug, thiserror::Error)]
enum VerifyError {
    #[error("{name}: {source}")]
    Input { name: String, source: io::Error },
    #[error("{name} is compressed; give it as `gunzip -c {name} | siem-relay verify -`")]
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

/// Reads everything, and prints what was found.
pub(super) async fn run(args: VerifyArgs) -> ExitCode {
    let mut audit = Audit::new(args.expectation());
    if let Err(error) = read(&args, &mut audit).await {
        complain("cannot verify", &error);
        return EXIT_UNREAD.into();
    }
    let report = audit.report();
    if let Err(error) = print(&report, args.output) {
        complain("cannot print", &error);
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
    // What was written meanwhile is in some shards' part, and not in others'.
    audit.set_horizon();
    let deadline = Instant::now() + Duration::from_secs(args.wait.into());
    while !audit.is_whole() && Instant::now() < deadline {
        sleep(LOOK).await;
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

/// Answers false where the input is compressed.
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
        if at_start && chunk[..length].starts_with(&GZIP) {
            return Ok(false);
        }
        at_start = false;
        intake.feed(&chunk[..length]);
    }
    intake.end();
    Ok(true)
}
