// SPDX-License-Identifier: Apache-2.0
//! What the machine does about the model's window: takes old output out in time, asks for a summary, forgets when it must.

use midge_protocol::broker::{End, Told};

use super::{Effect, Machine, Purpose};
use crate::context;
use crate::talk::Turn;

/// Rounds that stay whole beside a summary.
const KEEP_ROUNDS: usize = 2;
/// How often room is made for one answer before the run fails.
const SQUEEZES_MAX_COUNT: u32 = 3;

impl Machine {
    /// Makes room before it is needed: takes old output out, or turns the next request into one for a summary.
    pub(super) fn make_room(&mut self, todo: &mut Vec<Effect>) {
        let room = context::room_tokens(self.context_tokens, self.max_output_tokens);
        if !context::is_full(self.meter.tokens(), room) {
            return;
        }
        let gone = context::elide(&mut self.turns, context::excess_bytes(self.meter.tokens(), room));
        self.meter.removed(gone);
        if gone > 0 {
            let what = format!("{gone} bytes of old tool output were taken out of the conversation");
            todo.push(Effect::Note(Told::Compacted { what }));
        }
        let can_shrink = context::replaced(&self.turns, "", "", KEEP_ROUNDS).is_some();
        if context::is_full(self.meter.tokens(), room) && can_shrink && self.left.turns != Some(1) {
            self.purpose = Purpose::Summary;
        }
    }

    /// The model has made a summary: the conversation goes on from it.
    pub(super) fn summarised(&mut self, at_ms: u64, summary: &str, todo: &mut Vec<Effect>) {
        self.purpose = Purpose::Work;
        let room = context::room_tokens(self.context_tokens, self.max_output_tokens);
        // The last rounds stay if there is room for them.
        for rounds in (0..=KEEP_ROUNDS).rev() {
            let Some(turns) = context::replaced(&self.turns, &self.task, summary, rounds) else { continue };
            let bytes = turns.iter().map(context::bytes).fold(0, u64::saturating_add);
            if rounds == 0 || context::excess_bytes(bytes / 3, room) == 0 {
                self.forget_all_but(turns, bytes);
                let what = "the old part of the conversation was replaced by the model's summary of it".to_owned();
                todo.push(Effect::Note(Told::Compacted { what }));
                break;
            }
        }
        self.ask(at_ms, todo);
    }

    /// The provider says that the conversation does not fit: takes out more each time, and at last the whole old part.
    pub(super) fn squeeze(&mut self, at_ms: u64, todo: &mut Vec<Effect>) {
        self.squeezes += 1;
        let gone = if self.squeezes == 1 { context::elide_all(&mut self.turns) } else { 0 };
        self.meter.removed(gone);
        let cut = || {
            let lost =
                "(It was too long for the model's window and could not be summarised. Look at the state of the files.)";
            context::replaced(&self.turns, &self.task, lost, usize::from(self.squeezes < SQUEEZES_MAX_COUNT))
        };
        let what = if gone > 0 {
            format!("{gone} bytes of tool output were taken out: the model says that its window is full")
        } else if let Some(turns) = cut().filter(|_| self.squeezes <= SQUEEZES_MAX_COUNT) {
            let bytes = turns.iter().map(context::bytes).fold(0, u64::saturating_add);
            self.forget_all_but(turns, bytes);
            self.purpose = Purpose::Work;
            "the old part of the conversation was dropped: the model says that its window is full".into()
        } else {
            let text = "the task does not fit the model's window; give a shorter task, or a model with a larger one";
            return self.end(End::Failed, text.into(), todo);
        };
        todo.push(Effect::Note(Told::Compacted { what }));
        self.ask(at_ms, todo);
    }

    fn forget_all_but(&mut self, turns: Vec<Turn>, bytes: u64) {
        self.turns = turns;
        let specs: usize =
            self.tools.iter().map(|tool| tool.description.len() + tool.input_schema.to_string().len()).sum();
        self.meter.restart(bytes.saturating_add(u64::try_from(self.system.len() + specs).unwrap_or(u64::MAX)));
    }
}
