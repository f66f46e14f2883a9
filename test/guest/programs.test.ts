// Debian's arm64 programs in a guest: what they compute is compared with this machine's own tools, with node:crypto and
// node:zlib, and with values that IEEE 754 defines exactly. One boot runs all of it; each test looks at its part.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import {
  constants, createCipheriv, createHash, createHmac, createPrivateKey, createPublicKey, generateKeyPairSync, sign, verify,
} from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { gunzipSync, zstdDecompressSync } from 'node:zlib';
import { decompress } from '../../src/guest/decompress.ts';
import { complaints, FAST_BOOT, programsInitramfs, runSections, testHost } from './guests.ts';
import type { GuestRun } from './guests.ts';
import { pythonScript } from './python-script.ts';
import type { PythonResults } from './python-script.ts';
import { needsTool } from '../tools.ts';

const hex = (bytes: number, fill: number): string => Buffer.alloc(bytes, fill).toString('hex');
/** `seq 1 COUNT`. */
const seq = (count: number): string => Array.from({ length: count }, (_, i) => `${i + 1}\n`).join('');
/** What `openssl enc -aes-128-ctr` makes of zeros: bytes without a pattern, the same on both sides. */
const noise = (bytes: number): Buffer =>
  createCipheriv('aes-128-ctr', Buffer.alloc(16, 0x5a), Buffer.alloc(16)).update(Buffer.alloc(bytes));
const NOISE = `openssl enc -aes-128-ctr -K ${hex(16, 0x5a)} -iv ${hex(16, 0)} -in /dev/zero 2>/dev/null | head -c`;
const sha256 = (data: string | Buffer): string => createHash('sha256').update(data).digest('hex');

const MESSAGE = seq(20000);
const NOISE_BYTES = 192 * 1024;
/** For the compressors: half noise, half text. */
const MIXED = Buffer.concat([noise(NOISE_BYTES), Buffer.from(seq(40000))]);
const INPUT = noise(100_000);

const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 });
const ed25519 = generateKeyPairSync('ed25519');
const pem = (key: ReturnType<typeof createPrivateKey>): string => String(key.export({ type: 'pkcs8', format: 'pem' })).trim();

/** Run on both sides; only what POSIX defines, so that busybox and this machine's tools have to agree. */
const SAME_ON_HOST: Readonly<Record<string, string>> = {
  digests: 'seq 1 20000 >a; sha1sum a; sha256sum a; sha512sum a; md5sum a; sha256sum a | sha256sum -',
  awk: `awk 'BEGIN { s = 1; for (i = 0; i < 20000; i++) { s = (s * 69069 + 5) % 1048576; n[s % 97]++ }
    for (k = 0; k < 97; k++) printf "%d:%d ", k, n[k]; print s; printf "%.17g %.10e %5.2f\\n", 2 / 3, 1e10 / 7, 22 / 7 }'
    seq 1 1000 | awk '{ t += $1 * $1; if ($1 % 7 == 0) c++ } END { print t, c, t / NR }'
    printf 'a:b:c\\nd:e:f\\n' | awk -F: '{ print $3 "-" $1; gsub(/[a-d]/, "<&>"); print toupper($0), length($0) }'`,
  sort: `seq 1 1500 | awk '{ print ($1 * 7919) % 1511, "x" $1 % 13 }' >s
    sort -n s | sha256sum; LC_ALL=C sort s | sha256sum; LC_ALL=C sort -k2,2 -k1,1n s | sha256sum
    cut -d' ' -f2 s | LC_ALL=C sort | uniq -c | awk '{ print $1, $2 }'; sort -rn s | head -3; sort -nu s | wc -l`,
  sed: `seq 1 300 | sed -n -e 's/\\([0-9]\\)\\([0-9]\\)$/\\2\\1/p' -e '/^1.*9$/d' | sha256sum
    echo 'hello, world' | sed 'y/lo/01/;s/w.*/[&]/;s/,/ &/g'; seq 7 | sed '2,4s/^/> /' | sed '$!N;s/\\n/+/'`,
  text: `seq 1 1000 | tr 0-9 a-j | fold -w 37 | sha256sum; seq 1 30 | paste -sd, - ; seq 20 | grep -c 1
    seq 1 100 | tail -n 5 | tr '\\n' ' '; echo abc | od -An -tx1; printf '%d %o %x %s\\n' 255 8 48879 done
    seq 3 >p; seq 2 4 >q; cmp p q; diff -U 9 p q | tail -n 5; expr 1234567 '*' 89 % 1000; echo $((1 << 40)) $((-7 / 2))`,
  files: `mkdir -p t/a/b t/c; seq 1 9 | while read -r n; do seq 1 "$n" >t/a/b/f$n; done; ln -s ../a t/c/up; echo x >'t/c/a b'
    find t -type f | LC_ALL=C sort; find t -type l -o -name 'f[2-4]' | sort; find t -name f9 -exec wc -c '{}' ';'
    tar cf t.tar t; rm -r t; tar tf t.tar | LC_ALL=C sort; tar xf t.tar; cat t/c/up/b/f9 't/c/a b'; readlink t/c/up
    gzip -c t.tar | gzip -dc | cmp - t.tar && echo same`,
};

