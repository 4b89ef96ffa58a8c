// SPDX-License-Identifier: Apache-2.0
//! What a byte of a command's output costs on its way through the codec, and what a small message costs.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use midge_protocol::{Decoder, MAX_DATA_BYTES, OutputStream, ToAgent, ToHost, encode, encode_output};

fn output(c: &mut Criterion) {
    let data = vec![0x5a; MAX_DATA_BYTES];
    let mut frame = Vec::new();
    encode_output(OutputStream::Stdout, 0, &data, &mut frame);
    let mut group = c.benchmark_group("output of 64 KiB");
    group.throughput(Throughput::Bytes(MAX_DATA_BYTES as u64));
    group.bench_function("encode", |bench| {
        let mut out = Vec::with_capacity(frame.len());
        bench.iter(|| {
            out.clear();
            encode_output(OutputStream::Stdout, 0, black_box(&data), &mut out)
        });
    });
    group.bench_function("decode whole", |bench| {
        bench.iter(|| Decoder::<ToHost>::new().decode(&mut black_box(frame.as_slice())).expect("valid"));
    });
    group.bench_function("decode in pieces of 4 KiB", |bench| {
        bench.iter(|| {
            let mut decoder = Decoder::<ToHost>::new();
            let pieces = black_box(frame.as_slice()).chunks(4096);
            pieces.filter_map(|mut piece| decoder.decode(&mut piece).expect("valid")).count()
        });
    });
    group.finish();
}

fn small(c: &mut Criterion) {
    let mut frame = Vec::new();
    encode(&ToAgent::Ping(1), &mut frame).expect("fits");
    c.bench_function("ping there and decoded", |bench| {
        let mut out = Vec::with_capacity(64);
        bench.iter(|| {
            out.clear();
            encode(&ToAgent::Ping(black_box(7)), &mut out).expect("fits");
            Decoder::<ToAgent>::new().decode(&mut out.as_slice()).expect("valid")
        });
    });
}

criterion_group!(benches, output, small);
criterion_main!(benches);
