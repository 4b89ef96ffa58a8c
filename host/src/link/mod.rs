// SPDX-License-Identifier: Apache-2.0
//! Conversations with the agent.
