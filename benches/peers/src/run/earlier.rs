//! An earlier run, read from its JSON: judged and drawn anew, with nothing measured.

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;

use super::{
    rounds::{Rounds, Sample},
    works::Work,
};
use crate::{Outcome, spec::Figures};

#[derive(Deserialize)]
pub(crate) struct Earlier {
    pub date: String,
    pub machine: String,
    pub versions: BTreeMap<String, String>,
    works: Vec<Part>,
}

#[derive(Deserialize)]
struct Part {
    work: String,
    servers: Vec<Server>,
}

#[derive(Deserialize)]
struct Server {
    server: String,
    runs: Vec<Run>,
    failure: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Run {
    round: usize,
    figures: Figures,
    floor_before: Option<Figures>,
    floor_after: Option<Figures>,
}

impl Earlier {
    pub fn read(file: &Path) -> Outcome<Self> {
        Ok(serde_json::from_slice(&std::fs::read(file)?)?)
    }

    /// What that run found for a work, if it was part of it. Servers that are no longer known are left out.
    pub fn rounds(&self, work: &Work, slow: f64) -> Option<Rounds> {
        let part = self.works.iter().find(|part| part.work == work.name)?;
        let mut rounds = Rounds::new(slow);
        for server in &part.servers {
            let Some(entry) = work.entries.iter().position(|entry| entry.label == server.server) else { continue };
            for Run { round, figures, floor_before, floor_after } in &server.runs {
                let (before, after) = (floor_before.clone(), floor_after.clone());
                rounds.add(Sample { round: *round, entry, figures: figures.clone(), before, after });
            }
            if let Some(why) = &server.failure {
                rounds.fail(entry, why);
            }
        }
        Some(rounds)
    }
}
