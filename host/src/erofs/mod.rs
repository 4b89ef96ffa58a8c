// SPDX-License-Identifier: Apache-2.0
//! A writer of erofs images.
