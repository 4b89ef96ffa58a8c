// SPDX-License-Identifier: Apache-2.0
//! What can go wrong, and whose fault it is.
