//! Nanoseconds a value: `cargo bench -p colcrypt-core`.

use std::hint::black_box;

use colcrypt_core::{Key, NonceSource, Payload, SecretKey, Stored, Suite};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

fn suites(c: &mut Criterion) {
    let key = Key::new(SecretKey::random().expect("random bytes"));
    let mut nonces = NonceSource::new();
    for suite in Suite::ALL {
        let mut group = c.benchmark_group(suite.name());
        for len in [16usize, 64, 1024, 65536] {
            let plaintext = vec![b'x'; len];
            let mut sealed = vec![0; suite.sealed_len(len)];
            let mut seal = || {
                key.seal(
                    suite,
                    Payload::Text,
                    black_box(&plaintext),
                    nonces.in_process(1),
                    &mut sealed,
                )
            };
            seal().expect("random bytes");
            group.throughput(Throughput::Bytes(len as u64));
            group.bench_function(BenchmarkId::new("seal", len), |b| b.iter(&mut seal));
            let stored = Stored::parse(&sealed).expect("just sealed");
            let mut opened = vec![0; stored.plaintext_capacity()];
            group.bench_function(BenchmarkId::new("open", len), |b| {
                b.iter(|| key.open(black_box(&stored), Payload::Text, &mut opened));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, suites);
criterion_main!(benches);
