// SPDX-License-Identifier: Apache-2.0
//! Scratch disks: pre-formatted images that overlays are taken over.