/** Only in the guest: the test knows what must come. */
const GUEST_ONLY: Readonly<Record<string, string>> = {
  'dc': "echo '2 200 ^ p 10k 2 v p 16 i FF p' | busybox dc; echo '2 10 ^ p' | busybox dc",
  'openssl-digest': `seq 1 20000 >m
    for d in md5 sha1 sha224 sha256 sha384 sha512 sha3-256 blake2b512; do openssl dgst -r -$d m; done
    openssl dgst -r -sha256 -hmac secret m`,
  'openssl-cipher': `seq 1 20000 >m; key=${hex(32, 0x11)}; iv=${hex(16, 0x22)}
    for c in aes-128-ctr aes-256-ctr aes-256-cbc chacha20; do
      case $c in *128*) k=${hex(16, 0x11)} ;; *) k=$key ;; esac
      openssl enc -$c -K $k -iv $iv -in m -out e && sha256sum <e | cut -c1-64
      openssl enc -d -$c -K $k -iv $iv -in e | cmp - m && echo round-trip
    done
    openssl mac -cipher AES-256-GCM -macopt hexkey:$key -macopt hexiv:${hex(12, 0x33)} -in m GMAC
    openssl cms -encrypt -aes-256-gcm -secretkey $key -secretkeyid 01 -binary -in m -outform DER -out c
    openssl cms -decrypt -secretkey $key -secretkeyid 01 -inform DER -in c | cmp - m && echo gcm round-trip
    # A flipped bit in the middle of the ciphertext has to be noticed.
    { head -c 60000 c; printf '\\377'; tail -c +60002 c; } >broken
    openssl cms -decrypt -secretkey $key -secretkeyid 01 -inform DER -in broken >/dev/null 2>&1 || echo altered`,
  'openssl-sign': `seq 1 20000 >m; seq 1 20001 >other
    echo '${pem(rsa.privateKey)}' >rsa; echo '${pem(ed25519.privateKey)}' >ed
    openssl dgst -sha256 -sign rsa -out s m; openssl base64 -A -in s; echo
    openssl pkey -in rsa -pubout -out rsapub; openssl dgst -sha256 -verify rsapub -signature s m
    openssl dgst -sha256 -verify rsapub -signature s other
    openssl pkeyutl -sign -rawin -inkey ed -in m | openssl base64 -A; echo
    openssl ecparam -name prime256v1 -genkey -noout -out ec; openssl pkey -in ec -pubout -out ecpub
    openssl dgst -sha256 -sign ec -out es m; openssl dgst -sha256 -verify ecpub -signature es m
    openssl dgst -sha256 -verify ecpub -signature es other
    openssl base64 -A -in es; echo; cat ecpub`,
  'compress': `{ ${NOISE} ${NOISE_BYTES}; seq 1 40000; } >m; sha256sum <m
    for c in 'busybox gzip' '/usr/bin/zstd -q' '/usr/bin/xz -0'; do
      $c -c <m >z && wc -c <z
      case $c in *gzip*) busybox gzip -dc <z ;; *zstd*) /usr/bin/zstd -qdc <z ;; *) /usr/bin/xz -dc <z ;; esac | sha256sum
    done`,
  'compressed-gzip': 'seq 1 5000 | busybox gzip -c | base64',
  'compressed-zstd': 'seq 1 5000 | /usr/bin/zstd -qc | base64',
  'compressed-xz': 'seq 1 5000 | /usr/bin/xz -1c --check=crc32 | base64',
  // Both CPUs at once, each with processes that come and go.
  'parallel': `seq 1 60000 >m; sha256sum <m; /usr/bin/zstd -q -T2 -1 -c m | /usr/bin/zstd -dqc | sha256sum
    for job in 1 2 3; do cat m | cat | cat | sha256sum & done; wait
    i=0; while [ $i -lt 20 ]; do sh -c 'exit 3' & sh -c 'exit 4' & i=$((i + 1)); done; wait; echo $i`,
  'python': `cat >p.py <<'END'\n${pythonScript}\nEND\npython3 p.py`,
  // The probe makes the moment longer in which Linux's console driver, without a lock, hands on what it received: a guest
  // with two CPUs loses input there on every run unless both of them that do so are the same.
  'input': `mount -t tracefs tracefs /sys/kernel/tracing; cd /sys/kernel/tracing
    echo 'p:push tty_flip_buffer_push+0x20' >kprobe_events; echo 1 >events/kprobes/push/enable
    cd; wc -c <p.py >/dev/null; cat >i; wc -c <i; sha256sum <i`,
  'kernel-log': 'dmesg',
};

