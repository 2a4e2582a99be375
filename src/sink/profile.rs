//! Profiles of the AWS configuration files.

use std::collections::HashSet;

use aws_config::profile::{self, ProfileSet};
use aws_types::os_shim_internal::{Env, Fs};

/// Returns the name of the profile with `credential_process` from which this service's own
/// credentials would come, by the files and the environment of the default chain. That program
/// inherits the environment.
///
/// Credentials in the environment come first in that chain; the profile counts all the same,
/// because it is used as soon as they are gone.
pub async fn credential_process() -> Option<String> {
    // The files and the environment that the default chain reads.
    find(&Fs::real(), &Env::real()).await
}

async fn find(fs: &Fs, env: &Env) -> Option<String> {
    // A file that cannot be read gives no credentials either, which shows at the first use.
    let profiles = profile::load(fs, env, &Default::default(), None).await;
    from_profile(&profiles.ok()?)
}

/// Follows `source_profile` from the selected profile on.
fn from_profile(profiles: &ProfileSet) -> Option<String> {
    let mut seen = HashSet::new();
    let mut name = profiles.selected_profile();
    while seen.insert(name) {
        let profile = profiles.get_profile(name)?;
        if profile.get("credential_process").is_some() {
            return Some(name.to_owned());
        }
        name = profile.get("source_profile")?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn found(
        selected: Option<&'static str>,
        config: &str,
        credentials: &str,
    ) -> Option<String> {
        let files = [("/config", config), ("/credentials", credentials)];
        let fs = Fs::from_slice(&files);
        let mut env = vec![
            ("AWS_CONFIG_FILE", "/config"),
            ("AWS_SHARED_CREDENTIALS_FILE", "/credentials"),
        ];
        env.extend(selected.map(|name| ("AWS_PROFILE", name)));
        find(&fs, &Env::from_slice(&env)).await
    }

    #[tokio::test]
    async fn the_selected_profile_and_its_sources_are_searched() {
        let config = "[default]\nregion = eu-west-1\n\
            [profile tool]\ncredential_process = /usr/bin/tool\n\
            [profile role]\nrole_arn = arn:aws:iam::111111111111:role/r\nsource_profile = middle\n\
            [profile middle]\nrole_arn = arn:aws:iam::111111111111:role/m\nsource_profile = tool\n\
            [profile loop]\nrole_arn = arn:aws:iam::111111111111:role/l\nsource_profile = loop\n";
        for (selected, expected) in [
            (None, None),
            (Some("tool"), Some("tool")),
            (Some("role"), Some("tool")),
            (Some("loop"), None),
            (Some("absent"), None),
        ] {
            let found = found(selected, config, "").await;
            assert_eq!(found.as_deref(), expected, "{selected:?}");
        }
        let credentials = "[default]\ncredential_process = /usr/bin/tool\n";
        assert_eq!(
            found(None, "", credentials).await.as_deref(),
            Some("default")
        );
    }
}
