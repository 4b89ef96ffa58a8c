// SPDX-License-Identifier: Apache-2.0
//! Tests of whose fault a failed start is.

use super::*;

#[test]
fn the_users_faults_are_told_from_the_hosts() {
    let vcpus = VmError::Kvm(KvmError::Vcpus { asked: 32, max: 4 });
    assert_eq!(vcpus.reason(), Reason::Config);
    let absent = VmError::Kvm(KvmError::Absent(io::ErrorKind::NotFound.into()));
    assert_eq!(absent.reason(), Reason::HostError);
    let entropy = VmError::Boot(BootError::Entropy(io::ErrorKind::Other.into()));
    assert_eq!(entropy.reason(), Reason::HostError);
    let room = VmError::Boot(BootError::InitramfsRoom { len: 1, kernel_end: 2, limit: 3 });
    assert_eq!(room.reason(), Reason::Config);
}

#[test]
fn a_disk_that_cannot_be_opened_is_the_users_and_one_that_cannot_be_read_is_the_hosts() {
    let file = DeviceError::OpenFile { index: 0, path: "/x".into(), source: io::ErrorKind::NotFound.into() };
    assert_eq!(VmError::Device(file).reason(), Reason::Config);
    let source = crate::disk::OpenError::Length { len: 7 };
    let length = DeviceError::Disk { index: 1, path: "/x".into(), source };
    assert_eq!(VmError::Device(length).reason(), Reason::Config);
    let source = crate::disk::OpenError::Io { what: "reading", source: io::ErrorKind::Other.into() };
    let read = DeviceError::Disk { index: 1, path: "/x".into(), source };
    assert_eq!(VmError::Device(read).reason(), Reason::HostError);
}
