// SPDX-License-Identifier: Apache-2.0
//! One virtual machine from start to end.
