// Readers of a real guest's dump: what the image tells of the guest's kernel is what the guest itself said, and a
// debugger that knows nothing of Zazen sees the registers and the memory that the hypervisor had. Then dumps of guests
// that lie: their readers give an answer or a typed error, and come to an end.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { after } from 'node:test';
import { vcpuRecord } from '../../src/abi/vcpu.ts';
import { ZazenError } from '../../src/base/errors.ts';
import { SeededRandom } from '../../src/base/random.ts';
import { Scratch } from '../../src/image/direct-file.ts';
import type { GuestPages } from '../../src/image/guest-kernel/guest-memory.ts';
import { GuestKernel } from '../../src/image/guest-kernel/guest-kernel.ts';
import { imagePages } from '../../src/image/guest-kernel/image-pages.ts';
import { formatLog } from '../../src/image/guest-kernel/kernel-log.ts';
import type { GuestProcess } from '../../src/image/guest-kernel/processes.ts';
import { openImage } from '../../src/image/image.ts';
import type { Image } from '../../src/image/image.ts';
import { decodeState } from '../../src/lifecycle/image-state.ts';
import { runCli } from '../../src/cli/test-io.ts';
import { TEST_PATIENCE_MILLIS } from '../patience.ts';
import { needsTool } from '../tools.ts';
import { collect, limited, testHost } from './guests.ts';

const SEED = 20261122;
const folder = await mkdtemp(join(tmpdir(), 'zazen-dumps-'));
after(() => rm(folder, { recursive: true }));

const host = await testHost({ memory: '1GiB' });

interface Dump {
  readonly path: string;
  /** What the guest's own programs said before. */
  readonly log: string;
  readonly processes: string;
  readonly release: string;
  /** Physical address of the kernel's note. */
  readonly noteAddress: number;
}

