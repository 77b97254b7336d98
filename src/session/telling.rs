//! What others are told beside the events: who watches, who has claimed, and the summary of the session.

use std::{sync::Arc, time::Duration};

use onlooker_protocol::{
    Position,
    subscriber::ClaimedGuardrail,
    view::{OpenGuardrail, SessionSummary},
};
use tokio::time::Instant;

use super::owner::Owner;
use crate::hub::Side;

/// How often the `watchers` frame may change.
const SIDE_EVERY: Duration = Duration::from_secs(1);

impl Owner {
    fn side_now(&self, now: Instant) -> Side {
        let claims = self.book.open().filter_map(|guardrail| {
            Some(ClaimedGuardrail {
                guardrail_id: guardrail.view.guardrail_id.clone(),
                revision: guardrail.view.revision,
                claim: guardrail.claim_view()?.clone(),
            })
        });
        Side { counts: self.session.watch.counts(now), claims: Arc::new(claims.collect()) }
    }

    pub(super) fn side_due(&self) -> Option<Instant> {
        self.side_told_at.filter(|_| self.side_stale).map(|told| told + SIDE_EVERY)
    }

    /// Tells subscribers and the runtime who watches, at most once a second.
    pub(super) fn tell_side(&mut self, now: Instant) {
        if !self.side_stale || self.side_told_at.is_some_and(|told| now < told + SIDE_EVERY) {
            return;
        }
        self.side_stale = false;
        let side = self.side_now(now);
        if *self.side.borrow() != side {
            self.side_told_at = Some(now);
            self.session.link.watchers(side.counts);
            self.side.send_replace(side);
        }
    }

    pub(super) fn tell_summary(&mut self) {
        if !std::mem::take(&mut self.summary_stale) {
            return;
        }
        let session = self.state.session();
        let mut guardrails: Vec<_> = self.book.open().collect();
        guardrails.sort_by_key(|guardrail| guardrail.view.position.offset);
        let summary = SessionSummary {
            session: self.session.id.to_string(),
            external_id: session.external_id.clone(),
            status: session.status,
            reason: session.reason,
            task_status: self.state.task_status(),
            created_at: session.created_at.clone(),
            guardrails: guardrails
                .into_iter()
                .map(|guardrail| OpenGuardrail {
                    guardrail_id: guardrail.view.guardrail_id.clone(),
                    revision: guardrail.view.revision,
                    kind: guardrail.view.kind,
                    value: guardrail.view.value.clone(),
                    unreachable: guardrail.unreachable,
                })
                .collect(),
            picture: session.picture.as_ref().map(|picture| picture.id.clone()),
            position: Some(Position { epoch: self.log.epoch, offset: self.log.next.saturating_sub(1) }),
        };
        let board = self.services.boards.of(&self.session.project);
        if self.book.iter().all(|guardrail| guardrail.is_over()) {
            board.nothing_asked(self.id());
        }
        board.set(self.id(), summary);
    }
}
