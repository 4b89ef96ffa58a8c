// SPDX-License-Identifier: Apache-2.0
//! A scripted model server.