/** Boots a guest, has it tell about itself and dumps it. */
async function dumpGuest(vcpus: number): Promise<Dump> {
  const path = join(folder, `guest-${vcpus}.core`);
  const domain = await host.create({ name: `dumped-${vcpus}`, memory: '400MiB', vcpus });
  const stream = domain.attachConsole();
  const shown = collect(stream);
  const text = await limited(domain, async () => {
    await shown.until(/root@dumped-\d:~# /);
    // The log's last word and the commands' names come from here, so that order and escapes are seen to be kept.
    const parts = ['dmesg', 'ps -o pid,ppid,comm', 'uname -r', 'cat /sys/kernel/vmcoreinfo'];
    const marked = parts.map((part, n) => `echo part""-${n}; ${part}`).join('; ');
    // What the kernel says beside it comes to the log alone, and the process that sleeps does so before it is looked at.
    stream.write(`stty -echo; dmesg -n 1; sleep 12345 & until grep -q ') S ' /proc/$!/stat && grep -q sleep /proc/$!/comm; do :; done; `
      + `echo a marked line > /dev/kmsg; ${marked}; echo part""-end\n`);
    return (await shown.until(/part-end\r\n/)).replaceAll('\r', '');
  });
  stream.destroy();
  await domain.dumpCore(path);
  await domain.destroy();
  const [log, processes, release, note] = text.slice(text.indexOf('part-0\n')).split(/part-\w+\n/).slice(1);
  return { path, log: log!, processes: processes!, release: release!.trim(), noteAddress: Number(note!.split(' ')[0]) };
}

for (const vcpus of [1, 2]) {
  test(`a dump of a guest with ${vcpus} vCPU${vcpus > 1 ? 's' : ''} tells what the guest told`, async () => {
    const dump = await dumpGuest(vcpus);
    await using image = await openImage(dump.path);
    assert.equal(image.vcpus.length, vcpus);
    await GuestKernel.use(image, (kernel) => {
      assert.equal(kernel.info.release, dump.release);
      const note = kernel.memory.physical(dump.noteAddress + 24, image.vmcoreinfo!.length);
      assert.deepEqual(note, image.vmcoreinfo, 'the note is the one that the guest names');
      const log = formatLog(kernel.log());
      assert.equal(log.slice(0, dump.log.length), dump.log); // the kernel may have gone on to say something
      assert.match(dump.log, /a marked line\n/);
      checkProcesses(kernel.processes(), dump.processes);
      checkBacktraces(kernel, image);
    });
    await checkVerbs(dump);
  });
}

/** Worker threads come and go, and `ps` shows more in their names than they are called. */
function checkProcesses(processes: readonly GuestProcess[], told: string): void {
  const isStable = (command: string) => !command.startsWith('kworker/') && command !== 'ps';
  const listed = told.trim().split('\n').slice(1).map((line) => line.trim().split(/ +/) as [string, string, string])
    .filter(([, , command]) => isStable(command));
  const found = processes.filter(({ command }) => isStable(command))
    .map(({ pid, parentPid, command }) => [String(pid), String(parentPid), command]);
  assert.deepEqual(found, listed);
  const named = (command: string) => processes.find((one) => one.command === command)!;
  const { uid, threads, isKernelThread, pid } = named('init');
  assert.deepEqual({ uid, threads, isKernelThread, pid }, { uid: 0, threads: 1, isKernelThread: false, pid: 1 });
  assert.equal(named('sleep').parentPid, named('sh').pid);
  assert.deepEqual([named('sleep').state, named('kthreadd').isKernelThread], ['S', true]);
}

function checkBacktraces(kernel: GuestKernel, image: Image): void {
  const names = (frames: ReturnType<GuestKernel['backtraceOfVcpu']>) => frames!.map(({ place }) => place?.name);
  const sleep = kernel.processes().find(({ command }) => command === 'sleep')!;
  const chain = names(kernel.backtraceOfTask(sleep));
  const order = ['__switch_to', 'schedule', 'hrtimer_nanosleep', 'el0_svc', 'el0t_64_sync']
    .map((name) => chain.indexOf(name));
  assert.ok(order[0] === 0 && order.every((at, i) => i === 0 || at > order[i - 1]!), chain.join(' '));
  for (const vcpu of image.vcpus) {
    const frames = kernel.backtraceOfVcpu(vcpu);
    if (frames !== undefined) assert.equal(frames[0]!.pc, vcpu.pc);
  }
}

async function checkVerbs({ path, log }: Dump): Promise<void> {
  const shown = await runCli(['image', 'dmesg', path]);
  assert.deepEqual([shown.status, shown.out.slice(0, log.length)], [0, log]);
  const records = JSON.parse((await runCli(['image', 'dmesg', path, '--json'])).out);
  assert.ok(records.some(({ text }: { text: string }) => text === 'a marked line'));
  const listed = (await runCli(['image', 'ps', path])).out;
  assert.match(listed, /^ +1 +0 +0 +\S+ +\d+ +1 {2}init\n +2 +0 +0 +\S+ +\d+ +1 {2}\[kthreadd\]$/m);
  const trace = await runCli(['image', 'backtrace', path, '--pid', '2']);
  assert.match(trace.out, /^process 2, kthreadd\n {2}0xffff[\da-f]{12} {2}__switch_to\+0x/);
  const all = await runCli(['image', 'backtrace', path]);
  assert.match(all.out, /^vcpu 0\n {2}/);
  const none = await runCli(['image', 'backtrace', path, '--pid', '99999']);
  assert.deepEqual([none.status, none.out], [1, '']);
  assert.match(none.err, /the guest has no process 99999/);
}

test('gdb shows each vCPU and the memory as the hypervisor had them', async (t) => {
  if (!needsTool(t, 'gdb-multiarch')) return;
  const path = join(folder, 'guest-2.core');
  await using image = await openImage(path);
  const state = decodeState(image);
  await GuestKernel.use(image, ({ info, memory }) => {
    const uts = info.symbol('init_uts_ns') + BigInt(info.offset('uts_namespace.name'));
    const physical = memory.imageAddress(uts);
    const commands = [...state.vcpus.flatMap((_, n) => [`thread ${n + 1}`, 'info registers']),
      `x/s ${uts}`, `x/s ${physical}`];
    const { stdout, stderr } = spawnSync('gdb-multiarch', ['--batch', '--nx', '-iex', 'set auto-load no',
      '-ex', `core-file ${path}`, ...commands.flatMap((command) => ['-ex', command])],
    { encoding: 'utf8', env: { ...process.env, LC_ALL: 'C' } });
    const sections = stdout.split('[Switching to thread').slice(1);
    assert.equal(sections.length, 2, stdout + stderr);
    state.vcpus.forEach(({ registers }, n) => {
      const shown = new Map([...sections[n]!.matchAll(/^(\w+) +(0x[\da-f]+)/gm)]
        .map(([, name, value]) => [name!, BigInt(value!)]));
      const record = new DataView(registers.buffer, registers.byteOffset);
      for (let r = 0; r < 31; r++) {
        const value = record.getBigUint64(vcpuRecord.at.x + 8 * r, true);
        assert.equal(shown.get(`x${r}`), value, `x${r} of vCPU ${n}\n${stdout}`);
      }
      assert.equal(shown.get('pc'), record.getBigUint64(vcpuRecord.at.pcBase, true), `pc of vCPU ${n}`);
    });
    // By the kernel's address and by the physical one.
    assert.equal(stdout.match(/:\t"Linux"$/gm)?.length, 2, stdout);
  });
});

/** Pages of which some have wrong bytes. */
function lyingPages(pages: GuestPages, random: SeededRandom, changes: number, touched: readonly number[]): GuestPages {
  const lies = new Map<number, { at: number; byte: number }[]>();
  for (let n = 0; n < changes; n++) {
    const gfn = random.pick(touched);
    const lie = { at: random.below(4096), byte: random.below(256) };
    lies.set(gfn, [...(lies.get(gfn) ?? []), lie]);
  }
  return {
    ...pages,
    read(gfn, count) {
      const bytes = pages.read(gfn, count);
      for (let k = 0; k < count; k++) for (const { at, byte } of lies.get(gfn + k) ?? []) bytes[k * 4096 + at] = byte;
      return bytes;
    },
  };
}

/** Keeps what was read, and tells which pages those were. */
function rememberedPages(pages: GuestPages): { pages: GuestPages; touched: number[] } {
  const known = new Map<number, Uint8Array>();
  const touched: number[] = [];
  const read = (gfn: number, count: number): Uint8Array => {
    const before = known.get(gfn);
    if (before?.length === count * 4096) return before.slice();
    const bytes = pages.read(gfn, count);
    known.set(gfn, bytes);
    touched.push(...Array.from({ length: count }, (_, k) => gfn + k));
    return bytes.slice();
  };
  return { pages: { ...pages, read }, touched };
}

test('dumps of guests that lie are read or refused', { timeout: TEST_PATIENCE_MILLIS }, async () => {
  const random = new SeededRandom(SEED);
  await using image = await openImage(join(folder, 'guest-2.core'));
  const works: Record<string, { runs: number; work: (kernel: GuestKernel) => unknown }> = {
    log: { runs: 300, work: (kernel) => formatLog(kernel.log()) },
    symbols: { runs: 100, work: (kernel) => image.vcpus.map((vcpu) => kernel.backtraceOfVcpu(vcpu)) },
    processes: { runs: 30, work: (kernel) => kernel.processes().map((one) => kernel.backtraceOfTask(one)) },
  };
  await Scratch.use(async (scratch) => {
    for (const [name, { runs, work }] of Object.entries(works)) {
      const { pages, touched } = rememberedPages(imagePages(image, scratch));
      work(new GuestKernel(pages, image.vmcoreinfo));
      const outcomes = { read: 0, refused: 0 };
      for (let run = 0; run < runs; run++) {
        const isNote = run % 2 === 0;
        const note = isNote ? lyingNote(image.vmcoreinfo!, random) : image.vmcoreinfo;
        const lying = isNote ? pages : lyingPages(pages, random, 2 ** random.below(12), touched);
        try {
          work(new GuestKernel(lying, note));
          outcomes.read++;
        } catch (error) {
          assert(error instanceof ZazenError && error.code === 'ZAZEN_GUEST_KERNEL',
            `seed ${SEED}, ${name}, run ${run}: ${(error as Error).stack}`);
          outcomes.refused++;
        }
      }
      assert(outcomes.read > 0 && outcomes.refused > 0, `${name}: ${JSON.stringify(outcomes)}`);
    }
  });
});

/** Some of its values have other digits, more of them, or are gone. */
function lyingNote(note: Uint8Array, random: SeededRandom): Uint8Array {
  const lines = new TextDecoder().decode(note).split('\n');
  for (let n = 1 + random.below(8); n > 0; n--) {
    const at = random.below(lines.length);
    const [key, value = ''] = lines[at]!.split('=');
    const digit = random.below(value.length + 1);
    const changed = value.slice(0, digit) + '0189f'[random.below(5)]! + value.slice(digit + random.below(2));
    lines[at] = random.below(8) === 0 ? '' : `${key}=${changed}`;
  }
  return new TextEncoder().encode(lines.join('\n'));
}
