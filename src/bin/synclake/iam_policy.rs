//! `synclake iam-policy`.

use anyhow::{Context, Result};
use clap::Args;
use synclake::config::{File, Sources, Unusable, lease_table_of, parse_lease_table};
use synclake::iam::{self, Prefix, Resources, Role};
use synclake::lake::Location;

use crate::output::print_line;
use crate::settings::{location, required};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake iam-policy --role query --lake s3://bucket/lake > query.json
  synclake iam-policy --role extract --lake s3://bucket/lake --out s3://exports/cognito
  synclake iam-policy --role ingest --lake s3://bucket/lake --source kinesis:cognito \\
    --lease-table dynamodb:synclake-cognito --region eu-west-1 --account 123456789012
  synclake iam-policy --role catalog --lake s3://bucket/lake --region eu-west-1 --account 123456789012

Prints the policy that the commands of a role need, and sends no request. A stream or a bucket with
a KMS key of your own needs --kms-key.")]
pub(crate) struct IamPolicyArgs {
    /// What the policy is for.
    #[arg(long, value_enum)]
    pub role: Role,
    /// Lake: s3://bucket/prefix.
    #[arg(long, env = "SYNCLAKE_LAKE", value_name = "LAKE")]
    pub lake: Option<String>,
    /// Where extracts and deliveries go (role extract): s3://bucket/prefix.
    #[arg(long, value_name = "URL")]
    pub out: Option<String>,
    /// Stream (role ingest): kinesis:<stream>; repeat the flag for several streams.
    #[arg(long, env = "SYNCLAKE_SOURCE", value_name = "SOURCE")]
    pub source: Vec<String>,
    /// Lease table of a fleet (role ingest): dynamodb:<table>.
    #[arg(long, env = "SYNCLAKE_LEASE_TABLE", value_name = "TABLE")]
    pub lease_table: Option<String>,
    /// Database of the Glue catalogue (role catalog).
    #[arg(long, value_name = "NAME", default_value = "cognito")]
    pub database: String,
    /// Region of stream, lease table and catalogue.
    #[arg(long, env = "SYNCLAKE_REGION", value_name = "REGION")]
    pub region: Option<String>,
    /// AWS account of stream, lease table and catalogue, twelve digits.
    #[arg(long, value_name = "ID", value_parser = account)]
    pub account: Option<String>,
    /// ARN of a KMS key of the buckets or the stream; repeat the flag for several keys.
    #[arg(long, value_name = "ARN", value_parser = key)]
    pub kms_key: Vec<String>,
}

fn account(text: &str) -> Result<String, String> {
    match text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit()) {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is not twelve digits")),
    }
}

fn key(text: &str) -> Result<String, String> {
    match text.starts_with("arn:") && text.contains(":key/") {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is no ARN of a key, such as arn:aws:kms:eu-west-1:123456789012:key/…")),
    }
}

/// Runs `synclake iam-policy`.
pub(crate) fn run(args: IamPolicyArgs, file: &File) -> Result<()> {
    let lake = prefix("lake", &required("lake", args.lake, &file.lake)?)?;
    let out = args.out.map(|out| prefix("out", &out)).transpose()?;
    let (mut streams, mut lease_tables, mut catalog) = (Vec::new(), Vec::new(), Vec::new());
    let region = args.region.or_else(|| file.region.clone());
    let region = region.or_else(|| std::env::var("AWS_REGION").ok().filter(|region| !region.is_empty()));
    let missing = |what: &str| {
        let message = "is missing; the resources of a stream, a lease table and a catalogue have it in their names";
        Unusable(format!("--{what} {message}"))
    };
    let of = |service: &str, kind: &str, name: &str| -> Result<String, Unusable> {
        let region = region.as_deref().ok_or_else(|| missing("region"))?;
        let account = args.account.as_deref().ok_or_else(|| missing("account"))?;
        let slash = if name.is_empty() { "" } else { "/" };
        Ok(format!("arn:{}:{service}:{region}:{account}:{kind}{slash}{name}", partition(Some(region))))
    };
    if args.role == Role::Catalog {
        let database = &args.database;
        let tables = format!("{database}/*");
        catalog = vec![of("glue", "catalog", "")?, of("glue", "database", database)?, of("glue", "table", &tables)?];
    }
    if args.role == Role::Ingest {
        let names = Sources::streams(&Sources::of(args.source, file));
        let table = args.lease_table.or_else(|| file.lease_table.clone());
        let table = table.map(|table| parse_lease_table(&table)).transpose();
        let table = table.map_err(|error| Unusable(format!("--lease-table {error}")))?;
        for name in &names {
            streams.push(of("kinesis", "stream", name)?);
            if let Some(table) = &table {
                lease_tables.push(of("dynamodb", "table", &lease_table_of(table, name, names.len())?)?);
            }
        }
    }
    let partition = partition(region.as_deref()).to_owned();
    let resources = Resources { partition, lake, out, streams, lease_tables, catalog, keys: args.kms_key };
    // A wildcard in a name would be a grant on everything that it matches.
    let named = [&resources.streams, &resources.lease_tables].into_iter().flatten().chain(&resources.keys);
    let prefixes = [Some(&resources.lake), resources.out.as_ref()].into_iter().flatten();
    let prefixes = prefixes.flat_map(|prefix| [&prefix.bucket, &prefix.prefix]);
    if let Some(odd) = named.chain(prefixes).chain([&args.database]).find(|name| !name.chars().all(is_of_name)) {
        return Err(Unusable(format!("{odd:?} has a character that no name has, or a wildcard; correct it")).into());
    }
    let policy = serde_json::to_string_pretty(&iam::policy(args.role, &resources)).context("encode the policy")?;
    print_line(&policy)
}

/// Characters of ARNs, buckets and prefixes that mean nothing else in a policy.
fn is_of_name(c: char) -> bool {
    c.is_alphanumeric() || "_.-:/=+@!'()".contains(c)
}

fn partition(region: Option<&str>) -> &'static str {
    match region.unwrap_or_default() {
        region if region.starts_with("cn-") => "aws-cn",
        region if region.starts_with("us-gov-") => "aws-us-gov",
        _ => "aws",
    }
}

fn prefix(name: &str, text: &str) -> Result<Prefix, Unusable> {
    match location(name, text)? {
        Location::S3 { bucket, prefix } => Ok(Prefix { bucket, prefix }),
        Location::Folder(_) => {
            Err(Unusable(format!("--{name} {text:?} is a folder, which needs no policy; give s3://bucket/prefix")))
        }
    }
}
