// Throughput and latency of a guest's disk against QEMU, and what a disk costs when a guest is created, restored or given one
// more. The former: the same kernel, the same commands in the guest, a file of the same
// size in the same folder, past the page cache of guest and host alike (O_DIRECT; QEMU: cache=none, aio=threads). QEMU has
// virtio-blk, we have xen-blkfront. Times are the guest's own. Each piece of work is done once, when nothing in the guest is
// compiled yet (`first`), and then several times in a row; the latter is what is compared. Checked: what was written is read
// back, by checksum.

import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { once } from 'node:events';
import { join } from 'node:path';
import { assert } from '../src/base/assert.ts';
import { prepareGuest, virtioModules } from '../src/guest/initramfs.ts';
import { Host } from '../src/host/index.ts';
import { findQemu, machineArguments, qemuMissing } from './peers/qemu.ts';
import type { Benchmark } from './run.ts';
import { summarize } from './statistics.ts';

const RUNS = 3;
const DISK_MIB = 256;
const SEQUENTIAL_MIB = 32;
const SEQUENTIAL_REPEATS = 8;
const SMALL_REQUESTS = 3000;
const SMALL_REPEATS = 3;

/** Work in the guest: how much it is, MiB or requests, and how often it is done after the first time. */
const WORK = [
  { name: 'sequentialWrite', amount: SEQUENTIAL_MIB, repeats: SEQUENTIAL_REPEATS, dd: `if=/tmp/data of=$d bs=1M oflag=direct conv=notrunc,fsync` },
  { name: 'sequentialRead', amount: SEQUENTIAL_MIB, repeats: SEQUENTIAL_REPEATS, dd: `if=$d of=/dev/null bs=1M count=${SEQUENTIAL_MIB} iflag=direct` },
  { name: 'smallWrite', amount: SMALL_REQUESTS, repeats: SMALL_REPEATS, dd: `if=/dev/zero of=$d bs=4096 seek=25000 count=${SMALL_REQUESTS} oflag=direct conv=notrunc` },
  { name: 'smallRead', amount: SMALL_REQUESTS, repeats: SMALL_REPEATS, dd: `if=$d of=/dev/null bs=4096 count=${SMALL_REQUESTS} iflag=direct` },
] as const;
type WorkName = (typeof WORK)[number]['name'];

const command = [
  'd=/dev/xvda; [ -b $d ] || d=/dev/vda; while [ ! -b $d ]; do :; done',
  `dd if=/dev/urandom of=/tmp/data bs=1M count=${SEQUENTIAL_MIB} 2>/dev/null; now() { read -r t _ </proc/uptime; echo "$t"; }`,
  'often() { n=$1; shift; while [ $n -gt 0 ]; do dd "$@" 2>/dev/null; n=$((n-1)); done; }',
  ...WORK.map(({ name, repeats, dd }) => `a=$(now); often 1 ${dd}; b=$(now); often ${repeats} ${dd}; echo "bench ${name} $a $b $(now)"`),
  `a=$(sha256sum </tmp/data); b=$(dd if=$d bs=1M count=${SEQUENTIAL_MIB} iflag=direct 2>/dev/null | sha256sum)`,
  '[ "$a" = "$b" ] && echo "bench checked"; echo "bench done"',
].join('\n');

/** MiB or requests a second. */
interface Rates {
  readonly first: number;
  readonly steady: number;
}
type Figures = Record<WorkName, Rates>;

/** By the guest's clock, which ticks a hundred times a second. */
function figuresIn(output: string): Figures {
  assert(output.includes('bench checked'), 'what was written is read back');
  return Object.fromEntries(WORK.map(({ name, amount, repeats }) => {
    const [, ...times] = new RegExp(`bench ${name} ([\\d.]+) ([\\d.]+) ([\\d.]+)`).exec(output) ?? [];
    assert(times.length === 3, 'the guest has said how long it took');
    const [from, between, to] = times.map(Number) as [number, number, number];
    const rate = (work: number, seconds: number): number => work / Math.max(0.01, seconds);
    return [name, { first: rate(amount, between - from), steady: rate(amount * repeats, to - between) }];
  })) as Figures;
}

async function runOurs(host: Host, path: string): Promise<Figures> {
  await using domain = await host.create({
    memory: '512MiB', cmdline: 'quiet', exec: command, disks: [{ path, format: 'raw' }],
  });
  let output = '';
  for await (const chunk of domain.exec!.output) output += String(chunk);
  const [disk] = domain.stats().disks!;
  assert(disk!.direct && disk!.failures === 0, 'the disk was reached directly, without errors');
  return figuresIn(output);
}

