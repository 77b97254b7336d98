//! What a connection costs that does nothing but live.

use std::time::Duration;

use super::{JOINING, open};
use crate::{
    Outcome,
    spec::{Figures, Idle, Spec},
    usage::Processes,
};

pub(super) fn measure(spec: &Spec, job: &Idle) -> Outcome<Figures> {
    let server = Processes::of_group(spec.target.group)?;
    let (mut audience, _publishing, _) = open(spec, 1, 0)?;
    let before = (server.rss()? as f64, server.cpu()?);
    let mut seen = Vec::new();
    let mut joining = 0;
    for step in &job.steps {
        let began = server.cpu()?;
        audience.join(&vec![0..1; step.saturating_sub(audience.len())], JOINING)?;
        joining += server.cpu()? - began;
        // Pings are answered meanwhile.
        audience.live(Duration::from_secs_f64(job.settle))?;
        seen.push((audience.len() as f64, server.rss()? as f64));
    }
    let (Some(first), Some(last)) = (seen.first(), seen.last()) else { return Err("nothing to look at".into()) };
    let marginal = (last.1 - first.1) / (last.0 - first.0);
    Ok(Figures {
        connections: audience.len(),
        connection_bytes: (last.1 - before.0) / last.0,
        marginal_bytes: (first.0 < last.0).then_some(marginal),
        cpu_us: joining as f64 / 1e3 / last.0,
        rss: last.1 as u64,
        ..Figures::default()
    })
}
