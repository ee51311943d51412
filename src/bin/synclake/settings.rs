//! Settings of the commands: flags, or the settings file, checked.

use synclake::aws::AwsSettings;
use synclake::cognito::PoolId;
use synclake::config::{self, File, Unusable};
use synclake::lake::{Location, Store};
use synclake::terminal;

use crate::args::AwsArgs;

/// Returns the AWS settings, checked without a request.
pub(crate) async fn aws_settings(args: AwsArgs, file: &File) -> Result<AwsSettings, Unusable> {
    let settings = config::aws(args.region, args.endpoint_url, args.profile, file);
    settings.check().await.map_err(Unusable)?;
    Ok(settings)
}

/// Returns the AWS settings for a pool: its region is that of its id.
pub(crate) async fn pool_settings(args: &AwsArgs, file: &File, pool: &PoolId) -> Result<AwsSettings, Unusable> {
    let settings = aws_settings(args.clone(), file).await?;
    match settings.region.as_deref() {
        Some(region) if region != pool.region() => Err(Unusable(format!(
            "pool {pool} is in region {}, and the region is set to {region}; leave it out (--region, SYNCLAKE_REGION or the \
             settings file), or correct the pool",
            pool.region()
        ))),
        _ => Ok(AwsSettings { region: Some(pool.region().to_owned()), ..settings }),
    }
}

/// Does the same for each pool. One that fails does not keep the others from it; the error names all that failed.
pub(crate) async fn of_each(pools: &[PoolId], work: impl AsyncFn(&PoolId) -> anyhow::Result<()>) -> anyhow::Result<()> {
    if let [pool] = pools {
        return work(pool).await;
    }
    let mut failed = Vec::new();
    for pool in pools {
        if let Err(error) = work(pool).await {
            failed.push(format!("pool {pool}: {}", terminal::chain(error.as_ref())));
        }
    }
    match failed.is_empty() {
        true => Ok(()),
        false => anyhow::bail!("{} of {} pools failed: {}", failed.len(), pools.len(), failed.join("; ")),
    }
}

/// Returns a setting that has no default.
pub(crate) fn required(name: &str, flag: Option<String>, file: &Option<String>) -> Result<String, Unusable> {
    let variable = name.to_ascii_uppercase();
    flag.or_else(|| file.clone()).ok_or_else(|| {
        Unusable(format!("--{name} is missing; give it as a flag, as SYNCLAKE_{variable} or in the settings file"))
    })
}

/// Parses the setting `name` as a location.
pub(crate) fn location(name: &str, text: &str) -> Result<Location, Unusable> {
    text.parse().map_err(|e| Unusable(format!("--{name} {e}")))
}

/// Parses the setting `name`, or its default.
pub(crate) fn parsed<T>(
    name: &str,
    flag: Option<String>,
    file: &Option<String>,
    default: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<T, Unusable> {
    let text = flag.or_else(|| file.clone());
    parse(text.as_deref().unwrap_or(default)).map_err(|e| Unusable(format!("--{name} {e}")))
}

/// Parses the setting `name`, which may be absent.
pub(crate) fn parsed_if_set<T>(
    name: &str,
    flag: Option<String>,
    file: &Option<String>,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Option<T>, Unusable> {
    let text = flag.or_else(|| file.clone());
    text.map(|text| parse(&text)).transpose().map_err(|e| Unusable(format!("--{name} {e}")))
}

/// Opens the lake that flag or file name.
pub(crate) async fn open_lake(lake: Option<String>, aws: AwsArgs, file: &File) -> anyhow::Result<Store> {
    let lake = location("lake", &required("lake", lake, &file.lake)?)?;
    Ok(Store::open(&lake, &aws_settings(aws, file).await?).await?)
}