async function runQemu(qemu: string, path: string): Promise<Figures> {
  const { kernelPath, initramfsPath } = await prepareGuest({ modules: virtioModules });
  const word = `zazen.exec=${Buffer.from(command).toString('base64')}`;
  const child = spawn(qemu, [
    ...machineArguments({ kernelPath, initramfsPath, memoryMib: 512, cmdline: `quiet ${word}` }),
    '-drive', `file=${path},format=raw,if=none,id=d0,cache=none,aio=threads`, '-device', 'virtio-blk-device,drive=d0',
  ], { stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  child.stderr.on('data', (chunk) => { output += String(chunk); });
  for await (const chunk of child.stdout) {
    output += String(chunk);
    if (output.includes('bench done')) break;
  }
  child.kill('SIGKILL');
  return figuresIn(output);
}

// ---- what a disk costs beside its requests ----------------------------------------------------------------------------

const ATTACH_ROUNDS = 15;
const DISKS = 4;

/** Milliseconds of creating and restoring with `DISKS` disks and without, in turns, and of attaching one. */
async function attachCost(folder: string): Promise<Record<string, unknown>> {
  await using host = await Host.start({ memory: '2GiB', pcpus: 1 });
  const emptyDisk = (name: string): { path: string; format: 'raw' } => {
    const path = join(folder, name);
    writeFileSync(path, '');
    truncateSync(path, 16 * 2 ** 20);
    return { path, format: 'raw' };
  };
  const disksOf = (name: string): { path: string; format: 'raw' }[] =>
    Array.from({ length: DISKS }, (_, i) => emptyDisk(`${name}-${i}.img`));
  const millis: Record<string, number[]> = {};
  const timed = async <T>(name: string, work: () => Promise<T>): Promise<T> => {
    const start = performance.now();
    const result = await work();
    (millis[name] ??= []).push(performance.now() - start);
    return result;
  };
  const images = new Map<string, string>();
  const memory = '128MiB';
  for (const [name, disks] of [['none', []], ['four', disksOf('saved')]] as const) {
    const last = disks.length === 0 ? '' : 'until (: </dev/xvdd) 2>/dev/null; do :; done; for d in a b c d; do dd if=/dev/zero of=/dev/xvd$d bs=64k count=4 conv=fsync 2>/dev/null; done; ';
    await using domain = await host.create({ memory, cmdline: 'quiet', disks, exec: `${last}echo ready; sleep 100000` });
    const [first] = await once(domain.exec!.output, 'data') as [Buffer];
    assert(String(first).startsWith('ready'), 'the guest has its disks');
    images.set(name, join(folder, `${name}.core`));
    await domain.save(images.get(name)!);
  }
  const disks = disksOf('created');
  for (let i = 0; i < ATTACH_ROUNDS; i++) {
    for (const [name, path] of images) {
      const domain = await timed(`restore.${name}`, () => host.restore(path, { paused: true }));
      assert((domain.stats().disks ?? []).length === (name === 'four' ? DISKS : 0), 'all disks are there');
      await domain.destroy();
    }
    for (const [name, given] of [['none', []], ['four', disks], ['card', []]] as const) {
      const nics = name === 'card' ? [{}] : [];
      const domain = await timed(`create.${name}`, () => host.create({ memory, disks: given, nics, paused: true }));
      if (name === 'none') {
        await timed('attach', () => domain.attachDisk(disks[0]!));
        await timed('detach', () => domain.detachDisk('xvda', { force: true, timeoutMillis: 0 }));
      }
      await domain.destroy();
    }
  }
  const all = Object.fromEntries(Object.entries(millis).map(([name, samples]) => [name, summarize(samples)]));
  const extra = (verb: string, what: string): number => all[`${verb}.${what}`]!.median - all[`${verb}.none`]!.median;
  return {
    millis: all, restoreExtraMillis: extra('restore', 'four'), createMillisPerDisk: extra('create', 'four') / DISKS,
    createMillisPerCard: extra('create', 'card'),
  };
}

async function run({ log }: { log: (line: string) => void }): Promise<unknown> {
  const folder = mkdtempSync(join(process.cwd(), '.cache-bench-'));
  const path = join(folder, 'disk.img');
  const qemu = findQemu();
  const samples: Record<string, number[]> = {};
  const note = (who: string, figures: Figures): void => {
    for (const [name, rates] of Object.entries(figures)) {
      for (const [which, value] of Object.entries(rates)) (samples[`${who}.${name}.${which}`] ??= []).push(value);
    }
  };
  let attach: Record<string, unknown> = {};
  try {
    log('block: what a disk costs');
    attach = await attachCost(folder);
    await using host = await Host.start({ memory: '1GiB', pcpus: 1 });
    for (let i = 0; i < RUNS; i++) {
      log(`block: round ${i + 1} of ${RUNS}`);
      writeFileSync(path, '');
      truncateSync(path, DISK_MIB * 2 ** 20);
      note('zazen', await runOurs(host, path));
      if (qemu !== undefined) note('qemu', await runQemu(qemu, path));
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
  const result: Record<string, Record<string, unknown>> = { attach };
  for (const { name } of WORK) {
    const unit = name.startsWith('sequential') ? 'mibPerSecond' : 'perSecond';
    const compare = (which: keyof Rates): Record<string, unknown> => {
      const ours = summarize(samples[`zazen.${name}.${which}`]!);
      const theirs = samples[`qemu.${name}.${which}`];
      return { [`zazen_${unit}`]: ours, ...(theirs === undefined ? { qemu: qemuMissing }
        : { [`qemu_${unit}`]: summarize(theirs), ratioToQemu: ours.median / summarize(theirs).median }) };
    };
    result[name] = { ...compare('steady'), first: compare('first') };
  }
  return result;
}

const block: Benchmark = { name: 'block', description: 'throughput and latency of a disk, against QEMU; what attaching one costs', run };
export default block;
