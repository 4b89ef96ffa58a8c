// SPDX-License-Identifier: Apache-2.0
//! The artefact cache: where built kernels, images and scratch disks live between runs.
