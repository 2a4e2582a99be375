//! Report as tables on standard output, and messages about progress on standard error.

use std::io::{Write, stderr, stdout};

use super::{
    disturbed::{Denied, Takeover},
    growth::{Backlog, Growth},
    idle::Idle,
    instances::{IdleInstances, Instances, LogFloorRun, SharedRun},
    report::{Figures, RateFigures, Report, WorkloadReport},
    stats::Spread,
    subscribers::Subscribers,
};

/// Writes a message on standard error. A closed reader is no error.
pub fn progress(message: &str) {
    let _closed = writeln!(stderr(), "{message}");
}

/// Writes a line on standard output. A closed reader is no error.
pub fn print(line: &str) {
    let _closed = writeln!(stdout(), "{line}");
}

/// Prints the header of a table and the line below it.
fn header(columns: &str) {
    print(columns);
    let count = columns.matches('|').count().saturating_sub(1);
    print(&("| --- ".repeat(count) + "|"));
}

/// Formats the median and the range.
fn show(spread: Spread, decimals: usize) -> String {
    let Spread {
        median,
        least,
        most,
        runs,
    } = spread;
    match runs {
        0 | 1 => format!("{median:.decimals$}"),
        _ => format!("{median:.decimals$} ({least:.decimals$}–{most:.decimals$})"),
    }
}

pub fn report(report: &Report) {
    let sync = report.machine.disk_sync;
    print(&format!(
        "{} processors; a synced append of 4 KiB takes {:.2} ms (p99 {:.2} ms)\n",
        report.machine.processors, sync.p50_ms, sync.p99_ms
    ));
    if !report.workloads.is_empty() {
        saturated(&report.workloads);
        processes(&report.workloads);
        small_requests(&report.workloads);
        for workload in &report.workloads {
            latencies(workload);
        }
    }
    growth(&report.growth);
    backlogs(&report.backlogs);
    report.idle.iter().for_each(idle);
    report.subscribers.iter().for_each(subscribers);
    if !report.instances.is_empty() {
        saturated_instances(&report.instances);
        paced_instances(&report.instances);
    }
    report.idle_instances.iter().for_each(idle_instances);
    report.takeovers.iter().for_each(takeover);
    report.denied.iter().for_each(denied);
}

fn saturated(workloads: &[WorkloadReport]) {
    print("At the maximum rate: median (least–most)\n");
    header(
        "| workload | event B | record B | events/s | CPU-s per million | floor | service/floor | peak MB | written B an event | records a request |",
    );
    for report in workloads {
        let figures = &report.saturated;
        print(&format!(
            "| {} | {:.0} | {:.0} | {} | {} | {} | {} | {} | {} | {} |",
            report.workload.name,
            report.event_bytes,
            report.record_bytes,
            show(figures.events_per_second, 0),
            show(figures.cpu_per_million, 2),
            show(report.floor_cpu_per_million, 2),
            show(report.ratio, 2),
            show(figures.peak_megabytes, 0),
            show(figures.written_bytes_per_event, 0),
            show(figures.records_per_request, 0),
        ));
    }
    print("");
}

fn processes(workloads: &[WorkloadReport]) {
    print("Other processes: CPU-s per million events, and throughput of floor and intake\n");
    header(
        "| workload | loader | sink | floor events/s | floor peak MB | intake alone | its events/s | service/(floor of such requests + intake) |",
    );
    for report in workloads {
        print(&format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} |",
            report.workload.name,
            show(report.saturated.loader_cpu_per_million, 2),
            show(report.saturated.sink_cpu_per_million, 2),
            show(report.floor_events_per_second, 0),
            show(report.floor_peak_megabytes, 0),
            show(report.intake_cpu_per_million, 2),
            show(report.intake_events_per_second, 0),
            show(report.ratio_to_baselines, 2),
        ));
    }
    print("");
}

fn small_requests(workloads: &[WorkloadReport]) {
    let small = |report: &&WorkloadReport| report.small_requests.ratio.runs > 0;
    let mut small = workloads.iter().filter(small).peekable();
    if small.peek().is_none() {
        return;
    }
    print(
        "Requests that are less than half full: µs of CPU per request; floor and bare socket with as many records per request",
    );
    print("");
    header("| workload | records a request | service | floor | service/floor | bare |");
    for report in small {
        let requests = report.small_requests;
        print(&format!(
            "| {} | {} | {} | {} | {} | {} |",
            report.workload.name,
            show(requests.records, 1),
            show(requests.service, 0),
            show(requests.floor, 0),
            show(requests.ratio, 2),
            show(requests.bare, 0),
        ));
    }
    print("");
}

