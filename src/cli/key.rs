//! `onlooker key`: makes an API key.

use clap::Args;
use onlooker::{
    auth::key,
    config::key::{Scope, is_name},
};

use super::{failure::Failure, say};

const EXAMPLES: &str = "\
Examples:
  onlooker key --id agents --project shop --scopes publish
  onlooker key --id console --project shop --scopes watch,answer,control,admin
  onlooker key --id fleet --project shop --scopes publish --pool

Scopes: publish (be a runtime), watch (follow and read), answer (answer and claim guardrails),
control (start and steer sessions), admin (issue tokens, read metrics).";

/// Makes an API key and the entry for the configuration file
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct NewKey {
    /// Names the key in logs and in what others see of its holder
    #[arg(long, value_parser = name)]
    id: String,
    /// The project that it belongs to
    #[arg(long, value_parser = name)]
    project: String,
    /// What it allows
    #[arg(long, value_delimiter = ',', required = true, value_parser = scope)]
    scopes: Vec<Scope>,
    /// Its runtimes serve every project
    #[arg(long)]
    pool: bool,
}

fn name(text: &str) -> Result<String, &'static str> {
    is_name(text).then(|| text.to_owned()).ok_or("1 to 64 letters, digits, `_` or `-`")
}

fn scope(text: &str) -> Result<Scope, &'static str> {
    Scope::from_name(text.trim()).ok_or("one of: publish, watch, answer, control, admin")
}

impl NewKey {
    pub(crate) fn run(self) -> Result<(), Failure> {
        if self.pool && !self.scopes.contains(&Scope::Publish) {
            return Err(Failure::usage("--pool is for runtimes: add the scope publish"));
        }
        let made = key::generate(&self.id, &self.project, &self.scopes);
        let (plain, mut entry) =
            made.map_err(|error| Failure::failed(format!("the system's random generator failed: {error}")))?;
        entry.pool = self.pool;
        say("# The key, shown this once: give it to whoever uses it, and keep it out of the file.")?;
        say(format_args!("# {}\n", plain.expose()))?;
        say("# The entry for the configuration file; the key cannot be had back from it.")?;
        say(entry.to_string().trim_end())
    }
}
