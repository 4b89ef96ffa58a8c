// SPDX-License-Identifier: Apache-2.0
//! Guest kernels: found, or built from source once and cached.