fn latencies(report: &WorkloadReport) {
    if report.rates.is_empty() {
        return;
    }
    print(&format!(
        "{}, {} event(s) a request: milliseconds",
        report.workload.name, report.workload.rate_batch
    ));
    print("");
    header(
        "| rate | ack p50 | p99 | p99.9 | to stream p50 | p99 | p99.9 | CPU-s per million | floor | bare | intake alone | service/(floor + intake) | ack p50 of intake alone | records a request |",
    );
    for rate in &report.rates {
        rate_line(rate);
    }
    print("");
}

fn rate_line(rate: &RateFigures) {
    let Figures {
        ack,
        to_stream,
        cpu_per_million,
        records_per_request,
        ..
    } = &rate.figures;
    let share = match rate.share {
        Some(share) => format!("{:.0}%: {:.0}/s", share * 100.0, rate.rate),
        None => format!("{:.0}/s", rate.rate),
    };
    print(&format!(
        "| {share} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
        show(ack.p50_ms, 2),
        show(ack.p99_ms, 2),
        show(ack.p999_ms, 2),
        show(to_stream.p50_ms, 1),
        show(to_stream.p99_ms, 1),
        show(to_stream.p999_ms, 1),
        show(*cpu_per_million, 2),
        show(rate.floor_cpu_per_million, 2),
        show(rate.bare_cpu_per_million, 2),
        show(rate.intake_cpu_per_million, 2),
        show(rate.ratio_to_baselines, 2),
        show(rate.intake_ack.p50_ms, 2),
        show(*records_per_request, 0),
    ));
}

fn growth(all: &[Growth]) {
    if all.is_empty() {
        return;
    }
    header(
        "| integrations | events/s | CPU-s per million | peak MB | written B an event | records a request | roles assumed |",
    );
    for growth in all {
        let figures = &growth.figures;
        let roles: u64 = growth.runs.iter().map(|run| run.assumed_roles).sum();
        print(&format!(
            "| {} | {} | {} | {} | {} | {} | {roles} |",
            growth.integrations,
            show(figures.events_per_second, 0),
            show(figures.cpu_per_million, 2),
            show(figures.peak_megabytes, 0),
            show(figures.written_bytes_per_event, 0),
            show(figures.records_per_request, 0),
        ));
    }
    print("");
}

fn backlogs(all: &[Backlog]) {
    if all.is_empty() {
        return;
    }
    header(
        "| backlog | integrations | taking CPU-s per million | peak MB | draining CPU-s per million | events/s | peak MB |",
    );
    for backlog in all {
        print(&format!(
            "| {} | {} | {:.2} | {:.0} | {:.2} | {:.0} | {:.0} |",
            backlog.events,
            backlog.integrations,
            backlog.taking_cpu_per_million,
            backlog.taking_peak_megabytes,
            backlog.draining_cpu_per_million,
            backlog.draining_events_per_second,
            backlog.draining_peak_megabytes,
        ));
    }
    print("");
}

fn idle(idle: &Idle) {
    print(&format!(
        "{} idle integrations: {:.0} B each beyond the empty service ({:.1} MB; {:.1} MB after a restart, \
         {:.1} MB before it), start {:.2} s (empty {:.2} s), first answer {:.2} s, idle CPU {:.3} (empty {:.3}), \
         configured in {:.0} s\n",
        idle.integrations,
        idle.bytes_per_integration,
        idle.empty_megabytes,
        idle.restarted_megabytes,
        idle.configured_megabytes,
        idle.start_seconds,
        idle.empty_start_seconds,
        idle.answer_seconds,
        idle.idle_cpu,
        idle.empty_idle_cpu,
        idle.configure_seconds,
    ));
}

fn subscribers(all: &Subscribers) {
    print(&format!(
        "{} subscribers on {} connection(s): {:.0} B each, a change reaches half in {} ms and all in {} ms, \
         for {} ms of CPU; idle CPU {:.3}\n",
        all.subscribers,
        all.connections,
        all.bytes_per_subscriber,
        show(all.reach_half_ms, 0),
        show(all.reach_all_ms, 0),
        show(all.cpu_per_change_ms, 0),
        all.idle_cpu,
    ));
}

/// Formats the median and the range of a figure of all runs, or a dash if it was not measured.
fn show_of(
    runs: &[SharedRun],
    decimals: usize,
    figure: impl Fn(&SharedRun) -> Option<f64>,
) -> String {
    let spread = Spread::of(runs.iter().filter_map(figure));
    match spread.runs {
        0 => "–".to_owned(),
        _ => show(spread, decimals),
    }
}