const inDirectory = (script: string): string => `export LC_ALL=C; exec 2>&1; ${script}`;

const host = await testHost({ memory: '1GiB' });
let guest: GuestRun;
before(async () => {
  const sections = { ...SAME_ON_HOST, ...GUEST_ONLY };
  const prepared = Object.fromEntries(Object.entries(sections).map(([name, script]) => [name, inDirectory(script)]));
  guest = await runSections(host, { initrd: await programsInitramfs(), cmdline: FAST_BOOT, vcpus: 2 }, prepared, INPUT);
});

for (const [name, script] of Object.entries(SAME_ON_HOST)) {
  test(`busybox ${name}: the same as on this machine`, (t) => {
    for (const tool of ['awk', 'cmp', 'tar', 'gzip']) if (!needsTool(t, tool)) return;
    const directory = mkdtempSync(join(tmpdir(), 'zazen-programs-'));
    try {
      const here = spawnSync('sh', ['-c', inDirectory(script)], { cwd: directory, encoding: 'latin1' });
      const expected = here.stdout.split('\n');
      assert.deepEqual(guest.section(name).output.split('\n'), expected);
      assert.equal(guest.section(name).status, here.status);
    } finally {
      rmSync(directory, { recursive: true });
    }
  });
}

test('busybox dc', () => {
  assert.deepEqual(guest.outputOf('dc').trim().split('\n'), [String(2n ** 200n), '1.4142135623', '255', '1024']);
});

test('openssl: digests are those of node:crypto', () => {
  const lines = guest.outputOf('openssl-digest').trim().split('\n').map((line) => line.split(' ')[0]);
  const names = ['md5', 'sha1', 'sha224', 'sha256', 'sha384', 'sha512', 'sha3-256', 'blake2b512'];
  const expected = names.map((name) => createHash(name).update(MESSAGE).digest('hex'));
  assert.deepEqual(lines, [...expected, createHmac('sha256', 'secret').update(MESSAGE).digest('hex')]);
});

test('openssl: ciphers, CTR, CBC, ChaCha20 and GCM, are those of node:crypto and can be undone', () => {
  const iv = Buffer.alloc(16, 0x22);
  const encrypted = (name: string, keyBytes: number): string => {
    const cipher = createCipheriv(name, Buffer.alloc(keyBytes, 0x11), iv);
    return sha256(Buffer.concat([cipher.update(MESSAGE), cipher.final()]));
  };
  const gcm = createCipheriv('aes-256-gcm', Buffer.alloc(32, 0x11), Buffer.alloc(12, 0x33));
  gcm.setAAD(Buffer.from(MESSAGE));
  gcm.final();
  assert.deepEqual(guest.outputOf('openssl-cipher').trim().split('\n'), [
    ...[['aes-128-ctr', 16], ['aes-256-ctr', 32], ['aes-256-cbc', 32], ['chacha20', 32]].flatMap(([name, bytes]) =>
      [encrypted(name as string, bytes as number), 'round-trip']),
    gcm.getAuthTag().toString('hex').toUpperCase(), 'gcm round-trip', 'altered',
  ]);
});

test('openssl: RSA and Ed25519 signatures are those of node:crypto; an ECDSA one verifies on both sides', () => {
  const { output } = guest.section('openssl-sign');
  const lines = output.trim().split('\n').filter((line) => !/:error:|read EC key|writing/.test(line));
  const rsaSignature = sign('sha256', Buffer.from(MESSAGE), { key: rsa.privateKey, padding: constants.RSA_PKCS1_PADDING });
  assert.deepEqual(lines.slice(0, 6), [
    rsaSignature.toString('base64'), 'Verified OK', 'Verification failure',
    sign(null, Buffer.from(MESSAGE), ed25519.privateKey).toString('base64'), 'Verified OK', 'Verification failure',
  ]);
  const publicKey = createPublicKey(lines.slice(7).join('\n'));
  const signature = Buffer.from(lines[6]!, 'base64');
  assert(verify('sha256', Buffer.from(MESSAGE), publicKey, signature));
  assert(!verify('sha256', Buffer.from(`${MESSAGE}x`), publicKey, signature));
});

