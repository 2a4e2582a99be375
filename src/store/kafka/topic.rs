//! The topic: creation, and the check that it cannot lose events.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rdkafka::metadata::MetadataTopic;
use tokio::time::{Instant, sleep};

use super::{
    FETCH_WAIT, KafkaError, KafkaOptions,
    admin::AdminError,
    blocking,
    client::{Clients, MESSAGE_BYTES, Notes},
};

/// Copies of each partition.
const REPLICATION: u32 = 3;
/// Copies that a committed entry has at least, so that the loss of one broker loses none.
const IN_SYNC: u32 = 2;
/// Records are deleted by whole segments, so large ones would keep trimmed entries for long.
const SEGMENT_BYTES: &str = "67108864";

/// Longest time from the creation of a topic to its use.
const VISIBLE_WITHIN: Duration = Duration::from_secs(30);
/// Time between two looks at a new topic.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Settings of a topic with their right values, as the message of a violation names them.
#[derive(Clone, Copy)]
enum Right {
    Exactly(&'static str),
    AtLeast(u64),
}

struct Rule {
    setting: &'static str,
    right: Right,
    /// Brokers may have different defaults, and only one of them is asked.
    on_topic: bool,
}

fn rules(single_replica: bool) -> [Rule; 7] {
    use Right::{AtLeast, Exactly};
    let in_sync = if single_replica { 1 } else { IN_SYNC };
    let rule = |setting, right, on_topic| Rule {
        setting,
        right,
        on_topic,
    };
    [
        rule("cleanup.policy", Exactly("delete"), false),
        rule("retention.ms", Exactly("-1"), false),
        rule("retention.bytes", Exactly("-1"), false),
        rule("min.insync.replicas", AtLeast(in_sync.into()), true),
        rule("unclean.leader.election.enable", Exactly("false"), true),
        rule("message.timestamp.type", Exactly("LogAppendTime"), false),
        rule("max.message.bytes", AtLeast(MESSAGE_BYTES as u64), false),
    ]
}

/// Effective settings of a topic, with whether each is set on the topic.
pub(super) type Settings = BTreeMap<String, (String, bool)>;

/// Violations of the rules by effective settings.
pub(super) fn check_settings(settings: &Settings, single_replica: bool) -> Vec<String> {
    let violations = rules(single_replica).into_iter().filter_map(|rule| {
        let setting = rule.setting;
        let right = match rule.right {
            Right::Exactly(value) => value.to_owned(),
            Right::AtLeast(least) => format!("at least {least}"),
        };
        let Some((value, on_topic)) = settings.get(setting) else {
            return Some(format!("{setting} is not shown and must be {right}"));
        };
        let is_right = match rule.right {
            Right::Exactly(right) => value == right,
            Right::AtLeast(least) => value.parse().is_ok_and(|value: u64| value >= least),
        };
        if !is_right {
            return Some(format!("{setting} is {value} and must be {right}"));
        }
        (rule.on_topic && !on_topic).then(|| {
            format!("{setting} is {value} by default of a broker, and must be set on the topic, to {right}")
        })
    });
    violations.collect()
}

/// Copies that `min.insync.replicas` requires.
pub(super) fn in_sync(settings: &Settings) -> usize {
    let value = settings.get("min.insync.replicas");
    value.and_then(|(value, _)| value.parse().ok()).unwrap_or(1)
}

/// Violation by the number of copies of a partition: with a single one, `acks=all` succeeds
/// whatever `min.insync.replicas` says.
pub(super) fn check_replicas(topic: &MetadataTopic, single_replica: bool) -> Option<String> {
    if single_replica {
        return None;
    }
    let few = topic.partitions().iter();
    let mut few = few.filter(|partition| partition.replicas().len() < IN_SYNC as usize);
    let first = few.next()?;
    Some(format!(
        "partition {} has {} replica and must have {REPLICATION} ({} more partitions likewise)",
        first.id(),
        first.replicas().len(),
        few.count()
    ))
}

/// Reads the effective settings of the topic.
pub(super) async fn settings(clients: &Arc<Clients>, topic: &str) -> Result<Settings, String> {
    let asked = Arc::clone(clients);
    let (brokers, _) = blocking(move || asked.brokers()).await?;
    let settings = clients.admin().settings(topic, &brokers).await;
    settings.map_err(|error| match error {
        AdminError::Unauthorized => {
            "the right to describe the topic's configuration (DescribeConfigs) is missing"
                .to_owned()
        }
        error => error.to_string(),
    })
}

/// Creates the topic with the settings that the service requires. `replication` is the number
/// of copies of each partition: None for 3, and 1 for development only.
///
/// # Errors
///
/// If the topic exists, the cluster has too few brokers, or refuses it.
pub async fn create_topic(
    options: &KafkaOptions,
    partitions: u32,
    replication: Option<u32>,
) -> Result<(), KafkaError> {
    let replication = replication.unwrap_or(REPLICATION);
    let in_sync = replication.min(IN_SYNC).to_string();
    let notes = Arc::new(Notes::default());
    options.security.start().await?;
    let clients = {
        let (options, notes) = (options.clone(), Arc::clone(&notes));
        let connected = blocking(move || {
            let clients = Clients::new(&options, FETCH_WAIT, notes)?;
            match clients.cluster_id() {
                Ok(_) => Ok(clients),
                Err(reason) => Err(KafkaError::Unreachable {
                    brokers: options.brokers.join(","),
                    reason,
                }),
            }
        });
        Arc::new(connected.await?)
    };
    let failed = |reason: String| KafkaError::Create {
        topic: options.topic.clone(),
        reason,
    };
    let asked = Arc::clone(&clients);
    let (brokers, _) = blocking(move || asked.brokers()).await.map_err(failed)?;
    let message_bytes = MESSAGE_BYTES.to_string();
    let settings = [
        ("min.insync.replicas", &*in_sync),
        ("cleanup.policy", "delete"),
        ("retention.ms", "-1"),
        ("retention.bytes", "-1"),
        ("segment.bytes", SEGMENT_BYTES),
        ("max.message.bytes", &*message_bytes),
        ("message.timestamp.type", "LogAppendTime"),
        ("unclean.leader.election.enable", "false"),
    ];
    let admin = clients.admin();
    let created = admin.create(&options.topic, partitions, replication, &settings, &brokers);
    created.await.map_err(|error| match error {
        AdminError::FewBrokers => {
            failed(format!("the cluster has fewer than {replication} brokers"))
        }
        error => failed(error.to_string()),
    })?;
    // The controller has made it; the brokers learn of it a moment later.
    let until = Instant::now() + VISIBLE_WITHIN;
    while !is_visible(&clients, &options.topic, partitions).await {
        if Instant::now() >= until {
            return Err(failed("it was made, but has no leaders yet".to_owned()));
        }
        sleep(LOOK_AGAIN).await;
    }
    Ok(())
}

/// Whether every partition of a topic has a leader that a client can find.
async fn is_visible(clients: &Arc<Clients>, topic: &str, partitions: u32) -> bool {
    let clients = Arc::clone(clients);
    let Ok(metadata) = blocking(move || clients.metadata()).await else {
        return false;
    };
    let mut topics = metadata.topics().iter();
    topics.find(|one| one.name() == topic).is_some_and(|one| {
        one.partitions().len() == partitions as usize
            && one.partitions().iter().all(|one| one.leader() >= 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn right() -> Settings {
        let settings = [
            ("cleanup.policy", "delete"),
            ("retention.ms", "-1"),
            ("retention.bytes", "-1"),
            ("min.insync.replicas", "2"),
            ("unclean.leader.election.enable", "false"),
            ("message.timestamp.type", "LogAppendTime"),
            ("max.message.bytes", "4194304"),
        ];
        let settings = settings.into_iter();
        settings
            .map(|(name, value)| (name.to_owned(), (value.to_owned(), true)))
            .collect()
    }

    #[test]
    fn a_topic_that_keeps_everything_is_accepted() {
        assert_eq!(check_settings(&right(), false), [""; 0]);
    }

    #[test]
    fn each_setting_that_loses_events_is_named_with_its_right_value() {
        for (setting, value, right_value) in [
            ("cleanup.policy", "compact,delete", "delete"),
            ("retention.ms", "604800000", "-1"),
            ("retention.bytes", "1", "-1"),
            ("min.insync.replicas", "1", "at least 2"),
            ("unclean.leader.election.enable", "true", "false"),
            ("message.timestamp.type", "CreateTime", "LogAppendTime"),
            ("max.message.bytes", "1048588", "at least 4194304"),
        ] {
            let mut settings = right();
            settings.insert(setting.to_owned(), (value.to_owned(), true));
            let expected = format!("{setting} is {value} and must be {right_value}");
            assert_eq!(check_settings(&settings, false), [expected]);
            settings.remove(setting);
            assert_eq!(check_settings(&settings, false).len(), 1, "{setting}");
        }
    }

    #[test]
    fn all_violations_are_named_at_once() {
        assert_eq!(check_settings(&Settings::new(), false).len(), 7);
    }

    #[test]
    fn a_default_of_a_broker_does_not_count_as_safe() {
        let mut settings = right();
        for setting in ["min.insync.replicas", "unclean.leader.election.enable"] {
            settings
                .entry(setting.to_owned())
                .and_modify(|(_, on_topic)| *on_topic = false);
        }
        assert_eq!(check_settings(&settings, false).len(), 2);
    }

    #[test]
    fn one_copy_is_allowed_for_development() {
        let mut settings = right();
        settings.insert("min.insync.replicas".to_owned(), ("1".to_owned(), true));
        assert_eq!(check_settings(&settings, true), [""; 0]);
        assert_eq!(in_sync(&settings), 1);
    }
}