/// Formats a figure of the floor.
fn show_floor(
    runs: &[SharedRun],
    decimals: usize,
    figure: impl Fn(&LogFloorRun) -> Option<f64>,
) -> String {
    show_of(runs, decimals, |run| figure(run.floor.as_ref()?))
}

/// Name of a line: 0 instances are one process on its own storage.
fn name_of(instances: &Instances) -> String {
    let name = &instances.workload.name;
    match instances.instances {
        0 => format!("{name}, SQLite"),
        number => format!("{name}, {number}"),
    }
}

fn saturated_instances(all: &[Instances]) {
    print(
        "Instances on shared storage at the maximum rate; CPU-s and statements per events of the run\n",
    );
    header(
        "| workload, instances | events/s | CPU-s per million: service | brokers | database | statements per 1,000 events | events a message | log B an event | floor events/s | floor CPU-s per million | brokers under the floor |",
    );
    for one in all {
        let runs = &one.saturated;
        print(&format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            name_of(one),
            show_of(runs, 0, |run| Some(run.run.events_per_second)),
            show_of(runs, 2, |run| Some(run.run.cpu_per_million)),
            show_of(runs, 2, |run| run.brokers_cpu_per_million),
            show_of(runs, 2, |run| run.database_cpu_per_million),
            show_of(runs, 3, |run| run.statements_per_thousand),
            show_floor(runs, 1, |floor| Some(floor.events_per_message)),
            show_floor(runs, 0, |floor| Some(floor.bytes_per_event)),
            show_floor(runs, 0, |floor| Some(floor.events_per_second)),
            show_floor(runs, 2, |floor| Some(floor.cpu_per_million)),
            show_floor(runs, 2, |floor| floor.brokers_cpu_per_million),
        ));
    }
    print("");
}

fn paced_instances(all: &[Instances]) {
    if all.iter().all(|one| one.paced.is_empty()) {
        return;
    }
    print("Instances at 5,000 events/s: milliseconds\n");
    header(
        "| workload, instances | ack p50 | p99 | to stream p50 | p99 | floor: sent to read p50 | p99 | CPU-s per million: service | brokers | database | statements per 1,000 events | log B an event |",
    );
    for one in all {
        let runs = &one.paced;
        print(&format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            name_of(one),
            show_of(runs, 1, |run| Some(run.run.ack.p50_ms)),
            show_of(runs, 1, |run| Some(run.run.ack.p99_ms)),
            show_of(runs, 1, |run| Some(run.run.to_stream.p50_ms)),
            show_of(runs, 1, |run| Some(run.run.to_stream.p99_ms)),
            show_floor(runs, 1, |floor| Some(floor.to_reader.p50_ms)),
            show_floor(runs, 1, |floor| Some(floor.to_reader.p99_ms)),
            show_of(runs, 2, |run| Some(run.run.cpu_per_million)),
            show_of(runs, 2, |run| run.brokers_cpu_per_million),
            show_of(runs, 2, |run| run.database_cpu_per_million),
            show_of(runs, 2, |run| run.statements_per_thousand),
            show_floor(runs, 0, |floor| Some(floor.bytes_per_event)),
        ));
    }
    print("");
}

fn idle_instances(idle: &IdleInstances) {
    let or_dash = |figure: Option<f64>| {
        figure.map_or_else(|| "–".to_owned(), |figure| format!("{figure:.3}"))
    };
    print(&format!(
        "{} idle integrations on {} instances: CPU of the busiest {:.4}, of the database {}; statements/s of each {}; {:.0} MB\n",
        idle.integrations,
        idle.instances,
        idle.idle_cpu,
        or_dash(idle.database_cpu),
        or_dash(idle.statements_per_second),
        idle.megabytes,
    ));
}

fn takeover(one: &Takeover) {
    print(&format!(
        "{} instances, SIG{} to one: of {} events to stream p50 {:.0} p99 {:.0} max {:.0} ms, {} duplicates\n",
        one.instances,
        one.signal,
        one.events,
        one.to_stream.p50_ms,
        one.to_stream.p99_ms,
        one.to_stream.max_ms,
        one.duplicates,
    ));
}

fn denied(one: &Denied) {
    print(&format!(
        "{} instances, {} of {} organizations deny access: {} events published, {} arrived, to stream p50 {:.1} p99 {:.1} ms, ack p50 {:.1} p99 {:.1} ms, {:.2} CPU-s per million, {} chunks in the backlog\n",
        one.instances,
        one.denied,
        one.organizations,
        one.published,
        one.arrived,
        one.to_stream.p50_ms,
        one.to_stream.p99_ms,
        one.ack.p50_ms,
        one.ack.p99_ms,
        one.cpu_per_million,
        one.backlog_chunks,
    ));
}