test('gzip, zstd and xz: round trips of noise and text', () => {
  const [original, ...rest] = guest.outputOf('compress').trim().split('\n').map((line) => line.split(' ')[0]!);
  assert.equal(original, sha256(MIXED));
  assert.equal(rest.length, 6);
  for (let i = 0; i < rest.length; i += 2) {
    // The noise cannot shrink, the text does, to a third at least.
    const size = Number(rest[i]);
    assert(size > NOISE_BYTES && size < NOISE_BYTES + (MIXED.length - NOISE_BYTES) / 2, `${size} bytes`);
    assert.equal(rest[i + 1], original);
  }
});

test('gzip, zstd and xz: what the guest compressed, this machine unpacks', async () => {
  const packed = (name: string): Buffer => Buffer.from(guest.outputOf(`compressed-${name}`), 'base64');
  assert.equal(gunzipSync(packed('gzip')).toString(), seq(5000));
  assert.equal(zstdDecompressSync(packed('zstd')).toString(), seq(5000));
  assert.equal(Buffer.from(await decompress(packed('xz'))).toString(), seq(5000));
});

test('programs on both CPUs at once', () => {
  const digest = `${sha256(seq(60000))}  -`;
  assert.deepEqual(guest.outputOf('parallel').trim().split('\n'), [...Array<string>(5).fill(digest), '20']);
});

test('a command reads every byte of its input', () => {
  assert.deepEqual(guest.outputOf('input').trim().split(/\s+/), [String(INPUT.length), sha256(INPUT), '-']);
});

test('the kernel has nothing to complain of after all that', () => {
  assert.deepEqual(complaints(guest.outputOf('kernel-log')), []);
});

test('python3: floating point as IEEE 754 has it', () => {
  const { exact, functions } = python();
  let sum = 0;
  for (let k = 0; k < 2000; k++) sum += (k % 2 ? -1 : 1) / (2 * k + 1);
  let zeta = 0;
  for (let k = 1; k <= 2000; k++) zeta += 1 / (k * k);
  let logistic = 0.3;
  for (let k = 0; k < 1000; k++) logistic = 3.9 * logistic * (1 - logistic);
  let e = 1;
  for (let k = 1, term = 1; k < 30; k++) e += term /= k;
  assert.deepEqual(exact, {
    leibniz: sum, zeta, logistic, e, third: 1 / 3, tenth: 0.1 + 0.2, root: Math.sqrt(2), denormal: 5e-324 * 3,
    tiny: 2.2250738585072014e-308 / 3, large: 1.7976931348623157e308 / 7, float32: Math.fround(0.1),
    rounded: [0, 2, 2, -2, 0], remainder: 5.3 % 0.7, floor: [-3, 2, -2, 3],
  });
  for (const [name, value] of Object.entries(functions)) {
    const [fn, argument] = name.split(' ') as [keyof typeof Math, string];
    const expected = (Math[fn] as (x: number) => number)(Number(argument));
    // Libraries may differ in the last place; a wrong instruction would differ by far more.
    assert(Math.abs(value - expected) <= 2 * Number.EPSILON * Math.abs(expected), `${name}: ${value}, not ${expected}`);
  }
  assert.equal(Object.keys(functions).length, 45);
});

test('python3: big integers, hashes, struct, json, sorting, threads', () => {
  const { integers, hashes, packed, sorted, text, special, threads } = python();
  assert.deepEqual(threads, [4 * 1500, (299 * 300) / 2]);
  let factorial = 1n;
  for (let n = 1n; n <= 200n; n++) factorial *= n;
  let power = 1n;
  for (let n = 0; n < 65537; n++) power = (power * 3n) % (2n ** 127n - 1n);
  assert.deepEqual(integers, [
    factorial, 7n ** 300n, power, factorial / 12345678901234567890n, factorial % 12345678901234567890n,
    -(10n ** 40n) / 7n - 1n,
  ].map(String));
  assert.deepEqual(hashes, ['md5', 'sha1', 'sha256', 'sha512', 'sha3-256', 'blake2b512'].map((name) =>
    createHash(name).update('zazen'.repeat(1000)).digest('hex')));
  const view = Buffer.alloc(26);
  view.writeDoubleLE(Math.PI, 0);
  view.writeFloatLE(1.5, 8);
  view.writeBigInt64LE(-5n, 12);
  view.writeUInt32LE(0xdeadbeef, 20);
  view.writeInt16LE(-2, 24);
  assert.equal(packed, view.toString('hex'));
  assert.deepEqual(sorted, Array.from({ length: 500 }, (_, i) => (i * 7919) % 503).toSorted((a, b) => a - b));
  assert.equal(text, 'Žižkov ☃ 𝄞 "\\\n');
  assert.deepEqual(special, ['inf', '-inf', 'nan', '-0.0', 'ZeroDivisionError', 'OverflowError', '0x1.921fb54442d18p+1']);
});

const python = (): PythonResults => JSON.parse(guest.outputOf('python'));
